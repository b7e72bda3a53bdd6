"""The report of a task: quality, cost, latency, reliability and control, what is not known, and what to do."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brise import settings
from brise.errors import UnsupportedError
from brise.hub.locate import find_model
from brise.report import advice as rules
from brise.report.advice import Advice, Facts, Switched
from brise.report.control import ModelOrigin, control, model_of
from brise.report.costs import DAY_S, costs
from brise.report.ledger import timeline
from brise.report.quality import qualities
from brise.report.service import REFERENCE, availability, waits
from brise.report.traffic import TrafficOverview, read
from brise.report.unknowns import ReportSections, Unknown, unknowns
from brise.settings import Settings
from brise.traffic import prices
from brise.traffic.prices import Prices, read_prices
from brise.traffic.stores import open_store

VERSION = 1


@dataclass(frozen=True)
class ReportOptions:
    """Which task (None: the only one of the store), over how many of the last days.

    `prices` is a prices.toml, by default the one in BRISE_HOME if there is one. `model` and `adapter` say what the
    small model is.
    """

    task: str | None = None
    store: str | None = None
    prices: Path | None = None
    model: str | None = None
    adapter: Path | None = None
    days: float | None = None


@dataclass(frozen=True)
class SwitchReport(ReportSections):
    """All of it. `made_s` is when; everything else follows from the store, the prices and the model's files."""

    made_s: float
    advice: Advice
    unknowns: tuple[Unknown, ...]

    @property
    def classical(self) -> dict[str, Any] | None:
        """The classical baseline of the newest proof."""
        proof = self.history.proof
        found = [] if proof is None else [one for one in proof["baselines"] if one["name"].startswith("TF-IDF")]
        return dict(found[0]) if found else None


def run(options: ReportOptions) -> SwitchReport:
    """Reads the store, the prices and the model's files, and makes the report."""
    settings_, now_s = settings.read(), time.time()
    home = settings_.home
    rates, model = _prices(options.prices, home), _model(options, settings_)
    with closing(open_store(options.store, home, must_exist=True)) as store:
        found = read(store, options.task, None if options.days is None else now_s - options.days * DAY_S)
    return make(found, rates, model, now_s, store=options.store, named=options.model)


def make(traffic: TrafficOverview, prices: Prices, model: ModelOrigin | None, now_s: float, *,
         store: str | None = None, named: str | None = None) -> SwitchReport:
    """The report over this traffic. `store` and the model as it was `named` are for the commands that it advises."""
    past = timeline(traffic.ledger, now_s)
    found = ReportSections(traffic, prices, qualities(traffic), costs(traffic, prices), dict(waits(traffic)),
                           availability(traffic), control(traffic, model), past)
    usd = {name: cost.usd for name, cost in found.costs.systems.items()}
    hosted, small = usd.get("hosted"), usd.get("small")
    cascade = rules.saving(hosted, usd.get("cascade"))
    if cascade is None and past.kept is not None and hosted is not None and small is not None:
        cascade = hosted * past.kept.share - small  # as it would be: every request asks the small model first
    facts = Facts(traffic.conversations, past.proven, past.switched, past.kept, rules.saving(hosted, small), cascade,
                  tuple(one.said for one in past.against), traffic.task, store, named)
    return SwitchReport(**vars(found), made_s=now_s, advice=rules.advise(facts), unknowns=unknowns(found, facts))


def _prices(path: Path | None, home: Path) -> Prices:
    if path is not None:
        return read_prices(path)
    usual = prices.default_place(home)
    return read_prices(usual) if usual.exists() else Prices()


def _model(options: ReportOptions, settings_: Settings) -> ModelOrigin | None:
    if options.model is None:
        if options.adapter is not None:
            raise UnsupportedError("--adapter is given without the model that it is for", hint="--model MODEL")
        return None
    return model_of(find_model(options.model, settings_), options.adapter)


def to_json(report: SwitchReport) -> dict[str, Any]:
    """What --json prints. docs/guides/report.md says what it has."""
    traffic, past = report.traffic, report.history
    return {
        "version": VERSION, "made_s": report.made_s, "task": traffic.task,
        "window": {"since_s": traffic.exchanges[0].at_s, "seconds": traffic.seconds,
                   "requests": len(traffic.exchanges), "conversations": traffic.conversations},
        "advice": asdict(report.advice),
        "quality": {"rung": report.qualities.label_source,
                    "systems": {name: asdict(found) for name, found in report.qualities.systems.items()},
                    "difference": None if report.qualities.difference is None else asdict(report.qualities.difference),
                    "classical": report.classical},
        "proof": None if past.proven is None else {
            **asdict(past.proven), "at_s": past.proof_at_s, "certificate": past.certificate,
            "expires_s": past.expires_s},
        "switch": None if past.switched is None else {**_switched(past.switched), "alarms": past.alarms},
        **({"against": [one.to_json() for one in past.against]} if past.against else {}),
        "cascade": None if past.kept is None else {"share": past.kept.share, "risk": past.kept.risk},
        "cost": {"systems": {name: asdict(cost) for name, cost in report.costs.systems.items()},
                 "break_even": [asdict(one) for one in report.costs.break_even], "per_day": report.costs.per_day,
                 "without_price": list(report.costs.without_price), "without_tokens": report.costs.without_tokens,
                 "half_priced": list(report.costs.half_priced),
                 "besides": {role: asdict(paid) for role, paid in report.costs.besides.items()},
                 "prices": None if report.prices.path is None else str(report.prices.path),
                 "hardware": None if report.prices.hardware is None else asdict(report.prices.hardware)},
        "latency": {name: asdict(found) for name, found in report.waits.items()},
        "reliability": {**asdict(report.availability), "reference": REFERENCE},
        "control": asdict(report.control),
        "unknown": [asdict(one) for one in report.unknowns]}


def _switched(found: Switched) -> dict[str, Any]:
    """The newest switch. `against` is there only if it was forced against something."""
    return {name: value for name, value in asdict(found).items() if name != "against" or value}
