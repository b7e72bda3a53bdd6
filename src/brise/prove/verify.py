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
from brise.prove.scoring import PairClusters
from brise.stats.certificate import Certificate, ReplayMismatch, replay
from brise.stats.clusters import Weighting
from brise.stats.labels import LABEL_SOURCES
from brise.traffic import seal, stores
from brise.traffic.store import TrafficStore


@dataclass(frozen=True)
class VerifyOptions:
    """The certificate's file, the public `key` that must have signed it (None: this machine's), and where its data are:
    the log or store of `pairs`, else this machine's store. How pairs are selected is written in the certificate. A
    scorer of its own is run only if it `may_run_code`, and the signer is known.
    """

    certificate: Path
    pairs: PairOptions = field(default_factory=PairOptions)
    key: bytes | None = None
    may_run_code: bool = True


@dataclass(frozen=True)
class CertificateCheck:
    """One check; `passed` is None where it could not be made."""

    name: str
    passed: bool | None
    said: str


@dataclass(frozen=True)
class Verification:
    """All checks of a certificate. Without `is_signer_known` it is whole at best: anybody may have signed it."""

    certificate: Path
    digest: str
    checks: tuple[CertificateCheck, ...]
    is_signer_known: bool = True
    claim: str = ""  # in words

    @property
    def is_sound(self) -> bool:
        """Whether no check failed."""
        return not any(check.passed is False for check in self.checks)

    @property
    def is_wrong(self) -> bool:
        """Whether more failed than that the signer is not the expected one."""
        return any(check.passed is False for check in self.checks if self.is_signer_known or check.name != SIGNATURE)

    def to_json(self) -> Mapping[str, Any]:
        return {"certificate": str(self.certificate), "digest": self.digest, "claim": self.claim, "checks": [
            {"check": check.name, "passed": check.passed, "said": check.said} for check in self.checks]}


def verify(options: VerifyOptions) -> Verification:
    """Checks signature, path and time; and the ledger and the data where there are any."""
    signed, pairs = certificates.read(options.certificate), options.pairs
    found = signed.certificate
    path = _replayed("path", replay(found), f"K_t of {found.n:,} units is the same, bit for bit")
    signature, is_known = _signature(signed, options.key)
    checks = [signature, path, _in_time(found)]
    if pairs.task is None and pairs.log is None:
        pairs = replace(pairs, task=found.task)
    if pairs.log is not None or _has_store(pairs):
        with sources.opened(pairs) as store:
            if store is not None:
                wrong = certificates.in_ledger(store, signed)
                checks.append(CertificateCheck("ledger", wrong is None,
                                               wrong or "its chain is whole and holds the certificate"))
            is_trusted = is_known and signature.passed is True
            checks.append(_data(pairs, found, store, may_run_code=options.may_run_code and is_trusted,
                                why_not="here" if is_trusted else "for an unknown signer"))
    return Verification(options.certificate, signed.digest, tuple(checks), is_known,
                        certificates.claim_words(found))


SIGNATURE = "signature"


def _has_store(pairs: PairOptions) -> bool:
    return pairs.store is not None or stores.default_place(settings.read().home).is_file()


def _signature(signed: Signed, expected: bytes | None) -> tuple[CertificateCheck, bool]:
    """Whether it is genuine, and by the key that is expected; and whether we can tell who signed it."""
    if signed.said_digest not in (None, signed.digest) and signed.has_valid_signature:
        return CertificateCheck(SIGNATURE, False, f"its digest is not of its content, which has {signed.digest}"), True
    if not signed.is_genuine:
        return CertificateCheck(SIGNATURE, False, "the certificate was changed after it was signed"), True
    folder, key = stores.keys_folder(settings.read().home), signed.public_key.hex()
    has_own = (folder / seal.SIGNING_FILE).is_file()
    if expected is None and not has_own:
        return CertificateCheck(SIGNATURE, True, f"whole, but of an unknown signer: the key is {key}, this machine has "
                                                 "none, and no --key says whose is expected"), False
    own = seal.load_or_create_signing_key(folder).public if has_own else None
    wanted = own if expected is None else expected
    whose = "this machine's key" if wanted == own else "the key that was given"
    if wanted != signed.public_key:
        assert wanted is not None
        return CertificateCheck(SIGNATURE, False, f"unknown signer: whole, but by another machine's key ({key}); "
                                                  f"expected is {whose} ({wanted.hex()})"), False
    return CertificateCheck(SIGNATURE, True, f"whole, by {whose}" + ("" if wanted == own else f" ({key})")), True


def _in_time(found: Certificate) -> CertificateCheck:
    return CertificateCheck("time", time.time() < found.expires_at_s, f"good until {time_words(found.expires_at_s)}")


def _replayed(name: str, result: ReplayMismatch, good: str) -> CertificateCheck:
    return CertificateCheck(name, result.is_equal, good if result.is_equal else result.reason)


def _data(pairs: PairOptions, found: Certificate, store: TrafficStore | None, *, may_run_code: bool,
          why_not: str) -> CertificateCheck:
    """The differences computed again from log or store, under the selection that the certificate names."""
    if found.selection.get("scorer") is not None and not may_run_code:
        return CertificateCheck("data", None, "the certificate names a scorer of its own, whose code is not run "
                                              f"{why_not}")
    try:
        clusters, differences = _differences(pairs, found, store)
    except BriseError as error:
        return CertificateCheck("data", None, f"the pairs cannot be read any more: {error.args[0]}")
    names, rows = clusters.names, None if found.answers is None else clusters.lengths[:found.n].tolist()
    result = replay(found, differences[:found.n], rows)
    if result.is_equal and digest_of_clusters(names[:found.n]) != found.window.units_digest:
        return CertificateCheck("data", False, "the differences are the same, but they are of other units")
    return _replayed("data", result, f"the same {found.n:,} units give the same differences")


def _differences(pairs: PairOptions, found: Certificate,
                 store: TrafficStore | None) -> tuple[PairClusters, list[float]]:
    chosen = found.selection
    cluster, settle_s, draw = (chosen.get(name) for name in ("unit", "settle_s", "draw"))
    if not isinstance(settle_s, float) or not (cluster is None or isinstance(cluster, str)):
        raise EvidenceError("the certificate does not say how its pairs were selected")
    source = sources.select(
        replace(pairs, small_model=_text(chosen.get("student")) if pairs.log is None else None, cluster=cluster,
                settle_s=settle_s, since_s=found.window.since_s, until_s=None, any_context=not found.contexts),
        store, last_s=found.window.until_s, fingerprint=found.student.fingerprint)
    selected = source.chosen.pairs
    scorer = scoring.scorer_of(_text(chosen.get("score")), _text(chosen.get("scorer")), selected)
    label_source = next((known for known in LABEL_SOURCES if known == found.labels), None)
    if label_source is None:
        raise EvidenceError(f"the certificate's labels are {found.labels!r}, known are {', '.join(LABEL_SOURCES)}")
    if not isinstance(draw, float):
        raise EvidenceError("the certificate does not say how pairs were drawn for people")
    scored = scoring.score(selected, label_source, scorer, _text(chosen.get("figure")), draw)
    answers = found.answers
    weighting = Weighting("conversation") if answers is None else Weighting(
        "answer", answers.most_rows if answers.is_stated else None)
    clusters = scoring.complete(selected, scored, weighting)
    return clusters, clusters.sums(scored.differences).tolist()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
