"""Certificates hold all that a verdict depends on, in one form, so that anybody can compute it again.

The differences of the clusters are in it, in their order. From them alone the path K_t follows, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

import numpy as np

from brise.errors import CertificateError, EvidenceError
from brise.files.typed_json import LARGEST_WHOLE, RecordReader, is_text, is_whole
from brise.stats import sequential_test
from brise.stats.clusters import Bets, bets_of, bounds
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
class AnswerWeights:
    """Each answer weighs alike: of each cluster its first `most_rows` counted, which are its `rows`; `cut` did not.

    The bound `is_stated`, or follows from the first clusters (clusters.bounds).
    """

    most_rows: int
    is_stated: bool
    rows: tuple[int, ...]
    cut: int


@dataclass(frozen=True)
class Certificate:
    """The small model may take over this task, for these contexts and large models, until it expires.

    `alpha` is this candidate's part of `alpha_of_all`. `discordance` is P(S != T); answers that differ are the
    share `differing`, which is more where both may be right. `contexts` is empty where it is bound to none. `proven`
    names the proven slices of these `dimensions`; requests of other slices escalate. `path` is K_t after each cluster,
    which reached 1 / alpha at cluster `decided_at`.

    The claim is about answers if there are `answers`: then `differences` are the sums of D that were bet on. In others,
    and in those of brise 0.2 and before, conversations weigh alike, and `differences` are the means of their D.
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
    answers: AnswerWeights | None = None

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


def replay(certificate: Certificate, differences: Sequence[float] | None = None,
           rows: Sequence[int] | None = None) -> ReplayMismatch:
    """Computes the path again, from the certificate's differences (and numbers of rows, where answers weigh alike) or
    from these, and compares every bit.
    """
    try:
        return _replay(certificate, differences, rows)
    except EvidenceError as error:  # of numbers that no proof can have
        return ReplayMismatch(None, str(error.args[0]))


def _replay(certificate: Certificate, differences: Sequence[float] | None,
            rows: Sequence[int] | None) -> ReplayMismatch:
    if differences is not None:
        for at, (said, found) in enumerate(zip(certificate.differences, differences, strict=False), 1):
            if said != found:
                return ReplayMismatch(at, f"unit {at} had D = {said!r}, it has {found!r}")
        if len(differences) != certificate.n:
            at = min(len(differences), certificate.n) + 1
            return ReplayMismatch(at, f"there were {certificate.n} units, there are {len(differences)}")
    if rows is not None and certificate.answers is not None and tuple(rows) != certificate.answers.rows:
        return ReplayMismatch(None, "the conversations have other numbers of answers")
    test = NonInferiorityTest(certificate.delta, certificate.alpha, certificate.futility, certificate.bound)
    outcome = sequential_test.decide(_bets(certificate), test)
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


def _bets(certificate: Certificate) -> Bets | tuple[float, ...]:
    """What each cluster gave to bet on; EvidenceError if it cannot have been that."""
    answers = certificate.answers
    if answers is None:
        return certificate.differences
    if len(answers.rows) != certificate.n or sum(answers.rows) != certificate.window.rows:
        raise EvidenceError(f"{len(answers.rows)} clusters of {sum(answers.rows)} answers are not the {certificate.n} "
                            f"of {certificate.window.rows} that were counted")
    limits, most = bounds(answers.rows, answers.most_rows if answers.is_stated else None)
    if most != answers.most_rows or max(answers.rows) > most:
        raise EvidenceError(f"the first {answers.most_rows} answers of a conversation counted, but the longest has "
                            f"{max(answers.rows)}, and the bound is {most}")
    sums = np.array(certificate.differences)
    return bets_of(sums, np.minimum(np.array(answers.rows, np.intp), limits), limits, most)


def canonical(certificate: Certificate) -> bytes:
    """The canonical form: equal certificates have equal bytes. It is what is signed and digested."""
    return json.dumps(to_json(certificate), sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(certificate: Certificate) -> str:
    """The SHA-256 of the canonical form."""
    return hashlib.sha256(canonical(certificate)).hexdigest()


def to_json(certificate: Certificate) -> dict[str, Any]:
    """The certificate as JSON, with its number of clusters."""
    values = {"format": VERSION, "n": certificate.n} | asdict(certificate)
    if certificate.student.fingerprint is None:  # certificates from before there were any keep their digest
        del values["student"]["fingerprint"]
    if certificate.answers is None:
        del values["answers"]
    return values


def from_json(value: object) -> Certificate:
    """The certificate of this JSON; CertificateError names the first value that is not as it must be.

    Every value has its type, and all of them together are the canonical form and nothing else. So what is signed is
    what is read, and equal certificates have equal bytes.
    """
    if not isinstance(value, dict) or type(value.get("format")) is not int or value["format"] != VERSION:
        found = value.get("format") if isinstance(value, dict) else None
        raise CertificateError(f"this is no certificate of format {VERSION}: its format is {reprlib.repr(found)}")
    named = {name: item for name, item in value.items() if name not in ("format", "n")}
    certificate: Certificate = _CertificateReader().record(Certificate, "", named)
    if type(value.get("n")) is not int or value["n"] != certificate.n:
        raise CertificateError(f"this is no certificate: n is {reprlib.repr(value.get('n'))} for {certificate.n} units")
    written = to_json(certificate)
    for name in written:
        if _plain(value[name]) != _plain(written[name]):
            raise CertificateError(f"this is no certificate: {name} is not in the form that is signed",
                                   hint="take the file as brise prove wrote it")
    return certificate


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


_LATEST_S = 253_402_300_799.0  # the last second of the year 9999, the last that a date can name
# What a number may be: the least and the most, whether these themselves are allowed, and the same in words.
_OPEN_SHARE = (0.0, 1.0, False, "number over 0 and under 1")
_SHARE = (0.0, 1.0, True, "number from 0 to 1")
_TIME = (0.0, _LATEST_S, True, "number of seconds since 1970")
_COUNT = (1, LARGEST_WHOLE, True, "whole number from 1")
_LIMITS: Mapping[str, tuple[float, float, bool, str]] = {
    "alpha": _OPEN_SHARE, "alpha_of_all": _OPEN_SHARE, "delta": (-math.ulp(0.0), 1.0, False, "number from 0, under 1"),
    "futility": (1.0, math.inf, False, "number over 1"), "bound": (1.0, 1e9, True, "number from 1"),
    "discordance": _SHARE, "differing": _SHARE, "made_at_s": _TIME, "expires_at_s": _TIME, "window.since_s": _TIME,
    "window.until_s": _TIME, "candidate": _COUNT, "decided_at": _COUNT, "window.rows": _COUNT,
    "answers.most_rows": _COUNT, "answers.rows": _COUNT,
    "answers.cut": (0, LARGEST_WHOLE, True, "whole number from 0")}


_LISTS: Mapping[type, str] = {str: "list of texts", float: "list of numbers", int: "list of whole numbers from 1"}


class _CertificateReader(RecordReader):
    """Each value within its limits. Numbers of a list are all written as such with a point, so that a path has one
    form."""

    def items(self, kind: Any, place: str, value: object) -> list[Any]:
        if not isinstance(value, list):
            raise self.wrong(place, value, _LISTS.get(kind, "list"))
        if is_dataclass(kind):
            return super().items(kind, place, value)
        found = list[Any]()
        for number, item in enumerate(value):
            try:
                found.append(self.plain((kind,), place, item))
            except CertificateError:
                raise self.wrong(place, value[number:], _LISTS.get(kind, "list")) from None
        return [float(item) for item in found] if kind is float else found

    def plain(self, kinds: tuple[Any, ...], place: str, value: object) -> Any:
        least, most, may_touch, words = _LIMITS.get(place, (-math.inf, math.inf, False, "number"))
        if isinstance(value, bool) and bool in kinds or is_text(value) and str in kinds:
            return value
        takes_number = int in kinds or float in kinds
        if takes_number and (is_whole(value) or (type(value) is float and float in kinds)):
            number = float(value)  # type: ignore[arg-type]
            if least < number < most or (may_touch and number in (least, most)):
                return value
        raise self.wrong(place, value, words if takes_number else "text")

    def wrong(self, place: str, value: object, allowed: str) -> Exception:
        return CertificateError(f"this is no certificate: {place} is {reprlib.repr(value)}, which is no {allowed}")

    def unknown(self, place: str, known: Mapping[str, Any]) -> Exception:
        return CertificateError(f"this is no certificate: it has the field {reprlib.repr(place)}, which brise does not "
                                "know")

    def missing(self, place: str) -> Exception:
        return CertificateError(f"this is no certificate: {place} is missing")
