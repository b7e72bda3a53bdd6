"""Writes an adapter as the GGUF file that llama.cpp's --lora reads.

Keys: general.type adapter, general.architecture, adapter.type lora, adapter.lora.alpha. Tensors are the base's names
with .lora_a (r, in) and .lora_b (out, r), rows in the order of a GGUF base; B A counts alpha / r times. Of the
embedding .lora_a is (tokens, r) and .lora_b (width, r): a token's row of the first times the second, turned.
Source: ggml-org/llama.cpp, convert_lora_to_gguf.py and llama-adapter.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from brise.checkpoint.adapters.joined import join
from brise.checkpoint.adapters.lineage import Lineage, lineage_text
from brise.checkpoint.adapters.merge import LINEAGE_KEY
from brise.checkpoint.adapters.peft import AdapterFile
from brise.checkpoint.gguf.names import tensor_name
from brise.checkpoint.gguf.write_file import Outgoing, write_gguf
from brise.errors import UnsupportedError
from brise.models.config import Config
from brise.models.families import FAMILIES
from brise.models.lora import EMBEDDING, OUTPUT, matrices, module_of
from brise.models.weights import Array
from brise.quant.rows import encode_rows


def write_gguf_adapter(path: Path, adapter: AdapterFile, lineage: Lineage | None, config: Config, dtype: str, *,
                       is_tied: bool) -> int:
    """Writes the whole file, or nothing; returns its size. The adapter's rows are in the order of `config`'s base.

    llama.cpp has one tensor for the embedding and the output of a tied model, so that neither takes an adapter there.
    """
    if adapter.use_dora:
        raise UnsupportedError("the adapter has magnitudes (DoRA), which llama.cpp's adapters cannot hold",
                               hint="give --format gguf --merge")
    ends = [module_of(path) for path in adapter.low_ranks if path in (EMBEDDING, OUTPUT)]
    if is_tied and ends:
        raise UnsupportedError(f"the adapter changes {' and '.join(ends)}, and the model's output is its embedding: "
                               "llama.cpp's adapters cannot change one of them",
                               hint="give --format gguf --merge, which writes both")
    metadata: dict[str, object] = {
        "general.type": "adapter", "general.architecture": FAMILIES[config.family].gguf_architecture,
        "general.name": adapter.base_name or "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": float(adapter.alpha)}
    if lineage is not None:
        metadata[LINEAGE_KEY] = lineage_text(lineage)
    return write_gguf(path, metadata, list(_tensors(adapter, config, dtype)))


def _tensors(adapter: AdapterFile, config: Config, dtype: str) -> Iterator[Outgoing]:
    """B is multiplied by how far a matrix's own scale differs from alpha / r."""
    own = FAMILIES[config.family].joined("gguf")
    for path, low_rank in join(adapter.low_ranks, matrices(config), own).items():
        a, b = np.asarray(low_rank.a), np.asarray(low_rank.b)
        factor = low_rank.scale * len(a) / adapter.alpha
        name = tensor_name(path, config.family)
        if path == EMBEDDING:
            a, b = b, a.T
        yield _tensor(f"{name}.lora_a", a, dtype)
        yield _tensor(f"{name}.lora_b", b * np.float32(factor), dtype)


def _tensor(name: str, numbers: Array, dtype: str) -> Outgoing:
    rows = encode_rows(name, dtype, np.ascontiguousarray(numbers, np.float32))
    return Outgoing(name, dtype, numbers.shape, partial(iter, (rows,)))
