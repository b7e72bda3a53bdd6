"""A tiny student moves towards its teacher: on the teacher's numbers, and on answers of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from brise.checkpoint.merge import merged
from brise.engine import model as engine_model
from brise.engine.model import LoadedModel
from brise.models.weights import Array, place
from brise.ops.native import NativeBackend
from brise.tune import adapters, on_policy, parity, teacher
from brise.tune.distill import Direction
from brise.tune.example import Row
from brise.tune.on_policy import Plan
from brise.tune.parity import Pair
from brise.tune.recipe import Recipe
from brise.tune.teacher import Recording
from brise.tune.train import Machinery, Trainer
from brise.tune.trained_side import TorchSide

from .parity_models import Tiny, tiny

RECIPE = Recipe(rank=8, learning_rate=1e-2, batch_size=8, steps=60, warmup=0.0, schedule="constant")
GENTLE = replace(RECIPE, learning_rate=3e-3, batch_size=16)
PLAN = Plan(rounds=4, prompts=32, steps=16, max_tokens=8, seed=1)
NEAR = 0.05  # the size of an adapter that makes a teacher not too far from the student


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny(tmp_path_factory.mktemp("distil"))


def trainer_of(model: Tiny, rows: Sequence[Row], recipe: Recipe) -> Trainer:
    return Trainer(model.config, adapters.new(model.trained().weights, recipe), recipe, Machinery(), rows)


def distance(model: Tiny, trainer: Trainer, teacher_side: TorchSide, rows: Sequence[Row]) -> float:
    """Mean KL(teacher || student)."""
    return parity.compare(Pair(teacher_side, TorchSide(model.config, trainer.trained.weights)), rows).kl_mean


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


class Student:
    """A tiny student that samples with the engine and learns with the trainer."""

    def __init__(self, model: Tiny, direction: Direction) -> None:
        self.trainer = trainer_of(model, model.rows, replace(GENTLE, distill_direction=direction))
        self.loaded = engine_model.load(model.path, threads=1)
        self.model = model
        self.answers: list[list[int]] = []

    def sample(self, prompts: Sequence[Array], seed: int) -> list[Array]:
        backend = self.loaded.backend
        assert isinstance(backend, NativeBackend)
        low_ranks = self.trainer.trained.low_ranks()
        weights = place(self.model.stored, lambda name, weight: backend.place(
            name, merged(name, weight, low_ranks[name]) if name in low_ranks else weight))
        answers = on_policy.sampled(replace(self.loaded, weights=weights), prompts, seed, PLAN)
        self.answers += [answer.tolist() for answer in answers]
        return answers

    def distance_on_own(self) -> float:
        """Mean KL(teacher || student) on new answers of its own."""
        prompts = [prompt.tokens for prompt in on_policy.prompts_of(self.model.rows, self.model.rows)] * 4
        rows = [Row(np.concatenate([prompt, answer]), np.arange(len(prompt) + len(answer)) >= len(prompt), "own")
                for prompt, answer in zip(prompts, self.sample(prompts, seed=99), strict=True)]
        return distance(self.model, self.trainer, self.model.trained(self.model.adapter(size=NEAR)), rows)

    def train(self, rows: Sequence[Row], steps: int) -> list[float]:
        self.trainer.rows = rows
        return [self.trainer.run_step().loss for _ in range(steps)]


def rounds(model: Tiny, direction: Direction) -> tuple[Student, list[on_policy.Round]]:
    side, student = model.trained(model.adapter(size=NEAR)), Student(model, direction)
    prompts = on_policy.prompts_of(model.rows, model.rows) * 4
    done = list(on_policy.run(prompts, student.sample,
                              lambda rows: list(teacher.record(side, rows, Recording(288, 64))), student.train, PLAN))
    return student, done


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_rounds_bring_the_student_nearer_to_the_teacher(model: Tiny, direction: Direction) -> None:
    before = Student(model, direction).distance_on_own()
    student, done = rounds(model, direction)
    assert [one.number for one in done] == [0, 1, 2, 3] and all(len(one.losses) == 16 for one in done)
    assert done[-1].losses[-1] < done[0].losses[0] / 2
    assert student.distance_on_own() < 0.65 * before


def test_the_same_seed_gives_the_same_answers_and_losses(model: Tiny) -> None:
    (one, first), (other, second) = rounds(model, "reverse"), rounds(model, "reverse")
    assert one.answers == other.answers and first == second
    assert len({tuple(answer) for answer in one.answers}) > 8


def test_prompts_end_where_the_last_answer_begins(model: Tiny) -> None:
    for prompt, row in zip(on_policy.prompts_of(model.rows, model.rows), model.rows, strict=True):
        assert row.is_target[len(prompt.tokens)] and not row.is_target[:len(prompt.tokens)].any()
        assert np.array_equal(prompt.tokens, row.tokens[:len(prompt.tokens)])


def test_sampled_answers_stop_at_their_limit(model: Tiny) -> None:
    loaded: LoadedModel = engine_model.load(model.path, threads=1)
    answers = on_policy.sampled(loaded, [row.tokens[:10] for row in model.rows], 0, replace(PLAN, max_tokens=3))
    assert all(1 <= len(answer) <= 3 for answer in answers)


def test_a_shared_prompt_changes_nothing_of_what_the_teacher_says(model: Tiny) -> None:
    side = model.trained(model.adapter())
    rows = teacher.taught(model.rows, list(teacher.record(side, model.rows, Recording(288, 32))))
    shared, plain = (replace(trainer_of(model, rows, RECIPE), machinery=Machinery(shares_prompts=shares))
                     for shares in (True, False))
    one, other = shared.run_step(), plain.run_step()
    assert one.computed < other.computed
    assert one.loss == pytest.approx(other.loss, rel=1e-5)
    assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-4)
