"""Embeddings: pooling, grouping, and unchanged pages afterwards."""

from __future__ import annotations

import numpy as np
import pytest

from brise.engine.embedding import split_groups
from brise.engine.request import Request
from brise.errors import ContextLengthError, RequestError, UnsupportedError
from brise.models.batch import Batch
from tests.engine.stub import GREEDY, run_all, stub_engine, text_of

TEXTS = [list(b"one"), list(b"a somewhat longer text than the others are"), list(b"x"), list(b"two")]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_a_vector_does_not_depend_on_company_or_chunks(pooling: str) -> None:
    packed = stub_engine(pooling=pooling).embed(TEXTS)  # type: ignore[arg-type]
    chunked = stub_engine(pooling=pooling, max_step_tokens=5)  # type: ignore[arg-type]
    for text, vector in zip(TEXTS, packed, strict=True):
        (alone,) = chunked.embed([text])
        assert vector.dtype == np.float32 and np.linalg.norm(vector) == pytest.approx(1)
        assert alone == pytest.approx(vector, abs=1e-6)


def test_poolings_differ() -> None:
    vectors = [stub_engine(pooling=pooling).embed([TEXTS[1]])[0] for pooling in ("mean", "cls", "last")]
    assert not np.allclose(vectors[0], vectors[1]) and not np.allclose(vectors[1], vectors[2])


def test_running_requests_give_way_and_come_back() -> None:
    engine = stub_engine("a reply", pooling="mean", num_pages=12)
    request_id = engine.submit(Request(tuple(b"prompt of some length"), sampling=GREEDY, max_tokens=10))
    engine.step()
    engine.embed([TEXTS[1]])
    engine.check()
    assert engine.stats().preemptions == 1
    assert text_of(run_all(engine)[request_id, 0]) == " reply"  # the first token came before


def test_a_failure_gives_the_pages_back() -> None:
    def fail(batch: Batch) -> None:
        raise MemoryError

    engine = stub_engine(pooling="mean", on_step=fail)
    with pytest.raises(MemoryError):
        engine.embed(TEXTS)
    engine.check()
    assert engine.stats().pages_free == 64


def test_refusals_have_names() -> None:
    with pytest.raises(UnsupportedError, match="stub makes no embeddings"):
        stub_engine().embed(TEXTS)
    with pytest.raises(ContextLengthError):
        stub_engine(pooling="mean", num_pages=4).embed(TEXTS)
    with pytest.raises(RequestError, match="empty"):
        stub_engine(pooling="mean").embed([[]])


def test_groups_fill_steps_and_keep_the_order() -> None:
    texts = [[0] * length for length in (4, 5, 40, 1, 1)]
    assert [list(map(len, group)) for group in split_groups(texts, 4, 4)] == [[4, 5], [40], [1, 1]]
    assert split_groups([], 4, 4) == []
