"""Rows with images: the features that their tokens take, the loss and gradient of such rows, and a run with them."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from brise.backends.native.backend import NativeBackend
from brise.backends.reference.ops import ReferenceOps, numbers
from brise.backends.torch import weights as torch_weights
from brise.checkpoint.adapters.peft import read_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.data.example import EncodedRow
from brise.engine import vision
from brise.engine.vision import LoadedVision
from brise.errors import UnsupportedError
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.weights import Array, Dense, Weights, place
from brise.text import images as text_images
from brise.tune import adapters
from brise.tune.packing import pack
from brise.tune.recipe import Recipe
from brise.tune.row_images import RowImages, feature_bytes
from brise.tune.train import ComputeOptions, Trainer
from tests.checkpoint.make_vision_model import picture, write_seeing
from tests.engine.stub_vision import BREAK, IMAGE, stub_image, stub_vision

pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")

# Both in float32, the reference in another order: the loss of a token, as in tests/models/test_goldens.py.
LOSS = 1e-5


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing(tmp_path_factory.mktemp("seeing"))


def row_of(*parts: int | text_images.ImageInput, place: str = "a:1") -> EncodedRow:
    """Tokens and images in this order; the last two tokens are learned."""
    tokens = np.array([token for part in parts for token in (part.tokens if not isinstance(part, int) else (part,))],
                      np.int32)
    return EncodedRow(tokens, np.arange(len(tokens)) >= len(tokens) - 2, place,
                      tuple(part for part in parts if not isinstance(part, int)))


def test_each_image_token_takes_its_feature_and_breaks_the_row_of_the_tower() -> None:
    tower = stub_vision()
    one, two = stub_image(2, 2, seed=0), stub_image(1, 3, seed=1)
    row = row_of(1, one, 5, two, two, 6, 7)
    features, indices = RowImages(tower, 1 << 20)(row)
    assert tower.break_row is not None
    expected: dict[int, Array] = {}
    for image, start in ((one, 1), (two, 2 + len(one.tokens)), (two, 2 + len(one.tokens) + len(two.tokens))):
        (encoded,) = tower.encode([image.pixels()])
        seen = iter(encoded)
        for offset, token in enumerate(image.tokens):
            if token == IMAGE:
                expected[start + offset] = next(seen)
            elif token == BREAK:
                expected[start + offset] = tower.break_row
    assert {int(index) for index in np.flatnonzero(indices >= 0)} == expected.keys()
    for place_, feature in expected.items():
        np.testing.assert_array_equal(features[indices[place_]], feature)


def test_an_image_is_encoded_once_while_there_is_room() -> None:
    one, two = stub_image(2, 2, seed=0), stub_image(2, 2, seed=1)
    size = feature_bytes([row_of(one, 1, 2)], IMAGE, stub_vision().config.text_width)
    assert size == feature_bytes([row_of(one, one, 1, 2)], IMAGE, stub_vision().config.text_width) > 0
    for capacity, encoded in ((2 * size, 2), (size, 4), (0, 4)):
        of_rows = RowImages(stub_vision(), capacity)
        found = [of_rows(row_of(image, 1, 2))[0] for image in (one, two, one, two)]
        assert of_rows.num_encoded == encoded
        np.testing.assert_array_equal(found[0], found[2])


def test_a_row_without_images_takes_none() -> None:
    features, indices = RowImages(stub_vision(), 0)(row_of(1, 2, 3))
    assert len(features) == 0 and (indices == -1).all()


def test_an_image_whose_tokens_are_not_in_the_row_is_refused_by_place() -> None:
    row = row_of(1, 2, 3)
    with pytest.raises(UnsupportedError, match="a:1"):
        RowImages(stub_vision(), 0)(EncodedRow(row.tokens, row.is_target, row.place, (stub_image(1, 2),)))


def trainer_of(path: Path, rows: list[EncodedRow], tower: LoadedVision) -> Trainer:
    checkpoint = open_checkpoint(path)
    weights = place(checkpoint.weights(), lambda name, weight: torch_weights.place(
        name, weight, torch.device("cpu"), torch.float32))
    recipe = Recipe(rank=4, learning_rate=0.01, batch_size=len(rows))
    return Trainer(checkpoint.config, adapters.new(weights, recipe), recipe,
                   ComputeOptions(features_of=RowImages(tower, 1 << 20)), rows, rows)


def tower_of(path: Path) -> LoadedVision:
    sizes = open_checkpoint(path).vision
    assert sizes is not None
    return vision.open_vision(*sizes, NativeBackend(1))


def rows_of(tower: LoadedVision) -> list[EncodedRow]:
    one, two = (text_images.prepare(picture(seed), tower.settings, "image") for seed in (0, 1))
    return [row_of(3, one, 4, 5, 6, place="a:1"), row_of(3, 7, two, one, 8, 9, place="a:2"),
            row_of(3, 4, 5, 6, 7, place="a:3")]


def reference_loss(path: Path, row: EncodedRow, tower: LoadedVision) -> float:
    """Of a row by itself, through the specification of the ops."""
    checkpoint = open_checkpoint(path)
    tree: Weights = place(checkpoint.weights(), lambda name, weight: Dense(
        "F32", weight.shape, numbers(weight, np.float32)))
    features, indices = RowImages(tower, 0)(row)
    places = np.flatnonzero(row.is_target) - 1
    batch = Batch(row.tokens, np.arange(len(row.tokens), dtype=np.int32),
                  np.array([0, len(row.tokens)], np.int32), places, features=features if len(features) else None,
                  feature_rows=indices if len(features) else None)
    logits = np.asarray(decoder.forward(ReferenceOps(), checkpoint.config, tree, batch), np.float64)
    top = logits.max(1)
    sums = top + np.log(np.exp(logits - top[:, None]).sum(1))
    return float((sums - logits[np.arange(len(places)), row.tokens[places + 1]]).sum())


def test_the_loss_of_rows_with_images_is_that_of_the_reference(seeing: Path) -> None:
    tower = tower_of(seeing)
    rows = rows_of(tower)
    expected = sum(reference_loss(seeing, row, tower) for row in rows) / 6
    assert trainer_of(seeing, rows, tower).evaluate() == pytest.approx(expected, rel=LOSS)
    swapped = [EncodedRow(row.tokens, row.is_target, row.place, row.images[::-1]) for row in rows]
    assert abs(trainer_of(seeing, swapped, tower).evaluate() - expected) > 100 * LOSS * expected


def test_gradients_of_rows_with_images_are_those_of_differences(seeing: Path) -> None:
    """Along the gradient of all adapters together, in float32: a step of 1e-2 changes the loss by 4 digits' worth."""
    tower = tower_of(seeing)
    trainer = trainer_of(seeing, rows_of(tower), tower)
    parameters = list(trainer.trained.parameters.values())
    packed = pack(trainer.rows, features_of=trainer.compute.features_of)

    def loss() -> torch.Tensor:
        return trainer._loss(trainer._ops(trains=True), packed)

    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(parameter)))
    loss().backward()  # type: ignore[no-untyped-call]
    grads = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    assert len(grads) == len(parameters)
    norm = float(torch.sqrt(sum((grad**2).sum() for grad in grads)))
    assert norm > 0
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter += sign * 1e-2 * grad / norm
            values.append(float(loss()))
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(norm, rel=1e-2)


def test_a_run_with_images_ends_in_an_adapter_that_is_proved(
        seeing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    (tmp_path / "picture.png").write_bytes(picture(0))
    url = "data:image/png;base64," + base64.b64encode(picture(1)).decode()
    lines = []
    for number in range(20):
        image = {"type": "image_url", "image_url": {"url": url if number % 2 else "picture.png"}}
        content = [{"type": "text", "text": f"what is it {number}"}, *([image] if number % 5 else [])]
        lines.append({"messages": [{"role": "user", "content": content},
                                   {"role": "assistant", "content": "a b" if number % 2 else "c d"}]})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [str(tmp_path / "data.jsonl"), "--threads", "1"]
    out = tmp_path / "run"
    assert main(["tune", *words, "--model", str(seeing), "--out", str(out), "--steps", "4", "--batch-size", "4",
                 "--rank", "4", "--dtype", "float32", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    plan = next(event for event in events if event["event"] == "plan")
    assert "images" in [part["name"] for part in plan["parts"]]
    assert events[-1]["parity"]["passed"] and events[-1]["parity"]["num_templates"] > 0
    assert read_adapter(out / "adapter", open_checkpoint(seeing).config).rank == 4
    assert main(["parity", str(seeing), "--adapter", str(out / "adapter"), "--data", *words, "--json"]) == 0
