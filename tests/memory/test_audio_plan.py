"""The plan counts an audio encoder: its weights to the byte, its work space, and the features that are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise.backends.native.backend import NativeBackend
from brise.engine import audio
from brise.memory import serving_plan
from brise.memory.model_header import read_header
from brise.memory.serving_plan import MemoryRequest
from brise.models import whisper
from brise.models.weights import Weight, place
from brise.models.whisper import AudioConfig
from brise.text.audio import AudioSettings, work_bytes
from tests.checkpoint.make_audio_model import write_hearing

FULL = AudioConfig(1280, 32, 20, 5120, 128, 1500, 4, 1e-5, 3072, 24, 25)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hearing(tmp_path_factory.mktemp("hearing") / "model")


@pytest.mark.parametrize("weights", [None, "Q4_0"])
def test_the_parts_are_what_is_placed(path: Path, weights: str | None) -> None:
    backend = NativeBackend(1)
    header = read_header(path, "m", weights)
    plan = serving_plan.make(header, MemoryRequest(context=64), backend)
    assert header.audio is not None
    placed: dict[str, int] = {"audio": 0, "projector": 0}

    def put(name: str, weight: Weight) -> Weight:
        made = backend.place(name, weight)
        placed["projector" if name in ("w_in", "w_out") else "audio"] += backend.nbytes(made).host
        return made

    place(header.audio[1], put)
    assert {part.name: part.nbytes for part in plan.parts if part.name in placed} == placed
    formats = next(part.formats for part in plan.parts if part.name == "audio")
    assert set(formats) == ({"F32"} if weights is None else {"F32", "Q8_0"})  # positions are added, and stay


def test_work_space_and_features_are_part_of_the_peak(path: Path) -> None:
    backend, header = NativeBackend(1), read_header(path, "m")
    assert header.audio is not None
    config = header.audio[0]
    served, chat = (serving_plan.make(header, MemoryRequest(context=64, serves=serves), backend)
                    for serves in (True, False))
    features = 4 * config.chunk_tokens * config.text_width
    settings = audio.audio_settings(config)
    assert served.audio_bytes == whisper.work_bytes(config) + work_bytes(settings) + 3 * features
    assert chat.audio_bytes == max(whisper.work_bytes(config), work_bytes(settings)) + 3 * features
    assert served.feature_bytes == 2 * features
    assert served.running_bytes == (served.cache_bytes + served.work_bytes + served.audio_bytes
                                    + served.answers_bytes)
    least = served.total_bytes
    assert serving_plan.make(header, MemoryRequest(limit=least, context=64), backend).fits
    assert not serving_plan.make(header, MemoryRequest(limit=least - 1, context=64), backend).fits


def test_the_full_encoder_takes_what_was_measured() -> None:
    """bench/audio.py: 55.2 MB beside the weights for a chunk of 30 seconds, on native."""
    assert whisper.work_bytes(FULL) == pytest.approx(55.2e6, rel=0.02)
    assert audio.feature_bytes(FULL) == 375 * 3072 * 4
    assert work_bytes(AudioSettings(128, 3000, 375, 24, 25)) < 45e6
