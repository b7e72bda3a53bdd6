"""Options for the gateway of `brise serve` are declared and checked here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from brise import settings
from brise.cli import number_types, terminal
from brise.cli.number_types import Within
from brise.errors import UnsupportedError
from brise.gateway import small_models
from brise.gateway.remote.server import RemoteModel
from brise.gateway.retry import RetrySettings
from brise.gateway.small_models import TaskModels
from brise.gateway.upstream import Limits, NoUpstream, UpstreamSettings
from brise.gateway.upstreams import ONLY, is_upstream_name
from brise.serve.open_gateway import GatewayOptions, SmallOptions, UpstreamServer, dialect_of, routes_of
from brise.traffic.capture import CaptureOptions, CaptureStats

DAY_S = 86400.0
MOST_RATE = 10_000_000  # requests a minute
SECONDS = Within(0.001, 86400, "a number of seconds from 0.001 to 86400")
DAYS = Within(0.001, 36500, "a number of days from 0.001 to 36500")

NEEDS_UPSTREAM = ("upstream_rate", "upstream_model", "default_upstream", "upstream_dialect", "upstream_key_env",
                  "upstream_path", "hedge_after", "keep_days", "prices", "small", "small_key_env",
                  "small_engine", "small_timeout", "small_probe_every")
SMALL_OPTIONS = ("fallback", "candidate", "shadow", "reask")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--upstream and what belongs to it."""
    limits = Limits()
    parser.add_argument("--upstream", metavar="[NAME=]URL", action="append",
                        help="base URL of a hosted model's server, as OpenAI's clients have it; requests for models "
                             "that are not served here go there. With names there may be several: NAME/MODEL asks one "
                             "of them. A URL with ?api-version=VERSION is one of Azure OpenAI. `none`: there is no "
                             "large model, and what the small one escalates waits for one (see --fallback)")
    parser.add_argument("--upstream-model", metavar="NAME=MODEL", action="append", default=[],
                        help="the upstream NAME has this model, so that requests need not say NAME/MODEL; `*` stands "
                             "for any letters; may be given several times")
    parser.add_argument("--default-upstream", metavar="NAME",
                        help="the upstream of all other models, and of requests without one (default: the first)")
    parser.add_argument("--upstream-dialect", metavar="[NAME=]DIALECT", action="append", default=[],
                        help="what an upstream speaks, openai or anthropic; anthropic: chat completions go to its "
                             "Messages API, and their answers come back as chat completions (default: openai)")
    parser.add_argument("--upstream-key-env", metavar="[NAME=]VARIABLE", action="append", default=[],
                        help="environment variable with the key for an upstream (default: the clients' own keys go "
                             "on; with --api-keys none does)")
    parser.add_argument("--upstream-rate", metavar="[NAME=]N", action="append", default=[],
                        help="requests a minute that an upstream's account allows: all gateways that share the store "
                             "keep it together; a request waits up to 5 s for its turn, then it gets status 429, or "
                             "the small model answers (default: no limit)")
    parser.add_argument("--upstream-path", metavar="PATH", action="append", default=[],
                        help="a path that clients may use with the gateway's own key, besides chat completions, "
                             "completions, embeddings, responses, messages and models; `*` stands for any letters; may "
                             "be given several times")
    parser.add_argument("--connect-timeout", metavar="S", type=SECONDS, default=limits.connect_s,
                        help=f"seconds until the upstream is connected (default: {limits.connect_s:g})")
    parser.add_argument("--first-byte-timeout", metavar="S", type=SECONDS, default=limits.first_byte_s,
                        help=f"seconds until a stream begins (default: {limits.first_byte_s:g})")
    parser.add_argument("--answer-timeout", metavar="S", type=SECONDS, default=limits.answer_s,
                        help=f"seconds until an answer that is no stream begins (default: {limits.answer_s:g})")
    parser.add_argument("--stall-timeout", metavar="S", type=SECONDS, default=limits.between_s,
                        help="seconds from one piece of an answer to the next "
                             f"(default: {limits.between_s:g})")
    parser.add_argument("--total-timeout", metavar="S", type=SECONDS, default=limits.total_s,
                        help=f"seconds until an answer is complete (default: {limits.total_s:g})")
    parser.add_argument("--retries", metavar="N", type=_retries, default=RetrySettings().retries,
                        help="how often a request that failed is sent again, where that does no harm and the client "
                             f"has nothing of an answer; 0: never (default: {RetrySettings().retries})")
    parser.add_argument("--store", metavar="PLACE",
                        help="where traffic is written: a path or a postgresql:// URL (default: traffic.sqlite in "
                             "BRISE_HOME's folder gateway)")
    parser.add_argument("--capture", metavar="SHARE", type=number_types.share, default=1.0,
                        help="share of conversations that are written down, each whole or not at all (default: 1)")
    parser.add_argument("--no-content", action="store_true",
                        help="write down what surrounds requests and answers, and nothing of what they say")
    parser.add_argument("--keep-days", metavar="N", type=DAYS,
                        help="delete what is older than so many days (default: nothing is deleted)")
    parser.add_argument("--prices", metavar="FILE", type=Path,
                        help="what the upstream's tokens cost (default: prices.toml in BRISE_HOME's folder gateway, "
                             "if it is there)")
    parser.add_argument("--no-stream-usage", action="store_true",
                        help="do not ask the upstream for the tokens of streams whose clients did not ask: their cost "
                             "stays unknown")
    parser.add_argument("--hedge-after", metavar="S", type=SECONDS,
                        help="send a request a second time if it is not answered after so many seconds, and take the "
                             "answer that comes first; it is paid twice (default: never)")


def check(args: argparse.Namespace) -> Mapping[str, UpstreamServer]:
    """The upstreams by name, checked before a model is loaded; none without --upstream."""
    if args.upstream is None:
        for option in NEEDS_UPSTREAM:
            if vars(args)[option] not in (None, []):
                raise UnsupportedError(f"--{option.replace('_', '-')} needs a gateway",
                                       hint="--upstream URL")
        return {}
    urls = _named_urls(args.upstream)
    limits = Limits(args.connect_timeout, args.first_byte_timeout, args.answer_timeout, args.stall_timeout,
                    args.total_timeout)
    dialects = by_name(args.upstream_dialect, urls, "--upstream-dialect")
    rates = by_name(args.upstream_rate, urls, "--upstream-rate")
    keys = {name: settings.secret(variable)
            for name, variable in by_name(args.upstream_key_env, urls, "--upstream-key-env").items()}
    if urls == {ONLY: "none"}:
        return {ONLY: UpstreamServer(NoUpstream().settings, "none")}
    return {name: UpstreamServer(UpstreamSettings(url, keys.get(name), args.api_keys is None, limits,
                                                  settings.proxy(url), tuple(args.upstream_path),
                                                  asks_for_usage=not args.no_stream_usage),
                                 dialect_of(dialects.get(name, "openai"), "--upstream-dialect"),
                                 None if name not in rates else _rate(rates[name]))
            for name, url in urls.items()}


def options_of(args: argparse.Namespace, upstreams: Mapping[str, UpstreamServer], small: SmallOptions,
               remotes: Mapping[str, RemoteModel] | None = None) -> GatewayOptions:
    """The gateway that the command line asks for."""
    table = [(model, name) for word in args.upstream_model for name, _, model in (word.partition("="),)]
    if (unnamed := next((word for word in args.upstream_model if not all(word.partition("="))), None)) is not None:
        raise UnsupportedError(f"--upstream-model {unnamed!r}: NAME=MODEL is needed")
    return GatewayOptions(
        upstreams, routes_of(tuple(upstreams), table, args.default_upstream), args.retries, args.hedge_after,
        args.store,
        CaptureOptions(share=args.capture, content=not args.no_content,
                       ttl_s=None if args.keep_days is None else args.keep_days * DAY_S), args.prices, small,
        remotes or {})


def _named_urls(words: Sequence[str]) -> Mapping[str, str]:
    """The upstreams in the order of the command line; one alone needs no name."""
    urls: dict[str, str] = {}
    for word in words:
        name, equals, url = word.partition("=")
        if not equals or not is_upstream_name(name):
            name, url = "", word
        if name in urls or not name and len(words) > 1:
            raise UnsupportedError(
                f"--upstream {word!r}: there are {len(words)} upstreams, and "
                + (f"two are called {name!r}" if name else "this one has no name"),
                hint="name each of them: --upstream openai=https://api.openai.com/v1 --upstream mistral="
                     "https://api.mistral.ai/v1")
        urls[name] = url
    return urls


def by_name(words: Sequence[str], names: Mapping[str, str], option: str, of: str = "upstream") -> Mapping[str, str]:
    """Values of an option by the server that they are for (`of` says what it is), which must be named where there are
    several."""
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            name, value = next(iter(names), "NAME"), word
            if len(names) != 1:
                raise UnsupportedError(f"{option} {word!r}: it is not said for which {of} of {len(names)} this is",
                                       hint=f"{option} {name}={word}")
        if name not in names:
            there = ", ".join(map(repr, names)) or "none"
            raise UnsupportedError(f"{option} {word!r}: there is no {of} {name!r}; there is {there}")
        if name in values:
            raise UnsupportedError(f"{option} {word!r}: it is given twice" + (f" for {name!r}" if name else ""))
        values[name] = value
    return values


def _rate(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MOST_RATE:
        raise UnsupportedError(f"--upstream-rate is {text[:40]!r}, a whole number from 1 to {MOST_RATE} is allowed")
    return int(text)


def report_lost(stats: CaptureStats) -> None:
    """Reports captured traffic that could not be written."""
    if dropped := sum(stats.dropped.values()):
        terminal.note(f"captured {stats.written} rows; {dropped} could not be written: {stats.last_error}")


def _retries(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:3]) > 10:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 0 to 10 is allowed")
    return int(text)


def add_small_arguments(parser: argparse.ArgumentParser) -> None:
    """--fallback, --shadow and what belongs to them."""
    parser.add_argument("--fallback", metavar="[TASK=]MODEL", action="append", default=[],
                        help="a model or adapter that is served here answers where the upstream cannot, for all tasks "
                             "or one; may be given several times. docs/guides/gateway.md#outages says when and how "
                             "(default: the client is told that nobody answers)")
    parser.add_argument("--shadow", metavar="SHARE", type=number_types.share, default=0.0,
                        help="share of the upstream's answered requests that the candidate answers too, in the "
                             "background, for `brise prove` (default: 0)")
    parser.add_argument("--candidate", metavar="[TASK=]MODEL", action="append", default=[],
                        help="the model or adapter that answers in the shadow, for all tasks or one; may be given "
                             "several times (default: MODEL, if there is one and it has no adapters)")
    parser.add_argument("--reask", metavar="SHARE", type=number_types.share, default=0.0,
                        help="share of its answered requests that the upstream is asked once more in the background: "
                             "how far does it agree with itself? Each is paid (default: 0)")


def check_small(args: argparse.Namespace, names: Sequence[str]) -> SmallOptions:
    """The tasks of the small models, checked before one is loaded; `names` are all models and adapters."""
    if args.upstream is None and (given := next((option for option in SMALL_OPTIONS if vars(args)[option]), None)):
        raise UnsupportedError(f"--{given} needs a gateway", hint="--upstream URL")
    candidate = small_models.parse_task_models(args.candidate or (names if len(names) == 1 else ()), names,
                                               "--candidate")
    if args.shadow and candidate == TaskModels():
        raise UnsupportedError(f"--shadow {args.shadow:g}: name the model that answers; there are {len(names)}",
                               hint="--candidate MODEL; brise serve MODEL --upstream URL serves both")
    fallback = small_models.parse_task_models(args.fallback, names, "--fallback")
    return SmallOptions(fallback, candidate, args.shadow, args.reask)
