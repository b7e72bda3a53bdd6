"""Steps of a tokenizer.json: those of known models run, everything else is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from brise.errors import BriseError, CheckpointError, UnsupportedError
from brise.text import hf_tokenizer, pretokenizers, special_tokens, tokenizer_steps
from brise.text.pretokenizers import PATTERNS
from brise.text.tokenizer import Tokenizer
from tests.text.test_hf_tokenizer import CONFIG, write
from tests.text.vocabulary import tokenizer


def split(**changes: object) -> dict[str, object]:
    plain = {"type": "Split", "pattern": {"Regex": sorted(PATTERNS)[0]}, "behavior": "Isolated", "invert": False}
    return plain | changes


def sequence(part: str, *steps: object) -> dict[str, object]:
    return {"type": "Sequence", {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers"}[part]: list(steps)}


@pytest.mark.parametrize("steps", [
    None, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, split(),
    sequence("pre_tokenizer", {"type": "Digits", "individual_digits": True}, split(pattern={"String": " "})),
    sequence("pre_tokenizer", sequence("pre_tokenizer", {"type": "Punctuation", "behavior": "Contiguous"}))])
def test_steps_of_known_models_run(tmp_path: Path, steps: object) -> None:
    hf_tokenizer.read_steps({"pre_tokenizer": steps, "normalizer": sequence("normalizer", {"type": "NFC"})},
                            tmp_path / "tokenizer.json")


@pytest.mark.parametrize("pattern", sorted(PATTERNS))
def test_every_pattern_compiles(tmp_path: Path, pattern: str) -> None:
    steps = hf_tokenizer.read_steps({"pre_tokenizer": split(pattern={"Regex": pattern})}, tmp_path / "tokenizer.json")
    assert steps.pre_tokenizer is not None and steps.pre_tokenizer.pre_tokenize_str("Hello  w0rld,\n123 ")


@pytest.mark.parametrize(("part", "step", "message"), [
    ("normalizer", {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 20000}, "Replace"),
    ("normalizer", {"type": "Prepend", "prepend": ""}, "Prepend"), ("normalizer", {"type": "Lowercase"}, "Lowercase"),
    ("normalizer", {"type": "NFC", "more": 1}, r"NFC\.more"), ("normalizer", split(), "Split"),
    ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, "Precompiled"),
    ("pre_tokenizer", {"type": "Metaspace", "replacement": "_"}, "Metaspace"),
    ("pre_tokenizer", {"type": "FixedLength", "length": 0}, "FixedLength"),
    ("pre_tokenizer", split(pattern={"Regex": "(a+)+$"}), "splits by a pattern"),
    ("pre_tokenizer", split(behavior="Twice"), r"Split\.behavior"),
    ("pre_tokenizer", {"type": "ByteLevel", "use_regex": "yes"}, r"ByteLevel\.use_regex")])
def test_any_other_step_is_refused_by_name(tmp_path: Path, part: str, step: dict[str, Any], message: str) -> None:
    for steps in (step, sequence(part, sequence(part, step))):
        with pytest.raises(UnsupportedError, match=message):
            Tokenizer.from_hf(write(tmp_path, **{part: steps}), CONFIG)


@pytest.mark.parametrize("steps", [
    5, [], {"type": 3}, {"type": "Sequence"}, split(pattern={"String": ""}), split(pattern={"String": "a" * 65}),
    split(pattern={"String": "a", "Regex": "b"}), split(pattern="a"), {"type": "Sequence", "pretokenizers": [split()] *
    17}])
def test_what_is_no_step_is_refused(tmp_path: Path, steps: object) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        tokenizer_steps.check(steps, "pre_tokenizer", "tokenizer.json")


def test_sequences_are_bounded_in_depth() -> None:
    steps: object = {"type": "NFC"}
    for _ in range(200):
        steps = sequence("normalizer", steps)
    with pytest.raises(CheckpointError, match="depth"):
        tokenizer_steps.check(steps, "normalizer", "tokenizer.json")


class Panic(BaseException):
    """As the library's panics: no Exception."""


def test_a_panic_of_the_library_is_our_error() -> None:
    with pytest.raises(CheckpointError, match="x: oh no"), hf_tokenizer.library_errors("x", "y"):
        raise Panic("oh no")
    with pytest.raises(KeyboardInterrupt), hf_tokenizer.library_errors("x", "y"):
        raise KeyboardInterrupt


@pytest.mark.parametrize(("control", "message"), [
    (["<s>", "<" + "a" * 256], "special token 1 is 257, allowed is at most 256"),
    ([f"<{number}>" for number in range(special_tokens.MAX_COUNT + 1)], "number of special tokens is 32769"),
    ([f"<{number:0>250}>" for number in range(5000)], "length of all special tokens is")])
def test_special_tokens_are_bounded(control: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        tokenizer(control=control)


def test_a_special_token_of_the_longest_kind_is_read() -> None:
    longest = "<" + "a" * 255
    assert tokenizer(control=("<s>", longest)).encode(f"a{longest}", parse_control=True)[-1] == 1


def test_ids_far_apart_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BriseError, match="ids up to 2000000"):
        Tokenizer.from_hf(write(tmp_path, added_tokens=[{"id": 2_000_000, "content": "<s>", "special": True}]), CONFIG)


def test_the_patterns_of_gguf_names_are_known() -> None:
    for name in ("llama-bpe", "qwen2", "tekken", "gpt-4o", "default"):
        assert set(pretokenizers.named(name).patterns) <= PATTERNS
