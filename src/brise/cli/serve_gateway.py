"""The gateway of `brise serve`: its options, and its parts put together."""

from __future__ import annotations

import argparse

from brise import settings
from brise.errors import UnsupportedError
from brise.gateway.gateway import Gateway
from brise.gateway.hosted import Hosted
from brise.gateway.retry import Retries, RetrySettings
from brise.gateway.upstream import Limits, Upstream, UpstreamSettings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--upstream and what belongs to it."""
    limits = Limits()
    parser.add_argument("--upstream", metavar="URL",
                        help="base URL of a hosted model's server, as OpenAI's clients have it; requests for models "
                             "that are not served here go there")
    parser.add_argument("--upstream-key-env", metavar="VARIABLE",
                        help="environment variable with the key for the upstream (default: the clients' own keys go "
                             "on; with --api-keys none does)")
    parser.add_argument("--connect-timeout", metavar="S", type=_seconds, default=limits.connect_s,
                        help=f"seconds until the upstream is connected (default: {limits.connect_s:g})")
    parser.add_argument("--first-byte-timeout", metavar="S", type=_seconds, default=limits.first_byte_s,
                        help=f"seconds until a stream begins (default: {limits.first_byte_s:g})")
    parser.add_argument("--answer-timeout", metavar="S", type=_seconds, default=limits.answer_s,
                        help=f"seconds until an answer that is no stream begins (default: {limits.answer_s:g})")
    parser.add_argument("--stall-timeout", metavar="S", type=_seconds, default=limits.between_s,
                        help="seconds from one piece of an answer to the next "
                             f"(default: {limits.between_s:g})")
    parser.add_argument("--retries", metavar="N", type=_retries, default=RetrySettings().retries,
                        help="how often a request that failed is sent again, where that does no harm and the client "
                             f"has nothing of an answer; 0: never (default: {RetrySettings().retries})")
    parser.add_argument("--hedge-after", metavar="S", type=_seconds,
                        help="send a request a second time if it is not answered after so many seconds, and take the "
                             "answer that comes first; it is paid twice (default: never)")


def make(args: argparse.Namespace) -> Gateway | None:
    """The gateway that the options ask for, None without --upstream."""
    if args.upstream is None:
        if args.upstream_key_env is not None:
            raise UnsupportedError("--upstream-key-env is for a gateway, and there is none", hint="--upstream URL")
        return None
    key = None if args.upstream_key_env is None else settings.secret(args.upstream_key_env)
    limits = Limits(args.connect_timeout, args.first_byte_timeout, args.answer_timeout, args.stall_timeout)
    upstream = Upstream(UpstreamSettings(args.upstream, key, args.api_keys is None, limits,
                                         settings.proxy(args.upstream)))
    hosted = Hosted(upstream, retries=Retries(RetrySettings(args.retries)), hedge_after_s=args.hedge_after)
    return Gateway(hosted)


def _retries(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:3]) > 10:
        raise argparse.ArgumentTypeError(f"{text!r}: a number from 0 to 10 is allowed")
    return int(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r}: seconds over 0, up to 86400, are allowed")
    return value
