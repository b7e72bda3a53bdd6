"""`brise fleet keys`: ceremonies with the keys that sign bundles and roll-outs."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from brise.cli import terminal
from brise.cli.command_parser import examples
from brise.cli.fill import fill
from brise.cli.number_types import days
from brise.fleet import keys
from brise.fleet.keys import CeremonyOptions, CreateKeys, RootChange, RootState
from brise.fleet.repository import DAY_S


def add_action(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `keys` to `brise fleet`."""
    parser = actions.add_parser(
        "keys", help="make, show, rotate, revoke and renew keys", allow_abbrev=False,
        description="Keys of a fleet: root keys, of which two or more of n must sign and which lie offline; the "
                    "release key, which signs bundles; the hub's key, which signs roll-outs and how new all of it is.",
        epilog=examples("brise fleet keys create"))
    own = parser.add_subparsers(dest="keys_action", metavar="ACTION", required=True)
    create = _action(own, "create", "make all keys and an empty repository",
                     "Make root keys, a release key, a hub's key and an empty repository. Carry the root keys away "
                     "afterwards, each to another place. root.json beside them is what devices are enrolled with.",
                     "brise fleet keys create",
                     "brise fleet keys create ./keys --repository ./repository --roots 5 --threshold 3")
    create.add_argument("folder", metavar="KEYS", type=Path, nargs="?",
                        help="the folder to make them in (default: fleet/keys in BRISE_HOME)")
    create.add_argument("--roots", metavar="N", type=int, default=CreateKeys.roots,
                        help=f"number of root keys (default: {CreateKeys.roots})")
    create.add_argument("--threshold", metavar="N", type=int, default=CreateKeys.threshold,
                        help=f"how many of them must sign (default: {CreateKeys.threshold})")
    show = _action(own, "show", "say who may sign, and until when it is signed",
                   "Say which public keys may sign what, how many must, and when each part expires.",
                   "brise fleet keys show", "brise fleet keys show --json", has_passphrase=False)
    show.add_argument("--json", action="store_true", help="print a JSON object")
    rotate = _action(own, "rotate", "put a new key in the place of an old one",
                     "Put a new key in the place of an old one, or beside it without --old. The root keys that are "
                     "here sign with --sign; other holders sign with `brise fleet keys sign`.",
                     "brise fleet keys rotate hub --new hub-2.pub --old hub.pub --sign root-1.key --sign root-2.key "
                     "--release release.key --hub hub-2.key")
    _add_change(rotate, has_new=True)
    revoke = _action(own, "revoke", "take a key's right to sign",
                     "Take a key's right to sign. The last key of a role is rotated instead.",
                     "brise fleet keys revoke root --old root-1.pub --sign root-2.key --sign root-3.key")
    _add_change(revoke, has_new=False)
    sign = _action(own, "sign", "add a root key's signature to a change that waits",
                   "Sign the change that was proposed. With the last signature that is needed it is published.",
                   "brise fleet keys sign root-2.key")
    sign.add_argument("keys", metavar="KEY", type=Path, nargs="+", help="a file with a private root key")
    renew = _action(own, "renew", "sign everything anew with the keys that hold now",
                    "Sign everything anew: after a rotation, and before it expires (the release key's part after a "
                    "year, the hub's after a week; a hub that runs signs by itself).",
                    "brise fleet keys renew --release release.key --hub hub.key")
    _add_holders(renew)
    renew.add_argument("--valid", metavar="DAYS", type=valid_days, default="7d", dest="valid_s",
                       help="how long the hub's part is good, such as 7d (default: 7d)")


def run(args: argparse.Namespace) -> int:
    options = fill(CeremonyOptions, args)
    match args.keys_action:
        case "create":
            root = keys.create(options, fill(CreateKeys, args))
            terminal.result(str(root))
            terminal.note(f"the keys are in {root.parent}: carry the root keys away, each to another place; devices "
                          "are enrolled with root.json")
        case "show":
            _show(options, as_json=args.json)
        case "sign":
            _state(keys.sign(options, args.keys))
        case "renew":
            _state(keys.renew(options, args.release, args.hub, args.valid_s))
        case _:
            _state(keys.change(options, fill(RootChange, args)))
    return 0


def _action(actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, description: str,
            *shown: str, has_passphrase: bool = True) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=summary, allow_abbrev=False, description=description,
                                epilog=examples(*shown))
    parser.add_argument("--repository", metavar="DIR", type=Path,
                        help="the repository's folder (default: fleet/repository in BRISE_HOME)")
    if has_passphrase:
        parser.add_argument("--passphrase-env", metavar="NAME",
                            help="the environment variable with the passphrase of root and release keys")
    return parser


def _add_change(parser: argparse.ArgumentParser, *, has_new: bool) -> None:
    parser.add_argument("role", metavar="ROLE", choices=tuple(keys.ROLES), help=", ".join(keys.ROLES))
    if has_new:
        parser.add_argument("--new", metavar="FILE", type=Path, required=True, help="the new public key")
    parser.add_argument("--old", metavar="FILE", type=Path, required=not has_new, help="the old public key")
    parser.add_argument("--sign", metavar="KEY", type=Path, action="append",
                        help="a private root key that is here; may be given several times")
    _add_holders(parser)


def _add_holders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--release", metavar="KEY", type=Path, help="the release key that holds from now on")
    parser.add_argument("--hub", metavar="KEY", type=Path, help="the hub's key that holds from now on")


def _show(options: CeremonyOptions, *, as_json: bool) -> None:
    found = keys.show(options)
    if as_json:
        terminal.result(json.dumps(found, indent=1))
        return
    table = Table(box=None, pad_edge=False)
    for name in ("role", "must sign", "public keys"):
        table.add_column(name, overflow="fold")
    for role, one in found["roles"].items():
        table.add_row(role, f"{one['threshold']} of {len(one['keys'])}", "\n".join(one["keys"]))
    console = Console(highlight=False, markup=False, width=100)
    console.print(table)
    console.print(f"root {found['root']} of {terminal.harmless(found['repository'])}"
                  + ("; a change waits for signatures" if found["proposed"] else ""))
    console.print("good until: " + ", ".join(f"{role} {when}" for role, when in found["expires"].items()))


def _state(state: RootState) -> None:
    """What stands, and what has to follow."""
    if state.missing:
        terminal.note(f"{state.missing} more root signature{'s' * (state.missing != 1)} needed")
    else:
        terminal.result(f"root {state.root_version}")
    for step in state.next_steps:
        terminal.note(f"next: {step}")


def valid_days(text: str) -> float:
    """Reads 7d or 7 as seconds, for argparse."""
    return days(text.removesuffix("d")) * DAY_S
