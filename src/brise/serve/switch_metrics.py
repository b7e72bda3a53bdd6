"""Prometheus metrics of switched tasks: the small model's share, the results of audits, and failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from brise.gateway.gateway import Components
from brise.switch.audit import Auditor
from brise.switch.ledger_follower import Follower
from brise.switch.small_model import SmallModel


class SwitchMetrics(Collector):
    """Reads the gateway's components at each scrape."""

    def __init__(self, components: Components, registry: CollectorRegistry) -> None:
        self._components = components
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for part in self._components.background:
            match part:
                case Follower():
                    yield from _states(part)
                case Auditor():
                    yield from _audits(part)
        if isinstance(self._components.small, SmallModel):
            refused = CounterMetricFamily("brise_switch_refused", "Requests that the small model could not take, by "
                                          "reason; the large one answered.", labels=("task", "reason"))
            for (task, reason), number in self._components.small.refused.items():
                refused.add_metric((task, reason), number)
            yield refused


def _states(follower: Follower) -> Iterator[Metric]:
    share = GaugeMetricFamily("brise_switch_share", "Share of conversations that the small model answers.",
                              labels=("task", "candidate"))
    evidence = GaugeMetricFamily("brise_switch_harm_evidence", "Evidence of harm from audits; the alarm is at 10,000.",
                                 labels=("task",))
    audit_probability = GaugeMetricFamily("brise_switch_audit_probability", "With which a kept answer is audited.",
                               labels=("task",))
    for task, state in follower.switches.tasks.items():
        share.add_metric((task, state.candidate), state.share if state.is_on else 0.0)
        evidence.add_metric((task,), state.alarm.evidence)
        audit_probability.add_metric((task,), state.audit_probability if state.is_on else 0.0)
    yield from (share, evidence, audit_probability)
    yield CounterMetricFamily("brise_ledger_failures", "Times that the ledger could not be read or written.",
                              value=follower.failures)


def _audits(auditor: Auditor) -> Iterator[Metric]:
    family = CounterMetricFamily("brise_audits", "Kept answers and their audits, by what became of them.",
                                 labels=("result",))
    for result, number in auditor.counts.items():
        family.add_metric((result,), number)
    yield family
    yield GaugeMetricFamily("brise_audits_waiting", "Audits that wait for the large model.", value=auditor.waiting)
