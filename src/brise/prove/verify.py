"""`verify` checks a certificate: is it genuine, does its path replay, and do the data still say the same?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from brise import settings
from brise.errors import BriseError, EvidenceError
from brise.prove import certificates, scoring, sources
from brise.prove.certificates import Signed
from brise.prove.document import time_words
from brise.prove.options import PairOptions
from brise.prove.pairs import digest_of_clusters
from brise.stats.certificate import Certificate, ReplayMismatch, replay
from brise.stats.labels import LABEL_SOURCES
from brise.traffic import seal, stores
from brise.traffic.store import TrafficStore


@dataclass(frozen=True)
class VerifyOptions:
    """The certificate's file, and where its data are: the log or store of `pairs`, else this machine's store. How pairs
    are selected from there is written in the certificate.
    """

    certificate: Path
    pairs: PairOptions = field(default_factory=PairOptions)


@dataclass(frozen=True)
class CertificateCheck:
    """One check; `passed` is None where it could not be made."""

    name: str
    passed: bool | None
    said: str


@dataclass(frozen=True)
class Verification:
    """All checks of a certificate."""

    certificate: Path
    digest: str
    checks: tuple[CertificateCheck, ...]

    @property
    def is_sound(self) -> bool:
        """Whether no check failed."""
        return not any(check.passed is False for check in self.checks)

    def to_json(self) -> Mapping[str, Any]:
        return {"certificate": str(self.certificate), "digest": self.digest, "checks": [
            {"check": check.name, "passed": check.passed, "said": check.said} for check in self.checks]}


def verify(options: VerifyOptions) -> Verification:
    """Checks signature, path and time; and the ledger and the data where there are any."""
    signed, pairs = certificates.read(options.certificate), options.pairs
    found = signed.certificate
    path = _replayed("path", replay(found), f"K_t of {found.n:,} units is the same, bit for bit")
    checks = [_signature(signed), path, _in_time(found)]
    if pairs.task is None and pairs.log is None:
        pairs = replace(pairs, task=found.task)
    if pairs.log is not None or _has_store(pairs):
        with sources.opened(pairs) as store:
            if store is not None:
                wrong = certificates.in_ledger(store, signed)
                checks.append(CertificateCheck("ledger", wrong is None,
                                               wrong or "its chain is whole and holds the certificate"))
            checks.append(_data(pairs, found, store))
    return Verification(options.certificate, signed.digest, tuple(checks))


def _has_store(pairs: PairOptions) -> bool:
    return pairs.store is not None or stores.default_place(settings.read().home).is_file()


def _signature(signed: Signed) -> CertificateCheck:
    """Genuine, and by this machine's key where it has one."""
    if not signed.is_genuine:
        return CertificateCheck("signature", False, "the certificate was changed after it was signed")
    folder, key = stores.keys_folder(settings.read().home), signed.public_key.hex()[:16]
    if not (folder / seal.SIGNING_FILE).is_file():
        return CertificateCheck("signature", True, f"whole, by the key {key} (this machine has none)")
    if seal.load_or_create_signing_key(folder).public != signed.public_key:
        return CertificateCheck("signature", False, f"whole, but by another machine's key ({key})")
    return CertificateCheck("signature", True, "whole, by this machine's key")


def _in_time(found: Certificate) -> CertificateCheck:
    return CertificateCheck("time", time.time() < found.expires_at_s, f"good until {time_words(found.expires_at_s)}")


def _replayed(name: str, result: ReplayMismatch, good: str) -> CertificateCheck:
    return CertificateCheck(name, result.is_equal, good if result.is_equal else result.reason)


def _data(pairs: PairOptions, found: Certificate, store: TrafficStore | None) -> CertificateCheck:
    """The differences computed again from log or store, under the selection that the certificate names."""
    try:
        differences, names = _differences(pairs, found, store)
    except BriseError as error:
        return CertificateCheck("data", None, f"the pairs cannot be read any more: {error.args[0]}")
    result = replay(found, differences[:found.n])
    if result.is_equal and digest_of_clusters(names[:found.n]) != found.window.units_digest:
        return CertificateCheck("data", False, "the differences are the same, but they are of other units")
    return _replayed("data", result, f"the same {found.n:,} units give the same differences")


def _differences(pairs: PairOptions, found: Certificate,
                 store: TrafficStore | None) -> tuple[list[float], tuple[str, ...]]:
    chosen = found.selection
    cluster, settle_s, draw = chosen["unit"], chosen["settle_s"], chosen["draw"]
    if not isinstance(settle_s, float) or not (cluster is None or isinstance(cluster, str)):
        raise EvidenceError("the certificate does not say how its pairs were selected")
    source = sources.select(
        replace(pairs, small_model=_text(chosen["student"]) if pairs.log is None else None, cluster=cluster,
                settle_s=settle_s, since_s=found.window.since_s, until_s=None, any_context=not found.contexts),
        store, last_s=found.window.until_s, fingerprint=found.student.fingerprint)
    selected = source.chosen.pairs
    scorer = scoring.scorer_of(_text(chosen["score"]), _text(chosen["scorer"]), selected)
    label_source = next(known for known in LABEL_SOURCES if known == found.labels)
    if not isinstance(draw, float):
        raise EvidenceError("the certificate does not say how pairs were drawn for people")
    scored = scoring.score(selected, label_source, scorer, _text(chosen["figure"]), draw)
    clusters = scoring.complete(selected, scored)
    return clusters.means(scored.differences).tolist(), clusters.names


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
