"""What `brise switch` and `brise audit` show: the state of tasks, and what happened when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from brise.switch.history import Tenure
from brise.switch.state import TaskState

WIDTH = 110


def state(found: TaskState) -> dict[str, Any]:
    """One task as JSON."""
    rule, alarm = found.rule, found.alarm
    return {"task": found.task, "candidate": found.candidate, "is_on": found.is_on, "ended": found.ended,
            "share": found.share, "since_s": found.since_s, "user": found.user, "forced": found.forced,
            "certificate": None if found.warrant is None else asdict(found.warrant),
            "rule": None if rule is None else {"digest": rule.digest, "threshold": rule.threshold, "risk": rule.risk,
                                               "delta": rule.delta, "kept": rule.kept, "units": rule.units},
            "audits": found.audits, "audit_probability": found.audit_probability, "is_tight": found.is_tight,
            "is_raised": found.raised_left > 0, "tolerance": alarm.delta, "evidence": min(alarm.evidence, 1e300),
            "alarm_level": alarm.level, "audited_mean_of_step": found.tally.mean if found.tally.count else None,
            "why_not_up": found.why_not_up()}


def show_states(states: Sequence[TaskState], now_s: float) -> None:
    """A table of tasks, and below it what holds each of them."""
    console, table = Console(width=WIDTH, highlight=False), Table()
    for name in ("task", "answered by", "share", "by", "keeps", "audits", "evidence of harm"):
        table.add_column(name)
    for each in states:
        table.add_row(Text(each.task), Text(each.candidate if each.is_on else "hosted"),
                      f"{100 * each.share:g} %" if each.is_on else "0 %", Text(_by(each, now_s)), _keeps(each),
                      f"{each.audits}, {100 * each.audit_probability:g} %",
                      f"{each.alarm.evidence:.3g} of {each.alarm.level:g}")
    console.print(table)
    for each in states:
        console.print(Text(f"{each.task}: {_next(each)}"), soft_wrap=True)


def show_tenures(tenures: Sequence[Tenure]) -> None:
    """What audits found, a line for each switch; D in points, 0 where the kept answer says what the hosted one says."""
    console, table = Console(width=WIDTH, highlight=False), Table()
    for name in ("task", "answered by", "since", "now", "audits", "audited mean", "95 % interval", "tolerated",
                 "evidence, most"):
        table.add_column(name)
    for tenure in tenures:
        found, mean = tenure.state, tenure.mean
        table.add_row(
            Text(found.task), Text(found.candidate), when(found.since_s),
            f"{100 * found.share:g} %" if found.is_on else "ended", str(len(tenure.audits)),
            "" if mean is None else f"{100 * mean.estimate:+.1f}",
            "" if mean is None else f"{100 * mean.low:+.1f} to {100 * mean.high:+.1f}",
            f"{-100 * found.alarm.delta:+.1f}", f"{found.alarm.evidence:.3g}, {tenure.highest:.3g}")
    console.print(table)
    console.print(Text("audited mean: of D over all kept answers, in points, each audit weighing 1 / its probability; "
                       "D is 0 where the hosted model says the same, else -1. The alarm is at evidence of "
                       f"{tenures[0].state.alarm.level:g}."), soft_wrap=True)


def show_events(events: Sequence[Mapping[str, Any]]) -> None:
    """What happened when, a line each."""
    console, table = Console(width=WIDTH, highlight=False), Table()
    for name in ("line", "when", "task", "what", "who", "why"):
        table.add_column(name)
    for event in events:
        table.add_row(str(event["number"]), when(event["at_s"]), *(Text(str(event[name]))
                                                                   for name in ("task", "kind", "by", "what")))
    console.print(table)


def when(at_s: float) -> str:
    """A time to the second, UTC."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _by(found: TaskState, now_s: float) -> str:
    if found.warrant is None:
        return f"force ({found.user})"
    days = (found.warrant.expires_s - now_s) / 86400
    return f"certificate {found.warrant.digest[:8]}, " + (f"{days:.0f} days left" if days > 0 else "expired")


def _keeps(found: TaskState) -> str:
    if found.rule is None:
        return "all that is valid"
    threshold = found.rule.tight if found.is_tight else found.rule.threshold
    return f"confidence >= {threshold:.3f}" + (" (tightened)" if found.is_tight else "")


def _next(found: TaskState) -> str:
    if not found.is_on:
        return f"the hosted model answers: {found.ended or 'the alarm rang'}"
    share = found.next_share()
    why_not = found.why_not_up()
    if share is None:
        return f"all of it; caution is raised, {found.raised_left} audits to go" if found.raised_left else "all of it"
    if why_not is None:
        return f"may go up to {100 * share:g} %" + (", and will by itself" if found.is_auto else "")
    return f"not yet up to {100 * share:g} %: {why_not}"
