"""Speculation changes no answer, whatever is drafted; and drafts are taken where they pay, and measured."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.engine.engine import Engine
from brise.engine.request import DraftCounts, Request, Sampling
from tests.engine.drafted import LinearCost, Oracle, contents
from tests.engine.stub import GREEDY, answer, run_all, stub_engine, text_of, tokens_of
from tests.engine.test_random_schedules import Arrival, alone, arrivals, check_ends, play
from tests.profiles import examples


def drafting_engine(oracle: Oracle, **more: int | bool) -> Engine:
    engine = stub_engine(max_draft=5, **more)
    engine.speculation.cost = LinearCost()
    engine.drafts.put(None, oracle)
    return engine


def known_answers(requests: Sequence[Request]) -> dict[tuple[int, ...], list[list[int]]]:
    answers: dict[tuple[int, ...], list[list[int]]] = {}
    for request in requests:
        answers.setdefault(request.prompt, []).extend(
            tokens_of(alone(request, index)) for index in range(request.n))
    return answers


@settings(max_examples=examples(120))
@given(schedule=st.lists(arrivals, min_size=1, max_size=8), num_pages=st.integers(9, 24),
       max_step_tokens=st.sampled_from([1, 3, 7, 64]), max_sequences=st.sampled_from([1, 3, 16]),
       prefix_cache=st.booleans(), wrong=st.sampled_from([0, 1, 3, 8]))
def test_drafts_change_no_answer(schedule: list[Arrival], num_pages: int, max_step_tokens: int, max_sequences: int,
                                 prefix_cache: bool, wrong: int) -> None:
    oracle = Oracle(known_answers([arrival.request for arrival in schedule]), wrong)
    engine = drafting_engine(oracle, num_pages=num_pages, max_step_tokens=max_step_tokens,
                             max_sequences=max_sequences, prefix_cache=prefix_cache)
    out, ids = play(engine, schedule)
    for arrival, request_id in zip(schedule, ids, strict=True):
        for index in range(arrival.request.n):
            deltas, expected = out[request_id, index], alone(arrival.request, index)
            check_ends(deltas)
            if deltas[-1].finish == "cancelled":
                assert arrival.cancelled_after is not None
                deltas = deltas[:-1]
                assert contents(deltas) == contents(expected)[:len(deltas)]
            else:
                assert contents(deltas) == contents(expected)
    assert engine.stats().pages_free == num_pages


@pytest.mark.parametrize("prompt", [b"abc", b"abcdefgh"])
def test_right_drafts_save_steps(prompt: bytes) -> None:
    request = Request(tuple(prompt), max_tokens=24, ignore_eos=True, sampling=Sampling(seed=3))
    engine = drafting_engine(Oracle(known_answers([request])))
    assert contents(answer(engine, request)) == contents(alone(request, 0))
    assert engine.stats().steps == 4  # a token and five drafted ones in each
    assert engine.stats().drafts["oracle"] == DraftCounts(20, 20)


def test_drafts_take_no_page_that_another_answer_needs_soon() -> None:
    requests = [Request(tuple(b"prompt" + bytes([index])), max_tokens=12, ignore_eos=True,
                        sampling=Sampling(seed=index)) for index in range(3)]
    with_drafts = drafting_engine(Oracle(known_answers(requests)), num_pages=15)
    for request in requests:
        with_drafts.submit(request)
    run_all(with_drafts)
    assert with_drafts.stats().preemptions == 0 and with_drafts.stats().drafts["oracle"].accepted > 0


def test_rejected_tokens_are_in_no_reusable_page() -> None:
    """The stub's cache holds a digest of all tokens up to each: a page with a rejected token would change the second
    answer, which takes its prompt from the cache."""
    first = Request(tuple(b"abcd"), max_tokens=14, ignore_eos=True, sampling=Sampling(seed=1))
    engine = drafting_engine(Oracle(known_answers([first]), wrong=3))
    prompt = first.prompt + tuple(tokens_of(answer(engine, first)))
    second = Request(prompt, max_tokens=4, sampling=GREEDY)
    deltas = answer(engine, second)
    assert deltas[-1].cached_tokens == 16
    assert contents(deltas) == contents(alone(second, 0))


class Failing:
    """A source with an error, at the start or later."""

    name = "failing"

    def __init__(self, method: str) -> None:
        self.method = method

    def start(self, prompt: Sequence[int]) -> Failing:
        self._do("start")
        return self

    def extend(self, tokens: Sequence[int]) -> None:
        self._do("extend")

    def propose(self, most: int) -> tuple[list[int], list[float]]:
        self._do("propose")
        return [10**9, -1], [1.0]

    def _do(self, method: str) -> None:
        if method == self.method:
            raise ValueError("a source failed")


@pytest.mark.parametrize("method", ["start", "extend", "propose", "none"])
def test_a_source_that_fails_or_drafts_nonsense_fails_no_answer(method: str) -> None:
    request = Request(tuple(b"abc"), max_tokens=9, ignore_eos=True)
    engine = stub_engine(max_draft=5)
    engine.drafts.put(None, Failing(method))
    greedy = Request(request.prompt, 9, GREEDY, ignore_eos=True)
    assert contents(answer(engine, greedy)) == contents(alone(greedy, 0))
    assert engine.stats().failures == 0


def test_sources_belong_to_an_adapter_and_can_be_replaced() -> None:
    engine = stub_engine(max_draft=5)
    first, second = Failing("none"), Failing("start")
    engine.drafts.put("a", first)
    engine.drafts.put("a", second)
    assert engine.drafts.of("a") == (second,) and engine.drafts.of(None) == ()
    engine.drafts.put("a")
    assert engine.drafts.of("a") == ()


def test_repetition_in_the_reply_is_copied() -> None:
    reply = '{"name": "one", "kind": "wind"}, {"name": "two", "kind": "wind"}, {"name": "three", "kind": "wind"}'
    engine = stub_engine(reply, max_draft=8, num_pages=128)
    engine.speculation.cost = LinearCost()
    deltas = answer(engine, Request(tuple(b"winds"), sampling=GREEDY))
    assert text_of(deltas) == reply
    counts = engine.stats().drafts["prompt"]
    assert engine.stats().steps < len(reply) / 2 and counts.accepted > 40


def test_a_prediction_is_copied_and_does_not_change_the_answer() -> None:
    reply = "int main() { return 0; } // the whole program, with one change"
    prediction = tuple(reply.replace("0", "1").encode())
    engine = stub_engine(reply, max_draft=8, num_pages=128)
    engine.speculation.cost = LinearCost()
    deltas = answer(engine, Request(tuple(b"change it"), sampling=GREEDY, prediction=prediction))
    assert text_of(deltas) == reply
    assert engine.stats().steps < 20 and deltas[-1].prediction == engine.stats().drafts["prediction"]
    assert engine.stats().drafts["prediction"].accepted > 40


def test_nothing_is_drafted_where_tokens_cost_as_much_as_steps() -> None:
    request = Request(tuple(b"abc"), max_tokens=24, ignore_eos=True, sampling=Sampling(seed=3))
    engine = drafting_engine(Oracle(known_answers([request])))
    engine.speculation.cost = LinearCost(1.0)
    answer(engine, request)
    assert engine.stats().steps == 24 and not engine.stats().drafts


def test_a_source_that_is_wrong_is_soon_left_alone() -> None:
    request = Request(tuple(b"abc"), max_tokens=200, ignore_eos=True, sampling=Sampling(seed=3))
    engine = drafting_engine(Oracle(known_answers([request]), wrong=8))
    engine.speculation.cost = LinearCost(0.1)
    answer(engine, request)
    assert engine.stats().drafts["oracle"].drafted < 40


def test_an_answer_is_not_slowed_by_the_drafts_of_another() -> None:
    """A step with one drafted token takes 1.05 times as long, and one with five 1.25 times."""
    drafted, plain = (Request(tuple(prompt), max_tokens=30, ignore_eos=True, sampling=Sampling(seed=3))
                      for prompt in (b"abc", b"xyz"))
    engine = drafting_engine(Oracle(known_answers([drafted])))
    engine.speculation.cost, engine.speculation.only = LinearCost(0.05), frozenset({"oracle"})
    engine.submit(plain)
    for _ in range(5):  # its pace is known: a token a step
        engine.step()
    engine.submit(drafted)
    while engine.stats().running == 2 or engine.stats().waiting:
        engine.step()
    assert engine.stats().steps >= 30 and not engine.stats().drafts
    alone = drafting_engine(Oracle(known_answers([drafted])))
    alone.speculation.cost = LinearCost(0.05)
    answer(alone, drafted)
    assert alone.stats().steps < 10
