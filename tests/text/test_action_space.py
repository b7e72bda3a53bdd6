"""Action spaces: the file, the tokens, and what no model can make a robot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import ArrayLike

from brise.checkpoint.open import open_checkpoint
from brise.errors import BriseError, CheckpointError, RequestError, UnsupportedError
from brise.text import action_space
from brise.text.action_space import Actions, ActionSpace, ActionValue
from brise.text.load import tokens_for
from tests.checkpoint.make_gguf import write_tiny

DRONE = """
name = "drone"
steps = 3
period_s = 0.05
[values.vx]
unit = "m/s"
low = -3.0
high = 3.0
bins = 21
max_change = 0.6
[values.height]
low = 1
high = 5
bins = 9
"""
SPACE = ActionSpace("drone", (ActionValue("vx", -3.0, 3.0, 21, "m/s", 0.6), ActionValue("height", 1, 5, 9, brake=1)),
                    3, 0.05)
ACTIONS = Actions(SPACE, tuple(range(100, 121)))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return path


def test_a_file_says_what_a_robot_can_be_told(tmp_path: Path) -> None:
    assert action_space.read_action_space(written(tmp_path, DRONE)) == SPACE


def test_what_can_be_sent_is_within_the_limits_and_the_rates() -> None:
    assert [each.tolist() for each in SPACE.reachable(None)] == [[-3.0, 1.0], [3.0, 5.0]]
    low, high = SPACE.reachable([2.8, 2.0])
    assert low == pytest.approx([2.2, 1.0]) and high == pytest.approx([3.0, 5.0])  # height has no rate


def test_the_lineage_keeps_space_and_tokens() -> None:
    assert action_space.from_settings(ACTIONS.settings()) == ACTIONS
    assert action_space.from_settings({"lr": 0.1}) is None


@pytest.mark.parametrize(("old", "new", "named"), [
    ("low = -3.0", "low = 3.0", "low"), ("low = -3.0", 'low = "a"', "low"), ("low = -3.0", "low = nan", "low"),
    ("bins = 21", "bins = 1", "bins"), ("bins = 21", "bins = 257", "bins"), ("bins = 21", "", "bins"),
    ("max_change = 0.6", "max_change = -1", "max_change"), ("steps = 3", "steps = 0", "steps"),
    ("steps = 3", "steps = 257", "steps"), ("period_s = 0.05", "period_s = inf", "period_s"),
    ("bins = 9", "bins = 9\nbrake = 6", "brake"), ("bins = 9", "bins = 9\nmode = 1", "mode"),
    ("[values.height]", "[values.vx]", "TOML"), ("steps = 3", "steps = 3\nrate = 1", "rate")])
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, old: str, new: str, named: str) -> None:
    with pytest.raises(BriseError, match=named) as caught:
        action_space.read_action_space(written(tmp_path, DRONE.replace(old, new, 1)))
    assert "space.toml" in str(caught.value)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.toml"):
        action_space.read_action_space(tmp_path / "none.toml")
    (tmp_path / "big.toml").write_bytes(b"#" * (action_space.MAX_FILE_BYTES + 1))
    with pytest.raises(CheckpointError, match="65536 bytes"):
        action_space.read_action_space(tmp_path / "big.toml")


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(1, 5)), min_size=3, max_size=3))
def test_what_is_encoded_comes_back_to_half_a_bin(commands: list[tuple[float, float]]) -> None:
    back = ACTIONS.decode(ACTIONS.encode(commands))
    assert np.all(np.abs(back - np.array(commands)) <= np.array([0.15, 0.25]) + 1e-9)


@given(st.integers(0, 2**32 - 1), st.none() | st.tuples(st.floats(-9, 9), st.floats(-9, 9)))
def test_no_answer_leaves_the_limits_or_the_rates(seed: int, last: tuple[float, float] | None) -> None:
    random = np.random.default_rng(seed)
    tokens = [int(random.choice(allowed)) for allowed in ACTIONS.choices]
    commands = ACTIONS.commands(tokens, last)
    assert commands.shape == (3, 2)
    assert np.all(commands >= [-3, 1]) and np.all(commands <= [3, 5])
    before = commands[0] if last is None else np.clip(last, [-3, 1], [3, 5])
    assert np.all(np.abs(np.diff(np.vstack([before, commands])[:, 0])) <= 0.6 + 1e-9)


def test_an_answer_that_ended_early_gives_its_whole_steps() -> None:
    tokens = ACTIONS.encode([[0.0, 1.0], [0.3, 2.0], [0.6, 3.0]])
    assert np.allclose(ACTIONS.decode(tokens[:5]), [[0.0, 1.0], [0.3, 2.0]])
    assert ACTIONS.decode(tokens[:1]).shape == (0, 2)


def test_a_token_of_no_bin_is_refused() -> None:
    with pytest.raises(RequestError, match="token 120 at place 1"):
        ACTIONS.decode([100, 120])  # the height has 9 bins
    with pytest.raises(RequestError, match="place 6"):
        ACTIONS.decode([100, 100] * 4)


@pytest.mark.parametrize("wrong", [[[0, 1]], [[0, 1, 2]] * 3, [[0, float("nan")]] * 3])
def test_actions_of_another_shape_are_refused(wrong: ArrayLike) -> None:
    with pytest.raises(RequestError, match="drone takes"):
        ACTIONS.encode(wrong)


def test_a_number_that_is_none_stays_at_the_last_command() -> None:
    assert SPACE.limited([float("nan"), 2], [1.5, 2]).tolist() == [1.5, 2]
    assert SPACE.limited([float("nan"), float("inf")], None).tolist() == [0, 1]


def test_an_adapter_of_another_space_is_refused() -> None:
    action_space.require_same(ACTIONS, SPACE)
    with pytest.raises(UnsupportedError, match="was trained on the action space 'drone'"):
        action_space.require_same(ACTIONS, replace(SPACE, steps=2))


WORDS = ActionValue("gate", 0, 2, 3, brake=2, words=("red", "blue", "none"))


def test_bins_that_are_words_have_the_words_tokens(tmp_path: Path) -> None:
    text = DRONE + '[values.gate]\nwords = ["red", "blue", "none"]\nbrake = 2\n'
    space = action_space.read_action_space(written(tmp_path, text))
    assert space == replace(SPACE, values=(*SPACE.values, WORDS)) and space.most_bins == 21
    actions = Actions(space, ACTIONS.tokens, ((7, 5, 9),))
    tokens = actions.encode([[0.0, 1.0, 1.0]] * 3)
    assert tokens[2] == 5 and actions.choices[2] == (7, 5, 9) and actions.decode(tokens)[0].tolist() == [0, 1, 1]
    assert action_space.from_settings(actions.settings()) == actions
    with pytest.raises(RequestError, match="token 100 at place 2"):
        actions.decode([100, 100, 100])


@pytest.mark.parametrize("words", [(), ((7, 5),), ((7, 5, 5),), ((7, 5, 9), (1, 2))])
def test_words_without_their_tokens_are_refused(words: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(CheckpointError, match="words"):
        Actions(replace(SPACE, values=(*SPACE.values, WORDS)), ACTIONS.tokens, words)


@pytest.mark.parametrize(("line", "named"), [
    ('words = ["red"]', "values.gate|'gate'"), ('words = ["red", "red"]', "words"),
    ('words = ["red", "blue"]\nbins = 3', "words"), ("words = 3", "words")])
def test_wrong_words_are_refused_by_name(tmp_path: Path, line: str, named: str) -> None:
    with pytest.raises(BriseError, match=named):
        action_space.read_action_space(written(tmp_path, f"{DRONE}[values.gate]\n{line}\n"))


def test_a_word_has_its_token_or_a_rare_one(tmp_path: Path) -> None:
    tokenizer = tokens_for(open_checkpoint(write_tiny(tmp_path / "tiny.gguf", "llama"))).tokenizer
    one = next(text for token in range(tokenizer.vocab_size) if (text := tokenizer.decode([token])).isalpha()
               and tokenizer.encode(text) == [token] and len(tokenizer.encode(f" {text}")) > 1)
    space = replace(SPACE, values=(replace(WORDS, words=(one, "an unusual word", "another unusual word")),))
    (own,) = action_space.with_rarest_tokens(space, tokenizer).words
    assert own[0] == tokenizer.encode(one)[0] and len(set(own)) == 3
