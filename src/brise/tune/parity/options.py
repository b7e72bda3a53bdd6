"""The options of a comparison of what is served with what was trained. Importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from brise.data.prepare import DataOptions
from brise.errors import EvidenceError
from brise.tune.parity.parity import Tolerance


@dataclass(frozen=True)
class ParityOptions:
    """The defaults are those of `brise parity`, and so are the meanings.

    `model` is the base that the `adapter` was trained on: a name in the store, a .gguf file or a folder. `data` and
    `rows` are what the run was given, so that the same rows are held out. `served` is a model that the adapter was
    merged into, in place of the base with the adapter; `endpoint` a server that answers with either.
    """

    model: str
    adapter: Path
    data: tuple[Path, ...]
    any_base: bool = False  # takes the adapter although its lineage names another model
    served: str | None = None
    max_rows: int = 50  # held-out rows to replay
    tolerance: Tolerance = Tolerance()
    threads: int | None = None  # BRISE_THREADS, or one a core
    device: str = "cpu"  # that serves: as `brise serve --device` takes it; the trainer's side runs on the CPU
    rows: DataOptions = DataOptions()
    endpoint: str | None = None  # the base URL of a server with OpenAI's API, in place of brise's own engine
    name: str | None = None  # the model there: that of the adapter, where adapters have names; None: its only one
    key_env: str | None = None  # the environment variable with the server's key
    max_tokens: int = 64  # of an answer of the server that are compared

    def __post_init__(self) -> None:
        if self.endpoint is not None and self.served is not None:
            raise EvidenceError("--served and --endpoint are both given: one is a model file, the other a server")
        if self.endpoint is None and (self.name is not None or self.key_env is not None):
            raise EvidenceError(f"{'--name' if self.name is not None else '--key-env'} needs --endpoint URL")

    def data_options(self, max_context: int) -> DataOptions:
        """How data become rows for a model of this context."""
        return replace(self.rows, max_tokens=min(self.rows.max_tokens or max_context, max_context))
