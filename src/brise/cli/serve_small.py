"""What the small models of `brise serve` do for a gateway: stand in during outages, and answer in the shadow."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from brise.cli import number_types
from brise.errors import UnsupportedError
from brise.gateway import candidates
from brise.gateway.candidates import Candidates
from brise.gateway.fallback import LocalFallback
from brise.gateway.gateway import Components
from brise.gateway.large_model import LargeModel
from brise.gateway.local import LocalModels
from brise.gateway.reanswer import Reanswer
from brise.switch.shadow import Reask, Shadow, ShadowOptions
from brise.traffic.capture import Capture
from brise.traffic.store import TrafficStore

OPTIONS = ("fallback", "candidate", "shadow", "reask")


@dataclass(frozen=True)
class SmallOptions:
    """Which models stand in for which tasks, and the shares of traffic that are answered twice."""

    fallback: Candidates = Candidates()
    candidate: Candidates = Candidates()
    shadow: float = 0.0
    reask: float = 0.0


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
    candidate = candidates.parse(args.candidate or (names if len(names) == 1 else ()), names, "--candidate")
    if args.shadow and candidate == Candidates():
        raise UnsupportedError(f"--shadow {args.shadow:g}: it is not said which model answers, of {len(names)}",
                               hint="--candidate MODEL; brise serve MODEL --upstream URL serves both")
    return SmallOptions(candidates.parse(args.fallback, names, "--fallback"), candidate, args.shadow, args.reask)


def parts(options: SmallOptions, local: LocalModels, hosted: LargeModel, store: TrafficStore,
          capture: Capture) -> Components:
    """The parts of the gateway that the options ask for."""
    watching: list[Shadow | Reask | Reanswer] = []
    fallback = None
    if options.fallback != Candidates():
        fallback = LocalFallback(local, options.fallback)
        watching.append(Reanswer(hosted, store, capture))
    if options.shadow:
        watching.append(Shadow(local, options.candidate, ShadowOptions(options.shadow), capture))
    if options.reask:
        watching.append(Reask(hosted, options.reask, capture))
    return Components(fallback=fallback, observers=watching, background=watching)
