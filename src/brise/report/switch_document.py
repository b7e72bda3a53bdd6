"""Makes a document of a task's report."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from brise.prove.document import time_words
from brise.report import charts, figures
from brise.report.charts import Axis, BarChart, ChartBar, Dot, IntervalChart, LineChart, Reference, Series
from brise.report.costs import Cost
from brise.report.document import (
    Bullets,
    Cell,
    Code,
    Conclusion,
    Document,
    Figure,
    FigureRow,
    KeyFigures,
    Note,
    Paragraph,
    Part,
    ReportTable,
    Section,
)
from brise.report.quality import WORDS
from brise.report.report import SwitchReport
from brise.report.service import REFERENCE
from brise.report.summary import TONES, summarize

NAMES: Mapping[str, str] = MappingProxyType({
    "hosted": "large model", "small": "small model", "cascade": "cascade (as it ran)", "classical": "classical",
    "degraded": "small model, in outages"})
BESIDES: Mapping[str, str] = MappingProxyType({
    "audit": "Audits", "reask": "Requests asked again", "reanswer": "Answers after outages"})


def switch_document(report: SwitchReport) -> Document:
    """The recommendation first, then what it stands on, then what is not known."""
    traffic, advice = report.traffic, report.advice
    lead = (f"{figures.count(len(traffic.exchanges))} requests in {figures.count(traffic.conversations)} "
            f"conversations, {time_words(traffic.exchanges[0].at_s)}, over {figures.seconds(traffic.seconds)}")
    reasons = [*advice.reasons, *([f"Next: {advice.next}"] if advice.next else [])]
    top: list[Part] = [Conclusion(TONES[advice.choice], advice.headline, reasons),
                       Paragraph(summarize(report).sentence), KeyFigures(_headline(report))]
    sections = [_quality(report), _cost(report), _latency(report), _reliability(report), _control(report),
                _unknown(report)]
    return Document(f"Report: {traffic.task}", lead, sections, top,
                    f"Made by brise report on {time_words(report.made_s)}, from the store on this machine.")


def _headline(report: SwitchReport) -> list[tuple[str, str, str]]:
    systems, cost = report.qualities.systems, report.costs.systems
    best = next((name for name in ("cascade", "small") if name in systems), None)
    out = []
    for name in ("hosted", *([best] if best else [])):
        if name in systems:
            found = systems[name]
            out.append((f"quality, {NAMES[name]}", figures.percent(found.estimate),
                        figures.interval(found.low, found.high)))
    for name in ("hosted", "cascade" if "cascade" in cost else "small"):
        if name in cost:
            is_part = cost[name].at_least_usd is not None
            out.append((f"1,000 requests, {NAMES[name]}", _thousand(cost[name].usd),
                        f"known for {_known(cost[name])}" if is_part else ""))
    out.append(("requests answered", figures.percent(report.availability.answered, 2),
                f"{figures.percent(report.availability.degraded)} degraded"))
    return out


def _quality(report: SwitchReport) -> Section:
    systems, label_source = report.qualities.systems, report.qualities.label_source
    parts: list[Part] = [Paragraph(f"Label source: {WORDS[label_source]}." if label_source else
                                          "Nothing says how good any answer was.")]
    dots = [Dot(NAMES[name], found.estimate, found.low, found.high,
                f"{figures.percent(found.estimate)} {figures.interval(found.low, found.high)}")
            for name, found in systems.items() if found.estimate is not None]
    classical = report.classical
    if classical is not None and classical["estimate"] is not None:
        dots.append(Dot(classical["name"], classical["estimate"], classical["low"], classical["high"],
                        f"{figures.percent(classical['estimate'])} "
                        f"{figures.interval(classical['low'], classical['high'])}"))
    drawn = list[Figure]()
    if dots:
        drawn.append(Figure("Share of right answers", IntervalChart(
            "Share of right answers of each system", "Estimates with 95 % intervals.", dots,
            Axis("share of right answers", words=_percent)), "Estimates with 95 % intervals; higher is better."))
    if path := _path(report):
        drawn.append(path)
    parts.append(FigureRow(drawn))
    parts.append(ReportTable(["", "right answers", "95 % interval", "answers", "conversations", "how"], [
        [NAMES[name], figures.percent(found.estimate), figures.interval(found.low, found.high),
         figures.count(found.rows), figures.count(found.conversations), found.how]
        for name, found in systems.items()], numeric=(1, 2, 3, 4)))
    parts += _proof_lines(report)
    return Section("Quality", parts)


def _path(report: SwitchReport) -> Figure | None:
    """K_t of the newest proof."""
    gate = (report.history.proof or {}).get("gate")
    if not gate or not gate["path"]:
        return None
    return Figure("Evidence of the newest proof", LineChart(
        "Evidence that the small model may take over", "The path of K_t over the clusters compared.",
        [Series("for the switch", gate["at"], gate["path"]), Series("against it", gate["at"], gate["futility_path"])],
        Axis("clusters compared"), Axis("evidence", is_log=True),
        [Reference(gate["level"], f"proof at {gate['level']:.3g}")]),
        f"Decided after {gate['decided_at']} clusters." if gate["decided_at"] else "Not decided.")


def _proof_lines(report: SwitchReport) -> list[Part]:
    past, gap = report.history, report.qualities.difference
    lines: list[str] = []
    if gap is not None:
        ends = figures.interval(gap.low, gap.high)
        lines.append(f"Small model less large model, on the same requests: {figures.points(gap.estimate)} {ends} "
                     f"({gap.how}).")
    if past.proven is not None and past.proof_at_s is not None:
        lines.append(f"Newest proof, {time_words(past.proof_at_s)}: {past.proven.verdict}; the margin was "
                     f"{100 * past.proven.delta:g} points, of {(past.proof or {}).get('per', 'conversation')}s that "
                     f"weigh alike. {past.proven.reason}".strip())
    if past.certificate is not None:
        lines.append(f"Certificate {past.certificate[:16]}" + (f", good until {time_words(past.expires_s)}."
                                                               if past.expires_s else "."))
    if past.kept is not None:
        lines.append(f"Certified rule of the cascade: {figures.percent(past.kept.share)} of answers kept, of which at "
                     f"most {figures.percent(past.kept.risk)} are wrong.")
    if past.audits:
        mean = float(np.average([d for d, _ in past.audits], weights=[1 / q for _, q in past.audits]))
        lines.append(f"After the switch {len(past.audits)} answers were audited at random: "
                     f"{figures.points(mean)} against the large model, where each kept answer weighs alike.")
    if past.switched is not None:
        lines += [f"The switch to {past.switched.candidate} was forced against {one}." for one in past.switched.against]
    lines += [f"The ledger knows against {one.said}." for one in past.against]
    return [Bullets(lines)] if lines else []


def _cost(report: SwitchReport) -> Section:
    found, hardware = report.costs, report.prices.hardware
    parts: list[Part] = []
    known = {name: cost for name, cost in found.systems.items() if cost.usd is not None}
    if known:
        parts.append(Figure("A thousand requests", BarChart(
            "What a thousand requests cost", "Bars from zero.",
            [ChartBar(NAMES[name], 1000 * (cost.usd or 0.0), _thousand(cost.usd)) for name, cost in known.items()],
            Axis("USD a thousand requests", words=lambda value: f"${value:g}"))))
    parts.append(ReportTable(
        ["", "USD a request", "known for", "large model's tokens", "electricity", "machine", "tokens in", "tokens out",
         "machine busy"],
        [[NAMES[name], _a_request(cost), _known(cost), figures.usd(cost.hosted_usd), figures.usd(cost.power_usd),
          figures.usd(cost.machine_usd), _one(cost.tokens_in), _one(cost.tokens_out), figures.seconds(cost.busy_s)]
         for name, cost in found.systems.items()], numeric=range(1, 9)))
    parts.append(Bullets(cost_lines(report)))
    if hardware is not None:
        parts.append(Note(
            f"The machine: {figures.usd(hardware.price)} over {hardware.years:g} years, at work in "
            f"{figures.percent(hardware.utilisation, 0)} of them; {hardware.watts:g} W at "
            f"{figures.usd(hardware.usd_per_kwh)} a kWh. Prices are those of {report.prices.path}."))
    return Section("Cost", parts)


def _a_request(cost: Cost) -> str:
    return (f"at least {figures.usd(cost.at_least_usd)}" if cost.usd is None and cost.at_least_usd is not None
            else figures.usd(cost.usd))


def _known(cost: Cost) -> str:
    return figures.percent(cost.known / cost.requests, 0)


def cost_lines(report: SwitchReport) -> list[str]:
    """Break-even in words, with what it assumes."""
    lines = [f"The cost of the {NAMES[name]} is known for {_known(cost)} of the requests ({cost.known} of "
             f"{cost.requests}): a request costs at least {figures.usd(cost.at_least_usd)}."
             for name, cost in report.costs.systems.items() if cost.at_least_usd is not None]
    lines += [f"{BESIDES[role]}: {figures.at_least(paid.usd, paid.known, paid.number)} for "
              f"{figures.count(paid.number)} answers of the large model, besides."
              for role, paid in report.costs.besides.items()]
    for one in report.costs.break_even:
        name = NAMES[one.system]
        if one.requests is None:
            lines.append(f"{name}: never pays for the machine; a request costs {figures.usd(-one.saving_usd)} more in "
                         "running costs alone.")
            continue
        ends = [figures.count(end) if end is not None else "never" for end in (one.low, one.high)]
        rate = f", {one.days:,.0f} days at the present rate" if one.days is not None else ""
        lines.append(f"{name}: the machine is paid after {figures.count(one.requests)} requests "
                     f"[{ends[0]} to {ends[1]}]{rate}. Each saves {figures.usd(one.saving_usd)}. It is assumed that "
                     "traffic and prices stay as they are, and that the machine does nothing else that pays.")
    return lines or ["Break-even is not known: see what is missing below."]


def _latency(report: SwitchReport) -> Section:
    samples = {NAMES[name]: found.quantiles for name, found in report.waits.items() if found.quantiles}
    parts: list[Part] = [Figure("Time to the whole answer", charts.cumulative(
        "How long answers took", "The share of answers that were complete within a time, for each system.", samples,
        Axis("seconds, logarithmic", is_log=True)), "Further left is faster.")] if samples else []
    parts.append(ReportTable(["", "answers", "p50", "p95", "p99", "first token p50", "p95"], [
        [NAMES[name], figures.count(found.count), *(figures.seconds(value) for value in (
            found.p50, found.p95, found.p99, found.first_p50, found.first_p95))]
        for name, found in report.waits.items()], numeric=range(1, 7)))
    return Section("Latency", parts)


def _reliability(report: SwitchReport) -> Section:
    found = report.availability
    dots = [ChartBar("with the gateway", found.answered, figures.percent(found.answered, 2))]
    if found.hosted_alone is not None:
        dots.append(ChartBar("the large model alone", found.hosted_alone, figures.percent(found.hosted_alone, 2)))
    rows = [["requests that waited for an answer", figures.count(found.requests)],
            ["answered", figures.percent(found.answered, 3)],
            ["answered by the large model, of those that asked it", figures.percent(found.hosted_alone, 3)],
            ["degraded: the small model stood in", figures.percent(found.degraded, 3)],
            ["failed", figures.count(found.failed)], ["clients that did not wait", figures.count(found.left)],
            ["still to be answered by the large model", figures.count(found.pending)]]
    parts: list[Part] = [Figure("Requests that got an answer", BarChart(
        "Share of requests that got an answer", "With the gateway, and with the large model alone.", dots,
        Axis("share of requests", high=1.0, words=_percent))), ReportTable(["", ""], rows, numeric=(1,))]
    for outage in found.outages[:10]:
        parts.append(Paragraph(
            f"Outage at {time_words(outage.since_s)}: {outage.requests} requests in "
            f"{figures.seconds(outage.seconds)}, of which {outage.answered} were answered by the small model."))
    parts.append(Note(f"For comparison: 30 minutes of outage in 14 days are {100 * REFERENCE:.2f} %. Requests of "
                           "an outage come together, so these shares have no interval."))
    return Section("Reliability", parts)


def _control(report: SwitchReport) -> Section:
    found, model = report.control, report.control.model
    parts: list[Part] = [ReportTable(["content of requests went to", "requests", "share"],
                        [[one.name, figures.count(one.requests), figures.percent(one.share)]
                         for one in found.destinations]
                        + [["this machine alone", figures.count(round(found.stayed * len(report.traffic.exchanges))),
                            figures.percent(found.stayed)]], numeric=(1, 2))]
    return Section("Control", [*parts, Bullets(control_lines(report) if model is not None else
                                                    ["No small model was named."])])


def control_lines(report: SwitchReport) -> list[str]:
    """Licence, rights and what needs a network."""
    model = report.control.model
    if model is None:
        return []
    lines = [f"Licence of {model.name}, as its files state it: {model.licence or figures.UNKNOWN}."]
    if model.adapter is not None:
        rights = "; ".join(f"{name}: {basis}" for name, basis in (model.rights or {}).items())
        lines.append(f"Adapter {model.adapter}: " + (
            figures.UNKNOWN if model.rights is None else
            f"trained on a hosted model's answers by the right of {rights}" if rights else
            "trained on nothing that needs a hosted provider's leave") + ".")
    lines.append("The small model answers without a network; nothing of what it is asked leaves this machine.")
    return lines


def _unknown(report: SwitchReport) -> Section:
    rows: list[list[Cell]] = [[one.what, Code(one.learn)] for one in report.unknowns]
    return Section("What this report does not know", [ReportTable(["not known", "what would tell"], rows)])


def _thousand(usd: float | None) -> str:
    return figures.usd(None if usd is None else 1000 * usd)


def _one(value: float | None) -> str:
    return figures.UNKNOWN if value is None else f"{value:,.1f}"


def _percent(value: Any) -> str:
    return f"{100 * value:.4g} %"
