"""What a device sends to its hub: records that only the hub can open, in a batch that only the device can sign.

A record is sealed when it is written, so that a stolen device cannot read what it has not sent yet: HPKE (RFC 9180)
with X25519, HKDF-SHA256 and AES-256-GCM, one message for each record, bound to the fleet, the device and the record.

    sealed record   encapsulated key (32) | ciphertext | tag (16), of {"at_s", "body", "kind"} in canonical JSON
    batch           {"device", "dropped", "fleet", "records": [[id, kind, subject, sealed in base64], ...]}
    signature       Ed25519 of the device over SIGNED_AS, a zero byte and the batch, in a header

The kind and the subject's digest are outside the seal: the hub keeps what is personal as it came, and finds it again
when a subject is to be forgotten.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from Crypto.Protocol import DH, HPKE
from Crypto.PublicKey import ECC

from brise.errors import CheckpointError, FleetError
from brise.files.digests import DIGEST, NAME
from brise.files.json_file import parse_json
from brise.traffic.seal import SigningKey, sign, verify

MOST_RECORD_BYTES = 256 << 10  # a conversation that waits for the large model is the largest
MOST_BATCH_BYTES = 1 << 20
MOST_RECORDS = 500  # of a batch
SIGNED_AS = b"brise fleet report 1"
SIGNATURE_HEADER, DEVICE_HEADER = "x-brise-signature", "x-brise-device"
RECORD_ID = re.compile(r"[0-9a-f]{16}")
_KIND = re.compile(r"[a-z][a-z-]{0,39}")
_INFO = b"brise fleet record 1"
_KEY_BYTES, _TAG_BYTES = 32, 16


class BatchError(FleetError):
    """A batch of records is not in its form, or not signed by its device."""


@dataclass(frozen=True)
class Record:
    """A record on its way. `id` grows with each record of a device; `body` is sealed, or JSON while there is no key."""

    id: str
    at_s: float
    kind: str
    body: bytes = field(repr=False)
    subject: str | None = None  # the digest of whom it is about


@dataclass(frozen=True)
class OpenedRecord:
    """What the hub reads in a record."""

    id: str
    at_s: float
    kind: str
    body: Mapping[str, Any]


@dataclass(frozen=True)
class RecordBatch:
    """Records of one device in the order of their ids, and how many it had to drop so far, by grade."""

    device: str
    fleet: str
    records: tuple[Record, ...]
    dropped: Mapping[str, int] = field(default_factory=dict)


def new_seal_key() -> bytes:
    """The hub's private key: 32 bytes of X25519."""
    return bytes(ECC.generate(curve="Curve25519").seed)


def public_seal_key(private: bytes) -> bytes:
    """The public key that devices seal with: 32 bytes."""
    return bytes(_private(private).public_key().export_key(format="raw"))


def subject_digest(fleet: str, subject: str) -> str:
    """The name of a subject in roll-outs and records: 64 hexadecimal digits. Only who knows the fleet's id, which a
    device gets when it enrols, can try names against it.
    """
    return hmac.digest(fleet.encode(), f"subject:{subject}".encode(errors="surrogatepass"), "sha256").hex()


def seal_record(hub: bytes, fleet: str, device: str, record: Record) -> Record:
    """The record with its body, {"at_s", "body", "kind"} as JSON, sealed for the hub with this public key."""
    try:
        sender = HPKE.new(receiver_key=_public(hub), aead_id=HPKE.AEAD.AES256_GCM, info=_INFO)
    except ValueError:
        raise FleetError("the hub's key is no X25519 public key of 32 bytes") from None
    sealed = sender.seal(record.body, _binding(fleet, device, record.id))
    return Record(record.id, record.at_s, record.kind, bytes(sender.enc) + sealed, record.subject)


def open_record(private: bytes, fleet: str, device: str, record: Record) -> OpenedRecord:
    """What is in a sealed record; BatchError if it does not open, or says another kind inside than outside."""
    sealed = record.body
    if len(sealed) < _KEY_BYTES + _TAG_BYTES:
        raise BatchError(f"the record {record.id} has {len(sealed)} bytes, {_KEY_BYTES + _TAG_BYTES} are the least")
    try:
        receiver = HPKE.new(receiver_key=_private(private), aead_id=HPKE.AEAD.AES256_GCM, enc=sealed[:_KEY_BYTES],
                            info=_INFO)
        plain = receiver.unseal(sealed[_KEY_BYTES:], _binding(fleet, device, record.id))
    except ValueError:
        raise BatchError(f"the record {record.id} does not open: it was sealed for another hub, fleet or device, or "
                         "changed") from None
    return opened(record.id, record.kind, plain)


def opened(id: str, kind: str, plain: bytes) -> OpenedRecord:
    """The record in the JSON that was sealed."""
    value = _object(plain, f"the record {id}")
    at_s, body = value.get("at_s"), value.get("body")
    if value.get("kind") != kind or not isinstance(body, dict) or type(at_s) not in (int, float):
        raise BatchError(f"the record {id} is not {{at_s, body, kind: {kind!r}}}")
    return OpenedRecord(id, float(at_s), kind, body)  # type: ignore[arg-type]  # its type was compared


def record_json(kind: str, at_s: float, body: Mapping[str, Any]) -> bytes:
    """What is sealed of a record."""
    if _KIND.fullmatch(kind) is None:
        raise FleetError(f"the kind {kind[:64]!r} is not allowed: lower case letters and '-', 40 at most")
    value = {"at_s": at_s, "body": dict(body), "kind": kind}
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def batch_json(batch: RecordBatch) -> bytes:
    """The bytes that are signed and sent."""
    records = [[one.id, one.kind, one.subject, base64.b64encode(one.body).decode()] for one in batch.records]
    value = {"device": batch.device, "dropped": dict(batch.dropped), "fleet": batch.fleet, "records": records}
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def signed_headers(key: SigningKey, device: str, batch: bytes) -> dict[str, str]:
    """The headers with which a device sends a batch."""
    signature = sign(key, SIGNED_AS + b"\0" + batch)
    return {DEVICE_HEADER: device, SIGNATURE_HEADER: base64.b64encode(signature).decode(),
            "content-type": "application/json"}


def is_signed(public: bytes, batch: bytes, signature: str) -> bool:
    """Whether the device with this public key signed these bytes. Asked before anything of them is parsed."""
    try:
        found = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError):
        return False
    return verify(public, SIGNED_AS + b"\0" + batch, found)


def read_batch(data: bytes, device: str, fleet: str) -> RecordBatch:
    """The batch in the body of a report whose signature holds: of this device, for this fleet, ids in order."""
    if len(data) > MOST_BATCH_BYTES:
        raise BatchError(f"the batch has {len(data)} bytes, {MOST_BATCH_BYTES} are allowed")
    value = _object(data, "the batch")
    if value.get("device") != device or value.get("fleet") != fleet:
        raise BatchError(f"the batch is not of the device {device!r} for this fleet")
    rows, dropped = value.get("records"), value.get("dropped")
    if not isinstance(rows, list) or len(rows) > MOST_RECORDS:
        raise BatchError(f"records must be a list of at most {MOST_RECORDS}")
    if not isinstance(dropped, dict) or len(dropped) > 8 or not all(
            len(name) <= 40 and type(number) is int and 0 <= number <= 2**53 for name, number in dropped.items()):
        raise BatchError("dropped must be numbers by grade")
    records = tuple(map(_record, rows))
    if any(first.id >= second.id for first, second in zip(records, records[1:], strict=False)):
        raise BatchError("the ids of records must grow")
    return RecordBatch(device, fleet, records, dropped)


def check_device(name: object) -> str:
    """The name of a device, or FleetError."""
    if not isinstance(name, str) or NAME.fullmatch(name) is None or len(name) > 64:
        raise FleetError(f"the device {str(name)[:100]!r} is not allowed: 1 to 64 letters, digits, '.', '_' and "
                         "'-', of which the first is a letter or digit")
    return name


def _record(row: object) -> Record:
    match row:
        case [str(id), str(kind), str() | None as subject, str(sealed)] if (
                RECORD_ID.fullmatch(id) and _KIND.fullmatch(kind) and (subject is None or DIGEST.fullmatch(subject))):
            try:
                body = base64.b64decode(sealed, validate=True)
            except (binascii.Error, ValueError):
                raise BatchError(f"the record {id} is not in base64") from None
            if len(body) > MOST_RECORD_BYTES:
                raise BatchError(f"the record {id} has {len(body)} bytes, {MOST_RECORD_BYTES} are allowed")
            return Record(id, 0.0, kind, body, subject)
    raise BatchError("a record must be [id of 16 hexadecimal digits, kind, digest of the subject or null, base64]")


def _object(data: bytes, name: str) -> Mapping[str, object]:
    try:
        return parse_json(data, name)
    except CheckpointError as error:
        raise BatchError(f"{name} cannot be read: {error.args[0]}") from None


def _binding(fleet: str, device: str, id: str) -> bytes:
    return "\0".join((fleet, device, id)).encode()


def batch_bytes(record: Record) -> int:
    """The most bytes that a record takes in a batch."""
    return (len(record.body) + 2) // 3 * 4 + len(record.kind) + 64 + 40


def _public(key: bytes) -> ECC.EccKey:
    return DH.import_x25519_public_key(key)


def _private(key: bytes) -> ECC.EccKey:
    return DH.import_x25519_private_key(key)
