"""A GGUF model with an mmproj file: loading, and questions about images on both backends and at the terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Literal

import pytest

from brise.backends.vulkan.backend import VulkanBackend
from brise.cli.main import main
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, load
from brise.engine.request import Request, Sampling
from brise.errors import DeviceLostError
from brise.text import images
from tests.backends.under_test import load_on
from tests.backends.vulkan.driver import require_driver
from tests.checkpoint.make_vision_model import picture, write_seeing
from tests.engine.stub import answer, tokens_of

pytest.importorskip("PIL.Image")
pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_seeing(tmp_path_factory.mktemp("seeing"))


def continued(path: Path, backend: Literal["native", "reference", "vulkan"], seed: int,
              max_step_tokens: int) -> list[int]:
    """What the model says to an image, greedily."""
    return answered(load_on(backend, path), seed, max_step_tokens)


def answered(model: LoadedModel, seed: int, max_step_tokens: int) -> list[int]:
    assert model.vision is not None and model.vision.break_row is not None
    image = images.prepare(picture(seed), model.vision.settings, "image")
    engine = Engine(model, EngineSettings(num_pages=32, max_step_tokens=max_step_tokens))
    prompt = (*model.tokenizer.encode("the"), *image.tokens, *model.tokenizer.encode("and"))
    return tokens_of(answer(engine, Request(prompt, 12, Sampling(temperature=0), ignore_eos=True, images=(image,))))


def test_backends_agree_on_what_they_see(model_path: Path) -> None:
    expected = continued(model_path, "reference", 0, 512)
    assert continued(model_path, "native", 0, 512) == expected == continued(model_path, "native", 0, 3)
    assert continued(model_path, "native", 1, 512) != expected


def test_a_gpu_sees_what_the_cpu_does(model_path: Path) -> None:
    require_driver()
    expected = continued(model_path, "native", 0, 512)
    assert continued(model_path, "vulkan", 0, 512) == expected == continued(model_path, "vulkan", 0, 3)


@pytest.mark.parametrize("encodes_on_host", [False, True])
def test_a_split_model_sees_wherever_its_images_are_encoded(model_path: Path, encodes_on_host: bool) -> None:
    require_driver()
    model = load(model_path, threads=1, device="vulkan", gpu_layers=1, encodes_on_host=encodes_on_host)
    assert answered(model, 0, 512) == continued(model_path, "native", 0, 512)


def test_a_gpu_that_is_lost_while_it_sees_ends_the_step_and_not_one_request(model_path: Path) -> None:
    require_driver()
    model = load_on("vulkan", model_path)
    assert model.vision is not None and isinstance(model.backend, VulkanBackend)
    image = images.prepare(picture(0), model.vision.settings, "image")
    engine = Engine(model, EngineSettings(num_pages=32))
    engine.accept(engine.prepare(Request(image.tokens, 4, Sampling(temperature=0), images=(image,))))
    model.backend.handle.lose()
    with pytest.raises(DeviceLostError):
        while engine.has_work:
            engine.step()
    assert engine.stats().failures == 0


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
