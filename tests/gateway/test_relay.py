"""Where a large model's stream ends, and what of its head still holds when somebody else goes on with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from brise.gateway.breaker import Breaker, BreakerSettings
from brise.gateway.upstream import Limits
from tests.engine.stub import stub_model
from tests.gateway.fake_answers import chat_events, encode
from tests.gateway.fake_upstream import Behaviour, Hold, answer, events
from tests.gateway.rig import SHORT_S, Rig, rig
from tests.gateway.test_fault_matrix import ask, stand_in

SAYS = "one two"
FOREVER = Hold()  # released when all tests of this file have looked
QUIET = Limits(between_s=SHORT_S)  # only silence is a subject here
STREAM = chat_events(SAYS)


@pytest.fixture(scope="module", autouse=True)
def _released() -> Iterator[None]:
    yield
    FOREVER.release()


@pytest.fixture(scope="module")
def alone() -> Iterator[Rig]:
    with rig(QUIET, breaker=Breaker(BreakerSettings(failures=1000))) as made:
        yield made


@pytest.fixture(scope="module")
def standing_in() -> Iterator[Rig]:
    """The small model would say more."""
    with rig(QUIET, model=stub_model(f"{SAYS} and more"), breaker=Breaker(BreakerSettings(failures=1000)),
             around=stand_in) as made:
        yield made


def ended_then(data: Sequence[object], hold: Hold | None) -> Behaviour:
    """A whole answer, and then a reset, or nothing for ever."""
    if hold is None:
        return events(data, ends=False)
    return events([*data, b": still here\n\n"], hold=hold, hold_after=len(data))


@pytest.mark.parametrize("data", [STREAM, STREAM[:-1]], ids=["done", "finished"])
@pytest.mark.parametrize("hold", [None, FOREVER], ids=["reset", "silence"])
@pytest.mark.parametrize("who", ["alone", "standing_in"])
def test_nobody_goes_on_behind_the_end_of_an_answer(request: pytest.FixtureRequest, who: str, hold: Hold | None,
                                                    data: Sequence[object]) -> None:
    gateway: Rig = request.getfixturevalue(who)
    gateway.live.wait_idle()
    gateway.captured.clear()
    gateway.outwaits(FOREVER)
    gateway.fake.then(ended_then(data, hold))
    text = gateway.live.post("/v1/chat/completions", {
        "model": "big", "messages": [{"role": "user", "content": "hi"}], "stream": True}).text
    assert text == b"".join(map(encode, data)).decode()
    exchange, = gateway.captured.wait()
    assert (exchange.mode, exchange.error, gateway.captured.pending) == ("hosted", None, [])


def test_a_length_that_the_stream_said_does_not_bind_who_goes_on(standing_in: Rig) -> None:
    sent = b"".join(map(encode, STREAM[:2]))
    standing_in.fake.then(answer(sent, 200, {"content-type": "text/event-stream"}))
    got = ask(standing_in, stream=True)
    assert (got.text, got.error, got.label["reason"]) == ("one two and more", None, "cut")
