"""`brise ship` and `brise ship --check` on the command line; and the real SmolLM2 from one machine to an empty one."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from brise.checkpoint.adapters.lineage import base_digest
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.files.digests import Located
from brise.fleet import keys
from brise.fleet.gate_prompts import read_gate
from brise.fleet.keys import CeremonyOptions, CreateKeys
from brise.fleet.shipped_gate import SHIPPED, GateQuestion, asked
from brise.fleet.sources import FolderSource
from brise.fleet.trust import TrustedRepository
from brise.memory.opening import EngineOptions
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.fleet.shipping import Workshop, workshop


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path / "home"))
    (tmp_path / "shop").mkdir()
    made = workshop(tmp_path / "shop")
    keys.create(CeremonyOptions(), CreateKeys())
    return made


def test_what_was_shipped_is_shown_and_verifies(shop: Workshop, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ship", str(shop.model), "--name", "tickets", "--adapter", str(shop.adapter()), "--gate",
             str(shop.folder / "gate.jsonl"), "--gate-tokens", "4", "--context", "64", "--licence", "MIT", "--to",
             str(tmp_path / "stick"), "--valid", "90d"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "tickets 1" in shown and "KL" in shown and "lineage" in shown
    assert main([*words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["version"], made["to"], made["offered"]) == (2, [str(tmp_path / "stick")], True)
    root = str(tmp_path / "home/fleet/keys/root.json")
    assert main(["ship", "--check", str(tmp_path / "stick"), "--root", root]) == 0
    shown = capsys.readouterr().out
    assert "tickets 1" in shown and "tickets 2" in shown and made["digest"][:12] in shown
    assert main(["ship", "--check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sound"] and [one["manifest"]["version"] for one in found["bundles"]] == [1, 2]
    assert found["bundles"][1]["digest"] == made["digest"] and found["bundles"][1]["manifest"]["licence"] == "MIT"


def test_a_byte_that_rotted_on_the_stick_is_found(shop: Workshop, tmp_path: Path,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ship", str(shop.model), "--name", "tickets", "--gate", str(shop.folder / "gate.jsonl"),
                 "--gate-tokens", "4", "--context", "64", "--licence", "MIT", "--to", str(tmp_path / "stick")]) == 0
    (blob,) = (tmp_path / "stick/targets/blobs/sha256").iterdir()
    data = bytearray(blob.read_bytes())
    data[7] ^= 1
    blob.write_bytes(data)
    capsys.readouterr()
    assert main(["ship", "--check", str(tmp_path / "stick"), "--json"]) == 3
    (found,) = json.loads(capsys.readouterr().out)["bundles"]
    assert "digest" in found["problem"]


def test_without_what_is_needed_the_command_says_so(capsys: pytest.CaptureFixture[str], shop: Workshop) -> None:
    assert main(["ship", str(shop.model)]) == 1
    assert "--name and --gate" in capsys.readouterr().err
    assert main(["ship", "--check", "/nowhere"]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_keys_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                  capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    monkeypatch.setenv("SECRET", "open sesame")
    place, made = str(tmp_path / "fleet/keys"), str(tmp_path / "new")
    assert main(["fleet", "keys", "create", "--passphrase-env", "SECRET"]) == 0
    assert main(["fleet", "keys", "create", made, "--repository", str(tmp_path / "other")]) == 0
    capsys.readouterr()
    assert main(["fleet", "keys", "rotate", "hub", "--new", f"{made}/hub.pub", "--old", f"{place}/hub.pub", "--sign",
                 f"{place}/root-1.key", "--passphrase-env", "SECRET"]) == 0
    assert "1 more root signature needed" in capsys.readouterr().err
    assert main(["fleet", "keys", "sign", f"{place}/root-2.key", "--passphrase-env", "SECRET"]) == 0
    found = capsys.readouterr()
    assert found.out == "root 2\n" and "renew --release" in found.err
    assert main(["fleet", "keys", "renew", "--release", f"{place}/release.key", "--hub", f"{made}/hub.key", "--valid",
                 "30d", "--passphrase-env", "SECRET"]) == 0
    capsys.readouterr()
    assert main(["fleet", "keys", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["root"] == 2
    assert main(["fleet", "keys", "show"]) == 0 and "2 of 3" in capsys.readouterr().out


def test_smollm2_and_an_adapter_come_to_an_empty_machine_offline(
        smollm2_path: Path, shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    config = open_checkpoint(smollm2_path).config
    low_ranks = {path: replace(one, b=one.b * 0.003) for path, one in random_low_ranks(
        config, 7, modules=("q_proj", "v_proj")).items()}
    lineage = replace(LINEAGE, base_digest=base_digest(Located("smollm2", smollm2_path)))
    tool = {"type": "function", "function": {"name": "light", "parameters": {"type": "object", "properties": {}}}}
    (shop.folder / "gate.jsonl").write_text("".join(json.dumps({
        "messages": [{"role": "user", "content": text}], "tools": tools}) + "\n" for text, tools in (
            ("one", []), ("Turn on the light.", [tool]))))
    write_adapter(tmp_path / "adapter", AdapterFile(low_ranks, 3, 6.0), lineage, config)
    assert main(["ship", str(smollm2_path), "--name", "smol", "--adapter", str(tmp_path / "adapter"), "--gate",
                 str(shop.folder / "gate.jsonl"), "--gate-prompts", "2", "--gate-tokens", "8", "--context", "256",
                 "--licence", "Apache-2.0", "--with-base", "--to", str(tmp_path / "stick"), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    root = (tmp_path / "home/fleet/keys/root.json").read_bytes()
    device = TrustedRepository(FolderSource(tmp_path / "stick"), tmp_path / "device", root)
    device.refresh()
    bundle = device.bundle(made["digest"])
    device.fetch_bundle(bundle, tmp_path / "slot")

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a connection to {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    gate = read_gate((tmp_path / "slot/gate.jsonl").read_bytes())
    (base,) = (tmp_path / "slot/base").iterdir()
    with asked(Located("empty", base), EngineOptions(context=256, parallel=4), {
            SHIPPED: tmp_path / "slot/adapter"}) as engine:
        assert engine.fingerprint(SHIPPED) == bundle.fingerprint
        assert engine.answers(SHIPPED, [GateQuestion(one.messages, one.tools) for one in gate], 8) == gate
