"""Settings are chosen to fit a memory limit, and the error suggests others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brise.errors import MemoryLimitError
from brise.memory.training_plan import LATER_BYTES, MemoryChoice, TrainingParts, TrainingPlan, settle, suggestions

ASKED = MemoryChoice(2048, checkpointing=False, base_storage="dense", bits=32, rank=16)
MB = 10**6


class Counter:
    """Plans of a made-up model: 100 MB for 1000 tokens, a tenth of it with checkpointing."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit

    def __call__(self, choice: MemoryChoice) -> TrainingPlan:
        parts = TrainingParts(
            weights=(500 if choice.base_storage == "dense" else 100) * MB, loading=10 * MB,
            optimizer_state=choice.rank * choice.bits * MB // 32, gradients=choice.rank * MB,
            activations=choice.num_tokens * MB // (100 if choice.checkpointing else 10), head=0)
        return TrainingPlan("tiny", choice, parts, process_bytes=300 * MB, proving_bytes=0, limit=self.limit)


def settled(limit: int | None, **options: object) -> TrainingPlan:
    chosen = {"may_shrink": True, "may_checkpoint": True, "longest": 100} | options
    return settle(ASKED, count=Counter(limit), **chosen)  # type: ignore[arg-type]


def test_without_a_limit_nothing_is_changed() -> None:
    assert settled(None).choice == ASKED


def test_smaller_microbatches_come_before_checkpointing() -> None:
    """Beside activations and their fragments 832 MB are needed; 100 tokens take 11.2 MB, with checkpointing 1.1 MB."""
    assert settled(1100 * MB).choice == ASKED
    assert settled(1000 * MB).choice == replace(ASKED, num_tokens=1024)
    assert settled(844 * MB).choice == replace(ASKED, num_tokens=100)
    assert settled(840 * MB).choice == replace(ASKED, num_tokens=512, checkpointing=True)


def test_what_was_fixed_is_not_changed_but_proposed() -> None:
    with pytest.raises(MemoryLimitError, match="what fits: --batch-tokens 1024") as error:
        settled(1000 * MB, may_shrink=False, may_checkpoint=False)
    assert "activations 204.8 MB" in str(error.value)


def test_changes_are_put_together_where_none_is_enough() -> None:
    fitting = suggestions(ASKED, 100, Counter(430 * MB))
    assert [text for text, _ in fitting] == ["--batch-tokens 100 --checkpointing on --optimizer adamw8 --method qlora"]
    assert fitting[0][1].fits


def test_leaving_the_proof_out_is_proposed_where_that_is_enough() -> None:
    def count(choice: MemoryChoice) -> TrainingPlan:
        return replace(Counter(1200 * MB)(choice), proving_bytes=500 * MB)

    with pytest.raises(MemoryLimitError, match="what fits: --parity-rows 0"):
        settle(ASKED, may_shrink=True, may_checkpoint=True, longest=100, count=count)


def test_the_proof_is_what_is_too_much_where_smaller_steps_would_fit() -> None:
    """The numbers are those of the smallest try, and training in it would keep the limit."""
    def count(choice: MemoryChoice) -> TrainingPlan:
        return replace(Counter(900 * MB)(choice), proving_bytes=500 * MB)

    with pytest.raises(MemoryLimitError, match=r"this takes 1316\.0 MB.*proving 516\.0 MB") as caught:
        settle(ASKED, may_shrink=True, may_checkpoint=True, longest=100, count=count)
    assert caught.value.hint == "what fits: --parity-rows 0 (889 MB)"


def test_nothing_is_proposed_that_does_not_fit() -> None:
    with pytest.raises(MemoryLimitError, match="nothing that brise can change"):
        settled(350 * MB)


def test_the_sum_is_shown_row_by_row() -> None:
    plan = settled(None)
    assert sum(nbytes for _, _, nbytes in plan.rows()) == plan.total_bytes
    loading = replace(plan, parts=replace(plan.parts, loading=9000 * MB))
    assert sum(nbytes for _, _, nbytes in loading.rows()) == loading.total_bytes
    assert ("loading", "more than training", 9000 * MB) in loading.rows()
    assert LATER_BYTES > 0
