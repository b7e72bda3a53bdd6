"""Reads and writes importance matrices as llama.cpp does: GGUF files that its tools and brise exchange.

For each tensor NAME: `NAME.in_sum2` F32 (M, columns), sums of squares, and `NAME.counts` F32 (M, 1), rows. Metadata:
`general.type` "imatrix", `imatrix.datasets`, `imatrix.chunk_count`, `imatrix.chunk_size`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from brise.checkpoint.gguf.file import GgufFile, StringArray, open_gguf
from brise.checkpoint.gguf.write_file import Outgoing, write_gguf
from brise.errors import CheckpointError
from brise.quant.importance import Importance, Sums

_SQUARES, _COUNTS = ".in_sum2", ".counts"


def save_importance(path: Path, importance: Importance, window: int) -> None:
    """Writes the file; `window` is how many tokens were seen together."""
    tensors: list[Outgoing] = []
    for name, sums in importance.sums.items():
        tensors.append(_tensor(name + _SQUARES, sums.squares.astype(np.float32)))
        tensors.append(_tensor(name + _COUNTS, sums.counts.astype(np.float32)[:, None]))
    write_gguf(path, {"general.type": "imatrix", "imatrix.datasets": [importance.source],
                      "imatrix.chunk_count": max(1, importance.num_tokens // window), "imatrix.chunk_size": window},
               tensors)


def load_importance(path: Path) -> Importance:
    """Reads the file; CheckpointError if it is another kind of GGUF or damaged."""
    with closing(open_gguf(path)) as gguf:
        if gguf.metadata.get("general.type") != "imatrix":
            raise CheckpointError(f"{path.name} is no importance matrix: general.type is "
                                  f"{gguf.metadata.get('general.type')!r}", field="general.type",
                                  value=gguf.metadata.get("general.type"), limit="'imatrix'",
                                  hint="give calibration text, or a file that --save-importance or llama-imatrix wrote")
        sums = {name.removesuffix(_SQUARES): _sums(gguf, name.removesuffix(_SQUARES))
                for name in gguf.tensors if name.endswith(_SQUARES)}
        datasets = gguf.metadata.get("imatrix.datasets")
    num_tokens = int(max((one.counts.max(initial=0) for one in sums.values()), default=0))
    source = ", ".join(datasets) if isinstance(datasets, StringArray) else path.name
    return Importance(MappingProxyType(sums), num_tokens, source)


def _sums(gguf: GgufFile, name: str) -> Sums:
    for tensor in (name + _SQUARES, name + _COUNTS):
        if tensor not in gguf.tensors or gguf.tensors[tensor].format != "F32":
            raise CheckpointError(f"{gguf.path.name} has no F32 tensor {tensor}", field=tensor)
    squares = np.array(gguf.array(name + _SQUARES), np.float64)
    squares = squares.reshape(-1, squares.shape[-1])
    counts = np.array(gguf.array(name + _COUNTS), np.float64).reshape(-1)
    if len(counts) != len(squares) or not (np.isfinite(squares).all() and np.isfinite(counts).all()):
        raise CheckpointError(f"the importance of {name} is damaged", field=name)
    if squares.min(initial=0) < 0 or counts.min(initial=0) < 0:
        raise CheckpointError(f"the importance of {name} has a number below zero", field=name)
    return Sums(squares, counts)


def _tensor(name: str, data: NDArray[np.float32]) -> Outgoing:
    return Outgoing(name, "F32", data.shape, _once(data))


def _once(data: NDArray[np.float32]) -> Callable[[], Iterator[NDArray[np.generic]]]:
    def pieces() -> Iterator[NDArray[np.generic]]:
        yield data

    return pieces
