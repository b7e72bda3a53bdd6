"""Ceremonies with the keys of a fleet: made, shown, rotated, revoked, signed by one holder after the other, renewed.

Who may sign what stands in the root, which two of n offline keys change. A change is proposed, and published as soon as
enough holders of the old root's keys and of the new one's have signed. Devices follow from root to root, however long
they slept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from brise import settings
from brise.errors import FleetError
from brise.files.atomic import output_errors, private_folder, refuse_existing, staged_file
from brise.fleet.repository import HUB_ROLES, HUB_VALID_S, PROPOSED, PublicKeys, Repository
from brise.fleet.signing import new_key, read_key, read_public, tuf_key
from brise.fleet.sources import METADATA
from brise.traffic.seal import SigningKey

if TYPE_CHECKING:
    from tuf.api.metadata import Root

ROLES: Mapping[str, Sequence[str]] = {"root": ("root",), "release": ("targets",), "hub": HUB_ROLES}  # TUF's names
KeyRole = Literal["root", "release", "hub"]
ROOT_FILE = "root.json"  # in the folder of keys: what a device is given when it is enrolled


@dataclass(frozen=True)
class CeremonyOptions:
    """Where the repository is, and the environment variable with the passphrase of root and release keys."""

    repository: Path | None = None
    passphrase_env: str | None = None

    @property
    def folder(self) -> Path:
        return self.repository or settings.read().home / "fleet" / "repository"

    def key(self, path: Path) -> SigningKey:
        """A key that may have a passphrase."""
        return read_key(path, None if self.passphrase_env is None else settings.secret(self.passphrase_env))


@dataclass(frozen=True)
class CreateKeys:
    """How many root keys there are, and how many must sign."""

    folder: Path | None = None
    roots: int = 3
    threshold: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.threshold <= self.roots <= 16:
            raise FleetError(f"{self.threshold} of {self.roots} root keys are to sign; allowed are 2 or more, of at "
                             "most 16")


@dataclass(frozen=True)
class RootChange:
    """A change of who may sign: `new` in the place of `old` (both public keys; None: added, or revoked). `sign` are
    private root keys that are here; `release` and `hub` those that hold afterwards, to sign everything anew."""

    role: KeyRole
    new: Path | None = None
    old: Path | None = None
    sign: tuple[Path, ...] = ()
    release: Path | None = None
    hub: Path | None = None

    def __post_init__(self) -> None:
        if self.new is None and self.old is None:
            raise FleetError("neither a new key nor an old one is given")


@dataclass(frozen=True)
class RootState:
    """After a step: how many root signatures are missing, and what is to be done next."""

    root_version: int
    missing: int
    next_steps: tuple[str, ...] = ()


def create(options: CeremonyOptions, made: CreateKeys) -> Path:
    """Makes all keys and an empty repository; returns the file that devices are enrolled with."""
    folder = made.folder or settings.read().home / "fleet" / "keys"
    names = [*(f"root-{number}" for number in range(1, made.roots + 1)), "release", "hub"]
    with output_errors(folder):
        private_folder(folder)
    for path in (*(folder / f"{name}.key" for name in names), options.folder / METADATA):
        if path.parent.is_dir():
            refuse_existing(path)
    passphrase = None if options.passphrase_env is None else settings.secret(options.passphrase_env)
    keys = {name: new_key(folder / f"{name}.key", None if name == "hub" else passphrase) for name in names}
    roots = [keys[name] for name in names[:-2]]
    public = PublicKeys([key.public for key in roots], made.threshold, keys["release"].public, keys["hub"].public)
    with output_errors(options.folder):
        options.folder.mkdir(parents=True, exist_ok=True)
    repository = Repository.create(options.folder, public, roots[:made.threshold], keys["release"], keys["hub"])
    _write_root(repository, folder / ROOT_FILE)
    return folder / ROOT_FILE


def change(options: CeremonyOptions, wanted: RootChange) -> RootState:
    """Proposes a rotation or a revocation, and signs it with the root keys that are here."""
    repository = Repository(options.folder)
    old = None if wanted.old is None else read_public(wanted.old)
    if wanted.new is None:
        assert old is not None
        repository.propose_root(revoke(wanted.role, old))
    else:
        repository.propose_root(rotate(wanted.role, read_public(wanted.new), old))
    state = sign(options, wanted.sign)
    if state.missing or wanted.role == "root":
        return state
    return renew(options, wanted.release, wanted.hub)


def sign(options: CeremonyOptions, keys: Sequence[Path]) -> RootState:
    """Adds signatures to the proposed root; the last one that is needed publishes it."""
    repository = Repository(options.folder)
    for path in keys:
        repository.sign_root(options.key(path))
    return _state(repository)


def renew(options: CeremonyOptions, release: Path | None, hub: Path | None, valid_s: float = HUB_VALID_S) -> RootState:
    """Signs everything anew with the keys that hold now: targets (and who signs roll-outs), and what the hub signs."""
    repository = Repository(options.folder)
    if release is not None:
        repository.renew(options.key(release))
    state = _state(repository)
    if hub is not None:
        repository.sign_hub(read_key(hub), rollouts=repository.rollouts, valid_s=valid_s)
        return replace(state, next_steps=())
    return state


def show(options: CeremonyOptions) -> dict[str, Any]:
    """Who may sign, how many must, and until when: as `brise fleet keys show --json` prints it."""
    repository = Repository(options.folder)
    root = repository.root
    roles = {role: {"threshold": root.roles[names[0]].threshold, "keys": [
        str(root.keys[keyid].keyval["public"]) for keyid in root.roles[names[0]].keyids]}
        for role, names in ROLES.items()}
    return {"repository": str(options.folder), "root": root.version, "roles": roles, "proposed": (
        options.folder / PROPOSED).exists(), "expires": repository.expiries()}


def rotate(role: str, new: bytes, old: bytes | None = None) -> Callable[[Root], None]:
    """A change of the root: the key `new` may sign for `root`, `release` or `hub`, and `old` no longer."""
    def edit(root: Root) -> None:
        for name in ROLES[role]:
            if old is not None:
                _take_out(root, old, name)
            root.add_key(tuf_key(new), name)
    return edit


def revoke(role: str, old: bytes) -> Callable[[Root], None]:
    """A change of the root: the key `old` may no longer sign for `root`, `release` or `hub`."""
    def edit(root: Root) -> None:
        for name in ROLES[role]:
            _take_out(root, old, name)
    return edit


def _take_out(root: Root, public: bytes, role: str) -> None:
    keyid = tuf_key(public).keyid
    if keyid not in root.roles[role].keyids:
        raise FleetError(f"the key {keyid[:12]} is none of {role}'s", hint="brise fleet keys show lists them")
    root.revoke_key(keyid, role)


def _state(repository: Repository) -> RootState:
    """What stands, and what has to follow."""
    missing = repository.missing_signatures()
    steps = [f"brise fleet keys renew --{role} KEY" for role in repository.stale()]
    if missing:
        steps = ["more holders of root keys sign: brise fleet keys sign KEY"]
    return RootState(repository.root.version, missing, tuple(steps))


def _write_root(repository: Repository, path: Path) -> None:
    data = repository.root_bytes
    with staged_file(path, len(data), replaces=True) as file:
        file.write(data)
