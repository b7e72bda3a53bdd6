"""What goes with a bundle as evidence: the certificate and the rule are those of its model; the rights still hold."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from brise import settings
from brise.checkpoint.adapters.lineage import Lineage
from brise.data.rights import read_rights
from brise.errors import FleetError
from brise.hub.listed import listed
from brise.prove import certificates
from brise.prove.certificates import Signed
from brise.stats.certificate import CertifiedModel
from brise.switch import rule as rules
from brise.switch.rule import Rule
from brise.traffic import seal, stores


@dataclass(frozen=True)
class ShippedModel:
    """What a certificate may be of: digests of the base, of the chat template and of the adapter's weights (as it was
    trained, and as it is shipped), and the fingerprints of servers that run the base with either."""

    base: str
    template: str | None
    adapters: frozenset[str]
    fingerprints: frozenset[str]


def check_rights(adapter: Path, lineage: Lineage | None, rights: Path | None) -> None:
    """FleetError or RightsError unless the lineage says what allowed training on each provider's answers, and `rights`,
    a rights.toml, still says so today."""
    if lineage is None:
        raise FleetError(f"the adapter {str(adapter)!r} has no lineage: nothing says what it was trained on, and "
                         "whether that was allowed", hint="brise tune writes one")
    for provider, basis in lineage.rights.items():
        if not basis.strip():
            raise FleetError(f"the adapter was trained on answers of {provider!r}, and its lineage names nothing that "
                             "allowed it", hint="docs/guides/tune.md, Teacher's rights")
    if rights is not None:
        read_rights(rights).used(dict.fromkeys(lineage.rights, 1), datetime.date.today())


def own_signer() -> bytes:
    """The public key with which this machine signs certificates."""
    return seal.load_or_create_signing_key(stores.keys_folder(settings.read().home)).public


def read_certificate(path: Path, signer: bytes, own: ShippedModel, task: str | None, now_s: float) -> Signed:
    """The certificate in a file, if it is genuine, in time, and of this model; FleetError says what is not so."""
    signed = certificates.read(path)
    reasons = chain(_why_untrusted(signed, signer, now_s), _why_other_model(signed.certificate.student, own))
    why = next(reasons, None)
    if why is None and task not in (None, signed.certificate.task):
        why = f"it is of the task {signed.certificate.task!r}, this bundle is for {task!r}"
    if why is not None:
        raise FleetError(f"the certificate {str(path)!r} does not go with this bundle: {why}")
    return signed


def find_rule(task: str, place: str | None, own: ShippedModel) -> tuple[Rule | None, bool]:
    """The newest rule of a task in the store that was fitted on answers of this model, and whether there are others."""
    home = settings.read().home
    if place is None and not stores.default_place(home).is_file():
        return None, False
    with closing(stores.open_store(place, home, must_exist=True)) as store:
        found = [rules.from_body(entry.body) for entry in store.ledger()
                 if entry.kind == "cascade" and entry.body.get("task") == task]
    fitting = [rule for rule in found if rule.fingerprint in own.fingerprints]
    return (fitting[-1] if fitting else None), bool(found)


def licence_of(given: str | None, *names: str) -> str:
    """The licence that is given, or that of the listed model of one of these names."""
    if given is not None:
        return given
    for name in names:
        entry = listed(name)
        if entry is not None:
            return entry.licence.name
    raise FleetError(f"the licence of {names[0]} is not known", hint="say it: --licence Apache-2.0")


def _why_untrusted(signed: Signed, signer: bytes, now_s: float) -> Iterator[str]:
    if not signed.is_genuine:
        yield "it was changed after it was signed"
    if signed.public_key != signer:
        yield (f"it was signed by the key {signed.public_key.hex()[:16]}, expected is {signer.hex()[:16]}: name "
               "another signer with --certificate-key")
    if now_s >= signed.certificate.expires_at_s:
        end = datetime.datetime.fromtimestamp(signed.certificate.expires_at_s, datetime.UTC)
        yield f"it expired on {end:%Y-%m-%d}"


def _why_other_model(small: CertifiedModel, own: ShippedModel) -> Iterator[str]:
    if small.digest is None and small.fingerprint is None:
        yield "it does not say which model it is of"
    if small.digest is not None and small.digest != own.base:
        yield f"it is of the base {small.digest[:12]}, this one is {own.base[:12]}"
    if small.fingerprint is not None and small.fingerprint not in own.fingerprints:
        yield (f"it is of the fingerprint {small.fingerprint[:12]}, this base and adapter have "
               f"{' and '.join(sorted(one[:12] for one in own.fingerprints))}")
    if small.template is not None and small.template != own.template:
        yield "it is of another chat template"
    if small.adapter is not None and small.adapter not in own.adapters:
        yield f"it is of the adapter {small.adapter[:12]}, which is another one"
    if small.adapter is None and small.fingerprint is None and own.adapters:
        yield "it names no adapter, and the bundle has one"
