"""The report of a proof as one page: the verdict, the path of the evidence, and what it stands on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from markupsafe import Markup

from brise.prove import document
from brise.report import charts, figures, html
from brise.report.axis import Axis
from brise.report.charts import Dot, Reference, Series
from brise.report.html import Section, Status

STATUS: Mapping[str, Status] = MappingProxyType({"promote": "good", "not good enough": "bad", "undecided": "unsure"})
HEADLINE: Mapping[str, str] = MappingProxyType({
    "promote": "Promote: the small model may take over",
    "not good enough": "Not good enough: stay on the large model",
    "undecided": "Undecided: not enough evidence yet, for or against"})
LOWEST = 1e-3  # of the evidence that is drawn; below it lies nothing that could still matter


def render(found: Mapping[str, Any]) -> str:
    """The page of a document that has a verdict (document.proven)."""
    sections = [Section("Evidence", [_path(found), *_gate_words(found)]), Section("Quality", _quality(found))]
    if found["guards"]:
        sections.append(Section("Also required", _guards(found["guards"])))
    if found["slices"]:
        sections.append(Section("Slices", _slices(found)))
    if found["baselines"]:
        sections.append(Section("Beside", [_baselines(found["baselines"])]))
    sections.append(Section("What this stands on", [html.bullets(_ground(found))]))
    top = [html.verdict(STATUS[found["verdict"]], HEADLINE[found["verdict"]], found["reason"]), _numbers(found)]
    return html.page(f"Proof: {found['task']}",
                     f"{found['student']} for {', '.join(found['teachers']) or 'the large model'}", sections, top=top,
                     foot="Made by brise prove. The promise holds at every moment somebody looks.")


def _numbers(found: Mapping[str, Any]) -> Markup:
    scores, gate = found["scores"], found["gate"]
    d = scores["difference"]
    return html.numbers([
        ("small model", figures.percent(scores["small"]["estimate"]), ""),
        ("large model", figures.percent(scores["large"]["estimate"]), ""),
        ("difference", figures.points(d["estimate"]), f"margin {-100 * found['terms']['delta']:g} points"),
        ("units", f"{gate['units']:,}", f"{gate['waiting']:,} wait for judgements" if gate["waiting"] else ""),
        ("answers differ", figures.percent(scores["discordance"]), "in what they are worth")])


def _path(found: Mapping[str, Any]) -> Markup:
    gate, futility = found["gate"], found["terms"]["futility"]
    xs = [float(at) for at in gate["at"]]
    drawn = [Series("for the small model", xs, [max(value, LOWEST) for value in gate["path"]]),
             Series("against it", xs, [max(value, LOWEST) for value in gate["futility_path"]])]
    most = max(*drawn[0].ys, *drawn[1].ys, gate["level"], futility)
    chart = charts.lines(
        "Evidence after each unit", f"Evidence for and against, after each of {gate['units']} units. It promotes at "
        f"{gate['level']:.1f} and ends at {futility:g}.", drawn, Axis("units", 0.0, max(xs)),
        Axis("evidence", LOWEST, min(most * 3, 1e9), is_log=True),
        # The two lie close together, so the upper one says what both are.
        [Reference(max(gate["level"], futility), f"promote at {gate['level']:.1f}; against: end at {futility:g}"),
         Reference(min(gate["level"], futility), "")])
    return html.figure("Evidence after each unit", chart,
                       "The wealth of a gambler who bets that the small model is within the margin, and of one who "
                       "bets that it is not. Either may be looked at any time.")


def _gate_words(found: Mapping[str, Any]) -> list[Markup]:
    gate = found["gate"]
    decided = (f"Decided after {gate['decided_at']:,} units." if gate["decided_at"] is not None else
               "Not decided yet.")
    return [html.paragraph(f"{decided} {document.promise_words(found)}."), html.note(document.plan_words(found))]


def _quality(found: Mapping[str, Any]) -> list[Markup]:
    scores = found["scores"]
    d = scores["difference"]
    dot = Dot("small less large", _value(d["estimate"]), _value(d["low"]), _value(d["high"]),
              f"{figures.points(d['estimate'])} {figures.interval(d['low'], d['high'])}")
    chart = charts.intervals("Difference of quality", "The small model's score less the large one's, in points, with "
                             "its 95 % interval.", [dot], Axis("points"),
                             [Reference(-100 * found["terms"]["delta"], "margin"), Reference(0.0, "equal")])
    rows = [(name, figures.percent(scores[name]["estimate"]), figures.interval(scores[name]["low"],
             scores[name]["high"]), scores[name]["interval"]) for name in ("small", "large")]
    rows.append(("difference", figures.points(d["estimate"]), figures.interval(d["low"], d["high"]), d["interval"]))
    about = "An interval for a number of units fixed beforehand, to be read beside the evidence, not for it."
    return [html.figure("Difference of quality", chart, about),
            html.table(["", "estimate", "95 % interval", "how"], rows, numeric=(1, 2))]


def _guards(guards: Sequence[Mapping[str, Any]]) -> list[Markup]:
    def shown(guard: Mapping[str, Any], side: str) -> str:
        if guard["name"] == "p95 latency":
            return figures.seconds(guard[side])
        return f"{guard[side]:.0f} characters" if guard["name"] == "length" else figures.percent(guard[side])

    rows = [(guard["name"], shown(guard, "small"), shown(guard, "large"), figures.short(round(guard["evidence"], 2)),
             html.mark(STATUS[guard["verdict"]], document.SHOWN[guard["verdict"]])) for guard in guards]
    return [html.table(["", "small", "large", "evidence", ""], rows, numeric=(1, 2, 3)),
            html.bullets(f"{guard['name']}: {guard['claim']}" for guard in guards),
            html.note(f"Each is shown at an evidence of {guards[0]['level']:.1f}.")]


def _slices(found: Mapping[str, Any]) -> list[Markup]:
    terms = found["terms"]
    margin = 100 * max(terms["slice_delta"], terms["delta"])
    rows = [(one["name"], f"{one['units']:,}", figures.points(one["mean"]), figures.short(round(one["evidence"], 2)),
             html.mark("good", "proven") if one["is_proven"] else html.mark("unsure", "escalates"))
            for one in found["slices"]]
    return [html.table(["slice", "units", "difference", "evidence", ""], rows, numeric=(1, 2, 3)),
            html.note(f"Each within {margin:g} points, by e-values and e-BH: at most {100 * terms['alpha']:g} % of the "
                      "proven slices are wrong on average. What is not proven goes on to the large model.")]


def _baselines(baselines: Sequence[Mapping[str, Any]]) -> Markup:
    return html.table(["", "figure", "estimate", "95 % interval", "verdict"], [
        (one["name"], one["what"], figures.percent(one["estimate"]), figures.interval(one["low"], one["high"]),
         one["verdict"] or "") for one in baselines], numeric=(2, 3))


def _ground(found: Mapping[str, Any]) -> list[str]:
    window = found["window"]
    lines = [f"Labels: {found['labels']['source']}.", f"Score: {found['labels']['definition']}.",
             f"Source: {found['source']}; a unit is a {window['unit']}."]
    if window["since_s"] is not None:
        since, until = document.time_words(window["since_s"]), document.time_words(window["until_s"])
        lines.append(f"Asked from {since} to {until}.")
    lines += [f"Left out: {item['pairs']:,} pairs, {item['why']}." for item in found["left_out"]]
    lines += [f"Change: {change['what']}, at {change['place']}." for change in found["changes"]]
    return lines + [str(note) for note in found["notes"]]


def _value(share: float | None) -> float:
    return float("nan") if share is None else 100 * share
