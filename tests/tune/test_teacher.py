"""What is recorded of a teacher, where it is kept, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brise.checkpoint.open import open_checkpoint
from brise.data.example import EncodedRow
from brise.data.prepare import DataOptions, Dataset, prepare
from brise.errors import CheckpointError, EvidenceError, UnsupportedError
from brise.models.weights import Array
from brise.text.load import Tokens, tokens_for
from brise.tune.distill import open_teacher, teacher
from brise.tune.distill.teacher import Recording
from brise.tune.packing import pack

from .parity_models import Tiny, tiny


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny(tmp_path_factory.mktemp("teacher"))


def dense(model: Tiny, temperature: float = 1.0) -> list[Array]:
    """All log-probabilities of each row's targets, by torch."""
    side = model.trained()
    logits = [side.logits(side.hidden(pack([row], shares=False).batch)) for row in model.rows]
    return [torch.from_numpy(one / temperature).double().log_softmax(1).numpy() for one in logits]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_likeliest_tokens_of_every_target_are_recorded(model: Tiny, temperature: float) -> None:
    recording = Recording(model.config.vocab_size, 7, temperature)
    for found, expected in zip(teacher.record(model.native(), model.rows, recording), dense(model, temperature),
                               strict=True):
        own = np.take_along_axis(expected, found.tokens.astype(np.int64), 1)
        assert found.tokens.dtype == np.int32 and found.logprobs.dtype == np.float32
        np.testing.assert_allclose(found.logprobs, own, atol=0.02)  # F32 weights, but keys in 16 bits
        np.testing.assert_allclose(own, -np.sort(-expected, axis=1)[:, :7], atol=0.02)
        assert (np.diff(found.logprobs, axis=1) <= 0).all()


def test_the_whole_vocabulary_sums_to_one(model: Tiny) -> None:
    for found in teacher.record(model.reference(), model.rows, Recording(model.config.vocab_size, 288)):
        np.testing.assert_allclose(np.exp(found.logprobs.astype(np.float64)).sum(axis=1), 1, atol=1e-5)


def test_tokens_that_the_student_lacks_take_no_part(model: Tiny) -> None:
    for found in teacher.record(model.reference(), model.rows, Recording(100, 100)):
        assert found.tokens.max() < 100
        np.testing.assert_allclose(np.exp(found.logprobs).sum(axis=1), 1, atol=1e-5)


def test_what_was_recorded_is_found_again(model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "SHARD_ROWS", 3)
    recording, done = Recording(model.config.vocab_size, 5), []
    first = teacher.recorded(model.reference(), model.rows, recording, tmp_path, "digest", done.append)
    assert done == [3, 3, 2] and len(list(tmp_path.iterdir())) == 3
    sorted(tmp_path.iterdir())[0].unlink()  # as if it had been killed there
    asked: list[int] = []
    real = teacher.record
    monkeypatch.setattr(teacher, "record", lambda side, rows, own: asked.append(len(rows)) or real(side, rows, own))
    again = teacher.recorded(model.reference(), model.rows, recording, tmp_path, "digest")
    assert len(asked) == 1
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.tokens, other.tokens) and np.array_equal(one.logprobs, other.logprobs)


def test_another_large_model_or_recording_is_recorded_anew(model: Tiny, tmp_path: Path) -> None:
    rows = model.rows[:2]
    for digest, k, temperature in (("a", 5, 1.0), ("b", 5, 1.0), ("a", 6, 1.0), ("a", 5, 2.0)):
        teacher.recorded(model.reference(), rows, Recording(model.config.vocab_size, k, temperature), tmp_path, digest)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_recording_is_refused(model: Tiny, tmp_path: Path) -> None:
    recording = Recording(model.config.vocab_size, 5)
    teacher.recorded(model.reference(), model.rows[:2], recording, tmp_path, "digest")
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[-4:] = b"\x00\x00\x80\x7f"  # a log-probability of infinity
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        teacher.recorded(model.reference(), model.rows[:2], recording, tmp_path, "digest")


def test_what_cannot_be_recorded_is_refused(model: Tiny) -> None:
    side, recording = model.reference(), Recording(model.config.vocab_size)
    with pytest.raises(UnsupportedError, match="allowed are 1 to 288"):
        Recording(288, 0)
    long = replace(model.rows[0], tokens=np.zeros(600, np.int32), is_target=np.ones(600, bool))
    with pytest.raises(UnsupportedError, match="has 600 tokens, the teacher's context holds 512"):
        list(teacher.record(side, [long], recording))


def test_tokenizers_must_be_the_same(model: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = model.tokens.tokenizer, tiny(tmp_path).tokens.tokenizer
    assert teacher.shared_tokens(own, other) == 288
    real = other.token_bytes
    monkeypatch.setattr(other, "token_bytes", lambda token, **shown: b"x" if token == 9 else real(token, **shown))
    with pytest.raises(UnsupportedError, match="token 9 is .* for the student"):
        teacher.shared_tokens(own, other)
    monkeypatch.setattr(other, "vocab_size", 7)
    with pytest.raises(UnsupportedError, match="the student has 288 tokens and the teacher 7"):
        teacher.shared_tokens(own, other)


def conversations(folder: Path, system: str) -> Path:
    """The tiny conversations with a long system prompt, as a file."""
    path = folder / "data.jsonl"
    topics = ("rain", "tea", "the sea", "trains")
    lines = [json.dumps({"messages": [
        {"role": "system", "content": system}, {"role": "user", "content": f"On {topic}."},
        {"role": "assistant", "content": f"There is {topic}."}]}) for topic in topics]
    path.write_text("\n".join(lines) + "\n")
    return path


def both_rows(folder: Path, tokens: Tokens) -> tuple[Dataset, tuple[EncodedRow, ...], tuple[EncodedRow, ...]]:
    """The data without its system prompt, its rows, and the teacher's rows with it."""
    path = conversations(folder, "Answer in one sentence, and be kind to whoever asks. " * 8)
    options = DataOptions(absorb_system=True, held_out_share=0.25)
    dataset = prepare([path], tokens, options)
    return dataset, (*dataset.train, *dataset.held_out), open_teacher.teacher_rows([path], tokens, options)


def test_absorbed_prompts_are_aligned_answer_by_answer(model: Tiny, tmp_path: Path) -> None:
    dataset, students, teachers = both_rows(tmp_path, model.tokens)
    assert dataset.report.saved is not None and dataset.report.saved.share > 0.5
    for row, other in zip(students, open_teacher.aligned(students, teachers), strict=True):
        assert row.place == other.place and len(other.tokens) > len(row.tokens) + 100
        assert np.array_equal(row.tokens[row.is_target], other.tokens[other.is_target])
    taught = teacher.taught(students, list(teacher.record(
        model.reference(), open_teacher.aligned(students, teachers), Recording(288, 4))))
    assert all(row.teacher is not None and len(row.teacher.tokens) == row.num_targets for row in taught)


def test_absorbing_on_the_real_chat_format(smollm2_path: Path, tmp_path: Path) -> None:
    _, students, teachers = both_rows(tmp_path, tokens_for(open_checkpoint(smollm2_path)))
    for row, other in zip(students, open_teacher.aligned(students, teachers), strict=True):
        assert np.array_equal(row.tokens[row.is_target], other.tokens[other.is_target])


def test_rows_that_do_not_match_are_named(model: Tiny) -> None:
    row = model.rows[0]
    with pytest.raises(EvidenceError, match="data.jsonl:1 makes 1 rows for the student and 0"):
        open_teacher.aligned([row], [])
    other = replace(row, tokens=np.roll(row.tokens, 1))
    with pytest.raises(EvidenceError, match="other answer tokens"):
        open_teacher.aligned([row], [other])
