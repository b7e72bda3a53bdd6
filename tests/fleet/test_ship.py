"""Shipping: what a bundle holds, what is refused before anything is signed, and the same tokens on an empty machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from brise import settings
from brise.checkpoint.adapters.lineage import base_digest
from brise.checkpoint.adapters.peft import WEIGHTS_FILE, read_adapter
from brise.checkpoint.open import open_checkpoint
from brise.engine.adapter_loading import rank_in
from brise.errors import BriseError, FleetError, MemoryLimitError
from brise.files.digests import Located, file_digest
from brise.fleet.gate_prompts import GateChoice, GatePrompt, GateToken, gate_bytes, read_gate
from brise.fleet.ship import Shipped, ship, withdraw
from brise.fleet.shipped_adapter import ParityLimits, convert
from brise.fleet.shipped_gate import SHIPPED, GateQuestion, asked, read_prompts
from brise.fleet.signing import new_key, read_key
from brise.fleet.sources import FolderSource
from brise.fleet.trust import TrustedRepository
from brise.memory import opening
from brise.memory.opening import EngineOptions
from brise.prove import certificates
from brise.stats.certificate import Certificate, CertifiedModel, Window
from brise.switch.rule import from_body, to_body
from brise.traffic.seal import SigningKey
from brise.traffic.stores import open_store
from tests.fleet.repositories import NOW, key, state_of
from tests.fleet.shipping import PROMPTS, Workshop, workshop
from tests.page.test_traffic import RULE

SIGNER = key("prover")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = workshop(tmp_path_factory.mktemp("shop"))
    made.adapter()
    return made


@pytest.fixture(scope="module")
def shipped(shop: Workshop) -> Shipped:
    return ship(shop.options(adapter=shop.folder / "adapter", with_base=True, to=(str(shop.folder / "stick"),),
                             valid_s=90 * 86400.0), now=shop.clock)


def imported(shop: Workshop, shipped: Shipped, folder: Path) -> Path:
    """What an empty machine has after it read the stick."""
    device = TrustedRepository(FolderSource(shop.folder / "stick"), folder / "device", shop.repository.root_bytes,
                               shop.clock)
    device.refresh()
    found = device.bundle(shipped.bundle.digest)
    device.fetch_bundle(found, folder / "slot")
    return folder / "slot"


def test_an_empty_machine_gives_the_same_tokens_offline(shop: Workshop, shipped: Shipped, tmp_path: Path) -> None:
    slot = imported(shop, shipped, tmp_path)
    shipped_prompts = read_gate((slot / "gate.jsonl").read_bytes())
    plan = shipped.bundle.plan
    with asked(Located("anything", slot / "base/tiny.gguf"), EngineOptions(
            context=plan.context, parallel=plan.parallel, threads=2), {SHIPPED: slot / "adapter"}) as engine:
        answers = engine.answers(SHIPPED, [GateQuestion(prompt.messages) for prompt in shipped_prompts], 8)
        assert engine.fingerprint(SHIPPED) == shipped.bundle.fingerprint
    assert spelled(answers) == spelled(shipped_prompts) and answers == shipped_prompts


def spelled(prompts: tuple[GatePrompt, ...]) -> list[list[str]]:
    return [[token.text for token in prompt.tokens] for prompt in prompts]


def test_a_bundle_holds_what_the_issue_names(shop: Workshop, shipped: Shipped) -> None:
    bundle = shipped.bundle
    assert [blob.path for blob in bundle.blobs] == [
        "adapter/adapter_config.json", "adapter/adapter_model.safetensors", "adapter/lineage.json", "gate.jsonl",
        "base/tiny.gguf"]
    assert bundle.base.digest == base_digest(Located("tiny", shop.model)) and bundle.licence == "Apache-2.0"
    assert bundle.template_digest == certificates.template_digest(shop.model)
    assert bundle.rights == {"openai": "contract"} and bundle.lineage is not None
    assert bundle.lineage.adapter_digest == file_digest(shop.folder / "adapter" / WEIGHTS_FILE)
    assert bundle.plan.context == 64 and bundle.plan.memory >= bundle.needs.ram_bytes > 1e7
    assert bundle.parity is not None and 0 < bundle.parity.kl_mean < 1e-3 and bundle.parity.prompts == len(PROMPTS)
    assert bundle.certificate is None and bundle.rule is None and bundle.certified is None


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_the_server_of_a_device_fits_into_what_was_planned(shop: Workshop, shipped: Shipped, tmp_path: Path,
                                                           threads: int) -> None:
    slot, plan = imported(shop, shipped, tmp_path), shipped.bundle.plan
    room = opening.adapter_room([slot / "adapter"], memory=plan.memory, adapter_memory=None, slots=1,
                                rank=rank_in(slot / "adapter"))
    opening._plan(Located("anything", slot / "base/tiny.gguf"), EngineOptions(
        plan.memory, plan.context, parallel=plan.parallel, cache=plan.cache, threads=threads, adapter_room=room))


def test_the_adapter_is_half_as_large_and_rounded_to_bf16(shop: Workshop, shipped: Shipped, tmp_path: Path) -> None:
    slot = imported(shop, shipped, tmp_path)
    sizes = [(folder / WEIGHTS_FILE).stat().st_size for folder in (slot / "adapter", shop.folder / "adapter")]
    assert sizes[0] < 0.6 * sizes[1] and shipped.trained_bytes == sizes[1]
    config = open_checkpoint(shop.model).config
    before, after = (read_adapter(folder, config).low_ranks for folder in (shop.folder / "adapter", slot / "adapter"))
    for path, low_rank in before.items():
        np.testing.assert_allclose(after[path].a, low_rank.a, rtol=2.0**-8)
        assert (np.ascontiguousarray(after[path].a, np.float32).view(np.uint32) & 0xFFFF == 0).all()


def test_an_adapter_in_bf16_is_copied_byte_by_byte(shop: Workshop, tmp_path: Path) -> None:
    adapter = shop.adapter("rounded", dtype="BF16")
    (adapter / "ngrams.bin").write_bytes(b"brise-ngrams\0\0\0\1rest")
    found = convert(adapter, tmp_path / "out")
    assert not found.is_changed and state_of(tmp_path / "out") == state_of(adapter)
    (adapter / "ngrams.bin").write_bytes(b"brise-sealed\0\0\0\1rest")
    assert convert(adapter, tmp_path / "other").left_out == ("ngrams.bin",)
    assert not (tmp_path / "other/ngrams.bin").exists()


def test_the_next_version_follows_and_the_old_one_stays(shop: Workshop, shipped: Shipped) -> None:
    second = ship(shop.options(adapter=shop.folder / "adapter"), now=shop.clock)
    assert second.bundle.version == shipped.bundle.version + 1 and second.bundle.base.blobs == ()
    assert {second.bundle.target, shipped.bundle.target} <= shop.repository.targets.targets.keys()


def test_a_bundle_that_is_withdrawn_leaves_the_others_whole(tmp_path: Path) -> None:
    made = workshop(tmp_path)
    bundles = [ship(made.options(adapter=made.adapter(f"adapter-{scale}", scale=scale)), now=made.clock).bundle
               for scale in (0.25, 0.125)]
    assert withdraw(made.options(), [1], made.clock) == ["bundles/tickets/1.json"]
    targets = made.repository.targets.targets
    assert bundles[0].target not in targets and bundles[0].adapter[0].target not in targets  # the other settings
    assert {blob.target for blob in bundles[1].blobs} <= targets.keys()
    device = TrustedRepository(FolderSource(made.repository.folder), tmp_path / "device", made.repository.root_bytes,
                               made.clock)
    assert list(device.refresh().bundles) == [bundles[1].digest]
    with pytest.raises(FleetError, match="no bundle"):
        withdraw(made.options(), [1], made.clock)
    withdraw(made.options(), now=made.clock)
    assert ship(made.options(), now=made.clock).bundle.version == 3  # a number is never used twice


@pytest.mark.parametrize(("changes", "says"), [
    ({"parity": ParityLimits(kl=1e-12)}, "diverge"), ({"parity": ParityLimits(logprob=1e-12)}, "log-probability"),
    ({"rights": "[[allow]]\nprovider='openai'\nbasis='b'\ndate=2020-01-01\nscope='training'\nexpires=2021-01-01"},
     "expired"),
    ({"rights": "[[allow]]\nprovider='openai'\nbasis='b'\ndate=2020-01-01\nscope='evaluation'"}, "scope"),
    ({"memory": 1_000_000}, "limit"), ({"licence": None}, "licence"), ({"gate": ""}, "no prompt"),
    ({"passphrase_env": "BRISE_TEST_NO_SUCH"}, "not set")], ids=lambda value: value if isinstance(value, str) else None)
def test_what_is_refused_signs_nothing(changes: dict[str, Any], says: str, shop: Workshop, tmp_path: Path) -> None:
    for name in ("rights", "gate"):
        if name in changes:
            (tmp_path / name).write_text(changes[name])
            changes = {**changes, name: tmp_path / name}
    before = state_of(shop.folder / "repository")
    with pytest.raises((BriseError, MemoryLimitError), match=says):
        ship(shop.options(adapter=shop.folder / "adapter", **changes), now=shop.clock)
    assert state_of(shop.folder / "repository") == before


def test_an_adapter_that_does_not_say_what_it_was_trained_on_is_refused(shop: Workshop) -> None:
    with pytest.raises(FleetError, match="no lineage"):
        ship(shop.options(adapter=shop.adapter("unknown", lineage=False)), now=shop.clock)
    with pytest.raises(FleetError, match="nothing that allowed it"):
        ship(shop.options(adapter=shop.adapter("unasked", rights={"openai": " "})), now=shop.clock)
    with pytest.raises(BriseError, match="trained on"):
        ship(shop.options(adapter=foreign(shop)), now=shop.clock)


def foreign(shop: Workshop) -> Path:
    """An adapter whose lineage names another base."""
    adapter = shop.adapter("foreign")
    path = adapter / "lineage.json"
    path.write_text(path.read_text().replace(base_digest(Located("tiny", shop.model)), "ee" * 32))
    return adapter


def certificate(folder: Path, small: CertifiedModel, signer: SigningKey = SIGNER, **changes: Any) -> Path:
    """A file with a certificate of this small model."""
    made = Certificate(
        task="tickets", student=small, teachers=(), contexts=(), window=Window("log", None, None, None, "c", 2, "u"),
        delta=0.02, alpha=0.05, alpha_of_all=0.05, candidate=1, futility=8.0, bound=1.0, discordance=0.1, differing=0.1,
        labels="exact", scoring="exact", dimensions=(), proven=(), claims=(), differences=(0.0, 0.0), path=(1.0, 21.0),
        decided_at=2, made_at_s=NOW - 10, expires_at_s=NOW + 1000, selection={}, made_by="brise test")
    path = folder / "certificate.json"
    path.unlink(missing_ok=True)
    certificates.write(certificates.sign(replace(made, **changes), signer), path)
    return path


def test_a_certificate_of_the_trained_adapter_goes_along(shop: Workshop, shipped: Shipped, tmp_path: Path) -> None:
    trained = shop.folder / "adapter"
    with asked(Located("tiny", shop.model), EngineOptions(context=64, threads=2), {"trained": trained}) as engine:
        fingerprint = engine.fingerprint("trained")
    small = CertifiedModel("small", shipped.bundle.base.digest, file_digest(trained / WEIGHTS_FILE),
                           shipped.bundle.template_digest, fingerprint)
    with closing(open_store(tmp_path / "traffic.sqlite", settings.read().home)) as store:
        rule = from_body(to_body(replace(RULE, task="tickets", fingerprint=fingerprint)))
        store.append("cascade", to_body(rule))
    found = ship(shop.options(adapter=trained, certificate=certificate(tmp_path, small), signer=SIGNER.public,
                              task="tickets", store=str(tmp_path / "traffic.sqlite")), now=shop.clock).bundle
    assert found.certificate is not None and found.task == "tickets"
    assert found.certified == fingerprint != found.fingerprint
    assert found.rule is not None and from_body(found.rule) == rule


@pytest.mark.parametrize(("small", "changes", "says"), [
    ({"digest": "ee" * 32}, {}, "base"), ({"adapter": "ee" * 32}, {}, "adapter"), ({"adapter": None}, {}, "no adapter"),
    ({"template": "ee" * 32}, {}, "template"), ({"fingerprint": "ee" * 16}, {}, "fingerprint"),
    ({"digest": None}, {}, "which model"), ({}, {"expires_at_s": NOW - 1}, "expired"),
    ({}, {"task": "others"}, "task"), ({}, {"signer": key("stranger")}, "signed by")],
    ids=["base", "adapter", "no adapter", "template", "fingerprint", "no model", "expired", "task", "signer"])
def test_a_certificate_of_something_else_is_refused(small: Mapping[str, Any], changes: dict[str, Any], says: str,
                                                    shop: Workshop, shipped: Shipped, tmp_path: Path) -> None:
    own = CertifiedModel("small", shipped.bundle.base.digest, file_digest(shop.folder / "adapter" / WEIGHTS_FILE))
    path = certificate(tmp_path, replace(own, **small), **changes)
    with pytest.raises(FleetError, match=says):
        ship(shop.options(adapter=shop.folder / "adapter", certificate=path, signer=SIGNER.public, task="tickets",
                          store=str(tmp_path / "none.sqlite"), rule=False), now=shop.clock)


def test_gate_prompts_are_chats_or_rows_of_training_data(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "question {at}", "completion": "answer"}}\n' for at in range(100)))
    found = read_prompts(path, 10, None)
    assert len(found) == 10 and found[1].messages == ({"role": "user", "content": "question 10"},)
    held_out = read_prompts(path, 50, 0.2)
    assert 5 <= len(held_out) <= 35


def test_gate_prompts_may_have_functions_to_call(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}
    messages = [{"role": "user", "content": "dark"}]
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": [tool]}) + "\n")
    (question,) = read_prompts(path, 10, None)
    assert question == GateQuestion(tuple(messages), (tool,))
    made = GatePrompt(question.messages, 8, (GateToken("6f", -0.1, (GateChoice("6f", -0.1),)),), question.tools)
    assert read_gate(gate_bytes([made])) == (made,) and made.body["tools"] == [tool]


def test_keys_are_for_their_owner_and_may_have_a_passphrase(tmp_path: Path) -> None:
    made = new_key(tmp_path / "root-1.key", "open sesame")
    assert read_key(tmp_path / "root-1.key", "open sesame") == made
    for passphrase, says in ((None, "passphrase"), ("wrong", "not one with this passphrase")):
        with pytest.raises(FleetError, match=says):
            read_key(tmp_path / "root-1.key", passphrase)
    (tmp_path / "root-1.key").chmod(0o644)
    with pytest.raises(FleetError, match="chmod"):
        read_key(tmp_path / "root-1.key", "open sesame")
    with pytest.raises(BriseError, match="is there already"):
        new_key(tmp_path / "root-1.key")
