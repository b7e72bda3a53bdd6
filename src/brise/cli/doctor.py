"""`brise doctor`: what is right and wrong on this machine, and the proof that nothing leaves it."""

from __future__ import annotations

import argparse
import json

import rich.console
from rich.table import Table

from brise.cli import terminal
from brise.cli.command_parser import examples
from brise.doctor.airgap.golden_path import STEP_NAMES
from brise.doctor.airgap.report import AirgapReport
from brise.doctor.airgap.run import AirgapOptions, airgap
from brise.doctor.examine import DoctorOptions, doctor
from brise.doctor.findings import DoctorReport
from brise.errors import UnsupportedError
from brise.watch import SILENT

WIDTH = 120
UNPROVEN = 3  # exit status where attempts cannot be counted
STATUSES = (("clean", 0), ("attempts", 1), ("incomplete", 1), ("unproven", UNPROVEN))


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "doctor", help="examine this machine, and prove that nothing leaves it", allow_abbrev=False,
        description="Examine versions, processor and kernels, memory and disks, stores and keys, models, extras and "
                    "chat templates. Nothing is changed, and nothing is contacted unless --reach asks for it. Exit "
                    "status 1 if something is FAIL.\nWith --airgap instead: run every command of the golden path, from "
                    "pull to report, where nothing can leave, count what tries to by its destination, and print "
                    "it. Exit status: 0 nothing tried, 1 something did or a step failed, 3 this machine does not allow "
                    "the proof. docs/guides/airgap.md says what is proven, how, and where the proof ends.",
        epilog=examples("brise doctor",
                        "brise doctor --digests --json",
                        "brise doctor --reach https://api.example.com/v1",
                        "brise doctor --airgap",
                        "brise doctor --airgap --steps pull,chat --also 'python my_agent.py'"))
    parser.add_argument("--store", metavar="PLACE",
                        help="path or postgresql:// URL of the traffic (default: in BRISE_HOME)")
    parser.add_argument("--digests", action="store_true",
                        help="read every model of the store, and compare its SHA-256")
    parser.add_argument("--reach", metavar="URL", nargs="*",
                        help="ask these servers, such as your upstreams, and the store's; without a URL the package "
                             "index")
    parser.add_argument("--airgap", action="store_true", help="prove that nothing leaves this machine")
    parser.add_argument("--model", metavar="MODEL",
                        help="with --airgap: a name that `brise models` lists, a .gguf file, or a folder (default: "
                             "smollm2, or the first of the store)")
    parser.add_argument("--steps", metavar="LIST", default=",".join(STEP_NAMES),
                        help=f"with --airgap: steps of the golden path, or none (default: {','.join(STEP_NAMES)})")
    parser.add_argument("--also", metavar="COMMAND", action="append", default=None,
                        help="with --airgap: then run a command of yours, too; may be given several times")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(args: argparse.Namespace) -> int:
    if args.airgap:
        return _airgap(args)
    given = [name for name, value, default in (("--model", args.model, None), ("--also", args.also, None),
                                               ("--steps", args.steps, ",".join(STEP_NAMES))) if value != default]
    if given:
        raise UnsupportedError(f"{given[0]} is for --airgap", hint="brise doctor --airgap")
    report = doctor(DoctorOptions(args.store, args.digests, args.reach))
    if args.json:
        terminal.result(json.dumps(report.to_json(), indent=1))
    else:
        _show(report)
    return 1 if report.failures else 0


def _airgap(args: argparse.Namespace) -> int:
    given = [name for name, value in (("--store", args.store), ("--digests", args.digests or None),
                                      ("--reach", args.reach)) if value is not None]
    if given:
        raise UnsupportedError(f"{given[0]} is not for --airgap", hint="run brise doctor without --airgap for it")
    steps = () if args.steps == "none" else tuple(args.steps.split(","))
    report = airgap(AirgapOptions(args.model, steps, tuple(args.also or ())), SILENT if args.json else _Notes())
    if args.json:
        terminal.result(json.dumps(report.to_json(), indent=1))
    else:
        _show_airgap(report)
    return dict(STATUSES)[report.verdict]


class _Notes:
    """A watcher that shows each step as it ends."""

    note = staticmethod(terminal.note)
    progress = SILENT.progress


def _show(report: DoctorReport) -> None:
    table = _table("area", "", "verdict", "finding")
    for finding in report.findings:
        text = finding.text + (f"\n{finding.hint}" if finding.hint else "")
        table.add_row(finding.area, finding.name, finding.verdict, terminal.harmless(text))
    _print(table)
    counts = [sum(one.verdict == verdict for one in report.findings) for verdict in ("FAIL", "WARN")]
    terminal.result(f"{counts[0]} FAIL, {counts[1]} WARN, {len(report.findings)} looked at")


def _show_airgap(report: AirgapReport) -> None:
    if report.steps:
        table = _table("step", "", "seconds", "commands")
        for step in report.steps:
            text = step.why if step.state == "skipped" else "\n".join((*step.commands, *filter(None, [step.why])))
            table.add_row(step.name, step.state, f"{step.seconds:.1f}", terminal.harmless(text))
        _print(table)
    if report.attempts:
        table = _table("command", "process", "call", "address", "count")
        for one in report.attempts:
            found = one.attempt
            address = found.address + (f"\n{found.note}" if found.note else "")
            table.add_row(*(terminal.harmless(text) for text in (_cut(found.command), _cut(found.process), found.call,
                                                                 address)), str(one.count))
        _print(table)
    terminal.result(summary(report))


def summary(report: AirgapReport) -> str:
    """The last line: what is proven, and how it was confined."""
    total = sum(one.count for one in report.attempts)
    how = {"namespace": "in a network namespace of its own, under a seccomp filter", "none": "",
           "seccomp": f"under a seccomp filter alone ({report.reason})"}[report.confinement]
    skipped = [step.name for step in report.steps if step.state == "skipped"]
    left_out = f"; not covered: {', '.join(skipped)}" if skipped else ""
    match report.verdict:
        case "clean":
            return f"PASS: nothing tried to leave this machine, {how}{left_out}"
        case "attempts":
            return f"FAIL: {total} attempts to leave this machine, all refused, {how}{left_out}"
        case "incomplete":
            failed = ", ".join(step.name for step in report.steps if step.state == "failed")
            return f"FAIL: nothing tried to leave this machine, but a step failed ({failed}), {how}{left_out}"
        case _:
            return (f"UNPROVEN: attempts cannot be counted on this machine: {report.reason}\n"
                    "docs/guides/airgap.md says what is needed")


def _table(*names: str) -> Table:
    table = Table()
    for name in names:
        table.add_column(name, justify="right" if name in ("seconds", "count") else "left", overflow="fold")
    return table


def _print(table: Table) -> None:
    rich.console.Console(width=WIDTH, highlight=False, markup=False).print(table)


def _cut(text: str) -> str:
    return text if len(text) <= 90 else f"{text[:60]} \u2026 {text[-27:]}"
