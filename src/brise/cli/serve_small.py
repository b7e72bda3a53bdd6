"""What the small models of `brise serve` do for a gateway: stand in during outages, and answer in the shadow."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from brise.cli import number_types
from brise.errors import UnsupportedError
from brise.gateway import small_models
from brise.gateway.small_models import TaskModels
from brise.serve.open_gateway import SmallOptions

OPTIONS = ("fallback", "candidate", "shadow", "reask")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--fallback, --shadow and what belongs to them."""
    parser.add_argument("--fallback", metavar="[TASK=]MODEL", action="append", default=[],
                        help="a model or adapter that is served here answers where the upstream cannot, all tasks or "
                             "one; may be given several times (default: the client is told that nobody answers)")
    parser.add_argument("--shadow", metavar="SHARE", type=number_types.share, default=0.0,
                        help="share of the upstream's answered requests that the candidate answers too, in the "
                             "background, for `brise prove` (default: 0)")
    parser.add_argument("--candidate", metavar="[TASK=]MODEL", action="append", default=[],
                        help="the model or adapter that answers in the shadow, for all tasks or one; may be given "
                             "several times (default: MODEL, if there is one and it has no adapters)")
    parser.add_argument("--reask", metavar="SHARE", type=number_types.share, default=0.0,
                        help="share of its answered requests that the upstream is asked once more in the background: "
                             "how far does it agree with itself? Each is paid (default: 0)")


def check(args: argparse.Namespace, names: Sequence[str]) -> SmallOptions:
    """Looks at the options before a model is loaded; `names` are the models and adapters that there will be."""
    if args.upstream is None and (given := next((option for option in OPTIONS if vars(args)[option]), None)):
        raise UnsupportedError(f"--{given} is for a gateway, and there is none", hint="--upstream URL")
    candidate = small_models.parse_task_models(args.candidate or (names if len(names) == 1 else ()), names,
                                               "--candidate")
    if args.shadow and candidate == TaskModels():
        raise UnsupportedError(f"--shadow {args.shadow:g}: it is not said which model answers, of {len(names)}",
                               hint="--candidate MODEL; brise serve MODEL --upstream URL serves both")
    fallback = small_models.parse_task_models(args.fallback, names, "--fallback")
    return SmallOptions(fallback, candidate, args.shadow, args.reask)
