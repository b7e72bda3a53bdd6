"""`brise hub` runs the hub of a fleet: it offers signed bundles, takes reports and leads roll-outs."""

from __future__ import annotations

import argparse
from pathlib import Path

from brise import settings
from brise.cli import memory_options, number_types
from brise.cli.command_parser import examples
from brise.cli.fill import fill
from brise.cli.number_types import Within
from brise.fleet import hub_process
from brise.fleet.hub_process import HubOptions

PORTS = Within(0, 65535, "a port from 0 (any free one) to 65535")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    usual = HubOptions(Path())
    parser = subparsers.add_parser(
        "hub", help="run the hub of a fleet of devices", allow_abbrev=False,
        description="Run a fleet's hub: it serves the repository of signed bundles, enrols devices, takes their "
                    "reports and leads roll-outs (brise fleet), which halt by themselves when a bundle fails on too "
                    "many devices. It needs the repository and hub.key that `brise fleet keys create` makes, and no "
                    "database but a file. Its page shows who runs what. docs/guides/fleet.md describes it.",
        epilog=examples("brise hub", "brise hub --host 0.0.0.0 --tls-certificate hub.pem --tls-key hub-tls.key"))
    parser.add_argument("--folder", metavar="DIR", type=Path,
                        help="where the hub keeps its database and its keys (default: fleet/hub in BRISE_HOME)")
    parser.add_argument("--repository", metavar="DIR", type=Path,
                        help="the repository of bundles (default: fleet/repository in BRISE_HOME)")
    parser.add_argument("--key", metavar="FILE", type=Path,
                        help="the hub's key, which signs roll-outs (default: fleet/keys/hub.key in BRISE_HOME)")
    parser.add_argument("--host", default=usual.host, help=f"address to listen on (default: {usual.host})")
    parser.add_argument("--port", metavar="N", type=PORTS, default=usual.port,
                        help=f"port to listen on; 0: any free one (default: {usual.port})")
    parser.add_argument("--tls-certificate", metavar="FILE", type=Path, help="the server's certificates, in PEM")
    parser.add_argument("--tls-key", metavar="FILE", type=Path, help="their private key, in PEM")
    parser.add_argument("--allow-insecure-bind", action="store_true",
                        help="listen for other machines without TLS, such as behind a proxy")
    parser.add_argument("--store", metavar="FILE",
                        help="the store whose ledger roll-outs are written to (default: this machine's)")
    parser.add_argument("--records", metavar="SIZE", type=memory_options.size, dest="record_bytes",
                        help="disk for what devices report; the oldest go first (default: 1GiB)")
    parser.add_argument("--records-of-device", metavar="SIZE", type=memory_options.size, dest="device_bytes",
                        help="of that for one device (default: 16MiB)")
    parser.add_argument("--keep", metavar="AGE", type=number_types.age, dest="keep_s",
                        help="how long reports are kept, such as 30d (default: 90d)")


def run(args: argparse.Namespace) -> int:
    usual = HubOptions(settings.read().home)
    sizes = {name: getattr(args, name) or getattr(usual, name) for name in ("record_bytes", "device_bytes", "keep_s")}
    return hub_process.run_hub(fill(HubOptions, args, {"home": usual.home, "port": int(args.port), **sizes}))
