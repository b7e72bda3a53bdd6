"""What a training run takes in memory, before a weight of its model is read; and which settings fit into a promise.

    peak = process + the larger of teaching and
           weights + images + the larger of
             loading:   what is in memory besides while a weight is read
             training:  moments + gradients + activations of a microbatch + the head's piece of logits
             answering: moments + the student as it is served or, after that, its teacher (on-policy distillation)
             proving:   the model as it is served, beside the trained one (brise parity)

`teaching` is the open teacher, if there is one, which is gone before the student is read.
`process` is measured: the interpreter with torch, tokenizer and data as they are when the plan is made. Activations are
those of the trainer itself (probe.py). On a GPU the same sum is made without the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from brise.errors import MemoryLimitError

BaseStorage = Literal["dense", "packed"]

# What comes to a process that has probed: threads' stacks, matplotlib, a checkpoint's pages while they are written.
LATER_BYTES = 60_000_000
# Pieces that malloc keeps between tensors, measured on SmolLM2: a share of what lives at one time.
FRAGMENTS = 0.12
TOKENS: Sequence[int] = (2048, 1024, 512, 256, 128)  # of a microbatch; more than the first is hardly faster on a CPU


@dataclass(frozen=True)
class MemoryChoice:
    """What decides about memory, and may be changed for it."""

    num_tokens: int  # computed tokens of a microbatch
    checkpointing: bool
    base_storage: BaseStorage  # of the base's weights
    bits: int  # of the optimiser's moments: 8 or 32
    rank: int  # 0: no adapters


@dataclass(frozen=True)
class Needs:
    """Bytes of a choice, as the trainer's own parts count them."""

    weights: int
    loading: int
    optimizer_state: int
    gradients: int
    activations: int
    head: int


@dataclass(frozen=True)
class TrainingPlan:
    """The bytes of everything. `limit` is the promise, None if there is none."""

    model: str
    choice: MemoryChoice
    needs: Needs
    process: int
    proving: int
    limit: int | None
    images: int = 0  # the vision tower, its work, and features of images
    teaching: int = 0  # a teacher, which is asked before the student is read
    answering: int = 0  # student or teacher, whichever takes more in a round

    @property
    def fragments(self) -> int:
        """Of memory that is taken and given back all the time."""
        return int(FRAGMENTS * (self.needs.activations + self.needs.head))

    @property
    def training(self) -> int:
        needs = self.needs
        return needs.optimizer_state + needs.gradients + needs.activations + needs.head + self.fragments

    @property
    def total(self) -> int:
        """The peak."""
        return self.process + max(self.teaching, self._after_teaching)

    @property
    def _after_teaching(self) -> int:
        return self.images + self.needs.weights + max(self.needs.loading, self.training, self.answered, self.proved)

    @property
    def answered(self) -> int:
        """What a round takes before its steps; the optimiser is there."""
        return self.answering + self.needs.optimizer_state if self.answering else 0

    @property
    def proved(self) -> int:
        """What proving takes, while the optimiser is still there."""
        return self.proving + self.needs.optimizer_state if self.proving else 0

    @property
    def fits(self) -> bool:
        return self.limit is None or self.total <= self.limit

    def rows(self) -> list[tuple[str, str, int]]:
        """Name, note and bytes of everything in the sum."""
        choice, needs = self.choice, self.needs
        is_again = " (layers computed again for the gradient)" if choice.checkpointing else ""
        rows = [("weights", "as in the file" if choice.base_storage == "packed" else "", needs.weights),
                ("moments", f"{choice.bits} bits", needs.optimizer_state), ("gradients", "", needs.gradients),
                ("activations", f"{choice.num_tokens} tokens{is_again}", needs.activations),
                ("head", "a piece of logits", needs.head), ("fragments", "", self.fragments)]
        parts = {"loading": needs.loading, "answering": self.answered, "proving": self.proved}
        name, most = max(parts.items(), key=lambda item: item[1])
        if most > self.training:
            rows = [rows[0], (name, "more than training", most)]
        if self.teaching > self._after_teaching:
            rows = [("teaching", "more than all of training", self.teaching)]
        elif self.images:
            rows.append(("images", "vision tower and features", self.images))
        return [*rows, ("process", "Python, torch, tokenizer, data", self.process)]


Count = Callable[[MemoryChoice], TrainingPlan]
Change = tuple[str, Mapping[str, int | bool | str]]  # options, and the fields that they change


def settle(asked: MemoryChoice, *, may_shrink: bool, may_checkpoint: bool, longest: int, count: Count) -> TrainingPlan:
    """The plan of the fastest choice that fits; MemoryPromiseError with what would fit if none does.

    Without a promise it is what was asked. `may_shrink`: microbatches may get smaller, down to the `longest` row;
    `may_checkpoint`: layers may be computed again.
    """
    if (plan := count(asked)).fits:
        return plan
    tries = [replace(asked, num_tokens=tokens, checkpointing=again)
             for again in ((False, True) if may_checkpoint else (asked.checkpointing,))
             for tokens in (_smaller(asked.num_tokens, longest) if may_shrink else (asked.num_tokens,))]
    counted: list[TrainingPlan] = []
    for choice in tries:
        counted.append(count(choice))
        if counted[-1].fits:
            return counted[-1]
    least = min(counted, key=lambda plan: plan.total)
    # Training alone may fit, in one of these ways.
    unproved = [alone for plan in counted if (alone := replace(plan, proving=0)).fits]
    raise_promise(least, [("--parity-rows 0", unproved[0])] if unproved else ways(least.choice, longest, count))


def raise_promise(plan: TrainingPlan, found: Sequence[tuple[str, TrainingPlan]]) -> NoReturn:
    """MemoryPromiseError with the numbers and what would fit."""
    assert plan.limit is not None
    numbers = ", ".join(f"{name} {nbytes / 1e6:.1f} MB" for name, _, nbytes in plan.rows() if nbytes)
    least = "nothing that brise can change makes it fit: promise more, or take a smaller model"
    fitting = "; or ".join(f"{text} ({way.total / 1e6:.0f} MB)" for text, way in found)
    raise MemoryLimitError(plan.total, plan.limit, numbers, hint=f"what fits: {fitting}" if fitting else least)


def ways(asked: MemoryChoice, longest: int, count: Count) -> list[tuple[str, TrainingPlan]]:
    """Options that make it fit, in order of what they cost: first each alone, then one after the other together."""
    changes = list(_changes(asked, longest))
    found = [(text, plan) for text, fields in changes if (plan := count(_changed(asked, fields))).fits]
    if found:
        first: dict[str, tuple[str, TrainingPlan]] = {}
        for text, plan in found:
            first.setdefault(text.split()[0], (text, plan))
        return list(first.values())[:3]
    names: dict[str, str] = {}
    choice = asked
    for text, fields in changes:
        choice = _changed(choice, fields)
        names[text.split()[0]] = text
        plan = count(choice)
        if plan.fits:
            return [(" ".join(names.values()), plan)]
    return []


def _changes(asked: MemoryChoice, longest: int) -> Iterator[Change]:
    for tokens in _smaller(asked.num_tokens, longest)[1:]:
        yield f"--batch-tokens {tokens}", {"num_tokens": tokens}
    if not asked.checkpointing:
        yield "--checkpointing on", {"checkpointing": True}
    if asked.bits != 8:
        yield "--optimizer adamw8", {"bits": 8}
    if asked.rank and asked.base_storage != "packed":
        yield "--method qlora", {"base_storage": "packed"}
    for rank in (8, 4):
        if asked.rank > rank:
            yield f"--rank {rank}", {"rank": rank}


def _changed(choice: MemoryChoice, fields: Mapping[str, int | bool | str]) -> MemoryChoice:
    return replace(choice, **fields)  # type: ignore[arg-type]


def _smaller(num_tokens: int, longest: int) -> list[int]:
    """Sizes of a microbatch from the one that was asked for down to the longest row."""
    least = max(longest, 1)
    return [num_tokens, *(tokens for tokens in TOKENS if least <= tokens < num_tokens),
            *([least] if least < num_tokens and least not in TOKENS else [])]
