"""A tiny student moves towards its teacher: on the teacher's numbers, and on answers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from brise.checkpoint.open import open_checkpoint
from brise.data.example import EncodedRow
from brise.errors import CheckpointError, UnsupportedError
from brise.models.weights import Array
from brise.text.load import tokens_for
from brise.tune import adapters
from brise.tune.distill import on_policy, teacher
from brise.tune.distill.on_policy import Prompt, Round, Rounds
from brise.tune.distill.student import Student
from brise.tune.distill.teacher import Recording
from brise.tune.options import RoundOptions
from brise.tune.parity import parity
from brise.tune.parity.parity import ParityPair
from brise.tune.parity.replay import TorchSide
from brise.tune.recipe import Direction, Method, Recipe
from brise.tune.train import ComputeOptions, Trainer

from .parity_models import Tiny, tiny

RECIPE = Recipe(rank=8, learning_rate=1e-2, batch_size=8, steps=60, warmup=0.0, schedule="constant")
GENTLE = replace(RECIPE, learning_rate=3e-3, batch_size=16)
PLAN = RoundOptions(rounds=4, prompts=32, steps=16, max_tokens=8)
SEED = 1
NEAR = 0.05  # the size of an adapter that makes a teacher not too far from the student


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny(tmp_path_factory.mktemp("distil"))


def trainer_of(model: Tiny, rows: Sequence[EncodedRow], recipe: Recipe) -> Trainer:
    return Trainer(model.config, adapters.new(model.trained().weights, recipe), recipe, ComputeOptions(), rows)


def distance(model: Tiny, trainer: Trainer, teacher_side: TorchSide, rows: Sequence[EncodedRow]) -> float:
    """Mean KL(teacher || student)."""
    return parity.compare(ParityPair(teacher_side, TorchSide(model.config, trainer.trained.weights)), rows).kl_mean


def test_a_student_learns_a_teacher_s_logits(model: Tiny) -> None:
    side, recording = model.trained(model.adapter()), Recording(288, 32)
    rows = teacher.taught(model.rows, list(teacher.record(side, model.rows, recording)))
    trainer = trainer_of(model, rows, RECIPE)
    before = distance(model, trainer, side, model.rows)
    losses = [trainer.run_step().loss for _ in range(60)]
    assert losses[-1] < losses[0] / 4 and distance(model, trainer, side, model.rows) < before / 4


def test_all_of_the_teacher_or_a_share_of_it(model: Tiny) -> None:
    side = model.trained(model.adapter())
    rows = teacher.taught(model.rows, list(teacher.record(side, model.rows, Recording(288, 288))))
    plain = trainer_of(model, model.rows, RECIPE).run_step().loss
    kl = trainer_of(model, rows, RECIPE).run_step().loss
    mixed = trainer_of(model, rows, replace(RECIPE, distill_weight=0.25)).run_step().loss
    assert mixed == pytest.approx(0.25 * kl + 0.75 * plain, rel=1e-5)


class Class:
    """A tiny student that answers with the engine and learns with the trainer, and its teacher."""

    def __init__(self, model: Tiny, folder: Path, direction: Direction = "reverse", method: Method = "lora") -> None:
        self.recipe = replace(GENTLE, distill_direction=direction, method=method)
        self.trainer = trainer_of(model, model.rows, self.recipe)
        self.model, self.folder = model, folder
        self.teacher = model.trained(model.adapter(size=NEAR))
        checkpoint = open_checkpoint(model.path)
        self.student = Student(checkpoint, tokens_for(checkpoint), self.recipe, folder / "scratch", 1, 1.0)
        self.num_asked = 0

    def sample(self, prompts: Sequence[Prompt], seed: int) -> list[Array] | None:
        self.num_asked += 1
        return self.student.answers(self.trainer.trained, prompts, seed, lambda: False, lambda count: None)

    def rounds(self, plan: RoundOptions = PLAN) -> Rounds:
        return Rounds(prompts(self.model, plan), self.sample,
                      lambda rows: list(teacher.record(self.teacher, rows, Recording(288, 64))), plan, SEED,
                      self.folder / "answers", lambda answer: "")

    def distance(self) -> float:
        """Mean KL(teacher || student) on new answers of its own."""
        answers = self.sample(prompts(self.model, PLAN), 99)
        assert answers is not None
        rows = [EncodedRow(np.concatenate([prompt.tokens, answer]), np.arange(len(prompt.tokens) + len(answer)) >= len(
            prompt.tokens), "own") for prompt, answer in zip(prompts(self.model, PLAN), answers, strict=True)]
        return distance(self.model, self.trainer, self.teacher, rows)

    def run(self) -> list[float]:
        """All rounds; the losses of the steps."""
        losses = []
        for number in range(PLAN.rounds):
            found = self.rounds().of(number)
            assert found is not None and len(found.rows) == PLAN.prompts
            self.trainer.rows = found.rows
            losses += [self.trainer.run_step().loss for _ in range(PLAN.steps)]
        return losses


def prompts(model: Tiny, plan: RoundOptions) -> list[Prompt]:
    return on_policy.prompts_of(model.rows * 4, model.rows * 4, plan, lambda own, theirs: 100)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_rounds_bring_the_student_nearer_to_the_teacher(model: Tiny, direction: Direction, tmp_path: Path) -> None:
    one = Class(model, tmp_path, direction)
    before = one.distance()
    losses = one.run()
    assert losses[-1] < losses[0] / 2 and one.distance() < 0.65 * before


@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_the_student_answers_as_it_stands(model: Tiny, method: Method, tmp_path: Path) -> None:
    """Greedily: what the trainer's model finds the likeliest, before training and after it."""
    one = Class(model, tmp_path, method=method)
    one.student = replace(one.student, temperature=0.0)
    one.trainer.recipe = replace(one.recipe, learning_rate=1e-3 if method == "full" else 3e-2)
    for _ in range(2):
        asked = prompts(model, PLAN)[:6]
        answers = one.sample(asked, 0)
        assert answers is not None
        side = TorchSide(model.config, one.trainer.trained.weights)
        rows = [EncodedRow(np.concatenate([prompt.tokens, answer]), np.arange(len(prompt.tokens) + len(answer)) >= len(
            prompt.tokens), "own") for prompt, answer in zip(asked, answers, strict=True)]
        found = teacher.taught(rows, list(teacher.record(side, rows, Recording(288, 2))))
        agreed = [row.tokens[row.is_target] == row.teacher.tokens[:, 0] for row in found if row.teacher is not None]
        assert np.concatenate(agreed).mean() > 0.9  # the engine multiplies 8-bit integers
        for _ in range(5):
            one.trainer.run_step()
    assert not (tmp_path / "scratch").exists()


def test_the_same_weights_and_seed_give_the_same_rounds(model: Tiny, tmp_path: Path) -> None:
    one, other = Class(model, tmp_path / "one"), Class(model, tmp_path / "other")
    for which in (one, other):
        which.folder.mkdir()
    assert one.run() == other.run()
    texts = [sorted((which.folder / "answers").iterdir()) for which in (one, other)]
    assert [path.read_bytes() for path in texts[0]] == [path.read_bytes() for path in texts[1]]
    assert len({tuple(row.tokens) for row in _round(one.rounds(), 0).rows}) > 8


def test_a_round_that_was_begun_keeps_its_answers(model: Tiny, tmp_path: Path) -> None:
    one = Class(model, tmp_path)
    first = _round(one.rounds(), 0)
    one.trainer.rows = first.rows
    for _ in range(3):
        one.trainer.run_step()
    again = _round(one.rounds(), 0)
    assert one.num_asked == 1
    assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(first.rows, again.rows, strict=True))


@pytest.mark.parametrize("spoiled", [b"", b"{}\n" * 32, b"no JSON\n" * 32])
def test_answers_that_are_none_are_refused(model: Tiny, spoiled: bytes, tmp_path: Path) -> None:
    one = Class(model, tmp_path)
    (tmp_path / "answers").mkdir()
    (tmp_path / "answers" / "round-00000000.jsonl").write_bytes(spoiled)
    with pytest.raises(CheckpointError, match="round-00000000"):
        one.rounds().of(0)


def test_prompts_end_where_the_last_answer_begins(model: Tiny) -> None:
    found = on_policy.prompts_of(model.rows, model.rows, PLAN, lambda own, theirs: 100)
    for prompt, row in zip(found, model.rows, strict=True):
        assert row.is_target[len(prompt.tokens)] and not row.is_target[:len(prompt.tokens)].any()
        assert np.array_equal(prompt.tokens, row.tokens[:len(prompt.tokens)]) and prompt.room == PLAN.max_tokens


def test_a_prompt_that_leaves_no_room_is_named(model: Tiny) -> None:
    with pytest.raises(UnsupportedError, match=f"the prompt of {model.rows[0].place} has"):
        on_policy.prompts_of(model.rows, model.rows, PLAN, lambda own, theirs: 0)


def test_answers_stop_at_their_limit_and_when_they_are_told(model: Tiny, tmp_path: Path) -> None:
    one = Class(model, tmp_path)
    asked = [replace(prompt, room=3) for prompt in prompts(model, PLAN)]
    answers = one.sample(asked, 0)
    assert answers is not None and all(1 <= len(answer) <= 3 for answer in answers)
    assert one.student.answers(one.trainer.trained, asked, 0, lambda: True, lambda count: None) is None


def _round(rounds: Rounds, number: int) -> Round:
    found = rounds.of(number)
    assert found is not None
    return found


def test_a_shared_prompt_changes_nothing_of_what_the_teacher_says(model: Tiny) -> None:
    side = model.trained(model.adapter())
    rows = teacher.taught(model.rows, list(teacher.record(side, model.rows, Recording(288, 32))))
    shared, plain = (replace(trainer_of(model, rows, RECIPE), compute=ComputeOptions(shares_prompts=shares))
                     for shares in (True, False))
    one, other = shared.run_step(), plain.run_step()
    assert one.computed < other.computed
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
