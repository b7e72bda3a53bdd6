"""A device with real servers and a tiny model: what was shipped is what answers, and another model is not taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from brise.fleet.bundle import bundle_json
from brise.fleet.gate_prompts import read_gate
from brise.fleet.offers import OfferedRollout, RolloutList, TrialTerms
from brise.fleet.ship import ship
from brise.fleet.signing import read_key
from brise.fleet.supervisor import PROGRAM
from tests.fleet.devices import DeviceRig, device
from tests.fleet.shipping import Workshop, workshop


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("BRISE_THREADS", "1")
    (tmp_path / "shop").mkdir()
    made = workshop(tmp_path / "shop")
    made.adapter()
    return made


def offer(shop: Workshop, digest: str, name: str) -> None:
    rollout = OfferedRollout(name, digest, 1.0, "running", "salt", shop.clock.at, shop.clock.at + 1e6,
                             TrialTerms(requests=1))
    before = shop.repository.rollouts.rollouts
    shop.repository.sign_hub(read_key(shop.keys / "hub.key"), rollouts=RolloutList((*before, rollout)))


def answer_of(rig: DeviceRig, prompt: dict[str, object]) -> list[str]:
    body = {"model": "tickets", "messages": [prompt], "temperature": 0, "max_tokens": 8, "logprobs": True}
    url = f"http://127.0.0.1:{rig.process.address[1]}/v1/chat/completions"
    found = httpx.post(url, json=body, timeout=60, trust_env=False).json()
    return [(token["token"].encode() if token["bytes"] is None else bytes(token["bytes"])).hex()
            for token in found["choices"][0]["logprobs"]["content"]]


def test_a_device_answers_with_the_tokens_that_were_shipped(shop: Workshop, tmp_path: Path) -> None:
    good = ship(shop.options(adapter=shop.folder / "adapter", with_base=True), now=shop.clock).bundle
    offer(shop, good.digest, "r1")
    with device(shop, tmp_path, program=PROGRAM) as rig:
        rig.run_until(lambda: rig.process.supervisor.answering is not None)
        assert rig.state.active is not None
        prompts = read_gate((rig.process.installation.place(rig.state.active) / "gate.jsonl").read_bytes())
        answers = [answer_of(rig, dict(prompt.messages[0])) for prompt in prompts]
        assert answers == [[token.text for token in prompt.tokens] for prompt in prompts]
        rig.settle(good.version)
        adapter = shop.adapter("other", scale=2.0, dtype="BF16")
        other = ship(shop.options(adapter=adapter, with_base=True), now=shop.clock).bundle
        lying = replace(good, version=9, adapter=other.adapter, fingerprint=other.fingerprint)
        shop.repository.release({lying.target: bundle_json(lying)}, read_key(shop.keys / "release.key"))
        offer(shop, lying.digest, "r2")
        rig.run_until(lambda: rig.state.attempt is not None)
        rig.run_until(lambda: rig.state.attempt is None)
        assert rig.is_committed(good.version) and answer_of(rig, dict(prompts[0].messages[0])) == answers[0]
        kind, state, reason = rig.reported()[-1]
        assert (kind, state) == ("device-state", "gate-failed") and "gate prompt" in reason
