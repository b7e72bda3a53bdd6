"""A model is opened with the rotary factors of the context that is planned for it (LongRoPE)."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise.files.digests import Located
from brise.memory.opening import EngineOptions, open_engine
from brise.models.rope import LongRope
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
