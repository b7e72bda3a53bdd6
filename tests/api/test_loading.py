"""`brise.load`: what a name means, what fits, and what is refused before a weight is read."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import brise
from brise.cli.main import main
from brise.hub.store import ModelStore
from tests.checkpoint import make_folder
from tests.checkpoint.make_gguf import write_tiny
from tests.text import tekken

ROOT = Path(__file__).parent.parent.parent


def test_a_name_of_the_store_a_path_and_a_folder_are_the_same_model(tiny_path: Path, home: Path) -> None:
    assert main(["pull", str(tiny_path), "--name", "small"]) == 0
    for place in ("small", tiny_path, str(tiny_path), tiny_path.parent):
        with brise.load(place, threads=1) as model:
            assert model.chat("hi", temperature=0, max_tokens=4).text
            assert model.name == ("small" if place == "small" else tiny_path.parent.name if place == tiny_path.parent
                                  else "tiny")


def test_a_hub_reference_is_what_was_pulled_from_there(tiny_path: Path, home: Path) -> None:
    assert main(["pull", str(tiny_path), "--name", "small"]) == 0
    store = ModelStore(home)
    store._write_manifest(replace(store.get("small"), source="hf:owner/repo"))
    with brise.load("hf:owner/repo", threads=1) as model:
        assert model.name == "small"


@pytest.mark.parametrize(("name", "hint"), [
    ("smollm2", "brise pull smollm2"), ("hf:owner/repo", "brise pull hf:owner/repo")])
def test_a_model_that_is_not_here_is_an_error_with_the_line_that_gets_it(name: str, hint: str) -> None:
    with pytest.raises(brise.StoreError) as error:
        brise.load(name)
    assert error.value.hint == hint


def test_a_model_with_a_tekken_json_works_as_a_gguf_does(tmp_path: Path) -> None:
    with brise.load(tekken_folder(tmp_path), threads=1) as model:
        answer = model.chat([{"role": "user", "content": "hi"}], temperature=0, max_tokens=6)
        assert answer.usage.completion_tokens == 6 and answer.text == model.chat("hi", temperature=0, max_tokens=6).text
        assert model.decode(model.encode("the wind")) == "the wind"
        nothing = brise.Tool("weather", parameters={"type": "object", "properties": {}, "additionalProperties": False})
        called = model.chat("weather?", tools=[nothing], tool_choice="weather", temperature=0)
        assert [call.name for call in called.calls] == ["weather"] and len(called.calls[0].id) == 9


def tekken_folder(folder: Path) -> Path:
    """A random model in Mistral's own layout, with the vocabulary of a tekken.json."""
    tiny = make_folder.tiny("ministral3_yarn1_tied")
    size = tekken.NUM_TEXT + tekken.NUM_CONTROL
    random = np.random.default_rng(0)
    embeddings = random.normal(0, 0.1, (size, tiny.arrays["tok_embeddings"].shape[1])).astype(np.float32)
    tekken.write(folder, "v13", control=tekken.control_names("v13", can_think=False))
    return make_folder.write_native(folder, replace(
        tiny, config={**tiny.config, "vocab_size": size}, arrays={**tiny.arrays, "tok_embeddings": embeddings}))


def test_memory_is_planned_and_kept(tiny_path: Path) -> None:
    code = ("import brise, sys\n"
            "with brise.load(sys.argv[1], memory='300MB', context=128, parallel=2) as model:\n"
            "    print(model.chat('hi', max_tokens=4).usage.completion_tokens, model.max_context)\n"
            "from brise.memory import process\n"
            "assert process.peak_bytes() < 300e6, process.peak_bytes()\n")
    done = subprocess.run([sys.executable, "-c", code, tiny_path], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["4", "128"], done.stderr


def test_what_does_not_fit_is_refused_with_the_numbers(tiny_path: Path) -> None:
    with pytest.raises(brise.MemoryLimitError, match="MB more than the limit of 20.0 MB: weights") as error:
        brise.load(tiny_path, memory="20MB")
    assert error.value.needed > error.value.limit == 20_000_000


def test_what_this_program_takes_already_counts(tiny_path: Path) -> None:
    code = ("import brise, sys\n"
            "ballast = b'x' * 400_000_000\n"
            "try:\n"
            "    brise.load(sys.argv[1], memory='300MB', context=128, parallel=2)\n"
            "except brise.MemoryLimitError as error:\n"
            "    print(error.needed > 450e6)\n")
    done = subprocess.run([sys.executable, "-c", code, tiny_path], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.parametrize(("options", "message"), [
    ({"device": "tpu"}, "device is 'tpu', allowed are cpu, vulkan, vulkan:N"),
    ({"memory": "much"}, "memory is 'much': a size such as 4GB"), ({"memory": 0}, "memory is 0"),
    ({"cache": "q2"}, "cache is 'q2', allowed is 'f16', 'q8', 'q4'"), ({"weights": "Q9"}, "weights is 'Q9'"),
    ({"parallel": 0}, "parallel is 0"), ({"threads": 1000}, "threads is 1000"), ({"context": 1000}, "allows 1 to 512"),
    ({"image_size": 100}, "has no vision"), ({"adapters": {"a": "/nope"}}, "no adapter can be loaded"),
    ({"adapters": {"a": "/nope"}, "max_adapters": True}, "max_adapters is True")])
def test_a_wrong_argument_is_named(tiny_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(brise.BriseError, match=message):
        brise.load(tiny_path, **options)  # type: ignore[arg-type]


def test_the_engine_ends_with_the_model_that_nobody_has(tiny_path: Path) -> None:
    model = brise.load(tiny_path, threads=1)
    worker = model.worker
    del model
    assert not worker.is_open


def test_a_program_that_forgets_to_close_ends_all_the_same(tiny_path: Path) -> None:
    code = "import brise, sys; model = brise.load(sys.argv[1]); stream = model.stream('hi'); next(stream)"
    done = subprocess.run([sys.executable, "-c", code, tiny_path], capture_output=True, text=True, timeout=60,
                          check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_real_model_answers(smollm2_path: Path) -> None:
    with brise.load(smollm2_path) as model:
        given = "The capital of France is"
        assert model.score(" Paris", given=given).total > model.score(" cheese", given=given).total + 2
        assert model.chat("hi", temperature=0, max_tokens=4).usage.completion_tokens <= 4


def test_a_quantised_cache_and_weights_are_taken(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "plain.gguf", "llama", format="F16")
    with brise.load(path, threads=1, cache="q8", weights="Q8_0", parallel=2) as model:
        assert model.chat("hi", max_tokens=3).usage.completion_tokens == 3
