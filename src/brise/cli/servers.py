"""`brise servers` lists the servers that share a store."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from brise import settings
from brise.cli import terminal
from brise.cli.command_parser import examples
from brise.cli.log_tables import WIDTH, when
from brise.traffic.servers import SeenServer
from brise.traffic.stores import seen_servers

DIGITS = 12  # of a fingerprint


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "servers", help="list the servers that share a store", allow_abbrev=False,
        description="List the servers that share a store in PostgreSQL: version, status and load, and the fingerprints "
                    "of their models. Each says every two seconds that it is there; one that stopped saying so is "
                    "shown as gone for an hour. docs/guides/several-machines.md has the rest.",
        epilog=examples("brise servers --store postgresql://brise@db/brise",
                        "brise servers --store postgresql://brise@db/brise --json"))
    parser.add_argument("--store", metavar="URL", required=True, help="the postgresql:// URL of the store")
    parser.add_argument("--json", action="store_true", help="print a JSON object a line")


def run(args: argparse.Namespace) -> int:
    seen = seen_servers(args.store, settings.read().home)
    if args.json:
        for server in seen:
            terminal.result(json.dumps({**asdict(server), "gone": server.is_gone}))
        return 0
    if not seen:
        terminal.note("no server shares this store; brise serve --store URL does")
        return 0
    table = Table(box=None, pad_edge=False)
    for name in ("server", "version", "status", "requests", "waiting", "tokens/s", "models", "since", "seen"):
        table.add_column(name, overflow="fold")
    for server in seen:
        table.add_row(*_row(server))
    console = Console(highlight=False, markup=False)
    (console if console.is_terminal else Console(highlight=False, markup=False, width=WIDTH)).print(table)
    return 0


def _row(server: SeenServer) -> tuple[str, ...]:
    report = server.report
    status = "gone" if server.is_gone else report.status + (f" ({', '.join(report.reasons)})" if report.reasons else "")
    if report.leads and not server.is_gone:
        status += ", leads"
    models = ", ".join(f"{name} {fingerprint[:DIGITS]}" for name, fingerprint in sorted(report.fingerprints.items()))
    return (server.name, report.version, status, str(report.running), str(report.waiting),
            f"{report.tokens_per_s:.1f}", models or "none", when(server.started_s), f"{server.age_s:.0f} s ago")
