"""Time left is of time in which the process ran: what it stood still is left out."""

from __future__ import annotations

from brise.cli.progress_bar import progress_of
from brise.cli.tune_show import Clock
from brise.tune.watch import Step
from brise.watch import RunningClock, running_clock


class Time:
    """A clock that is moved by hand, with the ticks of a process that runs."""

    def __init__(self) -> None:
        self.now = 100.0
        self.clock = RunningClock(lambda: self.now)

    def runs(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.5)):
            self.now += 0.5
            self.clock.tick()

    def stands_still(self, seconds: float) -> None:
        self.now += seconds


def test_a_stopped_process_has_no_time() -> None:
    time = Time()
    time.runs(10)
    assert time.clock() == 10.0
    time.stands_still(3600)
    assert time.clock() == 10.5, "of the gap half a second is taken for the time before it stopped"
    time.runs(5)
    time.stands_still(3)
    assert time.clock() == 18.5, "a busy machine is no stopped process"


def test_a_progress_bar_leaves_it_out_of_the_time_left() -> None:
    time = Time()
    with progress_of("examples", time.clock) as progress:
        task = progress.add_task("asking", total=100)
        for _ in range(20):
            time.runs(1)
            progress.advance(task, 1)
        assert progress.tasks[0].time_remaining == 80
        time.stands_still(86_400)
        time.runs(1)
        progress.advance(task, 1)
        assert 79 <= (progress.tasks[0].time_remaining or 0) <= 85


def test_the_time_left_of_a_training_leaves_it_out() -> None:
    time, left = Time(), Clock(100, 1000)

    def step(number: int, stood_s: float = 0.0) -> float | None:
        start = time.clock()
        time.runs(2)
        time.stands_still(stood_s)
        left.stepped(Step(number, 1.0, 0.1, 1.0, 100, 100, 10, 8), time.clock() - start)
        return left.left_s(number)

    before = [step(number) for number in range(1, 11)][-1]
    after = step(11, 86_400.0)
    assert before == 2.0 * 90 and after is not None and 170 < after < 190


def test_a_thread_keeps_the_clock_running_and_ends_with_it() -> None:
    with running_clock() as clock:
        first = clock()
        assert clock() >= first >= 0.0
