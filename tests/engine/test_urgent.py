"""Requests of control loops: fixed tokens, deadlines, and a place before everyone else's. No test waits for a clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from brise.engine.engine import URGENT_MEMORY_S, Engine, EngineSettings
from brise.engine.request import Delta, Request, Sampling
from brise.errors import RequestError
from brise.models.batch import Batch
from tests.engine.stub import GREEDY, VOCAB_SIZE, answer, run_all, stub_model, tokens_of

CHOICES = ((10, 11, 12), (20,), (30, 31))
ACT = Request(tuple(range(100, 140)), token_choices=CHOICES, sampling=GREEDY, is_urgent=True)
CHAT = Request(tuple(range(60)), max_tokens=100, ignore_eos=True, sampling=GREEDY)
LONG = Request(tuple(n % 200 for n in range(3000)), max_tokens=5, ignore_eos=True, sampling=GREEDY)


class Clock:
    """Steps take a tenth of a second each."""

    def __init__(self) -> None:
        self.now_s, self.sizes = 0.0, list[int]()

    def step(self, batch: Batch) -> None:
        self.now_s += 0.1
        self.sizes.append(len(batch.tokens))


def engine_of(clock: Clock, *, num_pages: int = 1024, max_sequences: int = 64, max_draft: int = 0) -> Engine:
    settings = EngineSettings(page_size=16, num_pages=num_pages, max_sequences=max_sequences, max_draft=max_draft)
    return Engine(stub_model(on_step=clock.step), settings, lambda: clock.now_s)


def until_ended(engine: Engine, request_id: str, most: int = 50) -> tuple[list[Delta], int]:
    """All deltas up to the end of a request, and the number of steps."""
    deltas: list[Delta] = []
    for steps in range(1, most + 1):
        deltas += engine.step()
        engine.check()
        if any(delta.request_id == request_id and delta.finish for delta in deltas):
            return deltas, steps
    raise AssertionError(f"{request_id} did not end")


def rest(engine: Engine) -> list[Delta]:
    """All deltas until nothing is left to do."""
    return [delta for deltas in run_all(engine).values() for delta in deltas]


def own(deltas: Sequence[Delta], request_id: str) -> list[Delta]:
    return [delta for delta in deltas if delta.request_id == request_id]


def test_an_answer_has_one_of_the_tokens_allowed_at_each_place() -> None:
    engine = engine_of(Clock())
    deltas = answer(engine, ACT)
    assert all(token in choice for token, choice in zip(tokens_of(deltas), CHOICES, strict=True))
    assert deltas[-1].finish == "stop"


@pytest.mark.parametrize("seed", range(8))
def test_drafts_and_company_change_no_action(seed: int) -> None:
    request = replace(ACT, sampling=Sampling(temperature=1.5, seed=seed))
    alone = tokens_of(answer(engine_of(Clock()), request))
    engine = engine_of(Clock(), max_draft=8)
    ids = [engine.submit(each) for each in (CHAT, request, LONG)]
    assert tokens_of(own(rest(engine), ids[1])) == alone


def test_an_urgent_request_goes_before_all_others() -> None:
    clock = Clock()
    engine = engine_of(clock)
    engine.submit(LONG)
    others = [engine.submit(CHAT) for _ in range(4)]
    engine.step()
    clock.sizes.clear()
    act = engine.submit(ACT)
    deltas, steps = until_ended(engine, act)
    assert steps == 3 and clock.sizes == [40, 1, 1]
    assert not any(delta.request_id in others for delta in deltas)
    assert {delta.finish for delta in rest(engine) if delta.finish} == {"length"}


def test_it_takes_the_place_and_the_pages_of_the_youngest() -> None:
    for num_pages, max_sequences in ((12, 64), (1024, 2)):
        engine = engine_of(Clock(), num_pages=num_pages, max_sequences=max_sequences)
        alone = tokens_of(answer(engine_of(Clock()), CHAT))
        chats = [engine.submit(CHAT) for _ in range(2)]
        for _ in range(3):
            engine.step()
        _, steps = until_ended(engine, engine.submit(ACT))
        assert steps == 3
        left = rest(engine)
        assert all(tokens_of(own(left, chat))[-5:] == alone[-5:] for chat in chats)


def test_a_late_answer_ends_with_what_there_is() -> None:
    engine = engine_of(Clock())
    act = engine.submit(replace(ACT, deadline_s=0.15))
    deltas, _ = until_ended(engine, act)
    assert [delta.finish for delta in own(deltas, act)] == [None, None, "late"]
    assert len(tokens_of(own(deltas, act))) == 2 and not engine.has_work


def test_a_request_that_waits_is_late_too() -> None:
    engine = engine_of(Clock())
    chat = engine.submit(LONG)
    late = engine.submit(replace(CHAT, deadline_s=0.25))
    deltas, _ = until_ended(engine, late)
    assert own(deltas, late)[-1].finish == "late"
    assert own(rest(engine), chat)[-1].finish == "length"


def test_steps_stay_short_for_a_while_after_an_urgent_request() -> None:
    clock = Clock()
    engine = engine_of(clock)
    answer(engine, ACT)
    engine.submit(LONG)
    engine.step()
    assert clock.sizes[-1] < 256
    clock.now_s += URGENT_MEMORY_S
    engine.step()
    assert clock.sizes[-1] == 512


@pytest.mark.parametrize(("wrong", "named"), [
    ({"token_choices": ((1,), ())}, "place 1"), ({"token_choices": ((VOCAB_SIZE,),)}, "0 to 258"),
    ({"token_choices": ((-1,),)}, "place 0"), ({"deadline_s": 0.0}, "deadline"), ({"deadline_s": float("nan")}, "nan")])
def test_what_cannot_be_answered_is_refused(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(RequestError, match=named):
        engine_of(Clock()).submit(replace(ACT, **wrong))  # type: ignore[arg-type]
