"""Options that several actions of `brise log` have: which exchanges, of which store, in which form."""

from __future__ import annotations

import argparse
import datetime
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

from brise.traffic.records import Mode, Role
from brise.traffic.store import Query

UNITS: Mapping[str, float] = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Which exchanges."""
    parser.add_argument("--task", metavar="NAME", help="only of this task (default: of every)")
    parser.add_argument("--model", metavar="NAME", help="only where this model was asked for")
    parser.add_argument("--mode", metavar="MODE", choices=get_args(Mode), action="append",
                        help=f"only answered so; may be given several times: {', '.join(get_args(Mode))}")
    parser.add_argument("--conversation", metavar="ID", help="only of this conversation")
    parser.add_argument("--subject", metavar="NAME", help="only of this subject")
    parser.add_argument("--label", metavar="NAME=VALUE", type=_pair,
                        help="only with this label from the header x-brise-label-NAME")
    parser.add_argument("--since", metavar="WHEN", type=moment,
                        help="only from then on: 2026-03-01, 2026-03-01T12:00, or an age such as 12h, 30d, 2w")
    parser.add_argument("--until", metavar="WHEN", type=moment, help="only before then")
    parser.add_argument("--with", dest="has_answer", metavar="ROLE", choices=get_args(Role),
                        help=f"only with another answer of this kind: {', '.join(get_args(Role))}")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Where the traffic lies."""
    parser.add_argument("--store", metavar="PLACE",
                        help="a path or a postgresql:// URL (default: traffic.sqlite in BRISE_HOME's folder gateway)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """For programs."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def query(args: argparse.Namespace, **more: Any) -> Query:
    """What the filters say."""
    found = Query(args.task, args.model, args.mode, args.conversation, args.subject, args.label, args.since,
                  args.until, has_answer=args.has_answer)
    return replace(found, **more)


def whole(text: str) -> int:
    """A number from 1 on."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:12]):
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 1 on is allowed")
    return int(text)


def age(text: str) -> float:
    """30d in seconds."""
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhdw])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: an age is a number with s, m, h, d or w, such as 30d")
    return float(found[1]) * UNITS[found[2]]


def moment(text: str) -> float:
    """A date, a time, or an age before now, in seconds since the epoch."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except ValueError:
        pass
    try:
        return time.time() - age(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: a date (2026-03-01), a time (2026-03-01T12:00) or an age (12h, 30d, 2w) is allowed") from None


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=VALUE is allowed")
    return name.lower(), value
