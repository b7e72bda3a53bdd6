"""`brise keys` makes virtual keys, shows what each has used, and ends them."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import closing
from typing import Any, get_args

from rich.console import Console
from rich.table import Table

from brise import settings
from brise.cli import number_types, terminal
from brise.cli.command_parser import examples, parsed
from brise.cli.log_tables import WIDTH, when
from brise.cli.number_types import Within
from brise.errors import UnsupportedError
from brise.traffic.key_budgets import KeyBudgets, listed
from brise.traffic.stores import open_virtual_keys
from brise.traffic.virtual_keys import MOST_COUNT, MOST_USD, KeyLimits, NewKey, PageScope, VirtualKey, VirtualKeys

USD = Within(0, MOST_USD, f"a number of USD from 0 to {MOST_USD:g}")
LIMITS = ("usd_per_day", "usd_per_month", "requests_per_minute", "tokens_per_minute", "models", "page")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "keys", help="make keys with budgets and limits for a gateway's clients", allow_abbrev=False,
        description="Virtual keys: what clients of `brise serve` send in place of the upstream's key, each with its "
                    "own budget, limits and models. They are in the store, so all gateways that share it know a change "
                    "within two seconds, and keep one budget. Without an action: list. docs/guides/gateway.md, Virtual "
                    "keys, says what is counted and when.",
        epilog=examples("brise keys",
                        "brise keys add team-a --usd-per-day 5 --requests-per-minute 60"))
    actions = parser.add_subparsers(dest="action", metavar="ACTION")
    _add_add(actions)
    listing = actions.add_parser("list", help="list keys and what they have used", allow_abbrev=False,
                                 description="List keys with their limits, what each has used today and in this month "
                                             "(UTC), and when it was used last.",
                                 epilog=examples("brise keys list", "brise keys list --json"))
    listing.add_argument("--json", action="store_true", help="print a JSON object a line")
    _add_store(listing)
    change = actions.add_parser("change", help="change the limits of a key", allow_abbrev=False,
                                description="Change limits of a key; those that are not named stay. `none` takes a "
                                            "limit away.",
                                epilog=examples("brise keys change team-a --usd-per-day 10 --models none"))
    _add_name(change)
    _add_limits(change, can_be_none=True)
    _add_store(change)
    for action, summary, description in (
            ("disable", "refuse a key until it is enabled", "Refuse a key, until `brise keys enable` takes that back."),
            ("enable", "take a disabled key again", "Take a key again that was disabled."),
            ("remove", "end a key for good", "End a key for good. What it has used stays in the store.")):
        each = actions.add_parser(action, help=summary, allow_abbrev=False, description=description,
                                  epilog=examples(f"brise keys {action} team-a"))
        _add_name(each)
        _add_store(each)
    rotate = actions.add_parser("rotate", help="give a key a new secret", allow_abbrev=False,
                                description="Give a key a new secret, and print it. Limits and what was used stay.",
                                epilog=examples("brise keys rotate team-a",
                                                "brise keys rotate team-a --keep-old 1d"))
    _add_name(rotate)
    rotate.add_argument("--keep-old", metavar="AGE", type=number_types.age,
                        help="the old secret is good for so long, such as 1h or 1d (default: it ends at once)")
    _add_store(rotate)


def run(args: argparse.Namespace) -> int:
    if args.action is None:
        args = parsed(add_parser, "keys", "list")
    keys, budgets = open_virtual_keys(args.store, settings.read().home, must_exist=args.action != "add")
    with closing(keys):
        match args.action:
            case "add":
                return _show_new(keys.add(args.name, _limits(args, KeyLimits()), args.expires))
            case "list":
                return _list(keys, budgets, as_json=args.json)
            case "change":
                key = keys.named(args.name)
                keys.change(args.name, _limits(args, key.limits), _end(args, key))
                terminal.note(f"changed the key {args.name}")
            case "rotate":
                return _show_new(keys.rotate(args.name, args.keep_old or 0.0))
            case "disable":
                keys.disable(args.name)
                terminal.note(f"disabled the key {args.name}; brise keys enable {args.name} takes that back")
            case "enable":
                keys.enable(args.name)
                terminal.note(f"enabled the key {args.name}")
            case _:
                keys.remove(args.name)
                terminal.note(f"removed the key {args.name}")
    return 0


def _add_add(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    add = actions.add_parser("add", help="make a key", allow_abbrev=False,
                             description="Make a key and print it. It is shown once: the store has only its SHA-256.",
                             epilog=examples("brise keys add team-a --usd-per-day 5 --requests-per-minute 60",
                                             "brise keys add trial --models 'gpt-4o-mini,mistral/*' --expires 30d"))
    _add_name(add)
    _add_limits(add, can_be_none=False)
    _add_store(add)


def _add_limits(parser: argparse.ArgumentParser, *, can_be_none: bool) -> None:
    usd, count, models, page, age = (
        _or_none(kind) if can_be_none else kind for kind in (USD, _count, _models, _page, number_types.age))
    default = "as it is" if can_be_none else "no limit"
    parser.add_argument("--usd-per-day", metavar="USD", type=usd, help=f"budget of a day in UTC (default: {default})")
    parser.add_argument("--usd-per-month", metavar="USD", type=usd,
                        help=f"budget of a month in UTC (default: {default})")
    parser.add_argument("--requests-per-minute", metavar="N", type=count,
                        help=f"requests that may begin in a minute (default: {default})")
    parser.add_argument("--tokens-per-minute", metavar="N", type=count,
                        help=f"tokens of prompts and answers in a minute (default: {default})")
    parser.add_argument("--models", metavar="NAME,...", type=models,
                        help="models that it may use, as requests name them, with * and ? as wildcards (default: "
                             f"{'as it is' if can_be_none else 'all'})")
    parser.add_argument("--page", metavar="SCOPE,...", type=page,
                        help="what it may do on the page in the browser: view it, read content there, operate switches "
                             f"and labels (default: {'as it is' if can_be_none else 'nothing'})")
    parser.add_argument("--expires", metavar="AGE", type=age,
                        help="its end from now, such as 12h or 30d (default: "
                             f"{'as it is' if can_be_none else 'never'})")


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the name of the key, which stands in logs and reports")


def _add_store(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="PLACE",
                        help="the store of the gateways: a path or a postgresql:// URL (default: traffic.sqlite in "
                             "BRISE_HOME's folder gateway)")


def _limits(args: argparse.Namespace, before: KeyLimits) -> KeyLimits:
    given = {name: getattr(args, name) for name in LIMITS if getattr(args, name) is not None}
    return KeyLimits(**{**{name: getattr(before, name) for name in LIMITS},
                        **{name: None if value == "none" else value for name, value in given.items()}})


def _end(args: argparse.Namespace, key: VirtualKey) -> float | None:
    if args.expires is None:
        return key.expires_s
    return None if args.expires == "none" else time.time() + args.expires


def _show_new(new: NewKey) -> int:
    terminal.result(new.text)
    terminal.note(f"the key {new.key.name} is shown this once; clients send it as 'Authorization: Bearer KEY'")
    return 0


def _list(keys: VirtualKeys, budgets: KeyBudgets, *, as_json: bool) -> int:
    now_s, rows = time.time(), list[dict[str, Any]]()
    for key in keys.all():
        rows.append(listed(key, budgets.use(key.id, now_s), now_s))
    if as_json:
        for row in rows:
            terminal.result(json.dumps(row))
        return 0
    if not rows:
        terminal.note("there are no keys; brise keys add NAME makes one")
        return 0
    table = Table(box=None, pad_edge=False)
    for name in ("name", "state", "USD today", "this month", "of it estimated", "requests today", "limits", "last used",
                 "expires"):
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(row["name"], row["state"], f"{row['day']['usd']:.4f}", f"{row['month']['usd']:.4f}",
                      _estimated(row["month"]), str(row["day"]["requests"]), _shown(row["limits"]),
                      _time(row["last_used_s"]), _time(row["expires_s"]))
    console = Console(highlight=False, markup=False)
    (console if console.is_terminal else Console(highlight=False, markup=False, width=WIDTH)).print(table)
    return 0


def _estimated(counts: dict[str, Any]) -> str:
    """How much of a sum is an estimate, and of how many requests: what is not known is shown as such."""
    unknown = counts["unknown_requests"]
    return f"{counts['estimated_usd']:.4f}, {unknown} request{'s' * (unknown != 1)}" if unknown else "nothing"


def _shown(limits: dict[str, Any]) -> str:
    parts = [f"{limits[name]:g} {text}" for name, text in (
        ("usd_per_day", "USD a day"), ("usd_per_month", "USD a month"), ("requests_per_minute", "requests a minute"),
        ("tokens_per_minute", "tokens a minute")) if limits[name] is not None]
    models, page = limits["models"], limits["page"]
    return "; ".join([*parts, *([", ".join(models)] if models else []),
                      *([f"page: {', '.join(page)}"] if page else [])]) or "none"


def _time(at_s: float | None) -> str:
    return "never" if at_s is None else when(at_s)


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:17]) <= MOST_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 to {MOST_COUNT} is allowed")
    return int(text)


def _models(text: str) -> tuple[str, ...]:
    names = tuple(filter(None, (part.strip() for part in text.split(","))))
    try:
        return KeyLimits(models=names).models or ()
    except UnsupportedError as error:
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: {error}") from None


def _page(text: str) -> tuple[PageScope, ...]:
    known = get_args(PageScope)
    named = tuple(scope for scope in known if scope in text.split(","))
    if not named or {part.strip() for part in text.split(",")} - set(known):
        raise argparse.ArgumentTypeError(f"{text[:80]!r}: {', '.join(known)} are allowed, with commas between them")
    return named


def _or_none(kind: Any) -> Any:
    def read(text: str) -> object:
        return "none" if text == "none" else kind(text)
    return read
