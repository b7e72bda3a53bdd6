"""Bodies sealed with AES-256-GCM under a key for each subject, and Ed25519 signatures of this machine.

    master.key    AES-256, hexadecimal; wraps the subjects' keys and makes names that say nothing (`owner`, `derived`)
    signing.key   Ed25519, PKCS #8 in PEM; signs certificates

A sealed value is nonce (12) | ciphertext | tag (16). What it is bound to, its table and row, is authenticated with it
and goes into the key: each row has an AES key of its own, HMAC-SHA256(subject's key, row). So a nonce drawn twice
under one subject's key harms nothing, and a sealed value that is moved to another row does not open.

The library is loaded where it is used: it would be a tenth of the start of a server that has no store.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from brise.errors import StoreError
from brise.files.atomic import private_folder, sync

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
MASTER_FILE, SIGNING_FILE = "master.key", "signing.key"
_ED25519 = "rfc8032"
_LARGEST_KEY_FILE = 1 << 16
_PRIME = 2**255 - 19
# y of the eight points whose order divides 8: of order 1, 2 and 4, and of order 8, where d y^4 + 2 y^2 = 1.
# tests/traffic/test_seal.py computes them again.
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER = frozenset((1, _PRIME - 1, 0, _ORDER_8, _PRIME - _ORDER_8))


class SealError(StoreError):
    """A sealed value does not open: the wrong key, another row's value, or bytes that somebody changed."""


@dataclass(frozen=True)
class SigningKey:
    """An Ed25519 key. `public` is what a verifier needs: 32 bytes."""

    seed: bytes = field(repr=False)

    @property
    def public(self) -> bytes:
        from Crypto.Signature import eddsa  # noqa: PLC0415 - see the top

        return bytes(eddsa.import_private_key(self.seed).public_key().export_key(format="raw"))


def new_key() -> bytes:
    """A random AES-256 key."""
    return secrets.token_bytes(KEY_BYTES)


def seal(key: bytes, binding: str, plain: bytes) -> bytes:
    """`plain`, which only `key` opens, and only for the same `binding`."""
    from Crypto.Cipher import AES  # noqa: PLC0415 - see the top

    nonce = secrets.token_bytes(NONCE_BYTES)
    cipher = AES.new(derived(key, binding), AES.MODE_GCM, nonce=nonce, mac_len=TAG_BYTES)
    cipher.update(binding.encode())
    ciphertext, tag = cipher.encrypt_and_digest(plain)
    return nonce + ciphertext + tag


def unseal(key: bytes, binding: str, sealed: bytes) -> bytes:
    """What was sealed, or SealError."""
    from Crypto.Cipher import AES  # noqa: PLC0415 - see the top

    if len(sealed) < NONCE_BYTES + TAG_BYTES:
        raise SealError(f"the sealed value of {binding!r} has {len(sealed)} bytes, "
                        f"at least {NONCE_BYTES + TAG_BYTES} are needed")
    nonce, ciphertext, tag = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:-TAG_BYTES], sealed[-TAG_BYTES:]
    cipher = AES.new(derived(key, binding), AES.MODE_GCM, nonce=nonce, mac_len=TAG_BYTES)
    cipher.update(binding.encode())
    try:
        return cipher.decrypt_and_verify(ciphertext, tag)
    except ValueError:
        raise SealError(f"the sealed value of {binding!r} does not open: it was changed, or another master key "
                        "wrapped its key") from None


def derived(key: bytes, purpose: str) -> bytes:
    """A key, or a name that says nothing to whoever lacks `key`: HMAC-SHA256."""
    return hmac.new(key, purpose.encode(errors="surrogatepass"), hashlib.sha256).digest()


def sign(key: SigningKey, content: bytes) -> bytes:
    """The Ed25519 signature of `content`: 64 bytes."""
    from Crypto.Signature import eddsa  # noqa: PLC0415 - see the top

    return bytes(eddsa.new(eddsa.import_private_key(key.seed), _ED25519).sign(content))


def why_no_key(public: bytes) -> str | None:
    """Why these bytes are no Ed25519 public key to trust; None if they are one.

    Under a key of small order any message has a signature that anybody can compute (RFC 8032, 5.1.7, leaves it to the
    verifier to refuse them). A y of 2^255 - 19 or more is a second spelling of another key's.
    """
    from Crypto.Signature import eddsa  # noqa: PLC0415 - see the top

    if len(public) != KEY_BYTES:
        return f"it has {len(public)} bytes, {KEY_BYTES} are needed"
    y = int.from_bytes(public, "little") & ((1 << 255) - 1)
    if y >= _PRIME:
        return "it is not in its canonical form"
    if y in _SMALL_ORDER:
        return "it is of small order: anybody can sign with it"
    try:
        eddsa.import_public_key(public)
    except ValueError:
        return "it is no point of the curve"
    return None


def public_key_in(data: bytes) -> bytes | None:
    """The Ed25519 public key in a file: hexadecimal digits, or PEM. None if there is none."""
    from Crypto.PublicKey import ECC  # noqa: PLC0415 - see the top

    text = data[:_LARGEST_KEY_FILE].decode("latin-1").strip()
    if len(text) == 2 * KEY_BYTES and not set(text.lower()) - set("0123456789abcdef"):
        return bytes.fromhex(text)
    try:
        key = ECC.import_key(text)
    except (ValueError, IndexError, TypeError):
        return None
    return bytes(key.public_key().export_key(format="raw")) if key.curve == "Ed25519" else None


def verify(public: bytes, content: bytes, signature: bytes) -> bool:
    """Whether the holder of the key behind `public` signed exactly this."""
    from Crypto.Signature import eddsa  # noqa: PLC0415 - see the top

    if why_no_key(public) is not None:
        return False
    try:
        eddsa.new(eddsa.import_public_key(public), _ED25519).verify(content, signature)
    except ValueError:
        return False
    return True


def load_or_create_master_key(folder: Path) -> bytes:
    """The AES-256 key in this folder; whoever comes first makes it. The library that seals is loaded then."""
    from Crypto.Cipher import AES  # noqa: F401, PLC0415 - see the top

    text = _load_or_create(folder, MASTER_FILE, lambda: new_key().hex() + "\n")
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise StoreError(f"{str(folder / MASTER_FILE)!r} holds no key: {2 * KEY_BYTES} hexadecimal digits are needed",
                         hint="put back the file from your backup; without it captured bodies cannot be read")
    return key


def load_or_create_signing_key(folder: Path) -> SigningKey:
    """The Ed25519 key in this folder; whoever comes first makes it."""
    from Crypto.PublicKey import ECC  # noqa: PLC0415 - see the top

    text = _load_or_create(folder, SIGNING_FILE,
                           lambda: str(ECC.generate(curve="Ed25519").export_key(format="PEM")) + "\n")
    try:
        key = ECC.import_key(text)
    except (ValueError, IndexError):
        key = None
    if key is None or key.curve != "Ed25519" or not key.has_private():
        raise StoreError(f"{str(folder / SIGNING_FILE)!r} holds no private Ed25519 key in PEM")
    return SigningKey(bytes(key.seed))


def _load_or_create(folder: Path, name: str, make: Callable[[], str]) -> str:
    """The text of a key file that only its owner may read. Of several makers at once one wins, and all get its key."""
    path = folder / name
    try:
        private_folder(folder)
        if not path.exists():
            _create(path, make())
        mode = path.stat().st_mode & 0o077
        if mode:
            raise StoreError(f"the key {str(path)!r} is open to others than its owner (mode {mode:03o} beyond 600)",
                             hint=f"chmod 600 {path}")
        return path.read_text(encoding="ascii")
    except UnicodeDecodeError:
        raise StoreError(f"{str(path)!r} holds no key: it is no text") from None
    except OSError as error:
        raise StoreError(f"cannot read or make the key {str(path)!r}: {error.strerror}") from error


def _create(path: Path, text: str) -> None:
    """Whole or not at all: written beside, synced, and given its name by a link, which fails where one is."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    number = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(number, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            return
        sync(path.parent)
    finally:
        part.unlink(missing_ok=True)
