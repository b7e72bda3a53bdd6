"""Certificates hold all that a verdict depends on, in one form, so that anybody can compute it again.

The differences of the clusters are in it, in their order. From them alone the path K_t follows, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from brise.errors import EvidenceError
from brise.stats import sequential_test
from brise.stats.sequential_test import NonInferiorityTest

VERSION = 1


@dataclass(frozen=True)
class CertifiedModel:
    """The small model: the name it is served under, and digests of what produces its answers, as far as known.

    `fingerprint` is what the gateway recorded with its answers: it identifies what ran, the digests what was named.
    """

    name: str
    digest: str | None = None
    adapter: str | None = None
    template: str | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class Window:
    """The data. `source` says where they came from, `units_digest` is that of the clusters' names in order."""

    source: str
    source_digest: str | None
    since_s: float | None
    until_s: float | None
    unit: str
    rows: int
    units_digest: str


@dataclass(frozen=True)
class Claim:
    """One thing that was shown beside quality, with its margin in words."""

    name: str
    claim: str
    evidence: float


@dataclass(frozen=True)
class Certificate:
    """The small model may take over this task, for these contexts and large models, until it expires.

    `alpha` is this candidate's part of `alpha_of_all`. `discordance` is P(S != T); answers that differ are the
    share `differing`, which is more where both may be right. `contexts` is empty where it is bound to none. `proven`
    names the proven slices of these `dimensions`; requests of other slices escalate. `path` is K_t after each cluster,
    which reached 1 / alpha at cluster `decided_at`.
    """

    task: str
    student: CertifiedModel
    teachers: tuple[str, ...]
    contexts: tuple[str, ...]
    window: Window
    delta: float
    alpha: float
    alpha_of_all: float
    candidate: int
    futility: float
    bound: float
    discordance: float
    differing: float
    labels: str
    scoring: str
    dimensions: tuple[str, ...]
    proven: tuple[str, ...]
    claims: tuple[Claim, ...]
    differences: tuple[float, ...]
    path: tuple[float, ...]
    decided_at: int
    made_at_s: float
    expires_at_s: float
    selection: Mapping[str, str | float | bool | None]
    made_by: str

    @property
    def n(self) -> int:
        """Clusters."""
        return len(self.differences)


@dataclass(frozen=True)
class ReplayMismatch:
    """Where a replay differs from the certificate: the cluster, counted from 1, and what differs. None: nowhere.
    """

    unit: int | None = None
    reason: str = ""

    @property
    def is_equal(self) -> bool:
        return not self.reason


def replay(certificate: Certificate, differences: Sequence[float] | None = None) -> ReplayMismatch:
    """Computes the path again, from the certificate's differences or from these, and compares every bit."""
    if differences is not None:
        for at, (said, found) in enumerate(zip(certificate.differences, differences, strict=False), 1):
            if said != found:
                return ReplayMismatch(at, f"unit {at} had D = {said!r}, it has {found!r}")
        if len(differences) != certificate.n:
            at = min(len(differences), certificate.n) + 1
            return ReplayMismatch(at, f"there were {certificate.n} units, there are {len(differences)}")
    test = NonInferiorityTest(certificate.delta, certificate.alpha, certificate.futility, certificate.bound)
    outcome = sequential_test.decide(certificate.differences, test)
    said_path = np.array(certificate.path)
    if len(said_path) != certificate.n:
        return ReplayMismatch(None, f"the path has {len(said_path)} values for {certificate.n} units")
    apart = np.flatnonzero(outcome.path != said_path)
    if len(apart):
        at = int(apart[0])
        return ReplayMismatch(at + 1,
                              f"K after unit {at + 1} was {certificate.path[at]!r}, it is {float(outcome.path[at])!r}")
    if (outcome.verdict, outcome.decided_at) != ("promote", certificate.decided_at):
        return ReplayMismatch(outcome.decided_at, f"the verdict was promote at unit {certificate.decided_at}, it is "
                                          f"{outcome.verdict}" + (f" at unit {outcome.decided_at}"
                                                                  if outcome.decided_at else ""))
    return ReplayMismatch()


def canonical(certificate: Certificate) -> bytes:
    """The canonical form: equal certificates have equal bytes. It is what is signed and digested."""
    return json.dumps(to_json(certificate), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(certificate: Certificate) -> str:
    """The SHA-256 of the canonical form."""
    return hashlib.sha256(canonical(certificate)).hexdigest()


def to_json(certificate: Certificate) -> dict[str, Any]:
    """The certificate as JSON, with its number of clusters."""
    fields = {"format": VERSION, "n": certificate.n} | asdict(certificate)
    if certificate.student.fingerprint is None:  # certificates from before there were any keep their digest
        del fields["student"]["fingerprint"]
    return fields


def from_json(value: object) -> Certificate:
    """The certificate of this JSON; EvidenceError if it is none, or has fields that we do not know."""
    if not isinstance(value, dict) or value.get("format") != VERSION:
        found = value.get("format") if isinstance(value, dict) else None
        raise EvidenceError(f"this is no certificate of format {VERSION}: its format is {found!r}")
    fields = {name: item for name, item in value.items() if name not in ("format", "n")}
    try:
        certificate = Certificate(**fields | {
            "student": CertifiedModel(**fields["student"]), "window": Window(**fields["window"]),
            "claims": tuple(Claim(**claim) for claim in fields["claims"]),
            **{name: _texts(fields[name]) for name in ("teachers", "contexts", "dimensions", "proven")},
            **{name: _numbers(fields[name]) for name in ("differences", "path")}})
        if value["n"] != certificate.n:
            raise ValueError(f"n is {value['n']!r} for {certificate.n} units")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EvidenceError(f"this is no certificate: {error}") from None
    return certificate


def _texts(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{str(values)[:40]} is no list of texts")
    return tuple(values)


def _numbers(values: Any) -> tuple[float, ...]:
    if not isinstance(values, list) or not all(type(value) in (int, float) and math.isfinite(value)
                                               for value in values):
        raise ValueError(f"{str(values)[:40]} is no list of numbers")
    return tuple(map(float, values))
