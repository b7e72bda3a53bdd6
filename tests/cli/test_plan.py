"""`brise plan`: the sum of its parts, the refusal, the pictures, and the JSON that others rely on."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from brise.cli import memory_options
from brise.cli.main import main
from tests.checkpoint import make_folder
from tests.checkpoint.make_gguf import write_tiny

FIELDS = {"version", "model", "fits", "memory", "total", "weights", "cache", "context", "work", "vision_work",
          "audio_work", "image_size", "answers", "experts", "process", "loading", "adapters", "ways"}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    write_tiny(tmp_path / "tiny.gguf", "llama")
    return str(tmp_path / "tiny.gguf")


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    main(["plan", *words, "--json"])
    plan: dict[str, Any] = json.loads(capsys.readouterr().out)
    return plan


def test_the_total_is_the_sum_of_what_is_shown(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    plan = document(capsys, tiny)
    assert set(plan) == FIELDS and plan["version"] == 1
    running = plan["cache"]["bytes"] + sum(
        plan[name] for name in ("work", "vision_work", "audio_work", "answers", "experts"))
    fixed = plan["process"] + plan["adapters"] + plan["weights"]["total"]
    assert plan["total"] == fixed + max(plan["loading"], running)


def test_keys_that_change_nothing_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "llama", extra_metadata={
        "llama.future_flag": True, "llama.rope.scaling.finetuned": True})
    assert document(capsys, str(path))["keys"] == {
        "notes": ["llama.rope.scaling.finetuned"], "unknown": {"llama.future_flag": "True"}}
    assert main(["plan", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "notes: llama.rope.scaling.finetuned\n" in shown
    assert "unknown keys, taken for notes: llama.future_flag = True\n" in shown
    assert main(["plan", str(path), "--strict"]) == 1
    assert "llama.future_flag is True, a key that brise does not know" in capsys.readouterr().err


def test_the_sampling_of_a_models_files_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", "llama", extra_metadata={
        "general.sampling.temp": 0.5, "general.sampling.top_p": 7.0})
    plan = document(capsys, str(path))
    assert plan["sampling"] == {"temperature": 0.5, "source": "general.sampling.*"}
    assert plan["keys"]["notes"] == ["general.sampling.top_p (0 to 1 is allowed)"]
    assert main(["plan", str(path), "--strict"]) == 0
    shown = capsys.readouterr().out
    assert "sampling, unless a request says otherwise: temperature 0.5 (general.sampling.*)\n" in shown


def test_what_fits_exactly_fits_and_a_byte_less_does_not(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    total = document(capsys, tiny, "--context", "32")["total"]
    assert main(["plan", tiny, "--context", "32", "--memory", str(total)]) == 0
    assert main(["plan", tiny, "--context", "32", "--memory", f"{total - 1}B"]) == 1
    assert "does NOT fit" in capsys.readouterr().out


def test_adapters_are_in_the_sum(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    without, plan = document(capsys, tiny), document(capsys, tiny, "--adapter-memory", "5MB", "--adapter-rank", "32")
    assert (without["adapters"], plan["adapters"]) == (0, 5_000_000)
    assert plan["work"] > without["work"], "room for what goes through them in a step"
    assert plan["total"] == without["total"] + 5_000_000 + plan["work"] - without["work"]


def test_a_smaller_cache_is_offered(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--context", "64", "--parallel", "60")
    total = document(capsys, tiny, *asked)["total"]
    ways = document(capsys, tiny, *asked, "--memory", str(total - 1))["ways"]
    assert isinstance(ways, list) and any(way["cache"] == "q8" for way in ways)
    assert any(way["parallel"] for way in ways)


def test_smaller_images_are_offered_alone_and_with_a_smaller_cache(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_folder.write_hf(tmp_path / "seeing", make_folder.tiny("vision"), "old")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = 1540
    config["text_config"]["max_position_embeddings"] = 1 << 20
    (folder / "config.json").write_text(json.dumps(config))
    asked = (str(folder), "--context", "100000")
    for cache, size in (("f16", 784), ("q4", 560)):
        limit = document(capsys, *asked, "--image-size", str(size), "--cache", cache)["total"]
        ways = document(capsys, *asked, "--memory", str(limit))["ways"]
        assert any((way["image_size"], way["cache"], way["context"]) == (size, cache, 100000) for way in ways)
    least = document(capsys, str(folder), "--context", "2000", "--image-size", "280")["total"]
    ways = document(capsys, *asked, "--memory", str(least))["ways"]
    assert any(way["image_size"] == 280 and 2000 <= way["context"] < 100000 for way in ways)


def test_the_picture_fits_80_columns(tiny: str, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    main(["plan", tiny, "--memory", "10MB"])
    lines = capsys.readouterr().out.splitlines()
    main(["plan", tiny, "--memory", "1B"])
    lines += capsys.readouterr().out.splitlines()[:3]
    assert max(map(len, lines[:12] + lines[-3:])) <= 80 and "\x1b" not in "".join(lines)


@pytest.mark.parametrize(("text", "value"), [("4GB", 4_000_000_000), ("3.5GiB", 3_758_096_384), ("800MB", 800_000_000),
                                             ("1024", 1024), ("12 kB", 12_000)])
def test_sizes(text: str, value: int) -> None:
    assert memory_options.size(text) == value


@pytest.mark.parametrize("text", ["", "0", "GB", "-1GB", "4 giga", "1e9", "0GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="4GB"):
        memory_options.size(text)
