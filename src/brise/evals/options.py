"""The options of an evaluation, and which of them each kind of system accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from brise.data.parse_row import RowRules
from brise.data.read_rows import Columns
from brise.errors import EvidenceError
from brise.evals.baseline import Kind
from brise.evals.data import Reading, Turns
from brise.text.images import Settings

# The kinds of systems that accept an option; given to another kind, it is an error.
OWN: Mapping[str, tuple[str, ...]] = MappingProxyType({
    "adapter": ("model",), "any_base": ("model",), "context": ("model",), "threads": ("model",), "name": ("endpoint",),
    "key_env": ("endpoint",), "timeout": ("endpoint",), "train": ("baseline",), "json_schema": ("model", "endpoint"),
    "max_tokens": ("model", "endpoint"), "parallel": ("model", "endpoint")})


@dataclass(frozen=True)
class EvalOptions:
    """An evaluation. The defaults are those of `brise eval`, and so are the meanings.

    `data`: files or folders of examples. Who answers is exactly one of `model` (a name in the store, a .gguf file or a
    folder), `endpoint` (the URL of an OpenAI-compatible server, with `name` of the model there) and `baseline` (which
    learns from `train`).
    """

    data: tuple[Path, ...]
    model: str | None = None
    endpoint: str | None = None
    baseline: Kind | None = None
    adapter: Path | None = None  # a folder, as brise and PEFT write it
    any_base: bool = False  # takes the adapter although its lineage names another model
    context: int | None = None  # tokens of a prompt and its answer; what the longest needs
    threads: int | None = None  # BRISE_THREADS, or one a core
    name: str | None = None
    key_env: str | None = None  # the environment variable with the endpoint's key
    timeout: float = 120.0  # seconds for an answer of the endpoint
    train: tuple[Path, ...] = ()
    json_schema: Path | None = None  # which answers must follow
    max_tokens: int = 256
    parallel: int = 16  # examples at one time
    format: Literal["rows", "bfcl"] = "rows"  # of the data: rows as `brise tune` reads them, or evals/bfcl.py
    turns: Turns = "last"
    conversation: tuple[str, ...] = ()  # fields that tell conversations apart
    held_out_share: float | None = None  # only what tuning with this share holds out
    split_seed: int = 0
    sample: int | None = None  # so many examples, always the same ones
    absorb_system: bool | str = False
    columns: Columns = Columns()
    score: str | None = None  # one of scorers.built_in; by the rows' meta.task
    scorer: str | None = None  # FILE.py:FUNCTION
    labels: Path | None = None  # JSON list of a classification's labels
    out: Path | None = None  # keeps every answer; an evaluation that was broken off goes on from it
    against: Path | None = None  # answers of another run, which are compared on the same examples
    seed: int = 0  # of the intervals' resampling

    def __post_init__(self) -> None:
        kinds = [kind for kind in ("model", "endpoint", "baseline") if vars(self)[kind] is not None]
        if len(kinds) != 1:
            raise EvidenceError(f"{' and '.join(kinds) or 'no system'} is given to answer; give one of model, "
                                "endpoint and baseline")
        (kind,) = kinds
        usual = {field.name: field.default for field in fields(self)}
        for name, allowed in OWN.items():
            if kind not in allowed and vars(self)[name] != usual[name]:
                others = " or ".join(f"--{other}" for other in allowed)
                raise EvidenceError(f"--{name.replace('_', '-')} goes with {others}, not with --{kind}")
        for needs, name in (("endpoint", "name"), ("baseline", "train")):
            if kind == needs and not vars(self)[name]:
                raise EvidenceError(f"--{needs} needs --{name}")
        if self.any_base and self.adapter is None:
            raise EvidenceError("--any-base needs --adapter FOLDER")
        if self.format == "bfcl" and (self.baseline is not None or self.held_out_share is not None):
            raise EvidenceError("--format bfcl goes with neither --baseline nor --held-out-share: its files are only "
                                "for tests")
        if self.score is not None and self.scorer is not None:
            raise EvidenceError("--score and --scorer are both given, one is allowed")

    def reading(self, images: Settings | None) -> Reading:
        """How the data are read; `images` is what the model's vision encoder takes."""
        return Reading(self.turns, RowRules(self.conversation, images=images), self.columns, self.held_out_share,
                       self.split_seed, self.absorb_system)
