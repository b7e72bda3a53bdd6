"""`brise pull PATH` and `brise models`: models are stored, listed, shown and removed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from brise import settings
from brise.cli.main import main
from brise.cli.serve import _locate_all
from brise.engine.model import load
from brise.hub.packed import PackedFolder
from brise.hub.store import ModelStore
from tests.checkpoint import make_folder
from tests.checkpoint.make_tokenizer import write_tokenizer
from tests.hub import make_stores


@pytest.fixture
def pulled(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", str(tiny_path)]) == 0
    capsys.readouterr()


def test_a_file_whose_name_is_not_utf8_is_pulled(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "a\udcff.gguf").write_bytes(tiny_path.read_bytes())
    assert main(["pull", str(tmp_path / "a\udcff.gguf"), "--name", "a"]) == 0
    assert main(["models", "list"]) == 0


def test_pull_prints_the_result_to_stdout_only(tiny_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", str(tiny_path), "--name", "mine"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("mine: ") and "sha256" in out and out.count("\n") == 1
    assert "brise chat mine" in err


def test_pull_refuses_what_is_no_model(
        tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + os.urandom(100))
    assert main(["pull", str(tmp_path / "bad.gguf")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("brise: error: ") and ModelStore(home).names() == []


@pytest.mark.parametrize("words", [["models"], ["models", "list"]])
def test_list_has_one_line_a_model(
        pulled: None, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("tiny ")


def test_list_json_has_every_field(pulled: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [set(entry) for entry in listed] == [
        {"name", "digest", "size", "source", "added", "files", "licence", "revision", "origin"}]


def test_an_empty_list_says_how_to_fill_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr() == ("", "the store is empty; get a model with: brise pull smollm2\n")


def test_show_says_what_the_model_is(pulled: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "show", "tiny", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"]["family"] == "llama" and shown["config"]["max_context"] == 512
    assert Path(shown["path"]).is_file() and shown["formats"] == ["F32"]
    assert main(["models", "show", "tiny"]) == 0
    assert "max_context   512" in capsys.readouterr().out


def test_remove_removes_what_it_can_and_reports_the_rest(
        pulled: None, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "remove", "absent", "tiny"]) == 1
    assert "no model 'absent'" in capsys.readouterr().err
    assert ModelStore(home).names() == [] and list((home / "blobs").iterdir()) == []


def test_a_damaged_entry_does_not_hide_the_others(
        pulled: None, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "manifests" / "broken.json").write_text("{")
    assert main(["models"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("tiny ") and "broken.json is damaged" in err


def test_a_safetensors_folder_is_pulled_shown_and_removed(
        home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_folder.tiny("vision")
    folder = write_tokenizer(make_folder.write_hf(tmp_path / "Tiny", model, "old", num_shards=2), 97)
    assert main(["pull", str(folder)]) == 0 and main(["models", "show", "Tiny", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert shown["config"]["family"] == "ministral3" and shown["formats"] == ["F32"]
    assert {file["name"] for file in shown["files"]} >= {"config.json", "tokenizer.json"}
    assert shown["parameters"] == sum(array.size for array in (*model.arrays.values(), *model.seen.values()))
    assert main(["models", "show", "Tiny"]) == 0 and "model-00001-of-00002.safetensors" in capsys.readouterr().out
    assert main(["models", "remove", "Tiny"]) == 0 and not list((home / "blobs").iterdir())


def test_a_folder_with_an_unknown_key_is_refused_by_name(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder.write_hf(tmp_path / "m", make_folder.tiny("llama_tied"), extra={"logits_scaling": 8.0})
    assert main(["pull", str(folder)]) == 1
    assert "config.json: logits_scaling is 8.0, which brise does not implement" in capsys.readouterr().err


@pytest.fixture
def tools(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ollama's store with one model, and nothing of other tools."""
    make_stores.ollama(tmp_path / "ollama", "mistral", "7b", {
        "model": tiny_path.read_bytes(), "license": b"Apache License\nVersion 2.0", "params": b"{}"})
    monkeypatch.setenv("BRISE_OTHER_STORES", "yes")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    return tmp_path / "ollama"


def test_models_of_other_tools_are_listed_shown_planned_and_asked(
        pulled: None, tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "list"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("tiny ") and second.startswith("ollama:mistral:7b ") and "Ollama" in second
    assert main(["models", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["origin"] for entry in listed] == ["brise", "ollama"] and listed[1]["problem"] is None
    assert main(["models", "show", "mistral", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == "ollama:mistral:7b" and shown["left_out"] == "params"
    assert shown["licence"] == "Apache License"
    assert main(["plan", "ollama:mistral", "--json"]) == 0
    capsys.readouterr()
    assert main(["chat", "mistral:7b", "--max-tokens", "2", "hello"]) == 0
    assert capsys.readouterr().err.startswith("Ollama's params not applied")


@pytest.mark.parametrize(("spec", "name"), [
    ("mistral:7b", "mistral:7b"), ("ollama:mistral:7b", "mistral:7b"), ("mistral", "mistral-7b"),
    ("m=mistral:7b", "m")])
def test_a_served_model_is_called_as_clients_of_ollama_call_it(tools: Path, spec: str, name: str) -> None:
    assert [located.name for located in _locate_all([spec], settings.read())] == [name]


def test_search_lists_names_with_licences_and_what_is_here(
        pulled: None, tools: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "search", "mistral"]) == 0
    out, err = capsys.readouterr()
    assert "mistral:7b" in out and "32768 tokens" in out and "Apache-2.0" in out
    assert err == "on this machine: ollama:mistral:7b\n"
    assert main(["models", "search", "llama3.2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"llama3.2:1b", "llama3.2:3b"} == {model["name"] for model in found}
    assert all(model["limits"] and len(model["digest"]) == 64 for model in found)
    assert main(["models", "search", "no-such-word"]) == 1


def test_a_name_that_is_nowhere_is_refused_with_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["pull", "qwen3:0.5b"], ["chat", "qwen3:0.5b", "hello"], ["plan", "qwen3:0.5b"]):
        assert main(command) == 1
        err = capsys.readouterr().err
        assert "there is no model 'qwen3:0.5b'" in err and "qwen3:0.6b, qwen3:1.7b" in err


def test_packed_weights_are_listed_pruned_and_go_with_their_model(
        pulled: None, tiny_path: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blob = ModelStore(home).path(ModelStore(home).get("tiny"))
    for path in (blob, tiny_path):
        load(path, packed=PackedFolder(home / "packed", least_bytes=0)).keeper.finish()  # type: ignore[union-attr]
    assert main(["models"]) == 0
    assert "packed weights for faster starts" in capsys.readouterr().err
    assert main(["models", "remove", "tiny"]) == 0
    capsys.readouterr()
    assert main(["models", "prune", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["removed"] == [] and [file["sources"] for file in found["kept"]] == [[str(tiny_path)]]
    assert main(["models", "prune", "--all"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("removed") and str(tiny_path) in out and not list((home / "packed").iterdir())
