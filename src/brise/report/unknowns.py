"""Unknowns: what a report does not know, and how to find out. A report without this section claims too much."""

from __future__ import annotations

from dataclasses import dataclass

from brise.report import figures
from brise.report.advice import Facts
from brise.report.control import Control
from brise.report.costs import TrafficCosts
from brise.report.ledger import SwitchTimeline
from brise.report.quality import Qualities
from brise.report.service import Availability, Waits
from brise.report.traffic import TrafficOverview
from brise.stats.clusters import MIN_CLUSTERS
from brise.traffic.prices import Prices


@dataclass(frozen=True)
class Unknown:
    """What is not known, and what would change that ("" where nothing of ours would)."""

    what: str
    learn: str = ""


@dataclass(frozen=True)
class ReportSections:
    """What a report's sections say, to be looked through for gaps."""

    traffic: TrafficOverview
    prices: Prices
    qualities: Qualities
    costs: TrafficCosts
    waits: dict[str, Waits]
    availability: Availability
    control: Control
    history: SwitchTimeline


def unknowns(found: ReportSections, facts: Facts) -> tuple[Unknown, ...]:
    """In the order of the report; the commands in them are whole."""
    return (*_of_quality(found, facts), *_of_cost(found), *_of_latency(found), *_of_reliability(found),
            *_of_control(found))


def _of_quality(found: ReportSections, facts: Facts) -> list[Unknown]:
    out, traffic = list[Unknown](), found.traffic
    label = facts.command("label", "--task", facts.task)
    if traffic.conversations < MIN_CLUSTERS:
        out.append(Unknown(f"Any interval: {traffic.conversations} conversations are too few "
                           f"({MIN_CLUSTERS} are the least)", "capture more traffic"))
    match found.qualities.label_source:
        case None:
            out.append(Unknown("How good any answer is: nothing has a label",
                               f"{label}, or outcomes from your own program"))
        case "human":
            out.append(Unknown("The share of good answers of each model, and the difference over all requests: people "
                               "saw only answers that differ",
                               f"the difference: {facts.prove()}; the shares: outcomes, or labels of a random sample"))
        case "judge":
            out.append(Unknown("What a judge gets wrong: no person's labels correct it", label))
        case "fidelity":
            out.append(Unknown("Whether answers are right: they were only compared with the hosted model's",
                               f"{label}, or outcomes from your own program"))
    if not traffic.answers_as("shadow"):
        out.append(Unknown("What the small model would have answered to this traffic",
                           "the gateway's option --shadow SHARE"))
    if found.history.proof is None:
        out.append(Unknown("Whether the small model may take over", facts.prove()))
    if traffic.of("small") and not found.history.audits:
        out.append(Unknown("Whether the switched answers are still good: none was audited",
                           "the random audit of a switch (--audit PERCENT)"))
    unlabelled = "small" not in found.qualities.systems and bool(traffic.answers_as("shadow"))
    if found.qualities.label_source is not None and unlabelled and found.qualities.label_source != "human":
        out.append(Unknown("How good the small model's answers are: none of them has a label", label))
    return out


def _of_cost(found: ReportSections) -> list[Unknown]:
    out = list[Unknown]()
    if found.costs.without_price:
        out.append(Unknown(f"What {', '.join(found.costs.without_price)} costs: no price is stated",
                           "[models.\"NAME\"] in prices.toml"))
    out += [Unknown(f"What some answers of {name} cost: its price has nothing for a part of their tokens",
                    f"cache_write, cache_write_1h, audio_input or audio_output in [models.\"{name}\"] of prices.toml")
            for name in found.costs.half_priced]
    hosted = found.costs.systems.get("hosted")
    if found.costs.without_tokens and hosted is not None:
        number = found.costs.without_tokens
        share = figures.percent(number / hosted.requests, 0)
        out.append(Unknown(f"What {number} hosted answers cost ({share}): they did not say how many tokens they had",
                           "streams: serve without --no-stream-usage, if the upstream can count"))
    if found.prices.hardware is None:
        out.append(Unknown("What a local answer costs, and when the machine has paid for itself",
                           "[hardware] in prices.toml"))
    if found.costs.per_day is None:
        out.append(Unknown("Requests a day: less than a day was seen", "a longer window"))
    out.append(Unknown("What people's time for labels, tuning and operation costs: it is not counted"))
    return out


def _of_latency(found: ReportSections) -> list[Unknown]:
    out = [Unknown(f"The slow tail of {name} answers: {waits.count} are too few for p99 (500 are needed)",
                   "more traffic")
           for name, waits in found.waits.items() if waits.p99 is None]
    if "small" in found.waits and not found.traffic.of("small"):
        out.append(Unknown("The small model's latency in front of clients: it was timed in the background only"))
    return out


def _of_reliability(found: ReportSections) -> list[Unknown]:
    out = list[Unknown]()
    if not found.availability.outages:
        out.append(Unknown("How this holds in an outage: the hosted model had none in this time"))
    elif not any(outage.answered for outage in found.availability.outages):
        out.append(Unknown("What a local model would have answered in the outages: none stood in",
                           "a gateway that serves a model too, with --fallback"))
    lost = {why: count for why, count in found.control.not_captured.items() if count}
    if lost:
        out.append(Unknown(f"What {sum(lost.values())} requests of this store were: they were not kept "
                           f"({', '.join(f'{why}: {count}' for why, count in sorted(lost.items()))})"))
    return out


def _of_control(found: ReportSections) -> list[Unknown]:
    out, model = list[Unknown](), found.control.model
    if model is None:
        return [Unknown("The small model's licence, and what allowed its training: no model was named",
                        "--model NAME --adapter FOLDER")]
    if model.licence is None:
        out.append(Unknown(f"The licence of {model.name}: its files do not state one"))
    if model.adapter is not None and model.rights is None:
        out.append(Unknown(f"What {model.adapter} was trained on: it has no lineage"))
    return out
