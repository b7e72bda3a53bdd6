"""`brise deploy` prints files for HAProxy, systemd, compose and Kubernetes."""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from brise import settings
from brise.cli import serve, terminal
from brise.cli.command_parser import examples, parsed
from brise.deploy import files
from brise.deploy.options import KINDS, DeployOptions, ServedCommand, ServerPlace
from brise.errors import UnsupportedError
from brise.files.sizes import TwoLimits
from brise.traffic.stores import seen_servers

# Options of `brise serve` that each kind of file sets by itself.
OWN = ("--host", "--port", "--api-keys", "--drain-seconds")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = DeployOptions("systemd")
    parser = subparsers.add_parser(
        "deploy", help="print files that run several servers", allow_abbrev=False,
        description="Print the files that run several servers, from the options of `brise serve`, which stand after "
                    "`--`. Nothing is started. docs/guides/several-machines.md says what is in them.",
        epilog=examples("brise deploy haproxy --server a=10.0.0.1:8080 --server b=10.0.0.2:8080",
                        "brise deploy systemd -- smollm2 --port 8080",
                        "brise deploy compose --servers 2 --out deploy -- smollm2 --upstream "
                        "https://api.openai.com/v1 --store postgresql://brise@db/brise",
                        "brise deploy kubernetes --image registry.example.com/brise:0.9 -- smollm2 --store "
                        "postgresql://brise@db/brise --memory 2GB"))
    parser.add_argument("kind", metavar="KIND", choices=KINDS,
                        help="haproxy: a balancer's configuration; systemd: a unit; compose: a compose file with "
                             "HAProxy; kubernetes: manifests with a kustomization")
    parser.add_argument("words", metavar="OPTION", nargs="*", help="after `--`: what `brise serve` is to run with")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="write the files there (default: print them)")
    parser.add_argument("--server", metavar="NAME=HOST:PORT", type=_place, action="append", default=[],
                        help="a server behind HAProxy; may be given several times")
    parser.add_argument("--store", metavar="URL",
                        help="for haproxy: the servers that run now and share this store, in place of --server")
    parser.add_argument("--servers", metavar="N", type=int, default=defaults.count,
                        help=f"how many servers, for compose and kubernetes (default: {defaults.count})")
    parser.add_argument("--bind", metavar="ADDRESS", default=defaults.bind,
                        help=f"what HAProxy listens on, for haproxy (default: {defaults.bind})")
    parser.add_argument("--image", metavar="NAME", default=defaults.image,
                        help=f"the container image that Containerfile builds (default: {defaults.image})")
    parser.add_argument("--namespace", metavar="NAME", default=defaults.namespace,
                        help=f"namespace in Kubernetes (default: {defaults.namespace})")
    parser.add_argument("--program", metavar="PATH",
                        help="where `brise` is on the servers, for systemd (default: where it is here, or "
                             f"{defaults.program})")


def run(args: argparse.Namespace) -> int:
    places = list(args.server)
    if args.store is not None:
        places += _running(args.store)
    made = files.files_of(DeployOptions(
        args.kind, served(args.words), places, args.servers, args.bind, args.image, args.namespace,
        args.program or shutil.which("brise") or DeployOptions("systemd").program))
    if args.out is not None:
        for path in files.write(made, args.out):
            terminal.note(f"wrote {path}")
        return 0
    for name, text in made.items():
        if len(made) > 1:
            terminal.result(f"# ---- {name}")
        terminal.result(text.removesuffix("\n"))
    return 0


def served(words: Sequence[str]) -> ServedCommand:
    """What these words of `brise serve` mean; wrong ones end as they do there."""
    if not words:
        return ServedCommand()
    args = parsed(serve.add_parser, "serve", *words)
    keys = [word.rpartition("=")[2] for word in args.upstream_key_env]
    memory = args.memory.ram if isinstance(args.memory, TwoLimits) else args.memory
    return ServedCommand(tuple(_without_own(words)), args.port, args.drain_seconds, memory, args.api_keys,
                         args.store, tuple(dict.fromkeys(keys)))


def _without_own(words: Sequence[str]) -> list[str]:
    kept, is_value = list[str](), False
    for word in words:
        if is_value or word in OWN:
            is_value = not is_value
        elif not word.startswith(tuple(f"{option}=" for option in OWN)):
            kept.append(word)
    return kept


def _running(store: str) -> list[ServerPlace]:
    found = []
    for server in seen_servers(store, settings.read().home):
        parts = urlsplit(server.report.address)
        host = server.name.rpartition(":")[0]  # what a server listens on may be all addresses
        if server.counts and parts.port:
            own = parts.hostname or ""
            found.append(ServerPlace(re.sub(r"[^\w.-]", "-", server.name), host if own in ("0.0.0.0", "::") else own,
                                     parts.port))
    if not found:
        raise UnsupportedError("no server runs on this store", hint="brise servers --store URL lists them")
    return found


def _place(text: str) -> ServerPlace:
    name, equals, address = text.partition("=")
    host, colon, port = address.rpartition(":")
    if not equals or not colon or not port.isascii() or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r}: must be NAME=HOST:PORT")
    try:
        return ServerPlace(name, host.strip("[]"), int(port[:6]))
    except UnsupportedError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
