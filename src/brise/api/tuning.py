"""`brise.tune`, `brise.evaluate` and `brise.parity`: from examples to an adapter, and to figures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict, Unpack, overload

from brise.api.loading import Size, size
from brise.api.model import Model
from brise.api.options import check
from brise.api.rows import Rows, as_files
from brise.api.words import python_words
from brise.data.count_ngrams import NgramOptions
from brise.data.prepare import DataOptions
from brise.data.read_rows import Columns
from brise.evals.baseline import Kind
from brise.evals.data import Turns
from brise.evals.evaluate import Evaluation
from brise.evals.evaluate import evaluate as run_evaluation
from brise.evals.options import EvalOptions
from brise.tune import run as run_training
from brise.tune.options import RoundOptions, TeacherEndpoint, TeacherOptions, TuneMethod, TuneOptions
from brise.tune.parity import run as run_parity
from brise.tune.parity import run_endpoint
from brise.tune.parity.endpoint import EndpointReport
from brise.tune.parity.options import ParityOptions
from brise.tune.parity.parity import ParityReport, Tolerance
from brise.tune.watch import TuneResult, TuneWatcher
from brise.watch import SILENT, Watcher

ModelLike = Model | str | Path


class TrainingOptions(TypedDict, total=False):
    """How a model is trained. What is left out has the default of `brise tune`.

    Attributes:
        method: "lora"; "qlora" on a base that stays as quantised as its file is; "dora"; or "full", all weights.
        start: Folder of the adapter to go on from, of the same rank and matrices. Default: a new one.
        rank: Rank of the adapter. Default: 16.
        alpha: Its scale. Default: twice the rank.
        dropout: Share of the adapter's inputs that a step leaves out. Default: 0.
        targets: Which matrices get an adapter. Default: all.
        lr: Learning rate. Default: 1e-3 for adapters, 2e-5 for all weights.
        min_lr: Where the schedule ends, as a share of the rate. Default: 0.
        schedule: "cosine", "linear" or "constant". Default: "cosine".
        warmup: Share of all steps in which the rate rises. Default: 0.03.
        weight_decay: Default: 0.
        clip: Norm of all gradients at most; 0 is none. Default: 1.
        optimizer: "adamw", or "adamw8" with a state of 8 bits. Default: "adamw".
        batch_size: Examples of a step. Default: 32.
        epochs: Passes over the examples. Default: 3.
        steps: In place of epochs.
        seed: Of order, dropout and split. Default: 0.
        eval_every: Steps between evaluations. Default: an epoch.
        patience: Evaluations without progress before the run stops. Default: it goes on.
        batch_tokens: Tokens that go through the model at one time. Default: 2048, or fewer to stay within `memory`.
        checkpointing: Compute activations anew: "on", "off" or "auto". Default: "auto".
        dtype: "float32", "bfloat16" or "auto". Default: "auto".
        device: "auto", "cpu", "cuda", "cuda:1". Default: "auto".
        offload: What of a GPU run lies on the host: "none", "all", or what `memory` demands. Default: "auto".
        threads: Default: BRISE_THREADS, or one a core.
        eval_rows: Held-out rows of an evaluation, at most. Default: 200.
        parity_rows: Held-out rows that are replayed at the end through what is served, at most. Default: 20.
        save_every: Steps between checkpoints. Default: 20.
        resume: Go on with the run in the folder, to the same bits. Default: False.
        finish: Take no more steps: the best checkpoint of the run in the folder becomes its adapter. Default: False.
        dry_run: Only read the data, and plan. Default: False.
        rows: How data become rows: what is held out, whose answers they are, columns of a CSV.
        ngrams: How the table is made from which answers are drafted; `NgramOptions(nbytes=0)` makes none.
        teacher: An open teacher on this machine, whose predictions are learned.
        on_policy: Rounds in which the student answers, and learns what the teacher says of its answers.
        teacher_endpoint: A teacher behind an API, whose answers are learned.
    """

    method: TuneMethod
    start: Path | None
    rank: int
    alpha: float | None
    dropout: float
    targets: tuple[str, ...]
    lr: float | None
    min_lr: float
    schedule: Literal["cosine", "linear", "constant"]
    warmup: float
    weight_decay: float
    clip: float
    optimizer: Literal["adamw", "adamw8"]
    batch_size: int
    epochs: float | None
    steps: int | None
    seed: int
    eval_every: int | None
    patience: int | None
    batch_tokens: int | None
    checkpointing: Literal["auto", "on", "off"]
    dtype: Literal["auto", "float32", "bfloat16"]
    device: str
    offload: Literal["auto", "none", "all"]
    threads: int | None
    eval_rows: int
    parity_rows: int
    save_every: int
    resume: bool
    finish: bool
    dry_run: bool
    rows: DataOptions
    ngrams: NgramOptions
    teacher: TeacherOptions | None
    on_policy: RoundOptions | None
    teacher_endpoint: TeacherEndpoint | None


def tune(data: Rows, *, model: ModelLike, out: str | Path | None = None, memory: Size | None = None,
         watcher: TuneWatcher | None = None, **options: Unpack[TrainingOptions]) -> TuneResult:
    """Trains an adapter, or a whole model, on examples. It needs the extra `tune`.

    The result has `folder`, `metrics`, and `adapter`, the folder that `load(..., adapters=)`, `Model.add_adapter` and
    `evaluate(..., adapter=)` take. If no step made the model better on held-out rows, it `is_worse`, and has none.

    Args:
        data: Files or folders of examples, JSON lines with messages, or with prompt and completion, or CSV; or rows
            in memory. A run whose data are in memory goes on (`resume`) when it is given the same rows again.
        model: What is tuned: a name in the store, a .gguf file, a folder, or a loaded model, whose file is read.
        out: The run's folder. Default: DATA-MODEL in the working directory.
        memory: What this process may take; on a GPU, of its memory.
        watcher: Hears of every step.
        **options: See `TrainingOptions`.

    Raises:
        MissingExtraError: torch is not installed; the hint is the line that installs it.
        EvidenceError: The data are wrong: the message has every row.
        MemoryLimitError: The run does not fit.
        UnsupportedError: Options contradict each other.
    """
    check(options, TrainingOptions)
    with python_words(), as_files(data, "data") as paths:
        return run_training(TuneOptions(data=paths, model=_reference(model), out=_path(out),
                                        memory=size(memory, "memory"), **options), watcher)


class EvaluationOptions(TypedDict, total=False):
    """How answers are asked for and scored. What is left out has the default of `brise eval`.

    Attributes:
        any_base: Take the adapter although its lineage names another model. Default: False.
        context: Tokens of a prompt and its answer. Default: what the longest needs.
        threads: Default: BRISE_THREADS, or one a core.
        name: The model at the endpoint.
        key_env: The environment variable that holds the endpoint's key.
        timeout: Seconds that the endpoint may take for an answer. Default: 120.
        train: Files that a baseline learns from.
        json_schema: The file of a JSON schema that answers must follow.
        max_tokens: Longest answer. Default: 256.
        parallel: Examples that are asked at one time. Default: 16.
        format: "bfcl" for files of the Berkeley function-calling leaderboard. Default: "rows".
        turns: Which answers of a conversation are asked for, "last" or "all". Default: "last".
        conversation: Fields that tell conversations apart, such as "meta.seed".
        held_out_share: Only the conversations that `tune` holds out with this share.
        split_seed: The seed that it was given. Default: 0.
        sample: So many examples only, always the same ones.
        absorb_system: Ask without the rows' system prompts (True), or with this text in their place.
        columns: Columns of a CSV.
        score: How answers are compared: "class", "exact", "calls", "slots", "perplexity", ... Default: by the rows.
        scorer: Compare with a function of yours, FILE.py:FUNCTION; its file is run.
        labels: The file with a JSON list of a classification's labels.
        out: Keep every answer in this file; an evaluation that was broken off goes on from it.
        against: Compare with the answers of another run, on the examples that both have.
        seed: Of the intervals' resampling. Default: 0.
    """

    any_base: bool
    context: int | None
    threads: int | None
    name: str | None
    key_env: str | None
    timeout: float
    train: tuple[Path, ...]
    json_schema: Path | None
    max_tokens: int
    parallel: int
    format: Literal["rows", "bfcl"]
    turns: Turns
    conversation: tuple[str, ...]
    held_out_share: float | None
    split_seed: int
    sample: int | None
    absorb_system: bool | str
    columns: Columns
    score: str | None
    scorer: str | None
    labels: Path | None
    out: Path | None
    against: Path | None
    seed: int


def evaluate(data: Rows, *, model: ModelLike | None = None, adapter: str | Path | None = None,
             endpoint: str | None = None, baseline: Kind | None = None, watcher: Watcher = SILENT,
             **options: Unpack[EvaluationOptions]) -> Evaluation:
    """Asks a model for the answers of examples, and scores them; `figures` have 95 % intervals.

    Args:
        data: Files or folders of examples, or rows in memory, as for `tune`.
        model: Who answers: a loaded model, a name in the store or a path.
        adapter: The folder of an adapter to ask through.
        endpoint: Or a server with OpenAI's API, such as http://127.0.0.1:8080/v1; `name` says which model there.
        baseline: Or no model: "majority" or "tfidf", which learns from `train`.
        watcher: Hears how far the work has come.
        **options: See `EvaluationOptions`.

    Raises:
        EvidenceError: The data, or the combination of arguments, cannot be evaluated.
    """
    check(options, EvaluationOptions)
    loaded = model.worker.model if isinstance(model, Model) else None
    with python_words(), as_files(data, "data") as paths:
        return run_evaluation(EvalOptions(
            data=paths, model=None if model is None else _reference(model), adapter=_path(adapter), endpoint=endpoint,
            baseline=baseline, **options), watcher, loaded)


@overload
def parity(data: Rows, *, model: ModelLike, adapter: str | Path, served: ModelLike | None = None,
           any_base: bool = False, max_rows: int = ParityOptions.max_rows, tolerance: Tolerance | None = None,
           threads: int | None = None, device: str = "cpu", rows: DataOptions | None = None, endpoint: None = None,
           watcher: Watcher = SILENT) -> ParityReport: ...
@overload
def parity(data: Rows, *, model: ModelLike, adapter: str | Path, any_base: bool = False,
           max_rows: int = ParityOptions.max_rows, tolerance: Tolerance | None = None, threads: int | None = None,
           rows: DataOptions | None = None, endpoint: str, name: str | None = None, key_env: str | None = None,
           max_tokens: int = ParityOptions.max_tokens, watcher: Watcher = SILENT) -> EndpointReport: ...
def parity(data: Rows, *, model: ModelLike, adapter: str | Path, served: ModelLike | None = None,
           any_base: bool = False, max_rows: int = ParityOptions.max_rows, tolerance: Tolerance | None = None,
           threads: int | None = None, device: str = "cpu", rows: DataOptions | None = None,
           endpoint: str | None = None,
           name: str | None = None, key_env: str | None = None, max_tokens: int = ParityOptions.max_tokens,
           watcher: Watcher = SILENT) -> ParityReport | EndpointReport:
    """Compares what is served with what was trained, on held-out rows: the same tokens, the same predictions.

    `passed` says whether they agree within the tolerance, and `check()` raises if they do not. It needs the extra
    `tune`.

    Args:
        data: What the run was trained on, so that the same rows are held out.
        model: The base that the adapter was trained on.
        adapter: The folder of the adapter.
        served: A model that the adapter was merged into, in place of the base with the adapter.
        any_base: Take the adapter although its lineage names another model.
        max_rows: Held-out rows to replay, at most.
        tolerance: How much they may differ. Default: what quantised kernels explain.
        threads: Default: BRISE_THREADS, or one a core.
        device: Where the served side runs, as for `brise.load`.
        rows: How the run was told to make rows of the data.
        endpoint: Or a server with OpenAI's API that serves the adapter, such as http://127.0.0.1:8000/v1. It is asked
            for greedy answers with log-probabilities, and the KL divergence is a lower bound.
        name: The model at the endpoint. Default: its only one.
        key_env: The environment variable that holds the endpoint's key.
        max_tokens: Tokens of an answer of the endpoint that are compared, at most.
        watcher: Hears how far the work has come.

    Raises:
        EvidenceError: Nothing is held out, or arguments contradict each other.
        NetworkError: The endpoint does not answer, or refuses.
    """
    with python_words(), as_files(data, "data") as paths:
        options = ParityOptions(
            _reference(model), Path(adapter).expanduser(), paths, any_base=any_base,
            served=None if served is None else _reference(served), max_rows=max_rows,
            tolerance=tolerance or Tolerance(), threads=threads, device=device, rows=rows or DataOptions(),
            endpoint=endpoint, name=name, key_env=key_env, max_tokens=max_tokens)
        return run_parity(options, watcher) if endpoint is None else run_endpoint(options, watcher)


def _reference(model: ModelLike) -> str:
    """What finds the model's file again."""
    return model.reference if isinstance(model, Model) else str(model)


def _path(path: str | Path | None) -> Path | None:
    return None if path is None else Path(path).expanduser()
