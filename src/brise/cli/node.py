"""`brise node` runs a device of a fleet: its server, and the updates that it tries before it keeps them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from brise import settings
from brise.cli import memory_options, terminal
from brise.cli.command_parser import examples
from brise.cli.number_types import Within
from brise.cli.serve_gateway import SECONDS
from brise.errors import UnsupportedError
from brise.fleet import device, node_process
from brise.fleet.node_options import NodeOptions

SHARE = Within(0, 1, "a share from 0 to 1")
PORTS = Within(0, 65535, "a port from 0 (any free one) to 65535")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    usual = NodeOptions(Path(), settings.read())
    parser = subparsers.add_parser(
        "node", help="run a device of a fleet, with updates that are tried first", allow_abbrev=False,
        description="Run a device: it polls a repository of signed bundles, tries a new one at its own gate and on "
                    "real requests, keeps it or goes back by itself, and serves at one port all the time. It needs no "
                    "hub: a folder or a stick will do. docs/guides/fleet.md describes it.",
        epilog=examples("brise node --hub https://hub.example --token-env TOKEN",
                        "brise node --source /media/stick --root root.json --install tickets",
                        "brise node --upstream https://api.openai.com/v1 --safe 'robotctl is-idle'",
                        "brise node --status"))
    parser.add_argument("--folder", metavar="DIR", type=Path,
                        help="where the device keeps its bundles and its keys (default: BRISE_HOME's folder node)")
    parser.add_argument("--hub", metavar="URL", help="the fleet's hub; needed once, to enrol")
    parser.add_argument("--token-env", metavar="VARIABLE",
                        help="environment variable with the token that enrols this device with the hub")
    parser.add_argument("--name", metavar="NAME", help="the device's name in the fleet (default: one is made)")
    parser.add_argument("--source", metavar="PLACE",
                        help="a repository: a folder, a stick, the URL of a web server, or oci://HOST/NAME (default: "
                             "the hub's)")
    parser.add_argument("--authority", metavar="FILE", type=Path,
                        help="a certificate in PEM that the hub's, web server's or registry's is signed with, beside "
                             "the usual ones")
    parser.add_argument("--registry-login-env", metavar="VARIABLE",
                        help="environment variable with USER:PASSWORD for the registry")
    parser.add_argument("--allow-http", action="store_true",
                        help="speak to a hub on another machine without TLS: whoever is in between reads the token and "
                             "can make the device trust another fleet")
    parser.add_argument("--install", metavar="NAME[:VERSION]",
                        help="install this signed bundle (its newest version) without a roll-out, as from a stick; a "
                             "roll-out of the hub that has this device goes before it")
    parser.add_argument("--root", metavar="FILE", type=Path,
                        help="the root of the repository that this device is to trust, from whoever keeps the fleet's "
                             "keys (default: the hub's, as it was when the device enrolled)")
    parser.add_argument("--host", default=usual.host, help=f"address to listen on (default: {usual.host})")
    parser.add_argument("--port", metavar="N", type=PORTS, default=usual.port,
                        help=f"port to listen on, whatever bundle answers (default: {usual.port})")
    parser.add_argument("--api-keys", metavar="FILE", type=Path, help="as of brise serve")
    parser.add_argument("--upstream", metavar="URL",
                        help="the large model, for what the small one escalates (default: there is none: the small "
                             "model answers, labelled, and the request waits for the hub)")
    parser.add_argument("--upstream-key-env", metavar="VARIABLE", help="as of brise serve")
    parser.add_argument("--poll-every", metavar="S", type=SECONDS, default=usual.poll_s,
                        help=f"seconds between two polls (default: {usual.poll_s:g})")
    parser.add_argument("--jitter", metavar="SHARE", type=SHARE, default=usual.jitter,
                        help="by which share of that a poll may come earlier or later, so that devices spread out "
                             f"(default: {usual.jitter:g})")
    parser.add_argument("--safe", metavar="COMMAND",
                        help="asked before another bundle answers: a command that ends with status 0, or a URL that "
                             "answers 200, if now is a safe moment (default: any moment is)")
    parser.add_argument("--safe-wait", metavar="S", type=SECONDS, default=usual.safe_wait_s,
                        help=f"seconds after which any moment is safe (default: {usual.safe_wait_s:g})")
    parser.add_argument("--outbox", metavar="SIZE", type=memory_options.size,
                        help="disk for reports that wait for the hub; the least important go first (default: "
                             f"{usual.outbox_bytes >> 20}MiB)")
    _add_peers(parser)
    parser.add_argument("--status", action="store_true", help="print what is installed, as JSON, and end")
    parser.add_argument("serve", metavar="OPTION", nargs="*", help="further options of brise serve, after --")


def _add_peers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--peer", metavar="URL", action="append", default=[],
                        help="another device of the fleet, https://HOST:PORT: it answers while this one has no server, "
                             "if it has the same fingerprint, and gives files; may be given several times")
    parser.add_argument("--peer-listen", metavar="HOST:PORT", type=_address,
                        help="where other devices of the fleet may ask this one (default: nowhere)")
    parser.add_argument("--find-peers", action="store_true",
                        help="find other devices of the fleet on this network by multicast DNS, beside those of --peer")


def run(args: argparse.Namespace) -> int:
    found = settings.read()
    folder = args.folder or found.home / "node"
    if args.status:
        terminal.result(json.dumps(device.status(folder), indent=2))
        return 0
    if args.upstream_key_env is not None and args.upstream is None:
        raise UnsupportedError("--upstream-key-env needs a gateway", hint="--upstream URL")
    upstream = () if args.upstream is None else (
        "--upstream", args.upstream,
        *(() if args.upstream_key_env is None else ("--upstream-key-env", args.upstream_key_env)))
    return node_process.run_node(NodeOptions(
        folder, found, args.hub, None if args.token_env is None else settings.secret(args.token_env), args.name,
        args.source, args.install, args.root, args.host, int(args.port), args.api_keys, upstream, tuple(args.serve),
        args.poll_every, args.jitter, args.safe, args.safe_wait, args.outbox or NodeOptions.outbox_bytes,
        tuple(args.peer), args.peer_listen, args.find_peers, args.authority,
        None if args.registry_login_env is None else settings.secret(args.registry_login_env), args.allow_http,
        lambda text: terminal.note(f"brise node: {text}")))


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port[:6]) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: HOST:PORT is allowed, such as 0.0.0.0:8443")
    return host.strip("[]"), int(port)
