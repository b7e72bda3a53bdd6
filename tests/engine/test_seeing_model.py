"""A GGUF model with an mmproj file beside it: loaded, asked about images, on both backends and in the terminal."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from brise.cli.main import main
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import load
from brise.engine.request import Request, Sampling
from brise.models.weights import Dense
from brise.text import images
from tests.checkpoint import make_gguf
from tests.checkpoint.make_gguf_vision import write_mmproj
from tests.engine.stub import answer, tokens_of
from tests.goldens.vision import read_vision

PILImage = pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")
WIDTH = make_gguf.sizes("mistral3").width


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seeing")
    golden = read_vision()
    rng = np.random.default_rng(5)

    def draw(*shape: int) -> Dense:
        return Dense("F32", shape, rng.normal(0, 0.2, shape).astype(np.float32))

    wide = replace(golden, config=replace(golden.config, text_width=WIDTH),
                   weights=replace(golden.weights, w_in=draw(WIDTH, 64), w_out=draw(WIDTH, WIDTH)),
                   text=replace(golden.text, weights=replace(golden.text.weights, tok_embeddings=draw(97, WIDTH))))
    write_mmproj(folder / "mmproj-tiny.gguf", wide)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_gguf, "CONTROL", (*make_gguf.CONTROL, "[IMG]", "[IMG_BREAK]", "[IMG_END]"))
        make_gguf.write_tiny(folder / "tiny.gguf", "mistral3", vocab=make_gguf.VOCAB_SIZE + 3)
    return folder / "tiny.gguf"


def picture(seed: int = 0) -> bytes:
    numbers = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    out = io.BytesIO()
    PILImage.fromarray(numbers).save(out, "PNG")
    return out.getvalue()


def continued(path: Path, backend: Literal["native", "reference"], seed: int, max_step_tokens: int) -> list[int]:
    """What the model says to an image, greedily."""
    model = load(path, backend=backend, threads=1)
    assert model.vision is not None and model.vision.break_row is not None
    image = images.prepare(picture(seed), model.vision.settings, "image")
    engine = Engine(model, EngineSettings(num_pages=32, max_step_tokens=max_step_tokens))
    prompt = (*model.tokenizer.encode("the"), *image.tokens, *model.tokenizer.encode("and"))
    return tokens_of(answer(engine, Request(prompt, 12, Sampling(temperature=0), ignore_eos=True, images=(image,))))


def test_backends_agree_on_what_they_see(model_path: Path) -> None:
    expected = continued(model_path, "reference", 0, 512)
    assert continued(model_path, "native", 0, 512) == expected == continued(model_path, "native", 0, 3)
    assert continued(model_path, "native", 1, 512) != expected


def test_chat_shows_an_image(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                             monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    said = []
    for seed in (0, 1):
        (tmp_path / "image.png").write_bytes(picture(seed))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        words = ["chat", str(model_path), "--image", str(tmp_path / "image.png"), "what is it", "--max-tokens", "12",
                 "--temperature", "0"]
        assert main(words) == 0
        said.append(capsys.readouterr().out)
    assert said[0] != said[1]


def test_chat_names_an_image_that_is_none(model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    (tmp_path / "image.png").write_bytes(b"no image")
    assert main(["chat", str(model_path), "--image", str(tmp_path / "image.png"), "hi"]) == 1
    assert "no image of a format that is read" in capsys.readouterr().err
