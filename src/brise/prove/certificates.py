"""Certificates as files and as lines of the ledger: made, signed, kept, and read back.

    {"certificate": {...}, "digest": SHA-256 of its canonical form, "public_key": Ed25519, "signature": over that form}

All three are hexadecimal. The ledger's line holds the whole certificate: a gateway that shares the store needs no file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brise import __version__, settings
from brise.checkpoint import open
from brise.checkpoint.adapters import lineage
from brise.checkpoint.adapters.peft import WEIGHTS_FILE
from brise.errors import EvidenceError
from brise.files.atomic import staged_file
from brise.files.digests import file_digest, text_digest
from brise.hub.store import ModelStore, locate
from brise.prove.document import About
from brise.prove.options import SmallModelOptions
from brise.prove.pairs import NO_CONTEXT, Pair, digest_of_clusters, large_model_of, read_evidence
from brise.prove.proof import Proof
from brise.stats import certificate as forms
from brise.stats.certificate import Certificate, CertifiedModel, Claim, Window
from brise.text.load import tokens_for
from brise.traffic import seal
from brise.traffic.ledger import check_chain
from brise.traffic.records import LedgerEntry
from brise.traffic.seal import SigningKey
from brise.traffic.store import TrafficStore

KIND = "certificate"  # of the ledger's line
# Whoever writes these messages otherwise, with another template or tokenizer, is another model.
PROBE = ({"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."},
         {"role": "user", "content": "Three?"})


@dataclass(frozen=True)
class Signed:
    """A certificate with the signature over its canonical form."""

    certificate: Certificate
    public_key: bytes
    signature: bytes

    @property
    def digest(self) -> str:
        return forms.digest(self.certificate)

    @property
    def is_genuine(self) -> bool:
        """Whether the holder of the key signed exactly this."""
        return seal.verify(self.public_key, forms.canonical(self.certificate), self.signature)

    def to_json(self) -> dict[str, Any]:
        """What the file holds."""
        return {"certificate": forms.to_json(self.certificate), "digest": self.digest,
                "public_key": self.public_key.hex(), "signature": self.signature.hex()}


def folder(home: Path) -> Path:
    """The folder of certificates, unless the user names a file."""
    return home / "gateway" / "certificates"


def make(proof: Proof, around: About, pairs: Sequence[Pair], student: CertifiedModel, *, now_s: float, days: int,
         any_context: bool, source_digest: str | None, selection: Mapping[str, str | float | bool | None]
         ) -> Certificate:
    """Makes the certificate of a proof that promotes."""
    assert proof.verdict == "promote" and proof.outcome.decided_at is not None
    rows, terms = proof.clusters.of(pairs), proof.terms
    times = [pair.at_s for pair in rows if pair.at_s is not None]
    contexts = () if any_context else tuple(dict.fromkeys(pair.context or NO_CONTEXT for pair in rows))
    proven = [one for one in proof.slices if one.is_proven]
    return Certificate(
        around.task, student, tuple(dict.fromkeys(name for pair in rows if (name := large_model_of(pair)))), contexts,
        Window(around.source, source_digest, min(times, default=None), max(times, default=None), around.cluster,
               len(rows), digest_of_clusters(proof.clusters.names)),
        terms.delta, terms.test.alpha, terms.alpha, terms.candidate, terms.futility,
        proof.scored.bound, proof.discordance, float(proof.scored.differs[proof.clusters.rows].mean()),
        proof.scored.label_source, proof.scored.definition, tuple(dict.fromkeys(one.dimension for one in proof.slices)),
        tuple(one.name for one in proven),
        tuple(Claim(guard.name, guard.claim, guard.evidence) for guard in proof.guards),
        tuple(map(float, proof.differences)), tuple(map(float, proof.outcome.path)), proof.outcome.decided_at, now_s,
        now_s + 86400.0 * days, dict(selection), f"brise {__version__}")


def sign(certificate: Certificate, key: SigningKey) -> Signed:
    """Signs the certificate with this machine's key."""
    return Signed(certificate, key.public, seal.sign(key, forms.canonical(certificate)))


def place_of(signed: Signed, home: Path) -> Path:
    """The certificate's file: the task's name as far as file systems allow it, and when it was made."""
    made = datetime.fromtimestamp(signed.certificate.made_at_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", signed.certificate.task).strip("._")[:80] or "task"
    return folder(home) / f"{name}-{made}-{signed.digest[:8]}.json"


def write(signed: Signed, path: Path) -> None:
    """Writes the file whole or not at all; an existing file is not replaced."""
    text = json.dumps(signed.to_json(), indent=1, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(path, len(text)) as file:
        file.write(text)


def read(path: Path) -> Signed:
    """Reads a certificate; EvidenceError if it is none. Whether it is genuine, `is_genuine` says."""
    try:
        return parse(json.loads(read_evidence(path)))
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{str(path)!r} is no JSON: {error}") from None


def parse(value: object) -> Signed:
    """The certificate of a file's or a ledger line's JSON."""
    try:
        if not isinstance(value, Mapping):
            raise TypeError("it is no object")
        return Signed(forms.from_json(value["certificate"]), bytes.fromhex(value["public_key"]),
                      bytes.fromhex(value["signature"]))
    except (KeyError, TypeError, ValueError) as error:
        raise EvidenceError(f"this is no signed certificate: {type(error).__name__}: {error}") from None


def record(store: TrafficStore, signed: Signed, path: Path) -> LedgerEntry:
    """Writes the line of the ledger from which `brise switch` takes the certificate."""
    found = signed.certificate
    return store.append(KIND, {
        "task": found.task, "path": str(path), "digest": signed.digest, "verdict": "promote",
        "student": found.student.name, "candidate": found.candidate, "delta": found.delta, "alpha": found.alpha,
        "n": found.n, "expires_at_s": found.expires_at_s, **signed.to_json()})


def in_ledger(store: TrafficStore, signed: Signed) -> str | None:
    """None if the chain is whole and holds this certificate; else what is wrong."""
    entries = list(store.ledger())
    broken = check_chain(entries)
    if broken is not None:
        return f"the ledger is broken: {broken.reason}"
    if not any(entry.kind == KIND and entry.body.get("digest") == signed.digest for entry in entries):
        return "the ledger does not have this certificate"
    return None


def small_model_of(small: SmallModelOptions, name: str) -> CertifiedModel:
    """Digests of what makes the small model's answers, as far as the options say what it is."""
    adapter = None if small.adapter is None else file_digest(small.adapter / WEIGHTS_FILE)
    if small.model is None:
        return CertifiedModel(name, None, adapter)
    located = locate(small.model, ModelStore(settings.read().home))
    if small.adapter is not None:
        lineage.check_base(lineage.read_lineage(small.adapter), located, any_base=small.any_base)
    return CertifiedModel(name, lineage.base_digest(located), adapter, template_digest(located.path))


def template_digest(path: Path) -> str | None:
    """The SHA-256 of a fixed conversation as this model reads it, in tokens; None for a model without a chat format."""
    checkpoint = open.open_checkpoint(path)
    try:
        chat = tokens_for(checkpoint).chat
        return None if chat is None else text_digest(repr(chat.prompt(PROBE).tokens))
    finally:
        checkpoint.close()
