"""The pilot: what is sent at each tick, whatever the policy does."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.errors import AnswerError, EvidenceError, UnsupportedError
from brise.robots import jitter
from brise.robots.command_queue import CommandQueue, LateFallback, SentCommand
from brise.robots.pilot import Pilot, PilotOptions, PolicyAnswer, TickTimes, replay
from brise.text.action_space import ActionSpace, ActionValue

SPACE = ActionSpace("cart", (ActionValue("v", -1, 1, 21, "m/s", 0.25),), steps=4, period_s=0.002)


def sent(queue: CommandQueue, count: int) -> list[tuple[float, str]]:
    return [(round(float(command.values[0]), 3), command.source) for command in (queue.take() for _ in range(count))]


def test_steps_whose_time_has_passed_are_not_sent() -> None:
    queue = CommandQueue(SPACE, blend=0)
    queue.put([[0.1], [0.2], [0.3], [0.4]], 0)
    assert sent(queue, 2) == [(0.1, "model"), (0.2, "model")]
    assert queue.put([[0.0], [0.0], [0.35], [0.45]], 0) == 2  # of an observation two ticks ago
    assert sent(queue, 2) == [(0.35, "model"), (0.45, "model")]
    assert queue.put([[0.9]], 2) == 0
    queue.put([[0.5], [0.5], [0.5], [0.5]], 4)
    queue.skip(3)
    assert sent(queue, 2) == [(0.5, "model"), (0.5, "hold")]


def test_a_new_chunk_is_blended_with_what_was_planned() -> None:
    queue = CommandQueue(SPACE, blend=1)
    queue.put([[0.2], [0.2], [0.2]], 0)
    assert sent(queue, 1) == [(0.2, "model")]
    queue.put([[0.4], [0.4]], 1)
    assert sent(queue, 2) == [(0.3, "model"), (0.4, "model")]


@pytest.mark.parametrize(("fallback", "expected"), [
    (LateFallback("hold", 0.004, "brake"), [(0.5, "hold"), (0.5, "hold"), (0.25, "brake"), (0.0, "brake")]),
    (LateFallback("brake", 0.0, "hold"), [(0.5, "hold")]),
    (LateFallback("hold", 0.002, "brake", 0.004, "scripted:up", scripts={"up": lambda last: last + 0.2}),
     [(0.5, "hold"), (0.25, "brake"), (0.0, "brake"), (0.2, "scripted"), (0.4, "scripted")]),
    (LateFallback("scripted:half", 1.0, scripts={"half": lambda last: last / 2}),
     [(0.25, "scripted"), (0.125, "scripted")]),
])
def test_without_a_chunk_the_fallback_commands(fallback: LateFallback, expected: list[tuple[float, str]]) -> None:
    queue = CommandQueue(SPACE, fallback)
    queue.put([[0.5]], 0)
    assert sent(queue, 1) == [(0.5, "model")]
    assert sent(queue, len(expected)) == expected


def test_a_script_or_a_guard_that_fails_brakes() -> None:
    queue = CommandQueue(SPACE, LateFallback("scripted:broken", scripts={"broken": lambda last: last[3]}))
    queue.put([[0.5]], 0)
    assert sent(queue, 3) == [(0.5, "model"), (0.25, "brake"), (0.0, "brake")]
    commands: list[SentCommand] = []
    Pilot(SPACE, Stub("ok"), lambda: None, commands.append, PilotOptions(warm_up=0),
          guard=lambda wanted, low, high: wanted[7]).fly(10)
    assert {float(command.values[0]) for command in commands} == {0.0}


def test_an_unknown_fallback_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="no fallback 'zero', there are: hold, brake"):
        LateFallback("zero")


ARRIVALS = st.lists(st.tuples(st.integers(0, 5), st.lists(st.floats(-5, 5, width=32), max_size=6), st.integers(0, 9)),
                    max_size=20)


@given(ARRIVALS, st.integers(0, 3))
def test_no_step_leaves_limits_or_rates(events: list[tuple[int, list[float], int]], blend: int) -> None:
    queue, values = CommandQueue(SPACE, blend=blend), []
    for ticks, chunk, age in events:
        queue.put(np.array(chunk).reshape(-1, 1), max(queue.num_ticks - age, 0))
        values += [float(queue.take().values[0]) for _ in range(ticks)]
    assert all(abs(value) <= 1 for value in values)
    assert all(abs(after - before) <= 0.25 + 1e-12 for before, after in zip(values, values[1:], strict=False))


class Stub:
    """Answers, fails or waits as its script says; the last entry holds from then on."""

    def __init__(self, *script: str) -> None:
        self.script, self.asked = list(script), 0
        self.release = threading.Event()

    def decide(self, observation: Any, deadline_s: float) -> PolicyAnswer:
        entry = self.script[min(self.asked, len(self.script) - 1)]
        self.asked += 1
        if entry == "dead":
            raise ConnectionRefusedError("no engine")
        if entry == "stuck":
            self.release.wait(10)
        return PolicyAnswer(np.full((4, 1), 0.5), is_late=entry == "late")


def flown(policy: Stub, ticks: int = 30) -> tuple[list[SentCommand], TickTimes, str]:
    commands: list[SentCommand] = []
    log = io.StringIO()
    pilot = Pilot(SPACE, policy, lambda: None, commands.append, PilotOptions(warm_up=0, deadline_s=0.01), log)
    times = pilot.fly(ticks)
    policy.release.set()
    return commands, times, log.getvalue()


def test_a_flight_replays_to_the_same_commands() -> None:
    commands, times, log = flown(Stub("ok", "late", "ok", "dead", "ok"))
    assert len(commands) + times.skipped >= 30
    pairs = replay(log.splitlines(), SPACE, PilotOptions())
    assert len(pairs) == len(commands)
    assert all(np.array_equal(logged, again) for logged, again in pairs)


def test_a_guard_is_told_what_can_be_sent() -> None:
    queue, told = CommandQueue(SPACE), []
    queue.put([[0.5], [1.0]], 0)
    sent_values = [queue.take(lambda wanted, low, high: told.append((low, high)) or wanted).values for _ in range(2)]
    rate = SPACE.values[0].max_change
    assert told[0] == (SPACE.values[0].low, SPACE.values[0].high)
    assert told[1] == (sent_values[0] - rate, sent_values[0] + rate)


def test_every_command_passes_the_guard_and_the_log_knows() -> None:
    commands: list[SentCommand] = []
    log = io.StringIO()
    pilot = Pilot(SPACE, Stub("ok", "dead", "ok"), lambda: None, commands.append, PilotOptions(warm_up=0), log,
                  guard=lambda wanted, low, high: np.minimum(wanted, 0.1 * (len(commands) % 4)))
    pilot.fly(20)
    assert max(float(command.values[0]) for command in commands) <= 0.3 + 1e-12
    pairs = replay(log.getvalue().splitlines(), SPACE, PilotOptions())
    assert len(pairs) == len(commands) and all(np.array_equal(logged, again) for logged, again in pairs)


def test_a_dead_engine_is_one_more_late_answer() -> None:
    commands, times, _ = flown(Stub("dead"))
    assert {command.source for command in commands} <= {"hold", "brake"}
    assert "no engine" in times.failures[0] and all(late for _, _, late in times.answer)


def test_a_policy_that_hangs_holds_nothing_up() -> None:
    commands, times, _ = flown(Stub("stuck"))
    assert len(commands) == len(times.tick_late) and not times.answer
    assert {command.source for command in commands} == {"hold"}


class Odd(Stub):
    """Answers with commands of another shape, once with none of its own making."""

    def decide(self, observation: Any, deadline_s: float) -> PolicyAnswer:
        super().decide(observation, deadline_s)
        return PolicyAnswer(np.zeros((4, 3)) if self.asked % 2 else "left")  # type: ignore[arg-type]


def test_an_answer_of_another_shape_is_a_failure_and_the_loop_goes_on() -> None:
    commands, times, log = flown(Odd("ok"))
    assert len(commands) + times.skipped >= 30 and {command.source for command in commands} <= {"hold", "brake"}
    assert any("shape (4, 3); cart takes (steps, 1)" in failure for failure in times.failures)
    assert len(replay(log.splitlines(), SPACE, PilotOptions())) == len(commands)
    with pytest.raises(AnswerError, match=r"shape \(4, 3\)"):
        Pilot(SPACE, Odd("ok"), lambda: None, lambda command: None).arm()


def test_what_the_users_code_raises_ends_no_flight() -> None:
    sent_ticks: list[int] = []

    def send(command: SentCommand) -> None:
        sent_ticks.append(command.tick)
        if len(sent_ticks) == 3:
            raise ConnectionResetError("the cable is loose")

    readings = iter([{"range": 1.0}, {}])
    pilot = Pilot(SPACE, Stub("ok"), lambda: next(readings, {"range": 2.0})["range"], send, PilotOptions(warm_up=0))
    times = pilot.fly(30)
    assert len(sent_ticks) + times.skipped >= 30 and sent_ticks == sorted(set(sent_ticks))
    assert {failure.split(":")[0] for failure in times.failures} <= {"KeyError", "ConnectionResetError"}
    assert any("the cable is loose" in failure for failure in times.failures)


def test_a_log_that_cannot_be_written_ends_no_flight() -> None:
    log, commands = io.StringIO(), []
    log.close()
    times = Pilot(SPACE, Stub("ok"), lambda: None, commands.append, PilotOptions(warm_up=0), log).fly(10)
    assert len(commands) + times.skipped >= 10 and "closed file" in times.failures[0]


def test_a_policy_that_never_answers_is_not_armed() -> None:
    with pytest.raises(AnswerError, match="no engine"):
        Pilot(SPACE, Stub("dead"), lambda: None, lambda command: None).arm()


def test_the_report_counts_misses_by_seconds() -> None:
    answers = [(tick, 40_000_000, False) for tick in range(0, 1000, 2)]
    for at in (100, 101, 102, 300):
        answers[at] = (answers[at][0], 150_000_000, False)
    times = TickTimes([0] * 1000, [1] * 1000, answers, ["model"] * 990 + ["hold"] * 10)
    report = jitter.summarize(times, 0.1, 0.1)
    assert (report.misses, report.chances, report.longest_run, report.num_blocks) == (4, 500, 3, 100)
    assert report.blocks_missed.estimate == pytest.approx(0.02)  # the three of one second or its neighbor count once
    assert report.blocks_missed.high == pytest.approx(0.0704, abs=1e-4)  # Clopper and Pearson, 2 of 100
    assert report.answers.ms[0] == 40 and report.answers.ms[-1] == 150
    assert sum(report.histogram) == 500 and "4 of 500" in str(jitter.document(report))


def test_nothing_measured_is_no_report() -> None:
    with pytest.raises(EvidenceError, match="0 ticks"):
        jitter.summarize(TickTimes(), 0.1, 0.1)
