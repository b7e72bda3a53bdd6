"""The local gate: answers as they were shipped, within tolerance, on a machine that has what the bundle needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from brise.fleet.bundle import DeviceNeeds, GateLimits
from brise.fleet.gate_prompts import GateChoice, GatePrompt, GateToken, gate_bytes, read_gate
from brise.fleet.local_gate import check_needs, compare, divergence, percentile_95, run_gate
from brise.fleet.refusals import BundleError, UnfitError
from tests.fleet.bundles import bundle

LIMITS = GateLimits(kl=0.02, same=1.0, p95_s=1.0)


def token(text: str, *others: tuple[str, float], probability: float = 0.9) -> GateToken:
    logprob = math.log(probability)
    top = [GateChoice(text.encode().hex(), logprob), *(GateChoice(other.encode().hex(), math.log(p))
                                                       for other, p in others)]
    return GateToken(text.encode().hex(), logprob, tuple(top))


PROMPT = GatePrompt(({"role": "user", "content": "hi"},), 8, (token("yes", ("no", 0.05)), token("!", (".", 0.08))))


def answer(*tokens: tuple[str, Mapping[str, float]]) -> dict[str, Any]:
    """As a server shows tokens, each with its rivals."""
    def shown(text: str, p: float) -> dict[str, Any]:
        return {"token": text, "bytes": list(text.encode()), "logprob": math.log(p)}
    return {"choices": [{"logprobs": {"content": [
        {**shown(text, top[text]), "top_logprobs": [shown(*one) for one in top.items()]} for text, top in tokens]}}]}


SAME = answer(("yes", {"yes": 0.9, "no": 0.05}), ("!", {"!": 0.9, ".": 0.08}))


def test_the_same_answer_passes_with_no_divergence() -> None:
    result = run_gate([PROMPT], LIMITS, "tickets", lambda body: SAME, iter([0.0, 0.5]).__next__)
    assert result.is_passed and result.prompts[0].compared == 2
    assert result.prompts[0].kl == pytest.approx(0.0, abs=1e-9)


def test_the_divergence_is_that_of_two_distributions() -> None:
    here = {b"yes".hex(): math.log(0.6), b"no".hex(): math.log(0.3)}
    expected = 0.9 * math.log(0.9 / 0.6) + 0.05 * math.log(0.05 / 0.3) + 0.05 * math.log(0.05 / 0.1)
    assert divergence(PROMPT.tokens[0], here) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("given", "said"), [
    (answer(("no", {"no": 0.6, "yes": 0.4})), "0 of 1 gate prompts are answered as shipped"),
    (answer(("yes", {"yes": 0.5, "no": 0.5}), ("!", {"!": 0.9, ".": 0.08})), "diverges by 0.535"),
    (answer(("yes", {"yes": 0.9, "no": 0.05})), "0 of 1 gate prompts are answered as shipped")])
def test_another_answer_does_not_pass(given: dict[str, Any], said: str) -> None:
    result = run_gate([PROMPT], LIMITS, "tickets", lambda body: given, iter([0.0, 0.5]).__next__)
    assert not result.is_passed and any(said in failure for failure in result.failures), result.failures


def test_two_tokens_that_are_about_as_likely_may_change_places() -> None:
    prompt = GatePrompt(PROMPT.messages, 8, (token("a", ("b", 0.49), probability=0.5), token("c")))
    changed = compare(prompt, answer(("b", {"b": 0.5, "a": 0.49}), ("x", {"x": 0.9})), 0.1)
    assert changed.is_same and changed.compared == 1 and changed.kl < 0.001


def test_slow_answers_do_not_pass() -> None:
    result = run_gate([PROMPT], LIMITS, "tickets", lambda body: SAME, iter([0.0, 2.5]).__next__)
    assert result.failures == ("95 % of the answers come within 2.50 s, 1 s are allowed",)
    assert percentile_95([float(value) for value in range(1, 101)]) == 95.0


def test_a_server_without_log_probabilities_is_said() -> None:
    with pytest.raises(UnfitError, match="has no log-probabilities"):
        run_gate([PROMPT], LIMITS, "tickets", lambda body: {"choices": []})


@pytest.mark.parametrize(("needs", "said"), [
    (DeviceNeeds(10**9, 1, "0.1"), "needs 1000000000 bytes of memory, this machine has 500000000"),
    (DeviceNeeds(1, 10**15, "0.1"), "bytes of disk"), (DeviceNeeds(1, 1, "99.1"), "needs brise 99.1"),
    (DeviceNeeds(1, 1, "0.1", "neon"), "needs the instruction set 'neon', this machine has avx2")])
def test_a_machine_without_what_it_needs_is_refused(needs: DeviceNeeds, said: str, tmp_path: Any) -> None:
    with pytest.raises(UnfitError, match=said):
        check_needs(bundle(needs=needs), tmp_path, ("avx2", "scalar"), 500_000_000)
    check_needs(bundle(needs=DeviceNeeds(1, 1, "0.1", "avx2")), tmp_path, ("avx2", "scalar"), 500_000_000)


def test_the_file_reads_back_as_it_was_written_and_is_bounded() -> None:
    assert read_gate(gate_bytes([PROMPT, PROMPT])) == (PROMPT, PROMPT)
    with pytest.raises(BundleError, match="number of gate prompts"):
        read_gate(b"")
    with pytest.raises(BundleError, match="canonical form"):
        read_gate(gate_bytes([PROMPT]).replace(b'"max_tokens":8', b'"max_tokens": 8'))
