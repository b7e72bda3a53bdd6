"""The cars: every reply is counted, streams are put together, nobody goes on after a misunderstanding."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from brise.demo import drive
from brise.demo.large_model import LargeModelProcess
from brise.demo.stand_in import Nature, truth_of
from brise.demo.workload import Talk, Workload

TALKS = [talk for talk in Workload(3).talks(60, held_out=0.3)]


@pytest.fixture(scope="module")
def large() -> Iterator[LargeModelProcess]:
    server = LargeModelProcess(truth_of(TALKS), Nature(accuracy=0.8, median_s=0.001))
    server.start()
    yield server
    server.kill()


def went(url: str, talks: list[Talk]) -> drive.DriveTally:
    return asyncio.run(drive.drive(url, talks, parallel=8))


def test_all_are_answered_and_the_right_ones_are_counted(large: LargeModelProcess) -> None:
    found = went(large.url, TALKS)
    assert found.answered == found.asked and found.modes == {"hosted": found.asked}
    assert 60 <= found.asked <= sum(len(talk.turns) for talk in TALKS)
    assert 0.6 < found.right / found.asked < 0.95


def test_a_server_that_is_gone_is_no_answer() -> None:
    found = went("http://127.0.0.1:9/v1", TALKS[:3])
    assert (found.asked, found.answered, found.right) == (3, 0, 0)


def test_a_pause_is_made_before_each_conversation(large: LargeModelProcess) -> None:
    pauses: list[int] = []

    async def pause() -> None:
        pauses.append(1)

    asyncio.run(drive.drive(large.url, TALKS[:7], parallel=3, before=pause))
    assert len(pauses) == 7


@pytest.mark.parametrize(("one", "other", "is_same"), [
    ('{"name":"a","arguments":{"x":1,"y":2}}', '{"arguments": {"y": 2, "x": 1.0}, "name": "a"}', True),
    ('{"name":"a","arguments":{"x":1}}', '{"name":"a","arguments":{"x":2}}', False), ("no", "no", False)])
def test_calls_are_compared_as_values(one: str, other: str, is_same: bool) -> None:
    assert drive.same(one, other) is is_same
