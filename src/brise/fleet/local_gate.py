"""The local gate: whether a bundle answers on this machine as it did where it was shipped.

The bundle's own server, started as it is going to run, gets the gate prompts over HTTP. The answers are compared
token by token while they are the same; the divergence is over the tokens that both name and one outcome for all
others, a lower bound (merging outcomes never makes a divergence larger). Other instruction sets round otherwise:
where two tokens are about equally likely, the other one is no failure, and the comparison ends there.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brise import __version__
from brise.fleet.bundle import Bundle, GateLimits
from brise.fleet.gate_prompts import GatePrompt, GateToken
from brise.fleet.refusals import UnfitError

TIE_NATS = 0.05  # two tokens closer than this may change places on another instruction set
LEAST = 1e-7  # probability of all other tokens
Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Sends the body of a chat completion, and returns that of the answer; raises FleetError."""


@dataclass(frozen=True)
class GateComparison:
    """One prompt: how many tokens were compared, the mean divergence in nats, whether the answer is the shipped one (or
    differs where two tokens are as likely), and how long it took."""

    compared: int
    kl: float
    is_same: bool
    seconds: float


@dataclass(frozen=True)
class GateResult:
    """All prompts. `failures` say what exceeds a limit, with the numbers; empty: the gate is passed."""

    prompts: tuple[GateComparison, ...]
    failures: tuple[str, ...]

    @property
    def is_passed(self) -> bool:
        return not self.failures


def check_needs(bundle: Bundle, folder: str | os.PathLike[str], isa: Sequence[str],
                ram_bytes: int | None = None) -> None:
    """UnfitError if this machine has not what the bundle needs. `isa` are the instruction sets that it has."""
    needs = bundle.needs
    ram = _ram_bytes() if ram_bytes is None else ram_bytes
    if ram < needs.ram_bytes:
        raise UnfitError(f"{bundle.name} {bundle.version} needs {needs.ram_bytes} bytes of memory, this machine has "
                         f"{ram}")
    if needs.isa is not None and needs.isa not in isa:
        raise UnfitError(f"{bundle.name} {bundle.version} needs the instruction set {needs.isa!r}, this machine has "
                         f"{', '.join(isa) or 'none of those that are known'}")
    if _numbers(__version__) < _numbers(needs.brise):
        raise UnfitError(f"{bundle.name} {bundle.version} needs brise {needs.brise}, this is {__version__}")
    free = shutil.disk_usage(folder).free
    if free < needs.disk_bytes:
        raise UnfitError(f"{bundle.name} {bundle.version} needs {needs.disk_bytes} bytes of disk, {free} are free")


def run_gate(prompts: Sequence[GatePrompt], limits: GateLimits, model: str, ask: Ask,
             clock: Callable[[], float] = time.monotonic) -> GateResult:
    """Asks `model` all prompts, one after the other, and compares the answers with the shipped ones."""
    compared = list[GateComparison]()
    for prompt in prompts:
        begun = clock()
        answer = ask({"model": model, **prompt.body})
        compared.append(compare(prompt, answer, clock() - begun))
    return GateResult(tuple(compared), tuple(_failures(compared, limits)))


def compare(prompt: GatePrompt, answer: Mapping[str, Any], seconds: float) -> GateComparison:
    """The answer of a chat completion with log-probabilities against the shipped one."""
    given = _tokens(answer)
    total, number, is_same = 0.0, 0, len(given) >= len(prompt.tokens)
    for shipped, (text, top) in zip(prompt.tokens, given, strict=False):
        total, number = total + divergence(shipped, top), number + 1
        if text != shipped.text:
            is_same = _is_tie(shipped, text)
            break
    else:
        is_same = len(given) == len(prompt.tokens)
    return GateComparison(number, total / number if number else math.inf, is_same and number > 0, seconds)


def divergence(shipped: GateToken, here: Mapping[str, float]) -> float:
    """KL(shipped || here) in nats, over the shipped alternatives that both name and one outcome for the rest."""
    shared = [(choice.logprob, here[choice.text]) for choice in shipped.top if choice.text in here]
    rest_p = max(1 - math.fsum(math.exp(p) for p, _ in shared), LEAST)
    rest_q = max(1 - math.fsum(math.exp(q) for _, q in shared), LEAST)
    found = math.fsum(math.exp(p) * (p - q) for p, q in shared) + rest_p * math.log(rest_p / rest_q)
    return max(found, 0.0)  # rounding can make it a hair negative


def isa_of_this_machine() -> tuple[str, ...]:
    """The instruction sets that the kernels can use here, the best first."""
    from brise import _native  # noqa: PLC0415 - a device that only relays needs no kernels
    return tuple(_native.isa_names())


def _is_tie(shipped: GateToken, text: str) -> bool:
    other = next((choice.logprob for choice in shipped.top if choice.text == text), -math.inf)
    return shipped.logprob - other <= TIE_NATS


def _failures(compared: Sequence[GateComparison], limits: GateLimits) -> list[str]:
    failures = list[str]()
    same, worst = sum(one.is_same for one in compared), max(compared, key=lambda one: one.kl)
    if worst.kl > limits.kl:
        failures.append(f"the answer to a gate prompt diverges by {worst.kl:.4g} nats a token, {limits.kl:g} are "
                        "allowed")
    if same < math.ceil(limits.same * len(compared) - 1e-9):
        failures.append(f"{same} of {len(compared)} gate prompts are answered as shipped, {limits.same:.0%} are needed")
    p95_s = percentile_95([one.seconds for one in compared])
    if limits.p95_s is not None and p95_s > limits.p95_s:
        failures.append(f"95 % of the answers come within {p95_s:.2f} s, {limits.p95_s:g} s are allowed")
    return failures


def percentile_95(values: Sequence[float]) -> float:
    """The smallest value that 95 % of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(0.95 * len(ordered)) - 1, 0)]


def _tokens(answer: Mapping[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """Each token of the only choice, by its bytes, with the log-probabilities of those at its place."""
    try:
        content = answer["choices"][0]["logprobs"]["content"] or ()
        return [(_hex(token), {_hex(each): float(each["logprob"]) for each in (token, *token["top_logprobs"])})
                for token in content]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise UnfitError(f"the answer to a gate prompt has no log-probabilities: {error!r}") from None


def _hex(token: Mapping[str, Any]) -> str:
    found = token["bytes"]
    return bytes(found).hex() if found is not None else str(token["token"]).encode().hex()


def _ram_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare: 0.10.1.dev3 is (0, 10, 1)."""
    found = list[int]()
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
