"""A model with an adapter merged into it, as `brise quantize` and `brise export` write one."""

from __future__ import annotations

from pathlib import Path

from brise.checkpoint.adapters.lineage import Lineage, check_base, read_lineage
from brise.checkpoint.adapters.merge import merge, rows_of
from brise.checkpoint.adapters.peft import AdapterFile, read_adapter
from brise.checkpoint.read_original import Original
from brise.files.digests import Located


def with_adapter(original: Original, located: Located, adapter: Path | None, *, any_base: bool) -> Original:
    """The model with the adapter in its weights, if one is given."""
    if adapter is None:
        return original
    file, lineage = read_checked(adapter, original, located, any_base=any_base)
    return merge(original, file.low_ranks, lineage)


def read_checked(adapter: Path, original: Original, located: Located, *,
                 any_base: bool) -> tuple[AdapterFile, Lineage | None]:
    """The adapter and its lineage; UnsupportedError if that names another model, unless `any_base`."""
    file = read_adapter(adapter, original.config, rows_of(original.weights))
    lineage = read_lineage(adapter)
    check_base(lineage, located, any_base=any_base)
    return file, lineage
