"""The options of a training run, and the rules between them. Importing this loads no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from brise.data.count_ngrams import NgramOptions
from brise.data.prepare import DataOptions
from brise.data.rights import provider_of_model
from brise.errors import UnsupportedError
from brise.models.lora import MODULES
from brise.tune.recipe import Direction, Recipe

TuneMethod = Literal["lora", "qlora", "dora", "full"]

BATCH_TOKENS = 2048
EPOCHS = 3.0
RATE, FULL_RATE = 1e-3, 2e-5
EVALUATIONS = 5  # of a run on policy, where no interval is asked for


@dataclass(frozen=True)
class TeacherOptions:
    """An open teacher, whose predictions for every learned token are recorded and learned.

    `model` is a name in the store, a .gguf file or a folder, with the same tokens as the student; `adapter` a folder.
    Its `top` most likely tokens are recorded. `weight` is the share of its predictions in the loss, the rest is cross
    entropy. `divergence`: forward is KL(teacher || student), reverse KL(student || teacher); None chooses reverse on
    policy and forward otherwise.
    """

    model: str
    adapter: Path | None = None
    top: int = 32
    weight: float = 1.0
    temperature: float = 1.0
    divergence: Direction | None = None


@dataclass(frozen=True)
class RoundOptions:
    """On-policy distillation: in each of `rounds` the student answers `prompts` prompts with up to `max_tokens` tokens
    at `temperature`, and is trained on its answers for `steps` steps."""

    rounds: int = 20
    prompts: int = 64
    steps: int = 4
    max_tokens: int = 256
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise UnsupportedError(f"answers are sampled at a temperature of {self.temperature:g}, allowed is 0 to 100")


@dataclass(frozen=True)
class TeacherEndpoint:
    """A teacher at an OpenAI-compatible API, which answers the prompts of the data; its answers are learned.

    `key_env` names the environment variable with the API key. `provider` is who hosts the model: training on its
    answers needs an entry in rights.toml, unless the model's weights are open (`is_open`).
    """

    url: str
    name: str
    key_env: str | None = None
    provider: str | None = None
    is_open: bool = False
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.is_open and self._host:
            raise UnsupportedError(f"--teacher-open is given, and {self.name} is hosted by {self._host}",
                                   hint="rights.toml records what may be trained on (docs/guides/tune.md)")
        if not self.is_open and not self._host:
            raise UnsupportedError(f"it is not known who hosts {self.name}",
                                   hint="--teacher-provider NAME, or --teacher-open for a model with open weights")

    @property
    def host(self) -> str | None:
        """The provider in lower case; None if the weights are open."""
        return self._host.lower() if self._host else None

    @property
    def _host(self) -> str | None:
        return self.provider or provider_of_model(self.name)


@dataclass(frozen=True)
class TuneOptions:
    """A training run. The defaults are those of `brise tune`, and so are the meanings.

    `data`: files or folders of examples; `rows` says how they are read and split. `model`: a name in the store, a
    .gguf file or a folder. `start`: an adapter whose numbers the run begins with. `out`: the run's folder; None takes
    DATA-MODEL in the working directory. `memory`: bytes that the run may take, on a GPU of its memory. None as an
    option means the default that is named beside it.
    """

    data: tuple[Path, ...]
    model: str
    out: Path | None = None
    memory: int | None = None
    resume: bool = False
    finish: bool = False  # takes no more steps: the best checkpoint of the run in the folder becomes its adapter
    dry_run: bool = False  # only reads the data and plans
    start: Path | None = None  # None: an adapter that changes nothing
    method: TuneMethod = "lora"  # qlora: lora on a base that stays as quantised as its file is
    rank: int = 16
    alpha: float | None = None  # twice the rank
    dropout: float = 0.0
    targets: tuple[str, ...] = tuple(MODULES)
    lr: float | None = None  # 1e-3 for adapters, 2e-5 for all weights
    min_lr: float = 0.0  # where the schedule ends, as a share of the rate
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.03  # share of all steps
    weight_decay: float = 0.0
    clip: float = 1.0  # norm of all gradients; 0: none
    optimizer: Literal["adamw", "adamw8"] = "adamw"
    batch_size: int = 32  # examples of a step
    epochs: float | None = None  # 3
    steps: int | None = None  # in place of epochs
    seed: int = 0
    eval_every: int | None = None  # steps; an epoch, on policy a fifth of the run
    patience: int | None = None  # evaluations without progress before it stops; never
    batch_tokens: int | None = None  # of a microbatch; 2048, or fewer to stay within `memory`
    checkpointing: Literal["auto", "on", "off"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"  # cpu, cuda, cuda:1
    # What of a run on a GPU lies on the host between uses; auto: what `memory` demands.
    offload: Literal["auto", "none", "all"] = "auto"
    threads: int | None = None  # BRISE_THREADS, or one a core
    eval_rows: int = 200  # held-out rows of an evaluation, at most
    parity_rows: int = 20  # held-out rows that are replayed at the end through what is served, at most; 0: none
    save_every: int = 20  # steps between checkpoints
    rows: DataOptions = DataOptions()
    ngrams: NgramOptions = NgramOptions()  # of the table of drafts that stands beside what is trained
    teacher: TeacherOptions | None = None
    on_policy: RoundOptions | None = None
    teacher_endpoint: TeacherEndpoint | None = None

    def __post_init__(self) -> None:
        if self.on_policy is not None:
            self._check_on_policy()
        if self.teacher_endpoint is not None:
            if self.teacher is not None:
                raise UnsupportedError("--teacher and --teacher-endpoint do not go together",
                                       hint="the one gives log-probabilities of answers, the other answers")
            if self.dry_run:
                raise UnsupportedError("--dry-run asks nobody, and --teacher-endpoint does",
                                       hint="try the data without it")
        if self.start is not None and self.method == "full":
            raise UnsupportedError("--start names an adapter, and --method full trains none")
        if self.finish and self.dry_run:
            raise UnsupportedError("--finish and --dry-run do not go together")
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device):
            vulkan = "; a Vulkan device serves models and trains none" if self.device.startswith("vulkan") else ""
            raise UnsupportedError(f"--device is {self.device!r}, allowed are auto, cpu, cuda and cuda:N{vulkan}")
        self.recipe()  # refuses what cannot be before anything is read

    @property
    def folder(self) -> Path:
        """Where the run lies."""
        if self.out is not None:
            return self.out
        model = Path(self.model)
        return Path(f"{self.data[0].resolve().stem}-{model.stem if model.suffix == '.gguf' else model.name}")

    def recipe(self) -> Recipe:
        """How to train; UnsupportedError names what is not allowed."""
        teacher, rounds = self.teacher or TeacherOptions(""), self.on_policy
        usual: Direction = "forward" if rounds is None else "reverse"
        steps, eval_every = self.steps, self.eval_every or 0
        if rounds is not None:
            steps = rounds.rounds * rounds.steps
            eval_every = eval_every or max(1, steps // EVALUATIONS)
        return Recipe(
            method="lora" if self.method == "qlora" else self.method, rank=self.rank,
            alpha=2.0 * self.rank if self.alpha is None else self.alpha, dropout=self.dropout, targets=self.targets,
            learning_rate=self.lr if self.lr is not None else FULL_RATE if self.method == "full" else RATE,
            min_learning_rate=self.min_lr, schedule=self.schedule, warmup=self.warmup, weight_decay=self.weight_decay,
            clip=self.clip, optimizer=self.optimizer, batch_size=self.batch_size,
            epochs=EPOCHS if self.epochs is None else self.epochs, steps=steps, seed=self.seed, eval_every=eval_every,
            patience=self.patience or 0, distill_weight=teacher.weight, distill_temperature=teacher.temperature,
            distill_direction=teacher.divergence or usual)

    def data_options(self, max_context: int) -> DataOptions:
        """How data become rows for a model of this context."""
        return replace(self.rows, max_tokens=min(self.rows.max_tokens or max_context, max_context))

    def _check_on_policy(self) -> None:
        if self.teacher is None:
            raise UnsupportedError("--on-policy needs --teacher MODEL")
        for name, value in (("--steps", self.steps), ("--epochs", self.epochs)):
            if value is not None:
                raise UnsupportedError(f"{name} and --on-policy do not go together",
                                       hint="a run is --rounds times --round-steps")
        if self.teacher.weight != 1:
            raise UnsupportedError(f"--teacher-weight is {self.teacher.weight:g}, with --on-policy allowed is 1",
                                   hint="the rest would teach the student its own answers")
        if self.rows.targets != "assistant":
            raise UnsupportedError(f"--learn is {self.rows.targets}, with --on-policy allowed is assistant")
