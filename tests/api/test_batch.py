"""`Model.batch`: a full engine, ordered results, errors one by one."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

import brise
from brise.models.batch import Batch
from tests.api.stub_model import saying, slow
from tests.api.test_model import Verdict
from tests.waiting import wait_until


def test_results_come_in_the_order_of_the_prompts(model: brise.Model) -> None:
    results = list(model.batch([f"number {number}" for number in range(150)], temperature=0, max_tokens=3))
    assert [result.index for result in results] == list(range(150)) and all(result.ok for result in results)
    assert results[70].answer.text == model.chat("number 70", temperature=0, max_tokens=3).text


def test_a_prompt_that_cannot_be_answered_stops_no_other(model: brise.Model) -> None:
    prompts = ["hi", "wind " * 1000, [{"role": "storm", "content": "x"}], "hello"]
    results = list(model.batch(prompts, temperature=0, max_tokens=4))
    assert [result.ok for result in results] == [True, False, False, True]
    assert isinstance(results[1].error, brise.ContextLengthError)
    with pytest.raises(brise.RequestError, match="'storm'"):
        assert results[2].answer


def test_options_that_are_wrong_for_all_are_an_error_at_once(model: brise.Model) -> None:
    with pytest.raises(brise.RequestError, match="temperature"):
        model.batch(["hi"], temperature=9)
    with pytest.raises(brise.RequestError, match="a list of prompts"):
        model.batch("hi")
    with pytest.raises(TypeError, match="no option"):
        model.batch(["hi"], tempo=9)  # type: ignore[call-overload]


def test_values_of_a_schema_come_with_every_result(model: brise.Model) -> None:
    results = list(model.batch(["good?", "bad?"], schema=Verdict, seed=1))
    assert all(isinstance(result.answer.value, Verdict) for result in results)


def test_prompts_are_read_as_they_are_needed() -> None:
    read = list[int]()

    def endless() -> Iterator[str]:
        for number in itertools.count():
            read.append(number)
            yield "hi"

    with saying("yes", max_sequences=4) as model, model.batch(endless(), temperature=0) as batch:
        assert [next(batch).answer.text for _ in range(20)] == ["yes"] * 20
    assert len(read) <= 20 + 16 * 8


def test_the_engine_is_kept_full_behind_a_long_answer() -> None:
    """The context cuts the first answer after about 100 tokens and the others after a few, in four places."""
    rows = list[int]()

    def on_step(batch: Batch) -> None:
        rows.append(len(batch.rows))
        time.sleep(0.003)

    prompts = ["hi", *("x" * 100 for _ in range(60))]
    with saying(None, max_sequences=4, max_context=128, num_pages=64, on_step=on_step) as model:
        lengths = [result.answer.usage.completion_tokens for result in model.batch(prompts, seed=1)]
    assert lengths[0] > 5 * max(lengths[1:])
    assert sum(number >= 4 for number in rows) > 0.7 * sum(lengths) / 4


def test_leaving_a_batch_stops_the_model() -> None:
    with saying(None, on_step=slow, max_sequences=4) as model:
        batch = model.batch(["hi"] * 100, max_tokens=2)
        next(batch)
        batch.close()
        wait_until(lambda: (model.stats().running, model.stats().waiting) == (0, 0))


def test_a_closed_model_ends_a_batch() -> None:
    with saying(None, on_step=slow, max_sequences=4) as model:
        batch = model.batch(["hi"] * 100, max_tokens=3)
        next(batch)
        model.close()
        with pytest.raises(brise.ClosedError):
            list(batch)
