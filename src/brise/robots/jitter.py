"""The jitter report: how late ticks and answers were, how often, and what one may conclude from so many.

Misses come in clusters, so the interval is over blocks of one second, not over ticks (Clopper and Pearson 1934): none
in 3,000 blocks bounds the share of seconds with a miss by 0.12 % at 95 %.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from brise.errors import EvidenceError
from brise.report.charts import Axis, BarChart, ChartBar
from brise.report.document import Document, Figure, KeyFigures, ReportTable, Section
from brise.robots.pilot import NANO, TickTimes
from brise.stats.intervals import Interval, binomial_interval

QUANTILES = (0.5, 0.95, 0.99, 0.999, 1.0)
SPAN_S = 1.0  # of a block
EDGES = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)  # of the histogram, in control periods


@dataclass(frozen=True)
class Delays:
    """Milliseconds at p50, p95, p99, p99.9 and the maximum, and how many they were."""

    count: int
    ms: tuple[float, ...]


@dataclass(frozen=True)
class JitterReport:
    """What a flight's times say. A miss is an answer that came after its deadline, or a tick that was skipped."""

    period_ms: float
    deadline_ms: float
    ticks: Delays  # how late they began
    work: Delays  # what the loop itself took
    answers: Delays
    misses: int
    chances: int  # answers and skipped ticks
    longest_run: int  # of misses
    blocks_missed: Interval  # of the share of seconds that had a miss, at 95 %
    num_blocks: int
    histogram: tuple[int, ...]  # answers by their time in control periods; EDGES are the upper ends, the last has none
    sources: dict[str, int]  # how many commands were the model's, held, braked, scripted
    failures: int
    circumstances: dict[str, str]

    def as_json(self) -> dict[str, object]:
        """The report as --json prints it."""
        return asdict(self)


def summarize(times: TickTimes, period_s: float, deadline_s: float) -> JitterReport:
    """The report of a flight; EvidenceError if nothing was measured."""
    if not times.answer or not times.tick_late:
        raise EvidenceError(f"{len(times.tick_late)} ticks and {len(times.answer)} answers were measured: at least one "
                            "of each is needed")
    took = np.array([each[1] for each in times.answer])
    is_missed = np.array([late or nanoseconds > deadline_s * NANO for _, nanoseconds, late in times.answer])
    block_of = np.array([each[0] for each in times.answer]) * period_s // SPAN_S
    blocks = np.unique(block_of)
    missed = len(np.unique(block_of[is_missed]))
    counts = np.histogram(took / NANO / period_s, [0, *EDGES, np.inf])[0]
    return JitterReport(
        period_s * 1e3, deadline_s * 1e3, _delays(times.tick_late), _delays(times.tick_work), _delays(took.tolist()),
        int(is_missed.sum()) + times.skipped, len(is_missed) + times.skipped, _longest_run(is_missed.tolist()),
        binomial_interval(missed, len(blocks)), len(blocks), tuple(map(int, counts)),
        {source: times.sources.count(source) for source in ("model", "hold", "brake", "scripted")},
        len(times.failures), _circumstances(times))


def document(report: JitterReport) -> Document:
    """The report for terminal and HTML."""
    share, names = report.blocks_missed, [f"up to {edge:g}" for edge in EDGES] + [f"over {EDGES[-1]:g}"]
    measured = {"a tick began late by": report.ticks, "the loop's own work": report.work,
                "an answer took": report.answers}
    rows = [(name, *(f"{value:.2f}" for value in delays.ms), str(delays.count)) for name, delays in measured.items()]
    bars = BarChart("Answers", "How many answers took so many control periods",
                    [ChartBar(name, count, str(count)) for name, count in zip(names, report.histogram, strict=True)],
                    Axis("answers"))
    commands = [(source, str(count), f"{count / max(sum(report.sources.values()), 1):.1%}")
                for source, count in report.sources.items()]
    return Document(
        "Jitter report", f"A control period is {report.period_ms:g} ms, an answer has {report.deadline_ms:g} ms.",
        (Section("Times", [ReportTable(("ms", "p50", "p95", "p99", "p99.9", "max", "count"), rows, range(1, 7))]),
         Section("Answers by control periods", [Figure("Answers", bars)]),
         Section("Where the commands came from", [ReportTable(("source", "commands", "share"), commands, (1, 2))])),
        (KeyFigures([("misses", f"{report.misses} of {report.chances}", "late answers and skipped ticks"),
                     ("seconds with a miss", f"{share.estimate:.2%}",
                      f"{share.low:.2%} to {share.high:.2%} at 95 %, of {report.num_blocks}"),
                     ("longest run", str(report.longest_run), "late answers in a row")]),),
        "Soft real time, not safety-rated. " + ", ".join(f"{key} {value}" for key, value in
                                                         report.circumstances.items()))


def _delays(nanoseconds: Sequence[int]) -> Delays:
    values = np.quantile(np.array(nanoseconds, np.float64), QUANTILES, method="higher") / 1e6
    return Delays(len(nanoseconds), tuple(float(value) for value in values))


def _longest_run(is_missed: Sequence[bool]) -> int:
    longest = run = 0
    for missed in is_missed:
        run = run + 1 if missed else 0
        longest = max(longest, run)
    return longest


def _circumstances(times: TickTimes) -> dict[str, str]:
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    load = Path("/proc/loadavg")
    return {"machine": f"{platform.machine()} {platform.system()} {platform.release()}",
            "governor": governor.read_text().strip() if governor.exists() else "unknown",
            "scheduling": "SCHED_FIFO" if times.is_real_time else "SCHED_OTHER",
            "load": load.read_text().split()[0] if load.exists() else "unknown"}
