"""A gateway follows the ledger, and no request waits for a store that is locked or hangs."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Iterator

from brise.dialects.bodies import Body
from brise.errors import StoreError
from brise.switch.ledger_follower import Follower
from brise.switch.state import Action, gateway_line
from brise.traffic.records import LedgerEntry
from tests.switch.ledger_lines import Lines, switched
from tests.waiting import LIMIT_S


class Stuck(Lines):
    """A ledger that is held up when it is written or read, as long as the events are not set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write, self.may_read, self.tried = threading.Event(), threading.Event(), threading.Event()
        self.reads = 0
        self.may_write.set()
        self.may_read.set()
        self.append("switch", switched())

    def append(self, kind: str, body: Body) -> LedgerEntry:
        self.tried.set()
        assert self.may_write.wait(LIMIT_S)
        return super().append(kind, body)

    def ledger(self, after: int = 0) -> Iterator[LedgerEntry]:
        self.reads += 1
        assert self.may_read.wait(LIMIT_S)
        yield from super().ledger(after)


def following(lines: Lines, patience_s: float = 20.0) -> Follower:
    return Follower(lines, lambda: lines.now_s, io.StringIO(), patience_s)  # type: ignore[arg-type]


def test_who_looks_does_not_wait_for_who_writes() -> None:
    async def scene() -> None:
        lines = Stuck()
        follower = following(lines)
        await follower.look()
        state = follower.state("calls")
        assert state is not None and state.is_on
        lines.tried.clear()
        lines.may_write.clear()
        follower.write(Action("raise", gateway_line(state) | {"reason": "a doubt"}))
        writing = asyncio.create_task(follower.refresh())
        await asyncio.to_thread(lines.tried.wait, 20)
        Lines.append(lines, "back", gateway_line(state) | {"reason": "another gateway's alarm"})
        await follower.look()
        ended = follower.state("calls")
        assert ended is not None and not ended.is_on and not writing.done()
        lines.may_write.set()
        await writing

    asyncio.run(scene())


def test_a_store_that_hangs_is_waited_for_once() -> None:
    async def scene() -> None:
        lines = Stuck()
        follower = following(lines, 0.05)
        await follower.look()
        lines.may_read.clear()
        for _ in range(5):
            await follower.look()
        state = follower.state("calls")
        assert state is not None and state.is_on and lines.reads == 2
        lines.may_read.set()

    asyncio.run(scene())


def test_a_line_that_cannot_be_written_is_written_later() -> None:
    class Locked(Lines):
        is_locked = False

        def append(self, kind: str, body: Body) -> LedgerEntry:
            if self.is_locked:
                raise StoreError("locked")
            return super().append(kind, body)

    lines = Locked()
    lines.append("switch", switched())
    follower = following(lines)
    asyncio.run(follower.refresh())
    state = follower.state("calls")
    assert state is not None
    lines.is_locked = True
    follower.write(Action("raise", gateway_line(state) | {"reason": "a doubt"}))
    asyncio.run(follower.refresh())
    assert follower.failures == 1 and len(lines.entries) == 1
    lines.is_locked = False
    asyncio.run(follower.refresh())
    assert [entry.kind for entry in lines.entries] == ["switch", "raise"]
