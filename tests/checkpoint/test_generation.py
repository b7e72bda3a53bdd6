"""How the makers of a model want it sampled, from generation_config.json and from the keys of a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brise.checkpoint.generation import Generation, folder_generation, gguf_generation, gguf_keys
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.read_original import open_original
from brise.checkpoint.write_gguf import write_mix
from brise.checkpoint.write_hf import write_hf
from brise.text.inputs import PartialSampling
from tests.checkpoint import make_folder
from tests.checkpoint.make_tokenizer import write_tokenizer

QWEN3 = {"bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643,
         "temperature": 0.6, "top_k": 20, "top_p": 0.95, "transformers_version": "4.51.0"}


def read(folder: Path, config: object) -> Generation:
    (folder / "generation_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return folder_generation(folder)


@pytest.mark.parametrize(("config", "sampling"), [
    (QWEN3, PartialSampling(0.6, 20, 0.95)),
    ({"temperature": None, "top_k": -1, "min_p": 0}, PartialSampling(top_k=0, min_p=0.0)),
    ({"repetition_penalty": 1.05}, PartialSampling(repetition_penalty=1.05)),
    ({"do_sample": False, "temperature": 0.6}, PartialSampling(temperature=0.0)),
    ({"max_length": 9}, PartialSampling()),
    ({"top_k": 50.0}, PartialSampling(top_k=50))])
def test_generation_config_says_the_sampling(tmp_path: Path, config: object, sampling: PartialSampling) -> None:
    generation = read(tmp_path, config)
    assert (generation.sampling, generation.notes) == (sampling, ())
    assert generation.source == "generation_config.json"


@pytest.mark.parametrize(("config", "note"), [
    ({"temperature": "warm"}, "generation_config.json: temperature (0 to 2 is allowed)"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": True}, "temperature"), ({"top_k": 2.5}, "top_k"), ({"top_p": 1.5}, "top_p (0 to 1"),
    ({"repetition_penalty": 0}, "repetition_penalty (0.01 to 10"), ({"top_k": 10**400}, "top_k"),
    ({"no_repeat_ngram_size": 3}, "generation_config.json: no_repeat_ngram_size"), ({"num_beams": 4}, "num_beams"),
    ({"max_new_tokens": 40}, "max_new_tokens"), ("{", "generation_config.json"),
    ('{"top_p": NaN}', "generation_config.json")])
def test_what_is_bad_or_not_done_there_is_a_note(tmp_path: Path, config: object, note: str) -> None:
    generation = read(tmp_path, config)
    assert generation.sampling == PartialSampling()
    assert [note in key.name and key.is_known for key in generation.notes] == [True]


def test_gguf_keys_say_the_sampling_as_llama_cpp_writes_them() -> None:
    generation = gguf_generation({
        "general.sampling.temp": 0.699999988079071, "general.sampling.top_k": 20, "general.sampling.top_p": 0.8,
        "general.sampling.min_p": 0.0, "general.sampling.penalty_repeat": 1.0499999523162842,
        "general.sampling.mirostat": 0, "general.sampling.mirostat_tau": 5.0, "general.sampling.xtc_probability": 0.5})
    assert generation.sampling == PartialSampling(0.7, 20, 0.8, 0.0, 1.05, 64)  # 64: llama.cpp's own last_n
    assert [key.name for key in generation.notes] == ["general.sampling.xtc_probability"]
    assert str(generation) == ("temperature 0.7, top_k 20, top_p 0.8, min_p 0.0, repetition_penalty 1.05, "
                               "repeat_last_n 64 (general.sampling.*)")
    assert gguf_generation({"general.name": "x"}).sampling == PartialSampling()


def test_a_whole_penalty_stays_whole_in_a_gguf_file() -> None:
    keys = gguf_keys(PartialSampling(repetition_penalty=1.1))
    assert keys == {"general.sampling.penalty_repeat": 1.1, "general.sampling.penalty_last_n": -1}
    assert gguf_generation(keys).sampling == PartialSampling(repetition_penalty=1.1, repeat_last_n=-1)


def test_the_sampling_goes_along_into_other_formats(tmp_path: Path) -> None:
    model = make_folder.tiny("llama_tied")
    (tmp_path / "hf").mkdir()
    make_folder.write_hf(tmp_path / "hf", model, "text", "F32")
    write_tokenizer(tmp_path / "hf", model.config["vocab_size"])
    sampling = read(tmp_path / "hf", QWEN3 | {"eos_token_id": 2}).sampling
    write_mix(open_original(tmp_path / "hf"), tmp_path / "middle.gguf", "F32")
    write_hf(open_original(tmp_path / "middle.gguf"), tmp_path / "back", "F32")
    for path in (tmp_path / "hf", tmp_path / "middle.gguf", tmp_path / "back"):
        assert open_checkpoint(path).generation.sampling == sampling, path
