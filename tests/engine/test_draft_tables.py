"""A table of n-grams in an adapter's folder drafts its answers, which stay the same."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.data.count_ngrams import CountedRow, NgramOptions, count_ngrams
from brise.data.example import EncodedRow
from brise.data.ngrams import FILE, SEALED, NgramTable, read_table
from brise.engine.adapters import Adapters
from brise.engine.drafts import OpenTable
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, load
from brise.engine.request import Request, Sampling
from brise.engine.speculation import DraftCounts
from tests.checkpoint.make_adapter import random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.engine.stub import run_all

PROMPT = tuple(range(5, 25))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama")


@pytest.fixture(scope="module")
def model(tiny: Path) -> LoadedModel:
    return load(tiny, threads=1)


@pytest.fixture(scope="module")
def written(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = open_checkpoint(tiny).config
    folder = tmp_path_factory.mktemp("adapters") / "one"
    write_adapter(folder, AdapterFile(random_low_ranks(config, 1), 3, 6.0), None, config)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """An adapter that may be changed."""
    return Path(shutil.copytree(written, tmp_path / "one"))


def engine_of(model: LoadedModel, max_draft: int = 4, **settings: Any) -> Engine:
    return Engine(model, EngineSettings(max_context=256, num_pages=64, max_adapters=2, max_rank=16,
                                        max_draft=max_draft, **settings))


def adapters(engine: Engine) -> Adapters:
    assert engine.adapters is not None
    return engine.adapters


def answered(engine: Engine, adapter: str | None) -> list[int]:
    request = Request(PROMPT, max_tokens=24, sampling=Sampling(temperature=0.0), ignore_eos=True, adapter=adapter)
    id = engine.submit(request)
    return [token for delta in run_all(engine)[id, 0] for token in delta.tokens]


def table_of(model: LoadedModel, answer: list[int]) -> bytes:
    tokens = np.array([*PROMPT, *answer], np.int32)
    row = EncodedRow(tokens, np.arange(len(tokens)) >= len(PROMPT), "here")
    return count_ngrams([CountedRow(row, owner) for owner in "ab"], model.tokenizer, "rows", NgramOptions())


def drafted(engine: Engine) -> DraftCounts:
    return engine.stats().drafts.get(NgramTable.name, DraftCounts())


def test_the_table_in_an_adapters_folder_drafts_its_answers(model: LoadedModel, folder: Path) -> None:
    plain = engine_of(model)
    assert adapters(plain).add("one", folder).drafts == ""
    answer = answered(plain, "one")
    (folder / FILE).write_bytes(table_of(model, answer))
    engine = engine_of(model)
    assert adapters(engine).add("one", folder).drafts == f"drafts from {FILE}"
    assert answered(engine, "one") == answer
    assert drafted(engine).accepted >= 10
    assert [info.drafts for info in adapters(engine).list()] == [f"drafts from {FILE}"]
    adapters(engine).remove("one")
    assert engine.drafts.of("one") == ()


def test_a_table_drafts_answers_without_an_adapter(model: LoadedModel, tmp_path: Path) -> None:
    answer = answered(engine_of(model), None)
    (tmp_path / FILE).write_bytes(table_of(model, answer))
    engine = engine_of(model)
    assert engine.draft_from(tmp_path / FILE) == f"drafts from {FILE}"
    assert answered(engine, None) == answer
    assert drafted(engine).accepted >= 10
    assert engine_of(model, max_draft=0).draft_from(tmp_path / FILE) == "", "nothing is read where nothing is drafted"


@pytest.mark.parametrize(("content", "note"), [
    (b"", "the file is empty"), (b"brise-ngrams\0\0\0\1" + b"x" * 20, "header_bytes"),
    (SEALED + b"0" * 80, "the table is sealed")])
def test_a_table_that_cannot_be_used_is_left_out_and_said_so(content: bytes, note: str, model: LoadedModel,
                                                             folder: Path) -> None:
    (folder / FILE).write_bytes(content)
    engine = engine_of(model)
    said = adapters(engine).add("one", folder).drafts
    assert said.startswith(f"no drafts: {FILE}: ") and note in said
    assert len(answered(engine, "one")) == 24 and not drafted(engine).drafted


def test_a_table_of_another_tokenizer_is_left_out(model: LoadedModel, folder: Path) -> None:
    data = table_of(model, [5, 6, 7])
    own = read_table_digest(data, folder)
    (folder / FILE).write_bytes(data.replace(own.encode(), b"0" * 64))
    said = adapters(engine_of(model)).add("one", folder).drafts
    assert "for the tokenizer 000000000000" in said


def read_table_digest(data: bytes, folder: Path) -> str:
    (folder / FILE).write_bytes(data)
    return read_table(folder / FILE).facts.tokenizer


def test_a_sealed_table_is_opened_by_who_can(model: LoadedModel, folder: Path, tmp_path: Path) -> None:
    answer = answered(engine_of(model), None)
    plain = tmp_path / "plain"
    plain.write_bytes(table_of(model, answer))
    (folder / FILE).write_bytes(SEALED + b"0" * 80)
    opener: OpenTable = lambda path, digest: read_table(plain, digest)  # noqa: E731
    assert adapters(engine_of(model, open_sealed=opener)).add("one", folder).drafts == f"drafts from {FILE}"
