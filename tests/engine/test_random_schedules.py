"""Random arrivals, cancellations, failures and page shortage: nothing is lost, and answers do not change."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.engine.engine import Engine
from brise.engine.request import Delta, Request, Sampling
from brise.models.batch import Batch
from tests.engine.stub import answer, stub_engine, text_of, tokens_of
from tests.profiles import examples

samplings = st.builds(
    Sampling, temperature=st.sampled_from([0.0, 0.8]), top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.3]), seed=st.integers(0, 5))
# Prompts share prefixes, so that pages are shared, registered twice and evicted.
prompts = st.builds(lambda stem, tail: tuple(stem + tail),
                    st.sampled_from([b"", b"abcd", b"abcdefgh", b"abcdefghijklm", b"abcdxyzw", b"xyzwefgh"]),
                    st.binary(min_size=1, max_size=9))
requests = st.builds(
    Request, prompt=prompts, max_tokens=st.integers(0, 12), sampling=samplings, n=st.sampled_from([1, 1, 3]),
    logprobs=st.sampled_from([None, 1]), prompt_logprobs=st.sampled_from([None, None, 0]),
    stop=st.sampled_from([(), ("a", "\x00"), ("qq",)]))


@dataclass(frozen=True)
class Arrival:
    request: Request
    steps_before: int
    cancelled_after: int | None  # steps from its arrival


arrivals = st.builds(Arrival, request=requests, steps_before=st.integers(0, 4),
                     cancelled_after=st.one_of(st.none(), st.none(), st.integers(0, 8)))


@settings(max_examples=examples(120))
@given(schedule=st.lists(arrivals, min_size=1, max_size=10), num_pages=st.integers(9, 24),
       max_step_tokens=st.sampled_from([1, 3, 7, 64]), max_sequences=st.sampled_from([1, 3, 16]),
       prefix_cache=st.booleans())
def test_answers_are_those_of_a_request_alone(schedule: list[Arrival], num_pages: int, max_step_tokens: int,
                                              max_sequences: int, prefix_cache: bool) -> None:
    engine = stub_engine(num_pages=num_pages, max_step_tokens=max_step_tokens,
                         max_sequences=max_sequences, prefix_cache=prefix_cache)
    out, ids = play(engine, schedule)
    for arrival, request_id in zip(schedule, ids, strict=True):
        for index in range(arrival.request.n):
            deltas = out[request_id, index]
            check_ends(deltas)
            expected = alone(arrival.request, index)
            assert tokens_of(expected)[:len(tokens_of(deltas))] == tokens_of(deltas)
            if deltas[-1].finish == "cancelled":
                assert arrival.cancelled_after is not None
                continue
            assert (text_of(deltas), deltas[-1].finish) == (text_of(expected), expected[-1].finish)
            assert [delta.logprobs for delta in deltas] == [delta.logprobs for delta in expected]
            assert deltas[0].prompt_logprobs == expected[0].prompt_logprobs
    stats = engine.stats()
    assert stats.pages_free == num_pages and stats.running == stats.waiting == 0


@settings(max_examples=40)
@given(schedule=st.lists(arrivals, min_size=1, max_size=8), failing=st.sets(st.integers(0, 12), min_size=1))
def test_failing_steps_lose_no_request(schedule: list[Arrival], failing: set[int]) -> None:
    steps = iter(range(10**6))

    def fail(batch: Batch) -> None:
        if next(steps) in failing:
            raise RuntimeError("a kernel failed")

    engine = stub_engine(num_pages=12, max_step_tokens=8, on_step=fail)
    out, ids = play(engine, schedule)
    for arrival, request_id in zip(schedule, ids, strict=True):
        for index in range(arrival.request.n):
            deltas = out[request_id, index]
            check_ends(deltas)
            expected = tokens_of(alone(arrival.request, index))
            assert expected[:len(tokens_of(deltas))] == tokens_of(deltas)
    assert engine.stats().pages_free == 12


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_shortage_preempts_and_all_finish(prefix_cache: bool) -> None:
    engine = stub_engine(num_pages=12, prefix_cache=prefix_cache)
    wanted = [Request(tuple(b"prompt" + bytes([index])), max_tokens=30, ignore_eos=True,
                      sampling=Sampling(seed=index)) for index in range(6)]
    out, ids = play(engine, [Arrival(request, 0, None) for request in wanted])
    assert engine.stats().preemptions > 0
    for request, request_id in zip(wanted, ids, strict=True):
        assert tokens_of(out[request_id, 0]) == tokens_of(alone(request, 0))


def test_a_prompt_scored_halfway_goes_on_where_it_was() -> None:
    long = Request(tuple(range(40)), max_tokens=2, prompt_logprobs=1)
    engine = stub_engine(num_pages=16, max_step_tokens=2)
    older = Request(tuple(b"abcd"), max_tokens=40, ignore_eos=True)
    out, (_, request_id) = play(engine, [Arrival(older, 0, None), Arrival(long, 2, None)])
    assert engine.stats().preemptions > 0
    assert out[request_id, 0][0].prompt_logprobs == alone(long, 0)[0].prompt_logprobs


def test_first_come_is_first_served() -> None:
    engine = stub_engine(max_sequences=1)
    out, ids = play(engine, [Arrival(Request(tuple(b"abc"), max_tokens=3), 0, None)] * 4)
    assert [key[0] for key in out] == ids


def play(engine: Engine, schedule: list[Arrival]) -> tuple[dict[tuple[str, int], list[Delta]], list[str]]:
    """Runs a schedule to its end, checking the books after each step."""
    out: dict[tuple[str, int], list[Delta]] = {}
    cancels: list[tuple[int, str]] = []
    ids: list[str] = []
    now = 0

    def step() -> None:
        for when, request_id in cancels:
            if when == now:
                engine.cancel(request_id)
        engine.check()
        for delta in engine.step():
            out.setdefault((delta.request_id, delta.index), []).append(delta)
        engine.check()

    for arrival in schedule:
        for _ in range(arrival.steps_before):
            step()
            now += 1
        ids.append(engine.submit(arrival.request))
        if arrival.cancelled_after is not None:
            cancels.append((now + arrival.cancelled_after, ids[-1]))
    while engine.has_work:
        step()
        now += 1
        assert now < 3000, "no progress"
    return out, ids


def alone(request: Request, index: int) -> list[Delta]:
    """Answer `index` of the request on an engine with room for everything."""
    engine = stub_engine(num_pages=256)
    if index == 0:
        return answer(engine, request)
    out, (request_id,) = play(engine, [Arrival(request, 0, None)])
    return out[request_id, index]


def check_ends(deltas: list[Delta]) -> None:
    """One finish, at the end; counts agree."""
    assert [delta.finish is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].completion_tokens == len(tokens_of(deltas))
