"""Keys of a fleet: Ed25519 in PEM, with a passphrase where they are kept offline; and as TUF's signers and keys.

    root-1.key root-2.key root-3.key   apart from each other and offline: any two change who may sign what
    release.key                        offline, with whoever ships: signs bundles
    hub.key                            on the hub: signs snapshot, timestamp and the list of roll-outs
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from Crypto.PublicKey import ECC

from brise.errors import FleetError, MissingExtraError, OutputError
from brise.files.atomic import staged_file
from brise.fleet.strict_json import canonical
from brise.traffic import seal
from brise.traffic.seal import SigningKey

try:
    from securesystemslib.signer import Signature, Signer, SSlibKey
except ModuleNotFoundError as error:
    raise MissingExtraError("tuf", "fleet", "a fleet of devices") from error

_MOST_BYTES = 1 << 16
_ROUNDS = 210_000  # of PBKDF2 with HMAC-SHA512: OWASP's figure of 2023


class FleetSigner(Signer):
    """Signs TUF's metadata with pycryptodome, which brise has; `cryptography` is not needed."""

    def __init__(self, key: SigningKey) -> None:
        self._key, self._public = key, tuf_key(key.public)

    @property
    def public_key(self) -> SSlibKey:
        return self._public

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri: str, public_key: object, secrets_handler: object = None) -> FleetSigner:
        """Not by URI: keys are files."""
        raise NotImplementedError("keys of a fleet are files: use read_key")

    def sign(self, payload: bytes) -> Signature:
        """The signature of the canonical bytes of metadata."""
        return Signature(self._public.keyid, seal.sign(self._key, payload).hex())


def tuf_key(public: bytes) -> SSlibKey:
    """A public key as metadata hold it. Its id is the digest that other tools of TUF compute, too."""
    value = {"public": public.hex()}
    keyid = hashlib.sha256(canonical({"keytype": "ed25519", "scheme": "ed25519", "keyval": value})).hexdigest()
    return SSlibKey(keyid, "ed25519", "ed25519", value)


def new_key(path: Path, passphrase: str | None = None) -> SigningKey:
    """Makes a key file that only its owner may read, and NAME.pub beside it. OutputError if it is there already."""
    made = ECC.generate(curve="Ed25519")
    if passphrase is None:
        text = str(made.export_key(format="PEM"))
    else:
        text = str(made.export_key(format="PEM", passphrase=passphrase, use_pkcs8=True,
                                   protection="PBKDF2WithHMAC-SHA512AndAES256-GCM",
                                   prot_params={"iteration_count": _ROUNDS}))
    key = SigningKey(bytes(made.seed))
    with staged_file(path, len(text) + 1, mode=0o600) as file:
        file.write(f"{text}\n".encode())
    with staged_file(path.with_suffix(".pub"), 65, replaces=True) as file:
        file.write(f"{key.public.hex()}\n".encode())
    return key


def read_key(path: Path, passphrase: str | None = None) -> SigningKey:
    """The private key in a file; FleetError says what is wrong with it."""
    data = _read(path)
    if os.stat(path).st_mode & 0o077:
        raise FleetError(f"the key {str(path)!r} is open to others than its owner", hint=f"chmod 600 {path}")
    if passphrase is None and b"ENCRYPTED" in data:
        raise FleetError(f"the key {str(path)!r} has a passphrase",
                         hint="name the environment variable that holds it: --passphrase-env NAME")
    try:
        key = ECC.import_key(data.decode("ascii"), passphrase=passphrase)
    except (ValueError, IndexError, TypeError, UnicodeDecodeError):
        raise FleetError(f"{str(path)!r} holds no Ed25519 key in PEM" +
                         ("" if passphrase is None else ", or not one with this passphrase")) from None
    if key.curve != "Ed25519" or not key.has_private():
        raise FleetError(f"{str(path)!r} holds no private Ed25519 key")
    return SigningKey(bytes(key.seed))


def read_public(path: Path) -> bytes:
    """The public key in a file of 64 hexadecimal digits or in PEM; that of a private key without a passphrase, too."""
    found = seal.public_key_in(_read(path))
    why = "it holds none" if found is None else seal.why_no_key(found)
    if found is None or why is not None:
        raise FleetError(f"{str(path)!r} is no public key: {why}")
    return found


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise OutputError(f"cannot read the key {str(path)!r}: {error.strerror}") from None
