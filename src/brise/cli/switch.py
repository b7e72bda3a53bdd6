"""`brise switch`: put a small model in a hosted one's place, step by step, and back."""

from __future__ import annotations

import argparse
import getpass
import json
import time
from contextlib import closing
from pathlib import Path

from brise import settings
from brise.cli import ledger_report, number_types, terminal
from brise.cli.number_types import Within
from brise.errors import EvidenceError, UnsupportedError
from brise.prove import certificates, cutover
from brise.prove.certificates import Signed
from brise.switch import state as switch
from brise.switch.rule import Rule
from brise.switch.state import Switches, TaskState, fold
from brise.traffic.seal import load_or_create_signing_key
from brise.traffic.store import TrafficStore
from brise.traffic.stores import keys_folder, open_store

UP_TO_ALL = Within(0, 100, "over 0, up to 100", above=True)
SHARES = tuple(round(100 * share) for share in switch.SHARES)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "switch", help="put a proven small model in a hosted one's place, and back", allow_abbrev=False,
        description="Let a small model answer a task in the place of the hosted one: by a certificate of `brise "
                    "prove`, in steps, with audits and an alarm that switches back. Running gateways follow at once. "
                    "Without an option: show how tasks are switched.",
        epilog="example: brise switch calls --candidate smollm2 --force --reason 'a trial' --share 1")
    parser.add_argument("task", metavar="TASK", nargs="?", help="the workflow (default: show all)")
    parser.add_argument("--candidate", metavar="MODEL",
                        help="the small model or adapter, as `brise serve` names it (default: the certificate's)")
    parser.add_argument("--certificate", metavar="FILE",
                        help="what `brise prove` wrote (default: auto, the newest in the ledger)")
    parser.add_argument("--share", metavar="PERCENT", type=int, choices=SHARES,
                        help="of conversations: 1, 10, 50 or 100; a larger one than before only if audits are fine "
                             "(default: 1 to begin with)")
    parser.add_argument("--auto", action="store_true", help="the gateway takes the next steps by itself")
    parser.add_argument("--audit", metavar="PERCENT", type=UP_TO_ALL, default=100 * switch.AUDIT,
                        help="of kept answers that are compared with the hosted model's, more at small shares "
                             f"(default: {100 * switch.AUDIT:g})")
    parser.add_argument("--tolerance", metavar="POINTS", type=number_types.percent,
                        help="how far audits may fall before the alarm counts it as harm (default: what the rule or "
                             f"the certificate allows; without either {100 * cutover.FORCED_TOLERANCE:g})")
    parser.add_argument("--no-threshold", action="store_true",
                        help="keep all answers that are valid, also if `brise cascade` certified a threshold")
    parser.add_argument("--trust", metavar="KEY", type=_key, action="append", default=[],
                        help="public key of another machine whose certificates count; may be repeated")
    parser.add_argument("--force", action="store_true",
                        help="without a certificate, or against the audits; with --reason")
    parser.add_argument("--reason", metavar="TEXT", help="why; it stands in the ledger, with your name")
    parser.add_argument("--back", action="store_true", help="the hosted model answers again, from the next request on")
    parser.add_argument("--status", action="store_true", help="show how tasks are switched, and change nothing")
    parser.add_argument("--json", action="store_true", help="print the state as JSON")
    parser.add_argument("--store", metavar="PLACE",
                        help="path or postgresql:// URL of the traffic (default: in BRISE_HOME)")


def run(args: argparse.Namespace) -> int:
    _check(args)
    home = settings.read().home
    with closing(open_store(args.store, home, must_exist=args.status or args.task is None)) as store:
        if args.task is not None and not args.status:
            _change(args, store)
        found = fold(store.ledger())
    names = [args.task] if args.task is not None else sorted(found.tasks)
    states = [found.tasks[name] for name in names if name in found.tasks]
    if args.json:
        terminal.result(json.dumps([ledger_report.state(each) for each in states], indent=2))
    elif states:
        ledger_report.show_states(states, time.time())
    else:
        terminal.note("no task is switched" if args.task is None else f"the task {args.task!r} is not switched")
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuses what contradicts itself."""
    changes = [name for name, is_given in (("--candidate", args.candidate), ("--certificate", args.certificate),
                                           ("--share", args.share), ("--auto", args.auto), ("--back", args.back))
               if is_given]
    if args.task is None and changes:
        raise UnsupportedError(f"{changes[0]} needs a TASK")
    if args.status and changes:
        raise UnsupportedError(f"--status changes nothing, so {changes[0]} has no place beside it")
    if args.back and len(changes) > 1:
        raise UnsupportedError(f"--back and {changes[0]} are both given, one is allowed")
    if args.force and not args.reason:
        raise UnsupportedError("--force needs --reason TEXT: whoever reads the ledger later will ask")
    if args.task is not None and not (args.status or changes):
        args.status = True


def _change(args: argparse.Namespace, store: TrafficStore) -> None:
    found = fold(store.ledger())
    state = found.tasks.get(args.task)
    if args.back:
        if state is None or state.ended is not None:
            raise EvidenceError(f"the task {args.task!r} is not switched")
        store.append("back", {"task": args.task, "by": "user", "user": _user(), "reason": args.reason or "by hand"})
    elif state is not None and state.is_on and args.candidate in (None, state.candidate) and args.certificate is None:
        _step(args, store, state)
    else:
        _begin(args, store, found)


def _step(args: argparse.Namespace, store: TrafficStore, state: TaskState) -> None:
    """Another share of the same switch."""
    share = state.share if args.share is None else args.share / 100
    why_not = state.why_not_up() if share > state.share else None
    if why_not is not None and not args.force:
        raise EvidenceError(f"the share of {args.task!r} stays at {100 * state.share:g} %: {why_not}",
                            hint="wait for audits (brise audit); or --force --reason WHY")
    store.append("step", {"task": args.task, "share": share, "auto": args.auto or state.is_auto, "by": "user",
                          "user": _user(), "reason": args.reason or "by hand", "forced": why_not is not None})


def _begin(args: argparse.Namespace, store: TrafficStore, found: Switches) -> None:
    signed = _certificate(args, store)
    candidate = args.candidate or (signed.certificate.student.name if signed is not None else None)
    if candidate is None:
        raise EvidenceError("nothing says which model is to answer", hint="--candidate MODEL")
    own = load_or_create_signing_key(keys_folder(settings.read().home)).public
    warrant = None if signed is None else cutover.warrant(signed, args.task, candidate, time.time(),
                                                          {own, *args.trust})
    if signed is not None and not args.force:
        cutover.require_not_taken_back(store, signed.digest)
    fingerprint = None if signed is None else signed.certificate.student.fingerprint
    rule = None if args.no_threshold else found.newest_rule(args.task, candidate, fingerprint)
    if rule is not None and rule.removed_signal is not None:
        raise EvidenceError(f"the newest rule of {args.task!r} needs the signal {rule.removed_signal!r}, which this "
                            "version does not have", hint="certify another with brise cascade; or --no-threshold")
    share = (args.share or SHARES[0]) / 100
    if share > switch.SHARES[0] and not args.force:
        raise EvidenceError(f"a switch begins with {SHARES[0]} %, and goes up when audits are fine",
                            hint=f"--share {SHARES[0]}; or --force --reason WHY")
    tolerance = cutover.tolerance(signed, rule) if args.tolerance is None else args.tolerance / 100
    store.append("switch", {
        "task": args.task, "candidate": candidate, "share": share, "certificate": warrant,
        "rule": None if rule is None else rule.digest, "tolerance": tolerance, "audit": args.audit / 100,
        "auto": args.auto, "user": _user(), "forced": args.reason if args.force else None,
        "reason": args.reason or "by hand"})
    if signed is not None and fingerprint is None:
        terminal.note(f"the certificate knows {candidate!r} by its name alone: whatever is served under it may answer")
    terminal.note(_about(rule))


def _certificate(args: argparse.Namespace, store: TrafficStore) -> Signed | None:
    """None: by force."""
    if args.certificate is None and args.force:
        return None
    if args.certificate in (None, "auto"):
        return cutover.newest(store, args.task, args.candidate)
    return certificates.read(Path(args.certificate))


def _about(rule: Rule | None) -> str:
    if rule is None:
        return ("no threshold: all answers are kept but those that cannot be right (brise cascade certifies one)")
    return (f"kept are answers with a confidence of {rule.threshold:.3f} or more: {100 * rule.kept:.0f} % of them, of "
            f"which at most {100 * rule.risk:g} % are wrong (certified {rule.digest[:12]}, {rule.units} units)")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, such as in a container
        return "unknown"


def _key(text: str) -> bytes:
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:
        raise argparse.ArgumentTypeError(f"{text!r}: 64 hexadecimal digits are needed")
    return key
