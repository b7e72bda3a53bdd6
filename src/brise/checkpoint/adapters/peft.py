"""Reads and writes adapters in PEFT's layout: adapter_config.json, and A and B of every matrix in
adapter_model.safetensors.

Tensors are called base_model.model.model.layers.N.self_attn.q_proj.lora_A.weight (r, in), ...lora_B.weight (out, r),
and with DoRA ...lora_magnitude_vector (out,). The embedding's are ...embed_tokens.lora_embedding_A (r, tokens) and
lora_embedding_B (width, r), and its numbers are columns of B A. A matrix of modules_to_save is stored whole, as
...lm_head.weight; PEFT puts the base's own embedding or output beside adapters on them, as ...base_layer.weight.
Rows are in Hugging Face's order; in memory they are in the base's.
Nothing in such a folder is trusted: peft_settings.py checks the config, this module the tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np

from brise.checkpoint.adapters.joined import join, joined_shapes, split
from brise.checkpoint.adapters.lineage import FILE as LINEAGE_FILE
from brise.checkpoint.adapters.lineage import Lineage, lineage_text
from brise.checkpoint.adapters.peft_settings import CONFIG_FILE, PeftSettings, config_of, read_settings
from brise.checkpoint.gguf.write_file import Outgoing
from brise.checkpoint.safetensors.file import SafetensorsFile, TensorEntry, open_safetensors
from brise.checkpoint.safetensors.tensor_names import hf_layer
from brise.checkpoint.safetensors.write_file import write_file
from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.files.atomic import staged_folder
from brise.files.fields import errors_of
from brise.models.config import Config
from brise.models.families import FAMILIES, JOINED
from brise.models.lora import EMBEDDING, ENDS, MODULES, NAMES, LowRanks, check_shape, matrices, module_of, targets
from brise.models.weights import Array, Dense, LowRank
from brise.quant.rows import encode_rows, float_rows

WEIGHTS_FILE = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
DTYPES = ("F32", "F16", "BF16")
SIDES = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
EMBEDDING_SIDES = ("lora_embedding_A", "lora_embedding_B")
WHOLE, BASE = "weight", "base_layer.weight"  # of modules_to_save; of the base

# base_model.model is PEFT's; the model's own names follow, with the old and new prefixes of models that see images.
_NAME = re.compile(r"base_model\.model\.(?P<module>(?:(?:model|language_model|text_model)\.){0,3}layers\."
                   r"(?P<layer>0|[1-9][0-9]{0,5})\.(?P<tail>(?:self_attn|mlp|shared_mlp)\.[a-z_]+))\."
                   r"(?P<side>lora_A\.weight|lora_B\.weight|lora_magnitude_vector)(?P<new>\.weight)?")
_END_NAME = re.compile(r"base_model\.model\.(?P<module>(?:(?:model|language_model|text_model)\.){0,3}"
                       r"(?P<name>embed_tokens|lm_head))\.(?P<side>lora_A\.weight|lora_B\.weight|"
                       r"lora_magnitude_vector|lora_embedding_[AB]|base_layer\.weight|weight)")
_DIFFERENCE_NUMBERS = 1 << 20  # of the base that are read at a time: 4 MB
Rows = Callable[[str, int, int], Array]  # of the base: rows first to last of the matrix at a path, as float32


@dataclass(frozen=True)
class AdapterFile:
    """An adapter: low ranks by path (layers.3.attention.wq), float32, their rows in the order of the base.

    `rank` and `alpha` are those of most matrices; each LowRank has its own rank and scale, which are what counts.
    """

    low_ranks: LowRanks
    rank: int
    alpha: float
    use_rslora: bool = False
    dropout: float = 0.0
    base_name: str = ""

    @property
    def use_dora(self) -> bool:
        return any(low_rank.magnitude is not None for low_rank in self.low_ranks.values())

    @property
    def modules(self) -> tuple[str, ...]:
        """PEFT's short names of the matrices that are changed."""
        own = {module_of(path) for path in self.low_ranks}
        return tuple(module for module in NAMES if module in own)

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers in memory."""
        return sum(array.nbytes for low_rank in self.low_ranks.values()
                   for array in (low_rank.a, low_rank.b, low_rank.magnitude) if array is not None)


def read_adapter(folder: Path | str, config: Config, rows: Rows | None = None) -> AdapterFile:
    """The adapter in `folder`, for the base that `config` describes; CheckpointError or UnsupportedError name the rest.

    A whole matrix (modules_to_save) becomes an adapter of full rank, whose B is the difference to the base's `rows`.
    Memory is that of the adapter: shapes are checked against the base before a number is read.
    """
    folder = Path(folder)
    _check_files(folder)
    settings = read_settings(folder)
    file = open_safetensors(folder / WEIGHTS_FILE)
    try:
        with errors_of(WEIGHTS_FILE):
            low_ranks = dict(_low_ranks(file, settings, config, rows))
    finally:
        file.close()
    return AdapterFile(MappingProxyType(low_ranks), settings.rank, settings.alpha, settings.use_rslora,
                       settings.dropout, settings.base_name)


def write_adapter(folder: Path, adapter: AdapterFile, lineage: Lineage | None, config: Config, *, dtype: str = "F32",
                  is_wrapped: bool = False, beside: Mapping[str, bytes] = MappingProxyType({})) -> None:
    """Writes the whole folder, or nothing; `dtype` is F32 or BF16. PEFT loads it.

    `is_wrapped`: the base has a vision encoder, so that its decoder is called model.language_model. `beside`: further
    files of the folder by name.
    """
    if not adapter.low_ranks:
        raise UnsupportedError("the adapter changes no matrix; there is nothing to write")
    shapes, own = matrices(config), FAMILIES[config.family].joined("hf")
    prefix = "model.language_model." if is_wrapped else "model."
    for path, low_rank in adapter.low_ranks.items():
        if path not in shapes:
            raise UnsupportedError(f"the adapter changes {path}, which this model does not have")
        check_shape(path, low_rank, shapes[path])
    low_ranks = join({path: _to_hf(path, low_rank, config) for path, low_rank in adapter.low_ranks.items()}, shapes,
                     own)
    modules = {path: _hf_module(path, prefix, config) for path in low_ranks}
    tensors = [tensor for path, low_rank in low_ranks.items()
               for tensor in _tensors(path, f"base_model.model.{modules[path]}", low_rank, dtype)]
    is_whole = low_ranks.keys() == joined_shapes(targets(config, adapter.modules), own).keys()
    names = tuple(dict.fromkeys(module.rpartition(".")[2] for module in modules.values()))
    values = config_of(low_ranks, modules, rank=adapter.rank, alpha=adapter.alpha, dropout=adapter.dropout,
                       use_rslora=adapter.use_rslora, base_name=adapter.base_name,
                       # By short names PEFT would look for them in a vision encoder and in every layer.
                       target_modules=names if is_whole and not is_wrapped else tuple(modules.values()))
    nbytes = sum(tensor.nbytes for tensor in tensors) + sum(map(len, beside.values()))
    with staged_folder(folder, nbytes) as staged:
        write_file(staged / WEIGHTS_FILE, tensors)
        (staged / CONFIG_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        if lineage is not None:
            (staged / LINEAGE_FILE).write_text(lineage_text(lineage), encoding="utf-8")
        for name, content in beside.items():
            (staged / name).write_bytes(content)


def _check_files(folder: Path) -> None:
    """Checks that the two files are there. Pickled weights are not opened: reading a pickle runs code."""
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{str(folder)!r} is no adapter: it has no {CONFIG_FILE}", field=CONFIG_FILE,
                              value="missing", limit="a folder as PEFT writes it",
                              hint="give the folder that `brise tune` or PEFT's save_pretrained wrote")
    if not (folder / WEIGHTS_FILE).is_file():
        for name in PICKLES:
            if (folder / name).exists():
                raise UnsupportedError(f"{name} is a pickle, which can run any code when it is read; allowed is "
                                       f"{WEIGHTS_FILE}", hint="save it again with a PEFT of version 0.5 or later")
        raise CheckpointError(f"{str(folder)!r} has no {WEIGHTS_FILE}", field=WEIGHTS_FILE, value="missing",
                              limit="a safetensors file")


def _low_ranks(file: SafetensorsFile, settings: PeftSettings, config: Config,
               rows: Rows | None) -> Iterator[tuple[str, LowRank]]:
    own = matrices(config)
    tails = _tails(config)
    joined = {tail: name for name, tail in tails.items() if tail in JOINED}
    shapes = {**own, **joined_shapes(own, joined)}  # a file may have them apart
    tensors_of, modules = _tensors_of(file, shapes, tails)
    saved = frozenset(path for path, tensors in tensors_of.items() if WHOLE in tensors)
    settings.check_modules(modules, saved, {path: name for path in shapes for name in _hf_names(path, tails)})
    found: dict[str, LowRank] = {}
    for path, tensors in tensors_of.items():
        if path in saved:
            found[path] = _of_full_rank(file, path, tensors, shapes[path], rows)
            continue
        whole = _low_rank(file, path, modules[path], tensors, settings, shapes[path])
        for part, low_rank in split(path, whole, own):
            if part in found:
                raise bad_value("a tensor", modules[path], f"one adapter for {part}")
            found[part] = low_rank
    for path in own:  # in the model's order, whatever the order of the file
        if path in found:
            yield path, _from_hf(path, found[path], config)


def _tensors_of(file: SafetensorsFile, shapes: Mapping[str, tuple[int, int]],
                tails: Mapping[str, str]) -> tuple[dict[str, dict[str, TensorEntry]], dict[str, str]]:
    """The tensors of each matrix by their sides, and PEFT's modules, both by path; the base's own are left out."""
    tensors_of: dict[str, dict[str, TensorEntry]] = {}
    modules: dict[str, str] = {}
    for tensor in file.tensors.values():
        path, module, side = _place(tensor.name, shapes, tails)
        if side == BASE:
            _check_base_layer(tensor, shapes[path])
            continue
        if modules.setdefault(path, module) != module or side in tensors_of.setdefault(path, {}):
            raise bad_value("a tensor", tensor.name, f"one {side} for {path}")
        tensors_of[path][side] = tensor
    if not tensors_of:
        raise bad_value("number of tensors", 0, "at least one matrix with lora_A and lora_B")
    return tensors_of, modules


def _hf_names(path: str, tails: Mapping[str, str]) -> list[str]:
    """What a matrix may be called: in a layer, or beside the layers."""
    if not path.startswith("layers."):
        return [module_of(path)]
    return [name for name, tail in tails.items() if path.split(".", 2)[2] == tail]


def _tails(config: Config) -> Mapping[str, str]:
    """The paths in a layer of the matrices that may have adapters, by what Hugging Face's files call them.

    Of every family that is the same in GGUF: such a file does not say which of them its adapters were made for.
    """
    own = FAMILIES[config.family].gguf_architecture
    tails: dict[str, str] = {}
    alike = [name for name, family in FAMILIES.items() if family.gguf_architecture == own]
    for name in sorted(alike, key=lambda name: name == config.family):  # its own names last
        names = hf_layer(name)
        tails |= {names[tail]: tail for tail in (*MODULES.values(), *FAMILIES[name].joined("hf"))}
    return tails


def _place(name: str, shapes: Mapping[str, tuple[int, int]], tails: Mapping[str, str]) -> tuple[str, str, str]:
    """Path, PEFT's module, and which of the sides a tensor is."""
    end = _END_NAME.fullmatch(name)
    if end is not None:
        own = EMBEDDING_SIDES if ENDS[end["name"]] == EMBEDDING else SIDES
        if end["side"] in (*own, WHOLE, BASE):
            return ENDS[end["name"]], end["module"], end["side"]
        if end["side"] == SIDES[2]:
            raise UnsupportedError(f"the adapter has {name}: magnitudes (DoRA) on the embedding; allowed are A and B "
                                   "alone", hint="train it without DoRA, or leave embed_tokens out")
    match = _NAME.fullmatch(name)
    if match is None or (match["new"] and match["side"] != SIDES[2]) or match["tail"] not in tails:
        raise UnsupportedError(
            f"the tensor {name[:200]} is not one of an adapter that brise implements",
            hint=f"adapters go on the decoder's {', '.join(NAMES)}, with {', '.join(SIDES)}; not on experts, latent "
                 "attention or a vision encoder")
    path = f"layers.{match['layer']}.{tails[match['tail']]}"
    if path not in shapes:
        raise UnsupportedError(f"the adapter has {name}, and the model has no {path} that takes an adapter",
                               hint="it was made for another model")
    return path, match["module"], match["side"]


def _check_base_layer(tensor: TensorEntry, shape: tuple[int, int]) -> None:
    """The base's numbers are not read; of another shape they are those of another vocabulary."""
    if tensor.shape != shape:
        raise bad_value(f"shape of {tensor.name}", tensor.shape, f"{shape}, as the model has it",
                        hint="the vocabulary was changed before the adapter was trained; train it on this model")


def _low_rank(file: SafetensorsFile, path: str, module: str, tensors: Mapping[str, TensorEntry], settings: PeftSettings,
              shape: tuple[int, int]) -> LowRank:
    """A, B and the magnitude in Hugging Face's order; of an embedding B and A, turned."""
    rank, is_embedding = settings.rank_of(module), path == EMBEDDING
    wanted: dict[str, tuple[int, ...]] = {SIDES[0]: (rank, shape[1]), SIDES[1]: (shape[0], rank)}
    if is_embedding:
        wanted = {EMBEDDING_SIDES[0]: (rank, shape[0]), EMBEDDING_SIDES[1]: (shape[1], rank)}
    elif settings.use_dora:
        wanted[SIDES[2]] = (shape[0],)
    for side in (*SIDES, *EMBEDDING_SIDES, WHOLE):
        if (side in tensors) != (side in wanted):
            is_there = side in tensors
            what = "no tensor, as there is a lora_A" if side == WHOLE else "no tensor, as use_dora is false"
            raise bad_value(f"{module}.{side}", "there" if is_there else "missing", what if is_there else "a tensor")
    first, second, *others = [_numbers(file, tensors[side], size) for side, size in wanted.items()]
    if is_embedding:
        return LowRank(np.ascontiguousarray(second.T), np.ascontiguousarray(first.T), settings.scale_of(module))
    return LowRank(first, second, settings.scale_of(module), others[0] if others else None)


def _of_full_rank(file: SafetensorsFile, path: str, tensors: Mapping[str, TensorEntry], shape: tuple[int, int],
                  rows: Rows | None) -> LowRank:
    """What turns the base's matrix into the one that is stored whole."""
    if len(tensors) > 1:
        raise bad_value(f"tensors of {module_of(path)}", sorted(tensors), f"{WHOLE} alone")
    if rows is None:
        raise UnsupportedError(f"the adapter has a whole {module_of(path)} (modules_to_save), and the base is not read "
                               "here", hint="merge it: brise export --merge")
    difference = _numbers(file, tensors[WHOLE], shape)
    step = max(1, _DIFFERENCE_NUMBERS // shape[1])
    for first in range(0, shape[0], step):
        last = min(first + step, shape[0])
        difference[first:last] -= rows(path, first, last)
    return LowRank(np.eye(shape[1], dtype=np.float32), difference, 1.0)


def _numbers(file: SafetensorsFile, tensor: TensorEntry, shape: tuple[int, ...]) -> Array:
    """The numbers as float32, copied, so that the file may be closed."""
    if tensor.shape != shape:
        raise bad_value(f"shape of {tensor.name}", tensor.shape, f"{shape}, by the model and the rank",
                        hint="it was made for another model")
    if tensor.dtype not in DTYPES:
        raise UnsupportedError(f"tensor {tensor.name} has the dtype {tensor.dtype}, allowed are {', '.join(DTYPES)}")
    data = file.array(tensor.name).reshape(-1, shape[-1])
    numbers = np.array(float_rows(Dense(tensor.dtype, data.shape, data), 0, len(data))).reshape(shape)
    if not np.isfinite(numbers).all():
        raise bad_value(f"a number of {tensor.name}", float(numbers[~np.isfinite(numbers)][0]), "finite numbers")
    return numbers


def _hf_module(path: str, prefix: str, config: Config) -> str:
    """model.layers.3.self_attn.q_proj for layers.3.attention.wq; the output stands beside the model."""
    if not path.startswith("layers."):
        return f"{prefix if path == EMBEDDING else ''}{module_of(path)}"
    layers, number, tail = path.split(".", 2)
    return f"{prefix}{layers}.{number}.{hf_layer(config.family)[tail]}"


def _tensors(path: str, module: str, low_rank: LowRank, dtype: str) -> Iterator[Outgoing]:
    sides = zip(SIDES, (low_rank.a, low_rank.b, low_rank.magnitude), strict=True)
    if path == EMBEDDING:
        sides = zip(EMBEDDING_SIDES, (np.asarray(low_rank.b).T, np.asarray(low_rank.a).T), strict=True)
    for side, array in sides:
        if array is not None:
            name, numbers = f"{module}.{side}", np.ascontiguousarray(array, np.float32)
            rows = encode_rows(name, dtype, numbers.reshape(-1, numbers.shape[-1]))
            yield Outgoing(name, dtype, numbers.shape, partial(iter, (rows,)))


def _from_hf(path: str, low_rank: LowRank, config: Config) -> LowRank:
    order = hf_rows(path, config)
    return low_rank if order is None else _ordered(low_rank, order)


def _to_hf(path: str, low_rank: LowRank, config: Config) -> LowRank:
    order = hf_rows(path, config)
    return low_rank if order is None else _ordered(low_rank, np.argsort(order))


def hf_rows(path: str, config: Config) -> Array | None:
    """The number in Hugging Face's file of each row of this matrix in memory; None where the order is the same.

    A base with rope pairs as neighbours has rows 2 i and 2 i + 1 of a head's rotated part where Hugging Face's has i
    and i + half; rows that are not rotated stay.
    """
    heads = {"wq": config.num_heads, "wk": config.num_kv_heads}.get(path.rsplit(".", 1)[-1])
    if heads is None or config.rope.layout == "half":
        return None
    own = np.arange(config.head_dim)
    own[:config.rope.dim] = own[:config.rope.dim].reshape(2, -1).T.reshape(-1)
    return (np.arange(heads)[:, None] * config.head_dim + own).reshape(-1)


def _ordered(low_rank: LowRank, order: Array) -> LowRank:
    magnitude = None if low_rank.magnitude is None else np.asarray(low_rank.magnitude)[order]
    return LowRank(low_rank.a, np.asarray(low_rank.b)[order], low_rank.scale, magnitude)
