"""Control: where data went, what the licence and the rights allow, and what runs without a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from brise.checkpoint.adapters.lineage import read_lineage
from brise.checkpoint.open import open_checkpoint
from brise.files.digests import Located
from brise.report.traffic import TrafficOverview

_LICENCE_FILES = ("LICENSE*", "LICENCE*")


@dataclass(frozen=True)
class Destination:
    """How many requests sent their content there, and their share of all."""

    name: str
    requests: int
    share: float


@dataclass(frozen=True)
class ModelOrigin:
    """The small model: its licence as its files state it, and what allowed its training."""

    name: str
    digest: str | None
    licence: str | None
    adapter: str | None = None
    base_digest: str | None = None  # of the model that the adapter was trained on
    data_digest: str | None = None
    rights: Mapping[str, str] | None = None  # None: no adapter, or one without lineage


@dataclass(frozen=True)
class Control:
    """`stayed` is the share of requests whose content did not leave this machine."""

    destinations: tuple[Destination, ...]
    stayed: float
    not_captured: Mapping[str, int]
    subjects: int
    model: ModelOrigin | None


def control(traffic: TrafficOverview, model: ModelOrigin | None) -> Control:
    """Counts requests by the model that was asked.

    Shadow answers stay here; audits and answers after an outage go out.
    """
    went: dict[str, set[str]] = {}
    for row in traffic.exchanges:
        # A large model that was down has been sent nothing that we know of: a broken request counts as sent.
        if row.mode in ("hosted", "escalated", "failed"):
            went.setdefault(row.served_by or row.model or "hosted", set()).add(row.id)
    for answer in traffic.answers_as("audit", "reask", "reanswer"):
        went.setdefault(answer.served_by or "hosted", set()).add(answer.exchange)
    total = len(traffic.exchanges)
    outside = set().union(*went.values()) if went else set()
    counted = Counter({name: len(ids) for name, ids in went.items()})
    return Control(
        tuple(Destination(name, count, count / total) for name, count in counted.most_common()),
        1 - len(outside) / total, dict(traffic.skipped),
        len({row.subject for row in traffic.exchanges if row.subject is not None}), model)


def model_of(located: Located, adapter: Path | None = None) -> ModelOrigin:
    """What the model's files say of it."""
    with closing(open_checkpoint(located.path)) as checkpoint:
        stated = checkpoint.metadata.get("general.license")
        folder = checkpoint.folder
    licence = stated if isinstance(stated, str) and stated else _licence_file(folder)
    if adapter is None:
        return ModelOrigin(located.name, located.digest, licence)
    lineage = read_lineage(adapter)
    if lineage is None:
        return ModelOrigin(located.name, located.digest, licence, adapter.name)
    return ModelOrigin(located.name, located.digest, licence, adapter.name, lineage.base_digest, lineage.data_digest,
                 lineage.rights)


def _licence_file(folder: Path) -> str | None:
    found = sorted(path for pattern in _LICENCE_FILES for path in folder.glob(pattern))
    if not found:
        return None
    lines = [line.strip() for line in found[0].read_text("utf-8", "replace").splitlines()[:20] if line.strip()]
    return lines[0][:120] if lines else None
