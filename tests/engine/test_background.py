"""Background requests never delay other requests."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brise.engine.engine import BACKGROUND_STEP_TOKENS
from brise.engine.engine_thread import EngineThread
from brise.engine.request import Request
from brise.errors import DeviceLostError, PreemptedError
from brise.models.batch import Batch
from tests.engine.stub import GREEDY, answer, run_all, stub_engine, tokens_of

USER = Request((1, 2, 3), max_tokens=6, sampling=GREEDY)
BACKGROUND = replace(USER, prompt=(4, 5, 6), background=True)


def test_it_answers_like_any_other_request() -> None:
    assert tokens_of(answer(stub_engine(), BACKGROUND)) == tokens_of(answer(stub_engine(),
                                                                            replace(BACKGROUND, background=False)))


def test_a_request_that_somebody_waits_for_ends_it_before_the_next_step() -> None:
    engine = stub_engine()
    background = engine.submit(BACKGROUND)
    engine.step()
    user = engine.submit(USER)
    deltas = run_all(engine)
    assert [delta.finish for delta in deltas[background, 0]] == ["preempted"]
    assert tokens_of(deltas[user, 0]) == tokens_of(answer(stub_engine(), USER))


def test_what_was_preempted_is_told_although_the_next_step_loses_the_device() -> None:
    def lose(batch: Batch) -> None:
        raise DeviceLostError("the GPU was lost")

    engine = stub_engine(on_step=lose)
    background = engine.submit(BACKGROUND)
    user = engine.submit(USER)
    with pytest.raises(DeviceLostError):
        engine.step()
    engine.abort("the GPU was lost")
    assert {delta.request_id: delta.finish for delta in engine.step()} == {background: "preempted", user: "error"}


def test_it_is_refused_while_somebody_waits_and_let_in_again_afterwards() -> None:
    engine = stub_engine()
    engine.submit(USER)
    with pytest.raises(PreemptedError):
        engine.submit(BACKGROUND)
    run_all(engine)
    assert answer(engine, BACKGROUND)[-1].finish == "length"


def test_several_run_beside_each_other_and_all_make_room() -> None:
    engine = stub_engine()
    ids = [engine.submit(replace(BACKGROUND, n=2)), engine.submit(BACKGROUND)]
    engine.step()
    assert engine.stats().background == engine.stats().running + engine.stats().waiting > 0
    engine.submit(USER)
    ends = {key: deltas[-1].finish for key, deltas in run_all(engine).items()}
    assert [ends[key] for key in ((ids[0], 0), (ids[0], 1), (ids[1], 0))] == ["preempted"] * 3
    assert engine.stats().background == 0


def test_its_steps_say_so_to_the_backend_and_others_do_not() -> None:
    steps: list[bool] = []
    engine = stub_engine(on_step=lambda batch: steps.append(batch.background))
    answer(engine, BACKGROUND)
    assert all(steps) and steps
    steps.clear()
    answer(engine, USER)
    assert not any(steps) and steps


def test_its_steps_wait_for_a_calm_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brise.engine.engine_thread.monotonic", lambda: 0.0)  # it may wait as long as it takes
    looks = iter([True] * 3)
    steps: list[int] = []
    thread = EngineThread(stub_engine(on_step=lambda batch: steps.append(sum(1 for _ in looks))))
    thread.hold_background(lambda: next(looks, False))
    thread.start()
    assert list(thread.generate(BACKGROUND))[-1].finish == "length"
    thread.shutdown()
    assert steps[0] == 0, "a step began while the program was busy"


def test_its_steps_run_all_the_same_if_no_calm_moment_comes() -> None:
    thread = EngineThread(stub_engine())
    thread.hold_background(lambda: True)
    thread.start()
    assert list(thread.generate(replace(BACKGROUND, max_tokens=2)))[-1].finish == "length"
    thread.shutdown()


def test_nothing_holds_the_steps_of_other_requests() -> None:
    def fail() -> bool:
        raise AssertionError

    thread = EngineThread(stub_engine())
    thread.hold_background(fail)
    thread.start()
    assert list(thread.generate(USER))[-1].finish == "length"
    thread.shutdown()


def test_its_prompt_goes_in_small_pieces_so_that_a_step_is_short() -> None:
    sizes: list[int] = []
    engine = stub_engine(on_step=lambda batch: sizes.append(len(batch.tokens)), max_step_tokens=128)
    answer(engine, replace(BACKGROUND, prompt=tuple(range(1, 101)), max_tokens=1))
    assert max(sizes) == BACKGROUND_STEP_TOKENS and sum(sizes) == 100
