"""Makes a document of a proof: the verdict, the path of the evidence, and what it is based on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from brise.prove import document as texts
from brise.prove.analyses import AnalysisCost
from brise.report import figures
from brise.report.charts import Axis, Dot, IntervalChart, LineChart, Reference, Series
from brise.report.document import (
    Bullets,
    Conclusion,
    Document,
    Figure,
    KeyFigures,
    Mark,
    Note,
    Paragraph,
    Part,
    ReportTable,
    Section,
    Status,
)

STATUS: Mapping[str, Status] = MappingProxyType({"promote": "good", "not good enough": "bad", "undecided": "unsure"})
HEADLINE: Mapping[str, str] = MappingProxyType({
    "promote": "Promote: the small model may take over",
    "not good enough": "Not good enough: stay on the large model",
    "undecided": "Undecided: not enough evidence yet, for or against"})
LOWEST = 1e-3  # of the evidence that is drawn; what lies below cannot matter any more


def plan_document(found: Mapping[str, Any]) -> Document:
    """The document of a plan alone (prove.document.planned)."""
    return Document(f"Plan: {found['task']}", _lead(found), top=[
        Paragraph(texts.plan_words(found)),
        Paragraph(f"Cost: {AnalysisCost(**found['analysis']).words}. This plan costs nothing and writes nothing.")])


def proof_document(found: Mapping[str, Any]) -> Document:
    """The document of a proof (prove.document.proven)."""
    sections = [Section("Evidence", [_path(found), *_decision(found)]), Section("Quality", _quality(found))]
    if found["guards"]:
        sections.append(Section("Also required", _guards(found["guards"])))
    if found["slices"]:
        sections.append(Section("Slices", _slices(found)))
    if found["baselines"]:
        sections.append(Section("Beside", [_baselines(found["baselines"])]))
    if found["left_out"]:
        sections.append(Section("Left out", [ReportTable(["why", "pairs"], [
            (item["why"], f"{item['pairs']:,}") for item in found["left_out"]], numeric=(1,))]))
    sections.append(Section("What this stands on", [Bullets(_ground(found))]))
    top: list[Part] = [Conclusion(STATUS[found["verdict"]], HEADLINE[found["verdict"]],
                                  [found["reason"], *_beside(found)]),
                       _key_figures(found)]
    return Document(f"Proof: {found['task']}", _lead(found), sections, top,
                    "Made by brise prove. The guarantee holds at every interim analysis.")


def _beside(found: Mapping[str, Any]) -> list[str]:
    """What a reader must see beside the verdict: the claim, and what speaks against taking it for more."""
    return [f"Claim: {texts.claim_words(found)}.",
            *(f"Note: {words}." for words in found["doubts"] if words not in found["reason"])]


def _lead(found: Mapping[str, Any]) -> str:
    return f"{found['student']} for {', '.join(found['teachers']) or 'the large model'}"


def _key_figures(found: Mapping[str, Any]) -> KeyFigures:
    scores, gate = found["scores"], found["gate"]
    d = scores["difference"]
    return KeyFigures([
        ("small model", figures.percent(scores["small"]["estimate"]), ""),
        ("large model", figures.percent(scores["large"]["estimate"]), ""),
        ("difference", figures.points(d["estimate"]), f"margin {-100 * found['terms']['delta']:g} points"),
        ("clusters", f"{gate['units']:,}", f"{gate['waiting']:,} wait for judgements" if gate["waiting"] else ""),
        ("answers differ", figures.percent(scores["discordance"]), "in what they are worth")])


def _path(found: Mapping[str, Any]) -> Figure:
    gate, futility = found["gate"], found["terms"]["futility"]
    xs = [float(at) for at in gate["at"]]
    drawn = [Series("for the small model", xs, [max(value, LOWEST) for value in gate["path"]]),
             Series("against it", xs, [max(value, LOWEST) for value in gate["futility_path"]])]
    most = max(*drawn[0].ys, *drawn[1].ys, gate["level"], futility)
    chart = LineChart(
        "Evidence after each cluster", f"Evidence for and against, after each of {gate['units']} clusters. It "
        f"promotes at {gate['level']:.1f} and ends at {futility:g}.", drawn, Axis("clusters", 0.0, max(xs)),
        Axis("evidence", LOWEST, min(most * 3, 1e9), is_log=True),
        # The two lie close together, so the upper one says what both are.
        [Reference(max(gate["level"], futility), f"promote at {gate['level']:.1f}; against: end at {futility:g}"),
         Reference(min(gate["level"], futility), "")])
    return Figure("Evidence after each cluster", chart,
                       "The wealth of a bettor who bets that the small model is within the margin, and of one who "
                       "bets that it is not. Both hold at every interim analysis.")


def _decision(found: Mapping[str, Any]) -> list[Part]:
    gate = found["gate"]
    decided = "Not decided yet."
    if gate["decided_at"] is not None:
        is_doubted = gate["verdict"] == "promote" and found["verdict"] == "undecided"
        decided = (f"The evidence reached its level after {gate['decided_at']:,} clusters, but more must hold."
                   if is_doubted else f"Decided after {gate['decided_at']:,} clusters.")
    return [Paragraph(f"{decided} {texts.guarantee_words(found)}."), Paragraph(_evidence_words(found)),
            Note(texts.plan_words(found))]


def _quality(found: Mapping[str, Any]) -> list[Part]:
    scores = found["scores"]
    d = scores["difference"]
    dot = Dot("small less large", _value(d["estimate"]), _value(d["low"]), _value(d["high"]),
              f"{figures.points(d['estimate'])} {figures.interval(d['low'], d['high'])}")
    chart = IntervalChart("Difference of quality", "The small model's score less the large one's, in points, with "
                             "its 95 % interval.", [dot], Axis("points"),
                             [Reference(-100 * found["terms"]["delta"], "margin"), Reference(0.0, "equal")])
    rows = [(name, figures.percent(scores[name]["estimate"]), figures.interval(scores[name]["low"],
             scores[name]["high"]), scores[name]["interval"]) for name in ("small", "large")]
    rows.append(("difference", figures.points(d["estimate"]), figures.interval(d["low"], d["high"]), d["interval"]))
    about = ("An interval for a sample size fixed beforehand, to be read beside the evidence, not for it. "
             f"{_weights_words(found)}")
    return [Figure("Difference of quality", chart, about),
            ReportTable(["", "estimate", "95 % interval", "how"], rows, numeric=(1, 2))]


def _weights_words(found: Mapping[str, Any]) -> str:
    per = found["scores"]["weighed"]
    return (f"Each {per} weighs alike, as in the test" + (
        "; answers of one conversation are drawn together (a ratio of sums, robust to what they share)."
        if per == "answer" and found["gate"]["longest"] > 1 else "."))


def _guards(guards: Sequence[Mapping[str, Any]]) -> list[Part]:
    def shown(guard: Mapping[str, Any], side: str) -> str:
        if guard["name"] == "p95 latency":
            return figures.seconds(guard[side])
        return f"{guard[side]:.0f} characters" if guard["name"] == "length" else figures.percent(guard[side])

    rows = [(guard["name"], shown(guard, "small"), shown(guard, "large"), figures.short(round(guard["evidence"], 2)),
             Mark(STATUS[guard["verdict"]], texts.SHOWN[guard["verdict"]])) for guard in guards]
    return [ReportTable(["", "small", "large", "evidence", ""], rows, numeric=(1, 2, 3)),
            Bullets([f"{guard['name']}: {guard['claim']}" for guard in guards]),
            Note(f"Each is shown at an evidence of {guards[0]['level']:.1f}.")]


def _slices(found: Mapping[str, Any]) -> list[Part]:
    terms = found["terms"]
    margin = 100 * max(terms["slice_delta"], terms["delta"])
    rows = [(one["name"], f"{one['units']:,}", figures.points(one["mean"]), figures.short(round(one["evidence"], 2)),
             Mark("good", "proven") if one["is_proven"] else Mark("unsure", "escalates"))
            for one in found["slices"]]
    return [ReportTable(["slice", "clusters", "difference", "evidence", ""], rows, numeric=(1, 2, 3)),
            Note(f"Each within {margin:g} points, by e-values and e-BH: at most {100 * terms['alpha']:g} % of the "
                      "proven slices are wrong on average. What is not proven goes on to the large model. "
                      f"{_weights_words(found)}")]


def _baselines(baselines: Sequence[Mapping[str, Any]]) -> ReportTable:
    return ReportTable(["", "figure", "estimate", "95 % interval", "verdict"], [
        (one["name"], one["what"], figures.percent(one["estimate"]), figures.interval(one["low"], one["high"]),
         one["verdict"] or "") for one in baselines], numeric=(2, 3))


def _ground(found: Mapping[str, Any]) -> list[str]:
    window = found["window"]
    lines = [f"Labels: {found['labels']['source']}.", f"Score: {found['labels']['definition']}.",
             f"Source: {found['source']}; a cluster is a {window['unit']}."]
    if window["since_s"] is not None:
        since, until = texts.time_words(window["since_s"]), texts.time_words(window["until_s"])
        lines.append(f"Asked from {since} to {until}.")
    lines += [f"Change: {change['what']}, at {change['place']}." for change in found["changes"]]
    if found.get("certificate"):
        lines.append(f"Certificate: {found['certificate']}")
    return lines + [str(note) for note in found["notes"]]


def _evidence_words(found: Mapping[str, Any]) -> str:
    gate = found["gate"]
    return (f"Evidence K after {gate['units']:,} clusters: {_evidence(gate['evidence'])}, most "
            f"{_evidence(gate['most'])} (promotes at {gate['level']:.1f}); against: "
            f"{_evidence(gate['against'])} (ends it at {found['terms']['futility']:g}).")


def _evidence(value: float) -> str:
    return f"{value:,.2f}" if value < 1e6 else f"{value:.1e}"


def _value(share: float | None) -> float:
    return float("nan") if share is None else 100 * share
