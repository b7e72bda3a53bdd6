"""Certificates as files and as lines of the ledger: made, signed, kept, and read back.

    {"certificate": {...}, "digest": SHA-256 of its canonical form, "public_key": Ed25519, "signature": over that form}

All three are hexadecimal. The ledger's line holds the whole certificate: a gateway that shares the store needs no file.

Every byte of the file counts. White space between the parts is free; everything else has one form, so that nothing can
stand there which the signature does not cover: no key twice, no number or text in another spelling.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from brise import __version__, settings
from brise.checkpoint import open
from brise.checkpoint.adapters import lineage
from brise.checkpoint.adapters.peft import WEIGHTS_FILE
from brise.errors import CertificateError, EvidenceError
from brise.files.atomic import staged_file
from brise.files.digests import file_digest, text_digest
from brise.hub.locate import find_model
from brise.prove.document import About
from brise.prove.options import SmallModelOptions
from brise.prove.pairs import NO_CONTEXT, Pair, digest_of_clusters, large_model_of, read_evidence
from brise.prove.proof import Proof
from brise.stats import certificate as forms
from brise.stats.certificate import AnswerWeights, Certificate, CertifiedModel, Claim, Window
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
    """A certificate with the signature over its canonical form. `said_digest` is what its file says (None: no file)."""

    certificate: Certificate
    public_key: bytes
    signature: bytes
    said_digest: str | None = None

    @property
    def digest(self) -> str:
        return forms.digest(self.certificate)

    @property
    def is_genuine(self) -> bool:
        """Whether the holder of the key signed exactly this, and the digest is of it."""
        return self.said_digest in (None, self.digest) and self.has_valid_signature

    @property
    def has_valid_signature(self) -> bool:
        """Whether the holder of the key signed the certificate, whatever digest stands beside it."""
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
        tuple(map(float, proof.sums)), tuple(map(float, proof.outcome.path)), proof.outcome.decided_at, now_s,
        now_s + 86400.0 * days, dict(selection), f"brise {__version__}", _answers(proof))


def claim_words(found: Certificate) -> str:
    """What the certificate claims, in words."""
    answers = found.answers
    what = "each conversation weighs alike" if answers is None else (
        f"each answer weighs alike; of a conversation the first {answers.most_rows} count, {answers.cut} are cut")
    return f"{what}; {100 * found.delta:g} points worse at most"


def _answers(proof: Proof) -> AnswerWeights | None:
    """How answers weighed, if the claim is about them. Where each conversation has one, both claims are the same one.
    """
    clusters, weighting = proof.clusters, proof.terms.weighting
    if weighting.per == "conversation":
        return None
    return AnswerWeights(clusters.layout.most_rows, weighting.most_rows is not None,
                         tuple(map(int, clusters.lengths)), len(clusters.cut))


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
    text = file_bytes(signed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with staged_file(path, len(text)) as file:
        file.write(text)


def file_bytes(signed: Signed) -> bytes:
    """What the file of a certificate holds."""
    return json.dumps(signed.to_json(), indent=1, allow_nan=False).encode() + b"\n"


def read(path: Path) -> Signed:
    """Reads a certificate; CertificateError if it is none. Whether it is genuine, `is_genuine` says."""
    return parse(_strict_json(read_evidence(path), path))


def parse(value: object) -> Signed:
    """The certificate of a file's JSON."""
    if not isinstance(value, Mapping):
        raise CertificateError(f"this is no certificate: it is {reprlib.repr(value)}, which is no object")
    for name in (*_PARTS, *value):
        if (name in value) != (name in _PARTS):
            raise CertificateError(f"this is no certificate: {reprlib.repr(name)} " + (
                "is missing" if name in _PARTS else "does not belong there"))
    certificate, key = forms.from_json(value["certificate"]), _hexadecimal(value, "public_key", seal.KEY_BYTES)
    why = seal.why_no_key(key)
    if why is not None:
        raise CertificateError(f"this is no certificate: public_key is {key.hex()}, which is no key: {why}")
    return Signed(certificate, key, _hexadecimal(value, "signature", SIGNATURE_BYTES),
                  _hexadecimal(value, "digest", DIGEST_BYTES).hex())


_PARTS = ("certificate", "digest", "public_key", "signature")
SIGNATURE_BYTES, DIGEST_BYTES = 64, 32
# A text in JSON, which is kept, or white space between the parts.
_TEXT_OR_SPACE = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[ \t\r\n]+')


def _strict_json(data: bytes, path: Path) -> object:
    """The JSON of a file in which everything but white space has one form."""
    try:
        text = data.decode()
        value = json.loads(text, object_pairs_hook=_unique)
        written = json.dumps(value, separators=(",", ":"))
    except (ValueError, RecursionError) as error:
        raise CertificateError(f"{str(path)!r} is no certificate: it is no JSON: {error}") from None
    plain = _TEXT_OR_SPACE.sub(lambda found: found[0] if found[0].startswith('"') else "", text)
    if plain != written:
        at = next((at for at, (said, same) in enumerate(zip(plain, written, strict=False)) if said != same),
                  min(len(plain), len(written)))
        begins = max(at - 20, 0)
        raise CertificateError(f"{str(path)!r} is no certificate: {plain[begins:at + 20]!r} is another spelling of "
                               f"{written[begins:at + 20]!r}", hint="take the file as brise prove wrote it")
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict[str, object]()
    for name, value in pairs:
        if name in found:
            raise CertificateError(f"this is no certificate: the key {reprlib.repr(name)} stands twice")
        found[name] = value
    return found


def _hexadecimal(value: Mapping[str, object], name: str, length: int) -> bytes:
    """The bytes of a text of lower-case digits, the one form in which it is written."""
    text = value[name]
    if not isinstance(text, str) or re.fullmatch(f"[0-9a-f]{{{2 * length}}}", text) is None:
        raise CertificateError(f"this is no certificate: {name} is {reprlib.repr(text)}, which are no {2 * length} "
                               "hexadecimal digits in lower case")
    return bytes.fromhex(text)


def record(store: TrafficStore, signed: Signed, path: Path) -> LedgerEntry:
    """Writes the line of the ledger from which `brise switch` takes the certificate."""
    return store.append(KIND, {**_summary(signed), "path": str(path), "verdict": "promote", **signed.to_json()})


def of_line(body: Mapping[str, Any]) -> Signed:
    """The certificate of a ledger's line. What stands beside it, to be read at a glance, must say the same."""
    signed = parse({name: body[name] for name in _PARTS if name in body})
    for name, value in _summary(signed).items():
        if name in body and body[name] != value:
            raise CertificateError(f"the ledger's line says {name} is {reprlib.repr(body[name])}, its certificate "
                                   f"says {reprlib.repr(value)}")
    return signed


def _summary(signed: Signed) -> dict[str, Any]:
    found = signed.certificate
    return {"task": found.task, "digest": signed.digest, "student": found.student.name, "candidate": found.candidate,
            "delta": found.delta, "alpha": found.alpha, "n": found.n, "expires_at_s": found.expires_at_s}


def key_named(text: str, folder: Path) -> bytes:
    """A public key that a user names: 64 hexadecimal digits, the path of a file that holds them or a key in PEM, the
    name of a file `NAME.pub` in this machine's `folder` of keys, or "own", this machine's.
    """
    if text == "own":
        return seal.load_or_create_signing_key(folder).public
    if re.fullmatch("[0-9a-fA-F]{64}", text):
        key: bytes | None = bytes.fromhex(text)
    else:
        named = folder / f"{text}.pub" if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text) else None
        file = next((path for path in (Path(text), named) if path is not None and _is_file(path)), None)
        if file is None:
            raise EvidenceError(f"{text!r} is no public key: neither 64 hexadecimal digits nor a file"
                                + ("" if named is None else f", and there is no {str(named)!r}"))
        key = seal.public_key_in(read_evidence(file))
    why = "it holds neither 64 hexadecimal digits nor an Ed25519 key in PEM" if key is None else seal.why_no_key(key)
    if key is None or why is not None:
        raise EvidenceError(f"{text!r} is no public key: {why}")
    return key


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no name that a file can have
        return False


def in_ledger(store: TrafficStore, signed: Signed) -> str | None:
    """None if the chain is whole and holds this certificate; else what is wrong."""
    entries = list(store.ledger())
    broken = check_chain(entries)
    if broken is not None:
        return f"the ledger is broken: {broken.reason}"
    written = {"digest": signed.digest, "certificate": json.loads(forms.canonical(signed.certificate))}
    if not any(entry.kind == KIND and entry.body.items() >= written.items() for entry in entries):
        return "the ledger does not have this certificate"
    return None


def small_model_of(small: SmallModelOptions, name: str) -> CertifiedModel:
    """Digests of what makes the small model's answers, as far as the options say what it is."""
    adapter = None if small.adapter is None else file_digest(small.adapter / WEIGHTS_FILE)
    if small.model is None:
        return CertifiedModel(name, None, adapter)
    located = find_model(small.model, settings.read())
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
