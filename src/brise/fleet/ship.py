"""`ship` makes a bundle of a base, an adapter and what proves them, signs it into a repository, and takes that to a
folder, a stick or a registry.

Everything is checked before the first signature: the certificate and the rule are those of this base and adapter, the
rights to train still hold, the memory plan fits, and the adapter in bf16 says what the trained one says.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from brise import __version__, settings
from brise.checkpoint.adapters.lineage import Lineage, base_digest, check_base, read_lineage
from brise.checkpoint.adapters.peft import WEIGHTS_FILE
from brise.checkpoint.model_files import all_files, find_layout, flat_name
from brise.engine.adapter_loading import rank_in, reading_bytes
from brise.errors import FleetError
from brise.files.digests import Located, file_digest
from brise.fleet import registry, shipped_evidence, signing
from brise.fleet.bundle import (
    AdapterParity,
    Blob,
    Bundle,
    BundleBase,
    BundleLineage,
    BundlePlan,
    DeviceNeeds,
    GateLimits,
    bundle_json,
    manifest_target,
)
from brise.fleet.gate_prompts import gate_bytes
from brise.fleet.repository import DAY_S, HUB_VALID_S, Repository
from brise.fleet.shipped_adapter import ParityLimits, convert, divergence, parity_of, windows_of
from brise.fleet.shipped_evidence import ShippedModel, licence_of
from brise.fleet.shipped_gate import BASE, SHIPPED, TRAINED, Asked, asked, read_prompts
from brise.fleet.sources import trusted
from brise.hub.locate import find_model
from brise.memory.limit import plan_within
from brise.memory.opening import EngineOptions
from brise.memory.serving_plan import MemoryRequest, ServingPlan
from brise.models.ops import CacheFormat
from brise.prove import certificates
from brise.prove.certificates import Signed
from brise.switch import rule as rules
from brise.switch.rule import Rule
from brise.watch import SILENT, Watcher

ADAPTER, CERTIFICATE, GATE, BASE_FOLDER = "adapter", "certificate.json", "gate.jsonl", "base"  # in a bundle's folder
DISK_SPARE_BYTES = 64 << 20  # beside two bundles: the records of a device and what it keeps of the repository
DEVICE_THREADS = 64  # that a device's server is planned with: each takes a little work space
RELEASE_KEY, HUB_KEY = "release.key", "hub.key"  # in the folder of keys


@dataclass(frozen=True)
class ShipOptions:
    """The defaults are those of `brise ship`, and so are the meanings.

    `gate` is a file of prompts, or with `held_out` data as for `brise tune` and the share that was held out. `keys` is
    the folder with release.key and hub.key; without the hub's key the hub makes the bundle known. `to` are folders and
    registries (oci://HOST/NAME) to which the repository is taken afterwards, signed for `valid_s` seconds. The rule is
    that of `task` in the store, unless `rule` is False. `signer` must have signed the certificate; None: this machine.
    """

    model: str
    name: str
    gate: Path
    adapter: Path | None = None
    repository: Path | None = None
    keys: Path | None = None
    to: tuple[str, ...] = ()
    valid_s: float = HUB_VALID_S
    held_out: float | None = None
    gate_prompts: int = 16
    gate_tokens: int = 64
    limits: GateLimits = GateLimits(0.05, 0.75)
    parity: ParityLimits = ParityLimits()
    certificate: Path | None = None
    signer: bytes | None = None
    task: str | None = None
    store: str | None = None
    rule: bool = True
    licence: str | None = None
    rights: Path | None = None
    memory: int | None = None
    context: int | None = None
    parallel: int = 4
    cache: CacheFormat = "f16"
    weights: str | None = None
    isa: str | None = None
    with_base: bool = False
    any_base: bool = False
    passphrase_env: str | None = None
    login: str | None = field(default=None, repr=False)  # USER:PASSWORD for a registry
    authority: Path | None = None  # PEM of the certificate that signed the registry's
    threads: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.gate_prompts <= 1000 or not 1 <= self.gate_tokens <= 1024:
            raise FleetError(f"{self.gate_prompts} gate prompts of {self.gate_tokens} tokens; allowed are 1 to 1000 of "
                             "1 to 1024")
        if not 3600 <= self.valid_s <= 366 * DAY_S:
            raise FleetError(f"the repository would be valid for {self.valid_s:g} s; an hour to 366 days are allowed")


@dataclass(frozen=True)
class Shipped:
    """What was signed: the bundle, where, and what it took."""

    bundle: Bundle
    repository: Path
    is_offered: bool  # the hub's key was there, so that devices know of it
    to: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    trained_bytes: int = 0  # of the adapter's weights before their conversion

    def as_json(self) -> dict[str, Any]:
        """Everything, as `brise ship --json` prints it."""
        found: dict[str, Any] = {
            "name": self.bundle.name, "version": self.bundle.version, "digest": self.bundle.digest,
            "bytes": self.bundle.nbytes, "repository": str(self.repository), "offered": self.is_offered,
            "to": list(self.to), "notes": list(self.notes), "seconds": self.seconds,
            "trained_bytes": self.trained_bytes,
            "files": [{"path": blob.path, "sha256": blob.sha256, "bytes": blob.nbytes} for blob in self.bundle.blobs],
            "parity": None if self.bundle.parity is None else vars(self.bundle.parity).copy()}
        return found


@dataclass
class _Made:
    """What a bundle is put together from."""

    located: Located
    digest: str  # of the base
    folder: Path
    lineage: Lineage | None
    files: dict[str, Path | bytes] = field(default_factory=dict)  # by path in the bundle
    notes: list[str] = field(default_factory=list)


def ship(options: ShipOptions, watcher: Watcher = SILENT, now: Callable[[], float] = time.time) -> Shipped:
    """Makes, checks and signs a bundle; FleetError, RightsError or CertificateError say why not, and nothing is signed.
    """
    begun, home = time.perf_counter(), settings.read().home
    repository = Repository(options.repository or home / "fleet" / "repository", now)
    keys = options.keys or home / "fleet" / "keys"
    passphrase = None if options.passphrase_env is None else settings.secret(options.passphrase_env)
    release = signing.read_key(keys / RELEASE_KEY, passphrase)
    hub = signing.read_key(keys / HUB_KEY) if (keys / HUB_KEY).exists() else None
    if options.to and hub is None:
        raise FleetError(f"there is no {str(keys / HUB_KEY)!r} to sign for {', '.join(options.to)}",
                         hint="ship where the hub's key is, or let the hub serve the repository")
    with tempfile.TemporaryDirectory(prefix="brise-ship-") as folder:
        made = _gathered(options, Path(folder))
        bundle = _bundle(options, made, repository, watcher, now)
        watcher.note(f"signing {bundle.name} {bundle.version}: {len(bundle.blobs)} files")
        repository.release({**{blob.target: made.files[blob.path] for blob in bundle.blobs},
                            bundle.target: bundle_json(bundle)}, release)
    if hub is not None:
        repository.sign_hub(hub)
    for place in options.to:
        watcher.note(f"taking the repository to {place}")
        assert hub is not None
        repository.sign_hub(hub, valid_s=options.valid_s)
        if registry.is_registry(place):
            registry.push(repository, place, login=options.login, tls=trusted(options.authority))
        else:
            repository.copy(Path(place))
    if options.to and hub is not None and options.valid_s != HUB_VALID_S:
        repository.sign_hub(hub)  # its own timestamp is newer than the one that was taken away
    return Shipped(bundle, repository.folder, hub is not None, options.to, tuple(made.notes),
                   time.perf_counter() - begun,
                   0 if options.adapter is None else (options.adapter / WEIGHTS_FILE).stat().st_size)


def withdraw(options: ShipOptions, versions: Sequence[int] = (), now: Callable[[], float] = time.time) -> list[str]:
    """Takes bundles of this name (None named: all versions) out of what is signed: no device begins to install them.

    Blobs that other bundles need stay. Where it is installed it goes on, until a roll-out takes it back.
    """
    home = settings.read().home
    repository = Repository(options.repository or home / "fleet" / "repository", now)
    keys = options.keys or home / "fleet" / "keys"
    passphrase = None if options.passphrase_env is None else settings.secret(options.passphrase_env)
    manifests = {target: repository.bundle(target) for target in repository.targets.targets
                 if target.startswith("bundles/")}
    gone = [target for target, bundle in manifests.items()
            if bundle.name == options.name and (not versions or bundle.version in versions)]
    if not gone:
        which = f" of version {', '.join(map(str, versions))}" if versions else ""
        raise FleetError(f"the repository has no bundle {options.name!r}{which}", hint="brise ship --check lists them")
    needed = {blob.target for target, bundle in manifests.items() if target not in gone for blob in bundle.blobs}
    blobs = {blob.target for target in gone for blob in manifests[target].blobs} - needed
    repository.release({}, signing.read_key(keys / RELEASE_KEY, passphrase), without=[*gone, *blobs])
    if (keys / HUB_KEY).exists():
        repository.sign_hub(signing.read_key(keys / HUB_KEY))
    return gone


def _gathered(options: ShipOptions, folder: Path) -> _Made:
    """The base and the adapter, checked against each other, and the right to have trained on what it was trained on."""
    located = find_model(options.model, settings.read())
    lineage = None if options.adapter is None else read_lineage(options.adapter)
    check_base(lineage, located, any_base=options.any_base)
    made = _Made(located, base_digest(located), folder, lineage)
    if options.adapter is not None:
        shipped_evidence.check_rights(options.adapter, lineage, options.rights)
    if options.with_base:
        layout = find_layout(located.path)
        files = all_files(layout) if located.path.is_dir() else layout.files
        # The store calls a model of one file by its digest.
        names = [f"{located.name}.gguf"] if len(files) == 1 and files[0].suffix != ".gguf" else [
            flat_name(path.as_posix()) for path in files]
        made.files |= {f"{BASE_FOLDER}/{name}": path for name, path in zip(names, files, strict=True)}
    return made


def _bundle(options: ShipOptions, made: _Made, repository: Repository, watcher: Watcher,
            now: Callable[[], float]) -> Bundle:
    """The manifest, and all its files in `made`."""
    plan = _plan(options, made)
    template = certificates.template_digest(made.located.path)
    adapters = _converted(options, made)
    engine = EngineOptions(context=plan.context, parallel=options.parallel, cache=options.cache,
                           weights=options.weights, threads=options.threads, any_base=options.any_base)
    watcher.note(f"asking {made.located.name} the gate prompts")
    with asked(made.located, engine, adapters) as engine_asked:
        shipped = SHIPPED if SHIPPED in adapters else BASE
        parity = _gated(options, made, engine_asked, adapters, watcher)
        fingerprints = {name: engine_asked.fingerprint(name) for name in (shipped, *adapters)}
    fingerprint = fingerprints[shipped]
    own = ShippedModel(made.digest, template, frozenset(file_digest(each / WEIGHTS_FILE) for each in adapters.values()),
                       frozenset(fingerprints.values()))
    signed = _certificate(options, made, own, now())
    rule = _rule(options, made, own)
    named = {one for one in (None if signed is None else signed.certificate.student.fingerprint,
                             None if rule is None else rule.fingerprint) if one is not None}
    blobs = _blobs(made)
    lineage = made.lineage
    return Bundle(
        name=options.name, version=_next_version(repository, options.name), created_s=float(int(now())),
        base=BundleBase(made.located.name, made.digest, _base_bytes(made.located),
                        tuple(blob for path, blob in blobs.items() if path.startswith(f"{BASE_FOLDER}/"))),
        adapter=tuple(blob for path, blob in blobs.items() if path.startswith(f"{ADAPTER}/")),
        template_digest=template, rule=None if rule is None else rules.to_body(rule),
        certificate=blobs.get(CERTIFICATE), gate=blobs[GATE], limits=_limits(options.limits, parity, made.notes),
        plan=BundlePlan(plan.limit or plan.total_bytes, plan.context, options.parallel, options.cache, options.weights),
        fingerprint=fingerprint, licence=licence_of(options.licence, options.model, made.located.name),
        needs=DeviceNeeds(
            plan.total_bytes, 2 * sum(blob.nbytes for blob in blobs.values()) + DISK_SPARE_BYTES, __version__,
            options.isa),
        task=options.task or (None if signed is None else signed.certificate.task),
        certified=next(iter(named - {fingerprint}), None), parity=parity,
        lineage=None if lineage is None or options.adapter is None else BundleLineage(
            lineage.base_digest, lineage.data_digest, file_digest(options.adapter / WEIGHTS_FILE), lineage.created),
        rights={} if lineage is None else dict(lineage.rights))


def _plan(options: ShipOptions, made: _Made) -> ServingPlan:
    """The memory plan of the base with the adapter, as a device's server makes it, with the threads that a device may
    have; MemoryLimitError if `memory` is less."""
    adapter = options.adapter
    request = MemoryRequest(
        options.memory, options.context, options.parallel, options.cache,
        adapters_bytes=0 if adapter is None else reading_bytes(adapter), adapter_slots=0 if adapter is None else 1,
        adapter_rank=1 if adapter is None else rank_in(adapter), answers=options.parallel,
        max_draft=EngineOptions().max_draft)
    return plan_within(made.located.path, made.located.name, request, weights=options.weights, threads=DEVICE_THREADS)


def _converted(options: ShipOptions, made: _Made) -> dict[str, Path]:
    """The adapters to ask: the one that is shipped, and the trained one where it is another."""
    if options.adapter is None:
        return {}
    found = convert(options.adapter, made.folder / ADAPTER)
    made.files |= {f"{ADAPTER}/{path.name}": path for path in sorted(found.folder.iterdir())}
    made.notes += [f"{name} stays behind: it is made of captured traffic, and sealed" for name in found.left_out]
    return {SHIPPED: found.folder} | ({TRAINED: options.adapter} if found.is_changed else {})


def _gated(options: ShipOptions, made: _Made, engine: Asked, adapters: Mapping[str, Path],
           watcher: Watcher) -> AdapterParity | None:
    """Asks the gate prompts, and compares both adapters on them; None where there is nothing to compare."""
    prompts = read_prompts(options.gate, options.gate_prompts, options.held_out)
    shipped = engine.answers(SHIPPED if SHIPPED in adapters else BASE, prompts, options.gate_tokens)
    made.files[GATE] = gate_bytes(shipped)
    if TRAINED not in adapters:
        return None
    trained = engine.answers(TRAINED, prompts, options.gate_tokens)
    quality = divergence(made.located, adapters[TRAINED], adapters[SHIPPED],
                         windows_of([engine.tokens(prompt) for prompt in trained]), options.threads, watcher,
                         any_base=options.any_base)
    return parity_of(quality, trained, shipped, options.parity)


def _limits(limits: GateLimits, parity: AdapterParity | None, notes: list[str]) -> GateLimits:
    """The limits of the gate. Where rounding alone turned answers into others that are as likely, an instruction set
    that rounds otherwise may do so, too: no more answers must be the same on a device than were here."""
    if parity is None or parity.same >= limits.same * parity.prompts:
        return limits
    notes.append(f"rounding changed {parity.prompts - parity.same} of {parity.prompts} answers into others that are as "
                 "likely; devices may differ in as many. Gate prompts of what the adapter was tuned for are surer")
    return replace(limits, same=parity.same / parity.prompts)


def _certificate(options: ShipOptions, made: _Made, own: ShippedModel, now_s: float) -> Signed | None:
    if options.certificate is None:
        return None
    signer = options.signer or shipped_evidence.own_signer()
    signed = shipped_evidence.read_certificate(options.certificate, signer, own, options.task, now_s)
    made.files[CERTIFICATE] = certificates.file_bytes(signed)
    return signed


def _rule(options: ShipOptions, made: _Made, own: ShippedModel) -> Rule | None:
    if options.task is None or not options.rule:
        return None
    found, are_others = shipped_evidence.find_rule(options.task, options.store, own)
    if found is None and are_others:
        made.notes.append(f"the rules of {options.task!r} were fitted on other models, and are not shipped")
    return found


def _blobs(made: _Made) -> dict[str, Blob]:
    found = {}
    for path, content in made.files.items():
        if isinstance(content, bytes):
            sha256, nbytes = hashlib.sha256(content).hexdigest(), len(content)
        else:
            sha256, nbytes = file_digest(content), content.stat().st_size
        found[path] = Blob(path, sha256, nbytes)
    return found


def _base_bytes(located: Located) -> int:
    layout = find_layout(located.path)
    return sum(path.stat().st_size for path in (all_files(layout) if located.path.is_dir() else layout.files))


def _next_version(repository: Repository, name: str) -> int:
    """A number that no bundle of this name ever had; files of those that were withdrawn stay."""
    files = repository.target_path(manifest_target(name, 0), "").parent.glob("*.json")  # HEX.VERSION.json
    return 1 + max((int(number) for path in files if (number := path.name.split(".")[1]).isdigit()), default=0)
