"""The state of a fleet as a document, for the hub's page and for `brise fleet status`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from brise.prove.document import time_words
from brise.report import figures
from brise.report.charts import Axis, BarChart, ChartBar, LineChart, Reference, Series
from brise.report.document import (
    Cell,
    Code,
    Conclusion,
    Document,
    Figure,
    FigureRow,
    KeyFigures,
    Mark,
    Note,
    Paragraph,
    Part,
    ReportTable,
    Section,
    Status,
)

SHOWN = 4  # roll-outs with all that is known of them; the others are in a table
STEPS = 12
TONES: Mapping[str, Status] = MappingProxyType(
    {"running": "unsure", "paused": "unsure", "halted": "bad", "complete": "good", "back": "bad"})
WORDS: Mapping[str, str] = MappingProxyType({
    "fetched": "fetched it", "verified": "verified it", "staged": "staged it", "gate-passed": "passed the local gate",
    "trial": "try it", "committed": "committed it", "gate-failed": "failed the local gate",
    "rolled-back": "went back", "": "never reported an update"})


def document(status: Mapping[str, Any]) -> Document:
    """The newest roll-outs first, then the devices, then earlier roll-outs. `status` is what hub.status gives."""
    tally = status["tally"]
    rollouts = list(reversed(status["rollouts"]))
    shown, earlier = rollouts[:SHOWN], rollouts[SHOWN:]
    top: list[Part] = [KeyFigures([
        ("devices", figures.count(status["devices"]), f"{figures.count(tally['revoked'])} revoked besides"),
        ("not heard of for a day", figures.count(tally["quiet"]), "reports, not polls"),
        ("records kept", figures.count(status["records"]), f"{status['record_bytes'] / 1e6:,.1f} MB, sealed"),
        ("subjects forgotten", figures.count(status["forgotten"]), "devices were told")])]
    sections = [_section(one) for one in shown] or [Section("Roll-outs", [Paragraph(
        "There is none. brise ship signs a bundle, and brise fleet roll-out begins.")])]
    sections.append(_devices(tally, rollouts))
    if earlier:
        sections.append(Section("Earlier roll-outs", [_table(earlier)]))
    return Document("Fleet", f"{figures.count(status['devices'])} devices, {time_words(status['at_s'])}", sections, top,
                    f"Fleet {status['fleet']}. Roll-outs are lines of the ledger up to line {status['ledger_line']}: "
                    "brise audit computes them again.")


def _section(one: Mapping[str, Any]) -> Section:
    parts: list[Part] = [Conclusion(TONES[one["state"]], _headline(one), _reasons(one)), KeyFigures([
        ("let in", figures.count(one["in"]), f"of {figures.count(one['enrolled'])} devices"),
        ("committed", figures.count(one["committed"]), "the only success"),
        ("failed", figures.count(one["failed"]), _rate(one)),
        ("under way", figures.count(one["pending"]), "began, not ended"),
        ("unknown", figures.count(one["unknown"]), "never began")])]
    charts = [*_stage_chart(one), *_evidence_chart(one)]
    if charts:
        parts.append(FigureRow(charts))
    parts.append(Note(_statistic(one)))
    if one["reasons"]:
        parts.append(ReportTable(["why devices failed", "devices"], [[each["reason"], figures.count(each["devices"])]
                                                                     for each in one["reasons"]], numeric=(1,)))
    if one["steps"]:
        parts.append(_steps(one["steps"]))
    return Section(f"Roll-out {one['rollout']}", parts)


def _headline(one: Mapping[str, Any]) -> str:
    stage = f"stage {one['stage']} of {len(one['stages'])}" if one["stage"] else "not begun"
    words = {"running": f"running, {stage}", "paused": f"paused, {stage}", "halted": f"halted in {stage}",
             "complete": one["reason"], "back": "taken back"}
    return f"{one['label']}: {words[one['state']]}"


def _reasons(one: Mapping[str, Any]) -> list[str]:
    said = [] if one["state"] == "complete" else [one["reason"]] if one["reason"] else []
    if one["waits"] and one["state"] == "running":
        said.append(f"It waits: {one['waits']}.")
    return said


def _rate(one: Mapping[str, Any]) -> str:
    ended = one["committed"] + one["failed"]
    return f"{figures.percent(one['failed'] / ended)} of those that ended" if ended else "none has ended"


def _stage_chart(one: Mapping[str, Any]) -> list[Figure]:
    if not one["in"]:
        return []
    rows = [ChartBar(name, one[key], figures.count(one[key])) for name, key in (
        ("committed", "committed"), ("failed", "failed"), ("under way", "pending"), ("never began", "unknown"))]
    return [Figure("Devices that were let in", BarChart(
        "Devices that were let in, by where they are", "One bar each for committed, failed, under way and unknown.",
        rows, Axis("devices", high=float(one["in"]), num_ticks=min(one["in"], 5))))]


def _evidence_chart(one: Mapping[str, Any]) -> list[Figure]:
    path, test = one["path"], one["test"]
    if len(path["devices"]) < 2 or not one["has_statistic"]:
        return []
    return [Figure("Evidence", LineChart(
        "Evidence of harm and of safety over devices", "The wealth of either bettor after each device that began.",
        [Series("of harm", path["devices"], path["harm"]), Series("of safety", path["devices"], path["safety"])],
        Axis("devices, as they began"), Axis("evidence", low=0.01, is_log=True),
        [Reference(test["level"], f"decides at {test['level']:.3g}")]),
        "Where devices have not ended yet, both lines fall: what is missing counts against either.")]


def _statistic(one: Mapping[str, Any]) -> str:
    test = one["test"]
    stated = (f"Tolerated f0 = {figures.percent(test['f0'])}, refuted f1 = {figures.percent(test['f1'])}, alpha = "
              f"{figures.percent(test['alpha'], 0)}. ")
    if not one["has_statistic"]:
        return (f"{stated}There is no statistic with {one['enrolled']} devices: the local gate of each decides about "
                "it, and a failure stops the roll-out until a person goes on.")
    return (f"{stated}Evidence of harm of {test['level']:.3g} halts it (highest: {test['harm']:.3g}), evidence of "
            f"safety of {test['level']:.3g} lets more devices in (highest: {test['safety']:.3g}). A device that has "
            "not ended counts against either.")


def _steps(steps: Sequence[Mapping[str, Any]]) -> ReportTable:
    rows: list[list[Cell]] = [
        [time_words(step["at_s"]).removesuffix(" UTC"), str(step["stage"] + 1), figures.count(step["devices"]),
         f"{step['harm']:.3g}", f"{step['safety']:.3g}", step["why"]] for step in steps[-STEPS:]]
    left_out = f", the last {STEPS} of {len(steps)}" if len(steps) > STEPS else ""
    return ReportTable(["let in (UTC)", "stage", "devices", "harm", "safety", "why"], rows, numeric=(1, 2, 3, 4),
                       caption=f"Steps, as the ledger has them{left_out}")


def _devices(tally: Mapping[str, Any], rollouts: Sequence[Mapping[str, Any]]) -> Section:
    labels = {one["bundle"]: one["label"] for one in rollouts}
    states = ReportTable(["last said of an update", "devices"], [
        [WORDS.get(state, state), figures.count(number)] for state, number in tally["states"].items()], numeric=(1,))
    running: list[list[Cell]] = [
        [labels.get(digest, "another bundle") if digest else "none that the hub sent", Code(digest[:16]),
         figures.count(number)] for digest, number in tally["running"].items()]
    return Section("Devices", [states, ReportTable(["committed last", "bundle", "devices"], running, numeric=(2,))])


def _table(rollouts: Sequence[Mapping[str, Any]]) -> ReportTable:
    rows: list[list[Cell]] = [[one["rollout"], one["label"], Mark(TONES[one["state"]], one["state"]),
                               figures.count(one["committed"]), figures.count(one["failed"]),
                               figures.count(one["unknown"]), one["reason"]] for one in rollouts]
    return ReportTable(["roll-out", "bundle", "state", "committed", "failed", "unknown", "why"], rows,
                       numeric=(3, 4, 5))
