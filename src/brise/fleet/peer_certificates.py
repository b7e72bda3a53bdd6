"""Certificates by which the devices of a fleet know each other: an authority on the hub, and one for each device.

They are X.509 with Ed25519 keys. A device's certificate is of the key with which it signs its reports, and which never
leaves it; the hub issues one when the device enrols, and another before that one ends. TLS is 1.3 on both sides, and
both sides show a certificate. Those of revoked devices are in a list that the authority signs (X.509's CRL, RFC 5280);
a device that cannot reach its hub goes on with the list that it has.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from brise.errors import FleetError, MissingExtraError
from brise.files.atomic import staged_file
from brise.fleet.device import KEYS, Device, HubClient, read_device, signing_key, write_device
from brise.traffic.seal import SIGNING_FILE

AUTHORITY_DAYS, DEVICE_DAYS, RENEWED_DAYS = 3650, 730, 180  # renewed: before a certificate ends
LOOK_S = 3600.0  # between two looks at the list of revoked ones
CLOCKS_DIFFER = timedelta(days=2)  # a device's clock may be behind the hub's
BEGIN_CERTIFICATE = "-----BEGIN CERTIFICATE-----"
CERTIFICATE_FILE, AUTHORITY_FILE, REVOKED_FILE = "device.crt", "fleet.crt", "revoked.crl"


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

    def revocations(self, serials: Sequence[int], now_s: float) -> str:
        """The signed list of these certificates, in PEM. It is good as long as the authority, since devices may be
        without a network for months; a newer one takes its place."""
        x509, _, serialization = _cryptography()
        authority = x509.load_pem_x509_certificate(self.certificate.encode())
        now = datetime.fromtimestamp(now_s, UTC)
        made = x509.CertificateRevocationListBuilder().issuer_name(authority.subject).last_update(
            now - CLOCKS_DIFFER).next_update(authority.not_valid_after_utc)
        for serial in serials:
            made = made.add_revoked_certificate(x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(
                now - CLOCKS_DIFFER).build())
        return _pem(made.sign(serialization.load_pem_private_key(self.key.encode(), None), None))


def serial_and_end(certificate: str) -> tuple[int, float]:
    """The serial number of a certificate in PEM, and when it ends."""
    x509, _, _ = _cryptography()
    found = x509.load_pem_x509_certificate(certificate.encode())
    return found.serial_number, found.not_valid_after_utc.timestamp()


@dataclass(frozen=True)
class PeerTls:
    """A device's side of connections to others. `contexts` are those that were made of it, which follow its files."""

    certificate: Path
    key: Path
    authority: Path
    revoked: Path
    contexts: list[ssl.SSLContext] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, device: Device, folder: Path) -> PeerTls:
        """From what the device got when it enrolled; FleetError if it got no certificate."""
        if device.certificate is None or device.authority is None:
            raise FleetError("this device has no certificate for other devices",
                             hint="a hub with brise[peers] gives one: enrol anew")
        _write(folder / CERTIFICATE_FILE, device.certificate)
        _write(folder / AUTHORITY_FILE, device.authority)
        return cls(folder / CERTIFICATE_FILE, folder / KEYS / SIGNING_FILE, folder / AUTHORITY_FILE,
                   folder / REVOKED_FILE)

    def client(self) -> ssl.SSLContext:
        """For asking another device. Its name does not count, since devices move; its certificate does."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        return self._filled(context)

    def server(self) -> ssl.SSLContext:
        """For being asked: who shows no certificate of the fleet is refused before a byte is read, on each connection
        anew."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0
        return self._filled(context)

    def renew(self, certificate: str) -> None:
        """Another certificate of the device's own key, for connections from now on."""
        _write(self.certificate, certificate)
        for context in self.contexts:
            context.load_cert_chain(self.certificate, self.key)

    def revoke(self, revoked: str) -> bool:
        """Another list of revoked certificates, for connections from now on; False if it is the one that is here.
        FleetError if the fleet's authority did not sign it, or it is older."""
        x509, _, _ = _cryptography()
        before = self.revoked.read_text(encoding="ascii") if self.revoked.exists() else None
        if before == revoked:
            return False
        authority = x509.load_pem_x509_certificate(self.authority.read_bytes())
        try:
            found = x509.load_pem_x509_crl(revoked.encode())
            is_signed = found.is_signature_valid(authority.public_key())
        except (ValueError, TypeError) as error:
            raise FleetError(f"the hub's list of revoked certificates is not one: {error}") from None
        if not is_signed:
            raise FleetError("the list of revoked certificates is not signed by the fleet's authority")
        if before is not None and x509.load_pem_x509_crl(before.encode()).last_update_utc > found.last_update_utc:
            raise FleetError("the hub's list of revoked certificates is older than the one that is here")
        _write(self.revoked, revoked)
        for context in self.contexts:
            self._load_revoked(context)
        return True

    def _filled(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(self.authority)
        context.load_cert_chain(self.certificate, self.key)
        if self.revoked.exists():
            self._load_revoked(context)
        self.contexts.append(context)
        return context

    def _load_revoked(self, context: ssl.SSLContext) -> None:
        context.load_verify_locations(self.revoked)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF


class CertificateKeeper:
    """Renews a device's certificate before it ends, and follows the list of revoked ones. `revoked` is called when that
    has changed: connections that are open were checked against the one before. `now` is this machine's clock, as TLS
    has no other."""

    def __init__(self, tls: PeerTls, hub: HubClient, folder: Path, revoked: Callable[[], None],
                 now: Callable[[], float] = time.time) -> None:
        self._tls, self._hub, self._folder, self._revoked, self._now = tls, hub, folder, revoked, now
        self._looked_s = -LOOK_S

    def step(self) -> None:
        """Looks, if it is time to."""
        now_s = self._now()
        if abs(now_s - self._looked_s) < LOOK_S:
            return
        self._looked_s = now_s
        try:
            listed = self._hub.revocations()
            if listed and self._tls.revoke(listed):
                self._revoked()
        finally:  # a list that is refused is no reason to let the own certificate end
            self._renew(now_s)

    def _renew(self, now_s: float) -> None:
        device = read_device(self._folder)
        if device.certificate is not None and serial_and_end(device.certificate)[1] < now_s + RENEWED_DAYS * 86400.0:
            device = replace(device, certificate=self._hub.certificate(device, signing_key(self._folder)))
            write_device(device, self._folder)
            self._tls.renew(str(device.certificate))


def _write(path: Path, text: str) -> None:
    data = text.encode()
    with staged_file(path, len(data), mode=0o600, replaces=True) as file:
        file.write(data)


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
