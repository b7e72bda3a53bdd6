"""The memory plan of a training run, made before a weight is read, and the settings that fit a memory limit.

    peak = process + the larger of teaching and
           weights + images + the larger of
             loading:   what is in memory besides the weights while one of them is read
             training:  optimizer state + gradients + activations of a microbatch + one block of logits
             answering: optimizer state + the student as it is served or, after it, its teacher (on-policy distillation)
             proving:   optimizer state + the model as it is served, beside the trained one (brise parity)

`teaching` is the open teacher, if there is one; it is closed before the student is read.
`process` is measured: the interpreter with torch, tokenizer and data at the time of planning. Activations are measured
on the trainer itself (tune/probe.py). On a GPU the sum is that of its memory: the CUDA context stands in place of the
process, and what the engine does (teaching, answering, proving) is done on the host, whose own sum is `host_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NoReturn

from brise.errors import MemoryLimitError
from brise.memory.rendering import fitting, numbers

BaseStorage = Literal["dense", "packed"]

# What may lie on the host of a GPU between uses: the inputs of layers that are computed again for the gradient, the
# optimizer state, and the embedding and the output head, whose rows come over in blocks.
Offload = tuple[Literal["activations", "optimizer", "ends"], ...]
OFFLOADS: Sequence[Offload] = ((), ("activations",), ("activations", "optimizer"), ("activations", "optimizer", "ends"))

# Memory that a process takes after probing: threads' stacks, matplotlib, a checkpoint's pages while they are written.
LATER_BYTES = 60_000_000
# Pieces that malloc keeps between tensors, measured on SmolLM2: a share of what is allocated at one time.
FRAGMENTS = 0.12
# What torch and CUDA take of a GPU before the first tensor: context, kernels, cuBLAS. Assumed, as no card was at hand.
CONTEXT_BYTES = 450_000_000
TOKENS: Sequence[int] = (2048, 1024, 512, 256, 128)  # of a microbatch; more than the first is hardly faster on a CPU


@dataclass(frozen=True)
class MemoryChoice:
    """The settings that decide about memory, and that may be changed to fit."""

    num_tokens: int  # computed tokens of a microbatch
    checkpointing: bool
    base_storage: BaseStorage  # how the base's weights are kept
    bits: int  # of the optimizer state: 8 or 32
    rank: int  # 0: no adapters
    offload: Offload = ()


@dataclass(frozen=True)
class TrainingParts:
    """Bytes of each part of training under one choice, as the trainer's own code counts them."""

    weights: int
    loading: int
    optimizer_state: int
    gradients: int
    activations: int
    head: int
    adapters: int = 0  # the trained numbers themselves, where they are not the weights


@dataclass(frozen=True)
class TrainingPlan:
    """The memory of a training run in bytes; `limit` is the memory limit, None without one."""

    model: str
    choice: MemoryChoice
    parts: TrainingParts
    process_bytes: int
    proving_bytes: int
    limit: int | None
    images_bytes: int = 0  # the vision encoder, its work space, and features of images
    teaching_bytes: int = 0  # a teacher that is asked before the student is read
    answering_bytes: int = 0  # student or teacher, whichever takes more in a round
    is_gpu: bool = False
    host_rows: Sequence[tuple[str, str, int]] = ()  # of a GPU: name, note and bytes of what is on the host

    @property
    def host_bytes(self) -> int:
        """What a run on a GPU takes of the host's memory."""
        return sum(nbytes for _, _, nbytes in self.host_rows)

    @property
    def fragments_bytes(self) -> int:
        """Lost between blocks that are allocated and freed in every step."""
        return int(FRAGMENTS * (self.parts.activations + self.parts.head))

    @property
    def running_bytes(self) -> int:
        """Training itself, without the weights."""
        parts = self.parts
        return (parts.adapters + parts.optimizer_state + parts.gradients + parts.activations + parts.head
                + self.fragments_bytes)

    @property
    def total_bytes(self) -> int:
        """The peak."""
        return self.process_bytes + max(self.teaching_bytes, self._student_bytes)

    @property
    def _student_bytes(self) -> int:
        return self.images_bytes + self.parts.weights + max(
            self.parts.loading, self.running_bytes, self._with_optimizer(self.answering_bytes),
            self._with_optimizer(self.proving_bytes))

    def _with_optimizer(self, nbytes: int) -> int:
        """What a stage between steps takes: adapters and optimizer state stay in memory. 0: the stage does not run."""
        return nbytes + self.parts.adapters + self.parts.optimizer_state if nbytes else 0

    @property
    def fits(self) -> bool:
        return self.limit is None or self.total_bytes <= self.limit

    def rows(self) -> list[tuple[str, str, int]]:
        """Name, note and bytes of every term of the sum."""
        choice, parts, away = self.choice, self.parts, self.choice.offload
        note = ""
        if choice.checkpointing:
            kept = ", their inputs on the host" if "activations" in away else ""
            note = f" (layers computed again for the gradient{kept})"
        weights = "as in the file" if choice.base_storage == "packed" else ""
        if "ends" in away:
            weights += f"{', ' if weights else ''}embedding and output head on the host"
        rows = [("weights", weights, parts.weights),
                *([("adapters", f"rank {choice.rank}", parts.adapters)] if parts.adapters else []),
                ("moments", f"{choice.bits} bits{', on the host' if 'optimizer' in away else ''}",
                 parts.optimizer_state), ("gradients", "", parts.gradients),
                ("activations", f"{choice.num_tokens} tokens{note}", parts.activations),
                ("head", self._head_note, parts.head), ("fragments", "", self.fragments_bytes)]
        stages = {"loading": parts.loading, "answering": self._with_optimizer(self.answering_bytes),
                  "proving": self._with_optimizer(self.proving_bytes)}
        name, largest = max(stages.items(), key=lambda item: item[1])
        if largest > self.running_bytes:
            rows = [rows[0], (name, "more than training", largest)]
        if self.teaching_bytes > self._student_bytes:
            rows = [("teaching", "more than all of training", self.teaching_bytes)]
        elif self.images_bytes:
            rows.append(("images", "vision encoder and features", self.images_bytes))
        last = ("context", "CUDA, assumed") if self.is_gpu else ("process", "Python, torch, tokenizer, data")
        return [*rows, (*last, self.process_bytes)]

    @property
    def _head_note(self) -> str:
        is_in_parts = self.choice.base_storage == "packed" or "ends" in self.choice.offload
        return "logits of a part of the vocabulary" if is_in_parts else "a block of logits"


Count = Callable[[MemoryChoice], TrainingPlan]
Change = tuple[str, Mapping[str, object]]  # options, and the fields of MemoryChoice that they change


def settle(choice: MemoryChoice, *, may_shrink: bool, may_checkpoint: bool, longest: int, count: Count,
           offloads: Sequence[Offload] = ((),), most: Offload = ()) -> TrainingPlan:
    """The plan of the fastest settings that fit; MemoryLimitError with what would fit if none do.

    Without a limit the choice stays as it is. `may_shrink` allows smaller microbatches, down to the `longest` row;
    `may_checkpoint` allows layers to be computed again for the gradient; `offloads` are what may lie on the host of a
    GPU, the least first, and `most` is what could, if the user allowed it.
    """
    choice = replace(choice, offload=_of_use(offloads[0], choice.checkpointing))
    if (plan := count(choice)).fits:
        return plan
    sizes = _smaller(choice.num_tokens, longest) if may_shrink else [choice.num_tokens]
    kept = (False, True) if may_checkpoint else (choice.checkpointing,)
    # On a GPU every microbatch dequantizes a base in blocks three times, which costs more than bringing over what lies
    # on the host: there a large microbatch comes first.
    order = ([(tokens, again, away) for tokens in sizes for again in kept for away in offloads]
             if len(offloads) > 1 and choice.base_storage == "packed" else
             [(tokens, again, away) for away in offloads for again in kept for tokens in sizes])
    candidates = dict.fromkeys(replace(choice, num_tokens=tokens, checkpointing=again, offload=_of_use(away, again))
                               for tokens, again, away in order)
    plans: list[TrainingPlan] = []
    for candidate in candidates:
        plans.append(count(candidate))
        if plans[-1].fits:
            return plans[-1]
    smallest = min(plans, key=lambda plan: plan.total_bytes)
    # Training alone may fit with one of these candidates.
    without_parity = [alone for plan in plans if (alone := replace(plan, proving_bytes=0)).fits]
    raise_limit(smallest, [("--parity-rows 0", without_parity[0])] if without_parity else
                suggestions(smallest.choice, longest, count, most))


def _of_use(offload: Offload, checkpointing: bool) -> Offload:
    """Without checkpointing no layer has an input that waits."""
    return offload if checkpointing else tuple(part for part in offload if part != "activations")


def raise_limit(plan: TrainingPlan, fitting_plans: Sequence[tuple[str, TrainingPlan]]) -> NoReturn:
    """Raises MemoryLimitError with the numbers of a plan, and what would fit."""
    assert plan.limit is not None
    hint = fitting((text, other.total_bytes) for text, other in fitting_plans) or (
        "nothing that brise can change makes it fit: raise the limit, or take a smaller model")
    raise MemoryLimitError(plan.total_bytes, plan.limit, numbers((name, nbytes) for name, _, nbytes in plan.rows()),
                           hint=hint)


def suggestions(choice: MemoryChoice, longest: int, count: Count,
                most: Offload = ()) -> list[tuple[str, TrainingPlan]]:
    """Options that make it fit, cheapest first: single changes, or if none is enough, changes added up one by one."""
    changes = list(_changes(choice, longest, most))
    single = [(text, plan) for text, fields in changes if (plan := count(_changed(choice, fields))).fits]
    if single:
        first: dict[str, tuple[str, TrainingPlan]] = {}
        for text, plan in single:
            first.setdefault(text.split()[0], (text, plan))
        return list(first.values())[:3]
    options: dict[str, str] = {}
    changed = choice
    for text, fields in changes:
        changed = _changed(changed, fields)
        options[text.split()[0]] = text
        plan = count(changed)
        if plan.fits:
            return [(" ".join(options.values()), plan)]
    return []


def _changes(choice: MemoryChoice, longest: int, most: Offload) -> Iterator[Change]:
    for tokens in _smaller(choice.num_tokens, longest)[1:]:
        yield f"--batch-tokens {tokens}", {"num_tokens": tokens}
    if not choice.checkpointing:
        yield "--checkpointing on", {"checkpointing": True}
    if most != choice.offload:
        yield "--offload all", {"offload": most}
    if choice.bits != 8:
        yield "--optimizer adamw8", {"bits": 8}
    if choice.rank and choice.base_storage != "packed":
        yield "--method qlora", {"base_storage": "packed"}
    for rank in (8, 4):
        if choice.rank > rank:
            yield f"--rank {rank}", {"rank": rank}


def _changed(choice: MemoryChoice, fields: Mapping[str, object]) -> MemoryChoice:
    return replace(choice, **fields)  # type: ignore[arg-type]


def _smaller(num_tokens: int, longest: int) -> list[int]:
    """Sizes of a microbatch, from the requested one down to the longest row."""
    least = max(longest, 1)
    return [num_tokens, *(tokens for tokens in TOKENS if least <= tokens < num_tokens),
            *([least] if least < num_tokens and least not in TOKENS else [])]
