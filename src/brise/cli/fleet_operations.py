"""`brise fleet status | roll-out | pause | resume | back | devices | ...`: what an operator asks of a running hub."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from brise import settings
from brise.cli import number_types, terminal
from brise.cli.command_parser import examples
from brise.cli.number_types import Within
from brise.fleet import fleet_document
from brise.fleet.offers import TrialTerms
from brise.fleet.operator import FleetOperator, OperatorOptions
from brise.prove.document import time_words
from brise.report import console
from brise.report.document import Mark, ReportTable
from brise.stats.failure_rate import FailureTest

PERCENT = Within(0.05, 50, "a percentage from 0.05 to 50")
UNKNOWN = Within(0, 100, "a percentage from 0 to 100")
HOURS = Within(0, 24 * 366, "a number of hours from 0 to 8784")
MOST_SHOWN = 50


def add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds what asks a hub to `brise fleet`."""
    status = _action(actions, "status", "show roll-outs and devices",
                     "Show the newest roll-outs with what their devices have shown, and what devices run.",
                     "brise fleet status", "brise fleet status --json")
    status.add_argument("--json", action="store_true", help="print a JSON object")
    _add_roll_out(actions)
    for name, summary, about in (
            ("pause", "let no further devices in for now", "Let no further devices in. Those that have begun go on."),
            ("resume", "go on after a pause",
             "Go on with a roll-out that was paused, by somebody or because a device of a small fleet failed."),
            ("back", "take a roll-out back from all devices",
             "Take a roll-out back: each device goes back to the bundle that it had before, or to --back-to.")):
        each = _action(actions, name, summary, about, f"brise fleet {name} tickets-3 --reason 'too slow'")
        each.add_argument("rollout", metavar="ROLL-OUT", help="its name, as brise fleet status shows it")
        each.add_argument("--reason", metavar="TEXT", required=True, help="why; it stands in the ledger with your name")
    devices = _action(actions, "devices", "list devices", "List devices with what each said last.",
                      "brise fleet devices", "brise fleet devices --state rolled-back")
    devices.add_argument("--state", metavar="STATE", help="only those whose last update is in this state")
    devices.add_argument("--json", action="store_true", help="print a JSON object a line")
    _add_tokens(actions)
    forget = _action(actions, "forget", "destroy what is known of a subject, on all devices",
                     "Destroy a subject's records at the hub, and tell all devices to destroy the subject's key with "
                     "their next poll.", "brise fleet forget customer-17")
    forget.add_argument("subject", metavar="SUBJECT", help="as requests name it in x-brise-subject")
    records = _action(actions, "records", "print what devices have sent",
                      "Print labels, audits, alarms and waiting requests that devices have sent, a JSON object a line.",
                      "brise fleet records --kind label")
    records.add_argument("--kind", metavar="KIND", help="only these, such as label, audit, alarm or escalation")


def run(args: argparse.Namespace) -> int:
    """Runs one of these actions."""
    options = OperatorOptions(settings.read().home, args.hub, args.key, args.authority)
    with closing(FleetOperator(options)) as operator:
        match args.action:
            case "status":
                found = operator.status()
                if args.json:
                    terminal.result(json.dumps(found, indent=2))
                else:
                    console.show(fleet_document.document(found))
            case "roll-out":
                _begun(operator.roll_out(_terms(args)))
            case "pause" | "resume" | "back":
                _begun(operator.change(args.rollout, args.action, args.reason))
            case "devices":
                _devices(operator, args)
            case "forget":
                terminal.result(operator.forget(args.subject, None))
                terminal.note("its records at the hub are gone; devices destroy its key with their next poll")
            case "records":
                for line in operator.records(args.kind):
                    terminal.result(line)
            case _:
                _tokens(operator, args)
    return 0


def _add_roll_out(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    begin = _action(actions, "roll-out", "bring a signed bundle to the devices, in stages",
                    "Bring a bundle to the devices in stages. A sequential test on the failure rate lets more devices "
                    "in, or halts. Success counts when a device has committed; one that began and is silent past its "
                    "deadline has failed; one that never began is unknown.",
                    "brise fleet roll-out tickets", "brise fleet roll-out tickets:3 --stages 5,25,100 --trial-hours 1")
    begin.add_argument("bundle", metavar="BUNDLE", help="NAME (its newest version), NAME:VERSION, or a digest")
    begin.add_argument("--name", metavar="NAME", dest="rollout", help="of the roll-out (default: NAME-VERSION)")
    begin.add_argument("--stages", metavar="PERCENTS", type=_stages,
                       help="shares of the devices, the last 100 (default: 1,5,20,100)")
    test = FailureTest()
    begin.add_argument("--tolerated", metavar="PERCENT", type=PERCENT, default=100 * test.tolerated,
                       help=f"f0: the failure rate that is fine (default: {100 * test.tolerated:g})")
    begin.add_argument("--refuted", metavar="PERCENT", type=PERCENT, default=100 * test.refuted,
                       help=f"f1: the one that must be refuted before many get it (default: {100 * test.refuted:g})")
    begin.add_argument("--alpha", metavar="PERCENT", type=PERCENT, default=100 * test.alpha,
                       help="how often either verdict may be wrong where the rate is f0 or f1 (default: "
                            f"{100 * test.alpha:g})")
    begin.add_argument("--trial-requests", metavar="N", type=int, default=TrialTerms.requests,
                       help=f"a device tries it on so many requests (default: {TrialTerms.requests})")
    begin.add_argument("--trial-hours", metavar="H", type=HOURS, default=TrialTerms.hours,
                       help=f"or for so many hours, whichever ends first (default: {TrialTerms.hours:g})")
    begin.add_argument("--deadline", metavar="AGE", type=number_types.age,
                       help="a device that began and is silent for so long has failed (default: 2d)")
    begin.add_argument("--in", metavar="AGE", type=number_types.age, dest="in_s",
                       help="begin in so long, such as 8h (default: now)")
    begin.add_argument("--for", metavar="AGE", type=number_types.age, dest="for_s",
                       help="no device begins after so long (default: no end)")
    begin.add_argument("--wait", metavar="AGE", type=number_types.age,
                       help="a stage waits so long for devices that have not begun (default: 15m)")
    begin.add_argument("--most-unknown", metavar="PERCENT", type=UNKNOWN,
                       help="of a stage's devices that may not have begun when it ends (default: a third)")
    begin.add_argument("--back-to", metavar="BUNDLE",
                       help="the bundle to go back to (default: what each device had before)")
    begin.add_argument("--reason", metavar="TEXT", default="", help="why; it stands in the ledger, with your name")


def _add_tokens(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    token = _action(actions, "token", "make a token with which devices enrol",
                    "Make a token, and print it: it is shown once. A device enrols with `brise node --token-env`.",
                    "brise fleet token robots --devices 3")
    token.add_argument("label", metavar="LABEL", help="what it is for")
    token.add_argument("--devices", metavar="N", type=int, default=1, help="for how many devices (default: 1)")
    token.add_argument("--valid", metavar="AGE", type=number_types.age,
                       help="how long devices may enrol with it (default: 1d)")
    tokens = _action(actions, "tokens", "list tokens", "List tokens, without their secrets.", "brise fleet tokens")
    tokens.add_argument("--json", action="store_true", help="print a JSON object a line")
    ended = _action(actions, "revoke-token", "end a token",
                    "End a token: no device enrols with it any more. Those that have stay.",
                    "brise fleet revoke-token 0a1b2c3d4e5f")
    ended.add_argument("id", metavar="ID", help="as brise fleet tokens shows it")
    revoked = _action(actions, "revoke", "take nothing more of a device",
                      "Revoke a device that was stolen or is gone: the hub takes no reports of it, and it counts in no "
                      "roll-out. What it has installed it keeps.", "brise fleet revoke robot-3")
    revoked.add_argument("device", metavar="DEVICE", help="as brise fleet devices shows it")


def _action(actions: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, about: str,
            *lines: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=summary, allow_abbrev=False, description=about, epilog=examples(*lines))
    usual = OperatorOptions(Path())
    parser.add_argument("--hub", metavar="URL", default=usual.hub, help=f"the hub (default: {usual.hub})")
    parser.add_argument("--key", metavar="FILE", type=Path,
                        help="the operator's key (default: fleet/hub/operator.key in BRISE_HOME)")
    parser.add_argument("--authority", metavar="FILE", type=Path,
                        help="the certificate that signed the hub's, in PEM (default: those that this machine trusts)")
    return parser


def _terms(args: argparse.Namespace) -> Mapping[str, Any]:
    begin_s = time.time() + (args.in_s or 0.0)
    given = {"stages": args.stages, "rollout": args.rollout, "back_to": args.back_to, "deadline_s": args.deadline,
             "wait_s": args.wait, "most_unknown": None if args.most_unknown is None else args.most_unknown / 100,
             "not_before_s": None if args.in_s is None else begin_s,
             "until_s": None if args.for_s is None else begin_s + args.for_s}
    return {"bundle": args.bundle, "f0": args.tolerated / 100, "f1": args.refuted / 100, "alpha": args.alpha / 100,
            "trial_requests": args.trial_requests, "trial_hours": args.trial_hours, "reason": args.reason,
            **{name: value for name, value in given.items() if value is not None}}


def _begun(found: Mapping[str, Any]) -> None:
    terminal.result(f"{found['rollout']}: {found['label']} is {found['state']}, {found['in']} of {found['enrolled']} "
                    "devices are let in")
    if not found["has_statistic"] and found["state"] == "running":
        terminal.note(f"there is no statistic with {found['enrolled']} devices: the local gate of each decides about "
                      "it, and a failure stops the roll-out until you go on (brise fleet resume)")


def _devices(operator: FleetOperator, args: argparse.Namespace) -> None:
    rows, number = list[list[str]](), 0
    for each in operator.devices(args.state):
        number += 1
        if args.json:
            terminal.result(json.dumps(each))
        elif number <= MOST_SHOWN:
            seen = "never" if each["seen_s"] is None else time_words(each["seen_s"])
            rows.append([each["device"], each["state"] or "no update", each["rollout"] or "", seen,
                         (each["running"] or "")[:12], each["reason"] or ("revoked" if each["revoked"] else "")])
    if args.json:
        return
    if rows:
        console.show_parts([ReportTable(["device", "state", "roll-out", "heard of", "runs", "why"], rows)])
    terminal.note(f"{number} devices" + (f", of which the first {MOST_SHOWN} are shown; --json prints all"
                                         if number > MOST_SHOWN else ""))


def _tokens(operator: FleetOperator, args: argparse.Namespace) -> None:
    match args.action:
        case "token":
            found = operator.add_token(args.label, args.devices, args.valid or 86400.0)
            terminal.result(str(found["token"]))
            terminal.note(f"for {found['uses_left']} devices, until {time_words(found['expires_s'])}; "
                          "it is not shown again")
        case "tokens" if args.json:
            for each in operator.tokens():
                terminal.result(json.dumps(each))
        case "tokens":
            rows = [[each["id"], each["label"], str(each["used"]), str(each["uses_left"]),
                     time_words(each["expires_s"]), Mark("good", "good") if each["why_not"] is None
                     else Mark("bad", each["why_not"])] for each in operator.tokens()]
            console.show_parts([ReportTable(["id", "label", "used", "left", "until", "is"], rows, numeric=(2, 3))])
        case "revoke-token":
            operator.revoke_token(args.id)
            terminal.note(f"no device enrols with {args.id} any more")
        case _:
            operator.revoke(args.device)
            terminal.note(f"nothing more is taken of {args.device}")


def _stages(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) / 100 for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: percentages with commas between them are allowed, such as "
                                         "1,5,20,100") from None
