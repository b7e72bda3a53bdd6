"""A model with an audio encoder: the same answers on both backends, in any company, in chat and from Python."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import brise
from brise.cli.main import main
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, load
from brise.engine.request import Delta, Request, Sampling
from brise.errors import RequestError
from brise.text import audio
from brise.text.inputs import AudioInput
from tests.checkpoint.make_audio_model import speech, write_hearing
from tests.engine.stub import answer, run_all, tokens_of


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hearing(tmp_path_factory.mktemp("hearing") / "model")


@pytest.fixture(scope="module")
def model(path: Path) -> LoadedModel:
    return load(path, threads=1)


def heard(model: LoadedModel, seconds: float = 0.7, seed: int = 0) -> AudioInput:
    assert model.audio is not None
    return audio.prepare(speech(seconds, seed), model.audio.settings, "audio")


def asking(model: LoadedModel, *audios: AudioInput, max_tokens: int = 8) -> Request:
    """A text, and audio between its words."""
    words = model.tokenizer.encode("the")
    prompt = (*words, *(token for each in audios for token in (*each.tokens, *words)))
    return Request(prompt, max_tokens, Sampling(temperature=0), ignore_eos=True, audios=audios, logprobs=0)


def engine(model: LoadedModel, **options: int | bool) -> Engine:
    return Engine(model, EngineSettings(**{"num_pages": 64, **options}))  # type: ignore[arg-type]


def logprobs(deltas: Sequence[Delta]) -> list[float]:
    return [each.logprob for delta in deltas for each in delta.logprobs]


def continued(path: Path, backend: Literal["native", "reference"], seed: int, max_step_tokens: int) -> list[int]:
    loaded = load(path, backend=backend, threads=1)
    asked = asking(loaded, heard(loaded, seed=seed), max_tokens=12)
    return tokens_of(answer(engine(loaded, max_step_tokens=max_step_tokens), asked))


def test_backends_agree_on_what_they_hear(path: Path) -> None:
    expected = continued(path, "reference", 0, 512)
    assert continued(path, "native", 0, 512) == expected == continued(path, "native", 0, 3)
    assert continued(path, "native", 1, 512) != expected


def test_company_changes_no_bit(model: LoadedModel) -> None:
    requests = [asking(model, heard(model, 0.7, 0), heard(model, 0.2, 1)), asking(model, heard(model, 1.3, 2)),
                asking(model), asking(model, heard(model, 0.7, 0))]
    alone = [logprobs(answer(engine(model, prefix_cache=False), request)) for request in requests]
    for steps in (512, 7):
        together = engine(model, max_step_tokens=steps)
        ids = [together.submit(request) for request in requests]
        deltas = run_all(together)
        for request_id, expected in zip(ids, alone, strict=True):
            assert logprobs(deltas[request_id, 0]) == expected
        # chunks of 0.32 s: 3, 1 and 5; the audio that two of them have is encoded once
        assert together.stats().audio_chunks == 9 and together.stats().images == 0


def test_an_audio_that_was_heard_is_not_encoded_again(model: LoadedModel) -> None:
    running, one = engine(model), heard(model)
    first = answer(running, asking(model, one))
    again = answer(running, asking(model, one))
    assert logprobs(again) == logprobs(first) and again[-1].cached_tokens >= 16
    without_pages = engine(model, prefix_cache=False)
    for _ in range(2):
        assert logprobs(answer(without_pages, asking(model, one))) == logprobs(first)
    assert running.stats().audio_chunks == without_pages.stats().audio_chunks == 3


def test_other_samples_in_one_chunk_are_another_prompt(model: LoadedModel) -> None:
    running = engine(model)
    said = [tokens_of(answer(running, asking(model, heard(model, seed=seed)))) for seed in (0, 1)]
    assert said[0] != said[1] and running.stats().audio_chunks == 6


def test_only_the_features_of_one_chunk_are_kept_without_room(model: LoadedModel) -> None:
    running = engine(model, feature_bytes=0)
    expected = tokens_of(answer(engine(model), asking(model, heard(model, 3.0))))
    assert tokens_of(answer(running, asking(model, heard(model, 3.0)))) == expected


def test_audio_that_fails_ends_its_own_request_only(model: LoadedModel) -> None:
    def broken() -> None:
        raise ValueError("the disk is gone")

    bad = heard(model, 0.2, 5)
    bad = replace(bad, chunks=(replace(bad.chunks[0], mels=broken),))
    running = engine(model)
    failing, good = (running.submit(asking(model, each)) for each in (bad, heard(model)))
    deltas = run_all(running)
    end = deltas[failing, 0][-1]
    assert end.finish == "error" and "the disk is gone" in (end.error or "")
    assert deltas[good, 0][-1].finish == "length"


def test_tokens_and_audio_must_agree(model: LoadedModel) -> None:
    request, running = asking(model, heard(model)), engine(model)
    with pytest.raises(RequestError, match="more audio tokens than its 0 chunks"):
        running.submit(replace(request, audios=(replace(request.audios[0], chunks=()),)))
    with pytest.raises(RequestError, match="the tokens of audio 0 are not in the prompt"):
        running.submit(replace(request, prompt=request.prompt[:3]))


def test_features_are_those_of_a_chunk_alone(model: LoadedModel) -> None:
    assert model.audio is not None
    one, other = heard(model).chunks[:2]
    first = model.audio.encode(one.mels())
    assert not np.array_equal(first, model.audio.encode(other.mels()))
    assert np.array_equal(first, model.audio.encode(one.mels()))


def test_chat_hears_a_file(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    said = []
    for seed in (0, 1):
        (tmp_path / "speech.wav").write_bytes(speech(0.5, seed))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        assert main(["chat", str(path), "--audio", str(tmp_path / "speech.wav"), "what is said", "--max-tokens", "12",
                     "--temperature", "0"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] != said[1]


@pytest.mark.parametrize(("file", "message"), [
    (b"ID3\x04", "is MP3; read is WAV"), (None, "cannot be read: No such file or directory")])
def test_chat_names_what_it_cannot_hear(path: Path, tmp_path: Path, file: bytes | None, message: str,
                                        capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    if file is not None:
        (tmp_path / "a.mp3").write_bytes(file)
    assert main(["chat", str(path), "--audio", str(tmp_path / "a.mp3"), "hi"]) != 0
    assert message in capsys.readouterr().err


def test_python_hears_paths_and_bytes(path: Path, tmp_path: Path) -> None:
    (tmp_path / "speech.wav").write_bytes(speech(0.5))
    with brise.load(path, threads=1) as opened:
        answers = [opened.chat("what is said", audio=[sound], max_tokens=8, temperature=0).text
                   for sound in (tmp_path / "speech.wav", speech(0.5), speech(0.5, 1))]
        assert answers[0] == answers[1] != answers[2]
        with pytest.raises(RequestError, match=r"audio\[0\] is empty"):
            opened.chat("what", audio=[b""])
        with pytest.raises(RequestError, match="audio is one bytes; a list is wanted"):
            opened.chat("what", audio=speech(0.1))  # type: ignore[typeddict-item]
