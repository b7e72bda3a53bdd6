"""The options of a comparison of what is served with what was trained. Importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from brise.data.prepare import DataOptions
from brise.tune.parity.parity import Tolerance


@dataclass(frozen=True)
class ParityOptions:
    """The defaults are those of `brise parity`, and so are the meanings.

    `model` is the base that the `adapter` was trained on: a name in the store, a .gguf file or a folder. `data` and
    `rows` are what the run was given, so that the same rows are held out. `served` is a model that the adapter was
    merged into, in place of the base with the adapter.
    """

    model: str
    adapter: Path
    data: tuple[Path, ...]
    any_base: bool = False  # takes the adapter although its lineage names another model
    served: str | None = None
    max_rows: int = 50  # held-out rows to replay
    tolerance: Tolerance = Tolerance()
    threads: int | None = None  # BRISE_THREADS, or one a core
    rows: DataOptions = DataOptions()

    def data_options(self, max_context: int) -> DataOptions:
        """How data become rows for a model of this context."""
        return replace(self.rows, max_tokens=min(self.rows.max_tokens or max_context, max_context))
