"""Loading of adapters: reads a folder, checks it against the base model, and packs it for a backend's table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from math import prod
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from brise.backends.adapter_checks import gain
from brise.checkpoint.adapters.lineage import Lineage, base_digest, check_base, read_lineage
from brise.checkpoint.adapters.peft import BASE, WEIGHTS_FILE, read_adapter
from brise.checkpoint.safetensors.file import open_safetensors
from brise.data.ngrams import FILE as NGRAMS_FILE
from brise.engine.model import LoadedModel
from brise.errors import CheckpointError, RequestError, UnsupportedError
from brise.files.digests import Located
from brise.models.lora import LowRanks
from brise.models.ops import AdapterTable
from brise.models.weights import Array
from brise.text.action_space import Actions, from_settings

_TILE = 16  # backends round the sides of matrices up to a multiple
_WHOLE = re.compile(r"\.(?:embed_tokens|lm_head)\.weight$")  # of modules_to_save: an adapter of full rank
_MAGNITUDE, _GAIN_BYTES = ".lora_magnitude_vector", 24 << 20  # the base in float64, for gains


class AdapterInvalidError(RequestError):
    """The folder does not hold an adapter for this model."""


@dataclass(frozen=True)
class ReadAdapter:
    """A packed adapter. Adapters with equal digests give equal results."""

    digest: bytes
    rank: int
    nbytes: int
    prepared: Any
    actions: Actions | None = None


class AdapterReader:
    """Reads adapters for one model. Safe to use from several threads."""

    def __init__(self, model: LoadedModel, table: AdapterTable) -> None:
        self._model, self._table, self._lock = model, table, Lock()
        self._base = Located(model.name, model.path, model.digest)

    def read(self, path: Path, *, any_base: bool = False) -> ReadAdapter:
        """The adapter in a folder; AdapterInvalidError with the reason if this model cannot use it."""
        try:
            lineage = read_lineage(path)
            if not any_base:
                self._check_base(lineage)
            actions = None if lineage is None else from_settings(lineage.settings)
            adapter = read_adapter(path, self._model.config, self._table.rows)
            gains = dora_gains(self._table, adapter.low_ranks)
            prepared = self._table.prepare(adapter.low_ranks, gains)
        except (CheckpointError, UnsupportedError) as error:
            raise _invalid(path, str(error.args[0]), error.hint) from None
        except OSError as error:
            raise _invalid(path, error.strerror or str(error)) from None
        rank = max(len(low_rank.a) for low_rank in adapter.low_ranks.values())
        return ReadAdapter(digest_of(adapter.low_ranks), rank, self._table.nbytes(prepared), prepared,
                           actions)

    def _check_base(self, lineage: Lineage | None) -> None:
        """The base's digest is computed for the first adapter with a lineage, and kept."""
        if lineage is None:
            return
        with self._lock:
            if self._base.digest is None:
                self._base = replace(self._base, digest=base_digest(self._base))
        check_base(lineage, self._base)


def reading_bytes(path: Path) -> int:
    """Peak memory of reading an adapter: its file, its numbers as float32, the packed numbers, and its drafts."""
    nbytes, every = _header(path)
    table = path / NGRAMS_FILE
    nbytes += table.stat().st_size if table.is_file() else 0
    shapes = {name: shape for name, shape in every.items() if not name.endswith(BASE)}  # the base's own is not read
    numbers = sum(prod(shape) for shape in shapes.values())
    packed = sum(prod(-(-side // _TILE) * _TILE for side in shape) for shape in shapes.values())
    return nbytes + 4 * (numbers + packed) + (_GAIN_BYTES if any(_MAGNITUDE in name for name in shapes) else 0)


def rank_in(path: Path) -> int:
    """The largest rank of the adapter in a folder, from its shapes alone."""
    shapes = _header(path)[1]
    ranks = [shape[0] for name, shape in shapes.items() if shape and (".lora_A" in name or ".lora_embedding_A" in name)]
    whole = [shape[-1] for name, shape in shapes.items() if shape and _WHOLE.search(name)]
    return max((*ranks, *whole), default=1)


def _header(path: Path) -> tuple[int, Mapping[str, tuple[int, ...]]]:
    """The size of the file, and the shapes of its tensors."""
    try:
        file = open_safetensors(path / WEIGHTS_FILE)
    except CheckpointError as error:
        raise _invalid(path, str(error.args[0]), error.hint) from None
    except OSError as error:
        raise _invalid(path, error.strerror or str(error)) from None
    try:
        return file.nbytes, {name: tensor.shape for name, tensor in file.tensors.items()}
    finally:
        file.close()


def digest_of(low_ranks: LowRanks) -> bytes:
    """A digest of everything that changes an answer: matrices, scales and magnitudes by path."""
    digest = blake2b(digest_size=16)
    for path in sorted(low_ranks):
        low_rank = low_ranks[path]
        arrays = [array for array in (low_rank.a, low_rank.b, low_rank.magnitude) if array is not None]
        digest.update(repr((path, float(low_rank.scale), [tuple(array.shape) for array in arrays])).encode())
        for array in arrays:
            digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.digest()


def dora_gains(table: AdapterTable, low_ranks: LowRanks) -> Mapping[str, Array]:
    """magnitude / |rows of W + scale * B A| by path, float32, where there is a magnitude."""
    gains = {}
    for path, low_rank in low_ranks.items():
        if low_rank.magnitude is None:
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            gains[path] = gain(partial(table.rows, path), low_rank)
        if not np.isfinite(gains[path]).all():
            raise CheckpointError(f"{path} has a row of zeros, which a magnitude cannot scale",
                                  field=path, value=0, limit="rows with a length over 0")
    return gains


def _invalid(path: Path, reason: str, hint: str | None = None) -> AdapterInvalidError:
    return AdapterInvalidError(f"no adapter can be loaded from {str(path)!r}: {reason}", param="path",
                               code="adapter_invalid", hint=hint)
