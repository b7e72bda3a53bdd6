"""Certificates by which the devices of a fleet know each other: an authority on the hub, and one for each device.

They are X.509 with Ed25519 keys. A device's certificate is of the key with which it signs its reports, and which never
leaves it; the hub issues one when the device enrols. TLS is 1.3 on both sides, and both sides show a certificate.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from brise.errors import FleetError, MissingExtraError
from brise.files.atomic import staged_file
from brise.fleet.device import KEYS, Device
from brise.traffic.seal import SIGNING_FILE

AUTHORITY_DAYS, DEVICE_DAYS = 3650, 730
CLOCKS_DIFFER = timedelta(days=2)  # a device's clock may be behind the hub's
BEGIN_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
CERTIFICATE_FILE, AUTHORITY_FILE = "device.crt", "fleet.crt"


@dataclass(frozen=True)
class FleetAuthority:
    """The key that signs devices' certificates, and its own certificate; PEM."""

    key: str = field(repr=False)
    certificate: str = ""

    @classmethod
    def new(cls, fleet: str, now_s: float) -> FleetAuthority:
        """An authority for a fleet; MissingExtraError without the package that makes certificates."""
        x509, ed25519, serialization = _cryptography()
        key = ed25519.Ed25519PrivateKey.generate()
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"brise fleet {fleet}"[:64])])
        made = _builder(x509, name, name, key.public_key(), now_s, AUTHORITY_DAYS).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, None)
        text = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                 serialization.NoEncryption()).decode()
        return cls(text, _pem(made))

    @classmethod
    def of(cls, path: Path, fleet: str, now_s: float) -> FleetAuthority | None:
        """The authority whose key and certificate are in this file, which is made if it is not there; None without the
        package that makes certificates."""
        try:
            if not path.exists():
                made = cls.new(fleet, now_s)
                data = (made.key + made.certificate).encode()
                with staged_file(path, len(data), mode=0o600) as file:
                    file.write(data)
            _cryptography()
        except MissingExtraError:
            return None
        key, begin, certificate = path.read_text(encoding="ascii").partition(BEGIN_CERTIFICATE)
        return cls(key, begin + certificate)

    def issue(self, device: str, public: bytes, now_s: float) -> str:
        """The certificate of a device's public key: 32 bytes of Ed25519."""
        x509, ed25519, serialization = _cryptography()
        authority = x509.load_pem_x509_certificate(self.certificate.encode())
        key = serialization.load_pem_private_key(self.key.encode(), None)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, device[:64])])
        public_key = ed25519.Ed25519PublicKey.from_public_bytes(public)
        usage = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.CLIENT_AUTH, x509.ExtendedKeyUsageOID.SERVER_AUTH])
        made = _builder(x509, subject, authority.subject, public_key, now_s, DEVICE_DAYS).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True).add_extension(
            usage, critical=False).sign(key, None)
        return _pem(made)


@dataclass(frozen=True)
class PeerTls:
    """A device's side of a connection to another one."""

    certificate: Path
    key: Path
    authority: Path

    @classmethod
    def of(cls, device: Device, folder: Path) -> PeerTls:
        """From what the device got when it enrolled; FleetError if it got no certificate."""
        if device.certificate is None or device.authority is None:
            raise FleetError("this device has no certificate for other devices",
                             hint="a hub with brise[peers] gives one: enrol anew")
        for name, text in ((CERTIFICATE_FILE, device.certificate), (AUTHORITY_FILE, device.authority)):
            data = text.encode()
            with staged_file(folder / name, len(data), mode=0o600, replaces=True) as file:
                file.write(data)
        return cls(folder / CERTIFICATE_FILE, folder / KEYS / SIGNING_FILE, folder / AUTHORITY_FILE)

    def client(self) -> ssl.SSLContext:
        """For asking another device. Its name does not count, since devices move; its certificate does."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        return self._filled(context)

    def server(self) -> ssl.SSLContext:
        """For being asked: who shows no certificate of the fleet is refused before a byte is read."""
        return self._filled(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))

    def _filled(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.authority)
        context.load_cert_chain(self.certificate, self.key)
        return context


def _builder(x509: Any, subject: Any, issuer: Any, public_key: Any, now_s: float, days: int) -> Any:
    now = datetime.fromtimestamp(now_s, UTC)
    return x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public_key).serial_number(
        x509.random_serial_number()).not_valid_before(now - CLOCKS_DIFFER).not_valid_after(now + timedelta(days=days))


def _pem(certificate: Any) -> str:
    _, _, serialization = _cryptography()
    return str(certificate.public_bytes(serialization.Encoding.PEM).decode())


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography import x509  # noqa: PLC0415 - an extra
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415
    except ModuleNotFoundError:
        raise MissingExtraError("cryptography", "peers", "a certificate for devices") from None
    return x509, ed25519, serialization
