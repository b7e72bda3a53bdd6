"""The control loop: at each period it sends one command, on time, whatever the model does.

The loop has a thread of its own and absolute deadlines. It never waits for the model: a second thread asks, with the
newest observation, and puts the answer where the loop finds it at its next tick. What came in and what went out is
written to a log that `replay` runs again.

This is soft real time on an ordinary operating system, and not safety-rated: what must never fail belongs into the
inner controller.
"""

from __future__ import annotations

import gc
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

import numpy as np

from brise.errors import AnswerError, BriseError, UnsupportedError
from brise.robots.command_queue import CommandQueue, Guard, LateFallback, SentCommand, fallback_step
from brise.text.action_space import ActionSpace, Floats

NANO = 1_000_000_000
MAX_FAILURES = 1000  # that are kept


@dataclass(frozen=True)
class PolicyAnswer:
    """A policy's answer: commands (steps, D), fewer than a chunk if it was late."""

    commands: Floats
    is_late: bool = False


class Pilotable(Protocol):
    """What decides: a model in another process, or a stub."""

    def decide(self, observation: Any, deadline_s: float) -> PolicyAnswer:
        """The commands for an observation; it may take as long as it takes. One that raises counts as late."""


@dataclass(frozen=True)
class PilotOptions:
    """How a pilot flies. `ask_at` steps left in the queue, the next answer is asked for (None: as soon as possible)."""

    fallback: LateFallback = LateFallback()
    blend: int = 1
    deadline_s: float = 0.1  # of an answer
    ask_at: int | None = None
    warm_up: int = 3  # answers that are asked for and thrown away before arming
    real_time: bool = False  # asks for SCHED_FIFO, which needs a right that most users have not
    collects_garbage: bool = False  # in the loop; else what lives when it starts is frozen, and nothing is collected


@dataclass
class TickTimes:
    """What was measured, in nanoseconds: how late each tick began and how long it took; how long each answer took."""

    tick_late: list[int] = field(default_factory=list)
    tick_work: list[int] = field(default_factory=list)
    answer: list[tuple[int, int, bool]] = field(default_factory=list)  # (tick of the question, nanoseconds, is late)
    sources: list[str] = field(default_factory=list)  # of each command
    failures: list[str] = field(default_factory=list)  # of the policy, `observe`, `send` and the log
    skipped: int = 0  # ticks at which the whole process was kept from running
    is_real_time: bool = False


class Pilot:
    """Flies one robot: `observe` is called for each question, `send` at each tick, both on threads of the pilot.

    Every command passes the `guard` before it is sent, such as a barrier (barrier.py): the model's, and the fallback's.
    Once the pilot flies, nothing that these functions raise ends the loop: it is a failure in `times`, and the next
    tick comes. An answer of another shape than the action space's is a failure of the policy.
    """

    def __init__(self, space: ActionSpace, policy: Pilotable, observe: Callable[[], Any],
                 send: Callable[[SentCommand], None], options: PilotOptions = PilotOptions(), log: TextIO | None = None,
                 guard: Guard | None = None) -> None:
        if not options.deadline_s > 0:
            raise UnsupportedError(f"the deadline is {options.deadline_s} s, it must be over 0")
        self._space, self._policy, self._observe, self._send = space, policy, observe, send
        self._options, self._log, self._guard = options, log, guard
        self._queue = CommandQueue(space, options.fallback, options.blend)
        self._arrived: deque[tuple[int, PolicyAnswer, int]] = deque()  # (ticks before, decision, nanoseconds)
        self._wake, self._stop = threading.Event(), threading.Event()
        self._is_asking = False
        self.times = TickTimes()

    def arm(self) -> None:
        """Asks `warm_up` times and throws the answers away: the first ones touch cold memory and are no measurement.

        AnswerError if the policy does not answer, or with commands of another shape.
        """
        for _ in range(self._options.warm_up):
            try:
                self._decided(60.0)
            except (BriseError, OSError) as error:
                raise AnswerError(f"the policy does not answer, so the pilot is not armed: {error}") from error

    def fly(self, num_ticks: int | None = None) -> TickTimes:
        """Sends a command at each period, until `stop` or for `num_ticks`; returns what was measured."""
        asking = threading.Thread(target=self._ask_on, name="pilot-asks", daemon=True)
        asking.start()
        self.times.is_real_time = self._options.real_time and _take_priority()
        if not self._options.collects_garbage:
            gc.collect()
            gc.freeze()
            gc.disable()
        try:
            self._loop(num_ticks)
        finally:
            if not self._options.collects_garbage:
                gc.enable()
                gc.unfreeze()
            self._stop.set()
            self._wake.set()
            asking.join(self._options.deadline_s + 1)
        return self.times

    def stop(self) -> None:
        """Ends the loop after the tick that runs; safe to call from any thread."""
        self._stop.set()

    def _loop(self, num_ticks: int | None) -> None:
        period, begin, tick = round(self._space.period_s * NANO), time.monotonic_ns(), 0
        while not self._stop.is_set() and (num_ticks is None or tick < num_ticks):
            due = begin + tick * period
            while (left := due - time.monotonic_ns()) > 0:
                time.sleep(left / NANO)  # an absolute deadline: what one tick is late, the next is not
            now = time.monotonic_ns()
            if (slept := (now - due) // period) > 0:  # they are not made up for: the robot has moved on
                self._queue.skip(slept)
                self._write({"skipped": slept})
                self.times.skipped += slept
                tick += slept
            self._tick()
            self.times.tick_late.append(now - due)
            self.times.tick_work.append(time.monotonic_ns() - now)
            tick += 1

    def _tick(self) -> None:
        while self._arrived:
            ticks_before, decision, took = self._arrived.popleft()
            self.times.answer.append((ticks_before, took, decision.is_late))
            kept = self._queue.put(decision.commands, ticks_before)
            self._write({"answer": decision.commands.tolist(), "ticks_before": ticks_before, "late": decision.is_late,
                         "took_ns": took, "kept": kept})
            self._is_asking = False
        command = self._queue.take(self._guarded if self._guard is not None else None)
        try:
            self._send(command)
        except Exception as error:  # of the user's own code: a link that fails once may take the next command
            self._note(error)
        self.times.sources.append(command.source)
        self._write({"command": command.values.tolist(), "tick": command.tick, "source": command.source})
        ask_at = self._options.ask_at
        if not self._is_asking and (ask_at is None or self._queue.num_left <= ask_at):
            self._is_asking = True
            self._wake.set()

    def _guarded(self, wanted: Floats, low: Floats, high: Floats) -> Floats:
        """What the guard makes of a command; the log has it, since it depends on more than on answers.

        A guard that fails brakes.
        """
        guard = self._guard
        assert guard is not None
        guards = {"guard": lambda each: guard(each, low, high)}
        allowed, _ = fallback_step("scripted:guard", guards, wanted, self._space)
        self._write({"guarded": allowed.tolist()})
        return allowed

    def _ask_on(self) -> None:
        """Asks whenever the loop wants it; the loop's own thread never waits for this one."""
        while self._wake.wait() and not self._stop.is_set():
            self._wake.clear()
            ticks_before, begin = self._queue.num_ticks, time.monotonic_ns()
            try:
                decision = self._decided(self._options.deadline_s)
            except Exception as error:  # a dead engine is one more late answer, and so is a fault in `observe`
                self._note(error)
                decision = PolicyAnswer(np.empty((0, len(self._space.values))), is_late=True)
                self._stop.wait(self._space.period_s)  # a policy that fails at once is not asked all the time
            self._arrived.append((ticks_before, decision, time.monotonic_ns() - begin))

    def _decided(self, deadline_s: float) -> PolicyAnswer:
        """The policy's answer to what is observed now; AnswerError for commands of another shape."""
        answer, width = self._policy.decide(self._observe(), deadline_s), len(self._space.values)
        commands = np.asarray(answer.commands, np.float64)
        if commands.ndim != 2 or commands.shape[1] != width:
            raise AnswerError(f"the policy answered with commands of shape {commands.shape}; {self._space.name} takes "
                              f"(steps, {width})")
        return PolicyAnswer(commands, answer.is_late)

    def _note(self, error: Exception) -> None:
        if len(self.times.failures) < MAX_FAILURES:
            self.times.failures.append(f"{type(error).__name__}: {error}")

    def _write(self, event: dict[str, object]) -> None:
        if self._log is None:
            return
        try:
            self._log.write(json.dumps(event) + "\n")
        except (OSError, ValueError) as error:  # a full disk, or a file that was closed: the flight goes on without it
            self._log = None
            self._note(error)


def replay(events: Iterable[str], space: ActionSpace, options: PilotOptions) -> Sequence[tuple[Floats, Floats]]:
    """(logged command, command that the same answers give) for each tick of a pilot's log."""
    queue, pairs, guard = CommandQueue(space, options.fallback, options.blend), [], None
    for line in events:
        event = json.loads(line)
        if "skipped" in event:
            queue.skip(event["skipped"])
        elif "answer" in event:
            queue.put(np.array(event["answer"], np.float64).reshape(-1, len(space.values)), event["ticks_before"])
        elif "guarded" in event:
            guard = _always(np.array(event["guarded"]))
        else:
            pairs.append((np.array(event["command"]), queue.take(guard).values))
    return pairs


def _always(command: Floats) -> Guard:
    return lambda wanted, low, high: command


def _take_priority() -> bool:
    """Whether this thread runs as SCHED_FIFO from now on."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    except (OSError, AttributeError):  # no right, or no Linux
        return False
    return True
