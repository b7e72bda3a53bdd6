"""`brise act` is for models that move robots: `bench` measures whether a server keeps a control loop's deadlines."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from brise import settings
from brise.cli import number_types, terminal
from brise.cli.command_parser import examples
from brise.report import console, html
from brise.robots import act_bench, jitter
from brise.robots.act_bench import ActBenchOptions
from brise.robots.acting_server import ServerAddress


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "act", help="measure how a model that moves a robot keeps its deadlines", allow_abbrev=False,
        description="Work with models that move robots. docs/guides/robots.md has the rest.",
        epilog=examples("brise act bench http://127.0.0.1:8080 --model drone --seconds 60 --chats 1"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    bench = actions.add_parser(
        "bench", help="ask a server as a control loop does, and report how late it was", allow_abbrev=False,
        description="Ask a server for actions at the rate of a control loop, and report how late its answers and the "
                    "loop's own ticks were, with an interval for the share of seconds that had a miss. It is soft real "
                    "time, and not safety-rated.",
        epilog=examples("brise act bench http://127.0.0.1:8080 --model drone --deadline-ms 80 --html jitter.html"))
    bench.add_argument("server", metavar="URL", help="the address of a brise server")
    bench.add_argument("--model", metavar="NAME", required=True, help="an adapter that `brise tune --actions` made")
    bench.add_argument("--seconds", metavar="S", type=number_types.seconds, default=60.0, help="how long (default: 60)")
    bench.add_argument("--period-ms", metavar="MS", type=number_types.milliseconds,
                       help="from one tick to the next (default: that of the action space)")
    bench.add_argument("--deadline-ms", metavar="MS", type=number_types.milliseconds, default=100.0,
                       help="what an answer may take (default: 100)")
    bench.add_argument("--observations", metavar="FILE", type=Path,
                       help="JSON lines with 'messages' to ask (default: those of the simulated drone)")
    bench.add_argument("--chats", metavar="N", type=number_types.clients, default=0,
                       help="clients that chat with the server at the same time (default: 0)")
    bench.add_argument("--real-time", action="store_true", help="run the loop as SCHED_FIFO, where that is allowed")
    bench.add_argument("--key-env", metavar="VARIABLE", help="environment variable with the server's key "
                                                             "(default: none)")
    bench.add_argument("--log", metavar="FILE", type=Path, help="write what came in and what was sent (default: none)")
    bench.add_argument("--html", metavar="FILE", type=Path, help="write the report as a page, too")
    bench.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace) -> int:
    key = None if args.key_env is None else settings.secret(args.key_env)
    report = act_bench.run(ActBenchOptions(
        ServerAddress(args.server, args.model, key), args.seconds,
        None if args.period_ms is None else args.period_ms / 1e3, args.deadline_ms / 1e3, args.observations, args.chats,
        args.real_time, args.log))
    if args.html is not None:
        html.write(args.html, html.page(jitter.document(report)))
    if args.json:
        terminal.result(json.dumps(report.as_json(), indent=1, allow_nan=False))
    else:
        console.show(jitter.document(report))
    return 0
