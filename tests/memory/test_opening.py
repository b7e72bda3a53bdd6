"""A model is opened with the rotary factors of the context that is planned for it (LongRoPE)."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise.backends import open_planner
from brise.engine.speculation import MOST_DRAFTED
from brise.files.digests import Located
from brise.memory.model_header import read_header
from brise.memory.opening import CHAT_DRAFTED, EngineOptions, open_engine
from brise.memory.serving_plan import STEP_TOKENS, MemoryRequest, make
from brise.models.rope import LongRope
from brise.models.weights import place
from tests.checkpoint.make_gguf import write_tiny

ROOM = 16 << 30  # more than the process of all tests has: its memory counts, too


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its original context is 128, and files of it allow 512."""
    return write_tiny(tmp_path_factory.mktemp("phi3") / "phi3.gguf", "phi3")


@pytest.mark.parametrize(("options", "is_long"), [
    (EngineOptions(context=128), False), (EngineOptions(context=129), True), (EngineOptions(), True),
    (EngineOptions(usual_context=128), False), (EngineOptions(context=64, memory=ROOM), False),
    (EngineOptions(memory=ROOM), True)])
def test_longrope_has_the_factors_of_the_planned_context(phi3: Path, options: EngineOptions, is_long: bool) -> None:
    engine = open_engine(Located("phi3", phi3), options)
    scaling = engine.model.config.rope.scaling
    assert isinstance(scaling, LongRope) and scaling.is_long == is_long
    assert (engine.max_context > scaling.original_context) == is_long


@pytest.mark.parametrize(("options", "most"), [
    (EngineOptions(), MOST_DRAFTED), (EngineOptions(serves=False), CHAT_DRAFTED), (EngineOptions(speculate="off"), 0),
    (EngineOptions(speculate="off", serves=False), 0)])
def test_answers_are_drafted_unless_that_is_off(phi3: Path, options: EngineOptions, most: int) -> None:
    assert open_engine(Located("phi3", phi3), options).settings.max_draft == most


def test_a_chat_is_planned_with_the_rows_of_its_drafts(phi3: Path) -> None:
    header, backend = read_header(phi3, "phi3"), open_planner(1)
    with_drafts, without = (make(header, MemoryRequest(context=64, serves=False, max_draft=most), backend)
                            for most in (CHAT_DRAFTED, 0))
    runner = backend.runner(header.config, place(header.weights, backend.shape_only), STEP_TOKENS)
    planned = [runner.planned_bytes(STEP_TOKENS, rows).host + 4 * rows * header.config.vocab_size
               for rows in (1 + CHAT_DRAFTED, 1)]
    assert with_drafts.work_bytes - without.work_bytes == planned[0] - planned[1] > 0
    assert with_drafts.answers_bytes > without.answers_bytes
