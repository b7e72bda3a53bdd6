"""The engine in its thread: sync and async consumers, consumers that go away, failures and shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing
from threading import Event, Thread

import pytest

from brise.engine.engine import Engine
from brise.engine.engine_thread import EngineStoppedError, EngineThread
from brise.engine.request import Delta, Request
from brise.errors import ContextLengthError, DeviceLostError, MemoryLimitError, QueueFullError
from brise.models.batch import Batch
from brise.models.ops import StepCancelledError
from brise.text.inputs import Grammar
from tests.engine.stub import GREEDY, stub_engine, text_of
from tests.waiting import LIMIT_S

PROMPT = tuple(b"hello")
LONG = Request(PROMPT, sampling=GREEDY, ignore_eos=True)


class Gate:
    """Holds the engine before each step until the test opens it; tells the test when it got there."""

    def __init__(self) -> None:
        self.reached, self.opened = Event(), Event()

    def __call__(self, batch: Batch) -> None:
        self.reached.set()
        assert self.opened.wait(LIMIT_S)


@pytest.fixture
def thread() -> Iterator[EngineThread]:
    running = started(stub_engine("a reply", num_pages=512, pooling="mean"))
    yield running
    running.shutdown(drain=False)


def started(engine: Engine) -> EngineThread:
    thread = EngineThread(engine)
    thread.start()
    return thread


def test_a_stop_without_a_drain_does_not_wait_for_a_long_step() -> None:
    gate, cancelled = Gate(), Event()

    def step(batch: Batch) -> None:
        gate.reached.set()
        assert cancelled.wait(LIMIT_S)
        raise StepCancelledError

    thread = started(engine := stub_engine(on_step=step))
    engine._runner.cancel = cancelled.set  # type: ignore[method-assign]
    deltas = thread.generate(LONG)
    assert gate.reached.wait(LIMIT_S)
    thread.shutdown(drain=False)
    assert [delta.finish for delta in deltas] == ["cancelled"]
    engine.check()


def test_generate_gives_all_deltas_of_all_answers(thread: EngineThread) -> None:
    deltas = list(thread.generate(Request(PROMPT, sampling=GREEDY, n=2)))
    for index in (0, 1):
        own = [delta for delta in deltas if delta.index == index]
        assert text_of(own) == "a reply" and own[-1].finish == "stop"


def test_refusals_are_raised_at_once(thread: EngineThread) -> None:
    with pytest.raises(ContextLengthError):
        thread.generate(Request(PROMPT, max_tokens=10**6))


def test_closing_cancels() -> None:
    engine = stub_engine("a reply", num_pages=512)
    thread = started(engine)
    answers = thread.generate(LONG)
    next(answers)
    answers.close()
    assert list(answers) == []
    thread.shutdown()  # would not return before 2000 tokens are done if the cancellation were lost
    assert engine.stats().completion_tokens < 2000 and engine.stats().pages_free == 512


def test_dropping_the_answers_cancels() -> None:
    engine = stub_engine("a reply", num_pages=512)
    thread = started(engine)
    next(thread.generate(LONG))
    thread.shutdown()
    assert engine.stats().completion_tokens < 2000


def test_many_async_consumers_and_one_that_leaves(thread: EngineThread) -> None:
    async def consume(leave_after: int | None) -> list[Delta]:
        out = []
        async with aclosing(thread.agenerate(LONG if leave_after else Request(PROMPT, sampling=GREEDY))) as deltas:
            async for delta in deltas:
                out.append(delta)
                if len(out) == leave_after:
                    break
        return out

    async def main() -> list[list[Delta]]:
        return await asyncio.gather(consume(3), *(consume(None) for _ in range(8)))

    left, *others = asyncio.run(main())
    assert len(left) == 3
    assert all(text_of(deltas) == "a reply" for deltas in others)


def test_async_refusals_are_raised_by_the_first_step(thread: EngineThread) -> None:
    async def first(request: Request) -> Delta:
        return await anext(thread.agenerate(request))

    with pytest.raises(ContextLengthError):
        asyncio.run(first(Request(PROMPT, max_tokens=10**6)))
    grammar = Grammar("lark", 'start: "yes"')
    assert asyncio.run(first(Request(PROMPT, grammar=grammar))).text == "y"


def test_a_full_queue_refuses_the_one_who_comes_last() -> None:
    gate = Gate()
    thread = started(stub_engine("a reply", on_step=gate, max_waiting=1, max_sequences=1))

    async def collect() -> list[Delta]:
        return [delta async for delta in thread.agenerate(Request(PROMPT, sampling=GREEDY))]

    async def main() -> list[list[Delta] | BaseException]:
        first = asyncio.create_task(collect())
        await asyncio.to_thread(gate.reached.wait, 30)
        others = [asyncio.create_task(collect()) for _ in range(2)]
        await asyncio.sleep(0)  # they have posted their requests
        gate.opened.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    first, second, third = asyncio.run(main())
    thread.shutdown()
    assert isinstance(first, list) and isinstance(second, list) and text_of(second) == "a reply"
    assert isinstance(third, QueueFullError)


def test_a_full_queue_is_told_to_a_sync_caller() -> None:
    thread = started(stub_engine(max_waiting=0))
    with pytest.raises(QueueFullError):
        thread.generate(Request(PROMPT))
    thread.shutdown()


def test_a_step_that_raises_ends_the_request_and_not_the_thread() -> None:
    def fail(batch: Batch) -> None:
        if len(batch.tokens) > 50:
            raise RuntimeError("boom")

    thread = started(stub_engine("fine", on_step=fail))
    (end,) = thread.generate(Request(tuple(range(60))))
    assert end.finish == "error" and end.error == "RuntimeError: boom"
    assert text_of(list(thread.generate(Request(PROMPT, sampling=GREEDY)))) == "fine"
    thread.shutdown()


def test_a_bug_in_the_engine_ends_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = stub_engine("fine")
    schedule, broken = engine._scheduler.schedule, [True]
    monkeypatch.setattr(engine._scheduler, "schedule", lambda *_: 1 / 0 if broken and broken.pop() else schedule())
    thread = started(engine)
    (end,) = thread.generate(Request(PROMPT))
    assert end.finish == "error"
    assert text_of(list(thread.generate(Request(PROMPT, sampling=GREEDY)))) == "fine"
    thread.shutdown()


def test_shutdown_with_drain_finishes_what_runs() -> None:
    gate = Gate()
    thread = started(stub_engine("a reply", on_step=gate))
    answers = thread.generate(Request(PROMPT, sampling=GREEDY))
    stopper = Thread(target=thread.shutdown)
    stopper.start()
    gate.opened.set()
    assert text_of(list(answers)) == "a reply"
    stopper.join(LIMIT_S)
    with pytest.raises(EngineStoppedError):
        thread.generate(Request(PROMPT))


def test_shutdown_without_drain_cancels_what_runs() -> None:
    thread = started(stub_engine("a reply", num_pages=512))
    answers = thread.generate(LONG)
    next(answers)
    thread.shutdown(drain=False)
    assert list(answers)[-1].finish == "cancelled"


def test_a_closed_loop_cancels_its_requests() -> None:
    gate = Gate()
    engine = stub_engine("a reply", num_pages=512, on_step=gate)
    thread = started(engine)
    loop = asyncio.new_event_loop()
    deltas = thread.agenerate(LONG)
    waiting = loop.create_task(anext(deltas))
    loop.run_until_complete(asyncio.sleep(0))
    assert gate.reached.wait(LIMIT_S)
    waiting.cancel()
    loop.run_until_complete(asyncio.gather(waiting, return_exceptions=True))
    loop.close()
    gate.opened.set()
    thread.shutdown()
    assert engine.stats().completion_tokens < 2000


def test_embeddings_come_while_answers_run(thread: EngineThread) -> None:
    answers = thread.generate(LONG)
    next(answers)
    vectors = thread.embed([list(b"one"), list(b"two")])
    again = asyncio.run(thread.aembed([list(b"two")]))
    assert vectors[1] == pytest.approx(again[0])
    answers.close()


def test_an_unstarted_engine_can_be_shut_down() -> None:
    EngineThread(stub_engine()).shutdown()


def test_a_dying_thread_refuses_what_was_posted_and_not_yet_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)

    def die(batch: Batch) -> None:
        gate(batch)
        raise SystemExit  # what no handler of ours catches

    gate, refusals = Gate(), list[Exception]()
    thread = started(stub_engine("a reply", num_pages=512, on_step=die))
    first = thread.generate(LONG)
    assert gate.reached.wait(LIMIT_S)

    def ask() -> None:
        try:
            list(thread.generate(LONG))
        except EngineStoppedError as error:
            refusals.append(error)

    late = Thread(target=ask)
    late.start()
    gate.opened.set()
    late.join(LIMIT_S)
    assert len(refusals) == 1
    with pytest.raises(EngineStoppedError):
        list(first)


def lost_after(steps: int) -> Callable[[Batch], None]:
    """Steps of a device that is lost after some of them."""
    left = [steps]

    def step(batch: Batch) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise DeviceLostError("the GPU was lost")
    return step


def test_a_lost_device_ends_all_requests_and_the_thread() -> None:
    thread = started(stub_engine("a long answer", on_step=lost_after(3)))
    deltas = list(thread.generate(Request(PROMPT, sampling=GREEDY)))
    assert deltas[-1].finish == "error" and deltas[-1].error == "the GPU was lost"
    thread.shutdown()
    assert not thread.is_open
    with pytest.raises(EngineStoppedError, match="the GPU was lost") as refused:
        thread.generate(Request(PROMPT))
    assert refused.value.code == "engine_lost"


def test_another_engine_takes_over_from_a_lost_device() -> None:
    thread = EngineThread(stub_engine("a long answer", on_step=lost_after(3)), lambda: stub_engine("fine"))
    thread.start()
    assert list(thread.generate(Request(PROMPT, sampling=GREEDY)))[-1].finish == "error"
    assert text_of(list(thread.generate(Request(PROMPT, sampling=GREEDY)))) == "fine"
    thread.shutdown()


def test_an_engine_that_cannot_take_over_ends_the_thread_with_both_reasons() -> None:
    def reopen() -> Engine:
        raise MemoryLimitError(2_000_000, 1_000_000, "weights")

    thread = EngineThread(stub_engine("a long answer", on_step=lost_after(3)), reopen)
    thread.start()
    assert list(thread.generate(Request(PROMPT, sampling=GREEDY)))[-1].finish == "error"
    thread.shutdown()
    with pytest.raises(EngineStoppedError, match="the GPU was lost.*1.0 MB more than the limit"):
        thread.generate(Request(PROMPT))
