"""Reads SigLIP's encoder and Gemma 3's projector from an mmproj file of llama.cpp (projector "gemma3").

Sources: llama.cpp's names of keys and tensors. Old files call the two linears of a block the other way round.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from brise.checkpoint import known_keys, read_siglip
from brise.checkpoint.gguf.file import GgufFile, GgufTensor, StringArray
from brise.checkpoint.gguf.read_mmproj import check_colours, find_token, renamed
from brise.checkpoint.gguf.read_model import keys_of
from brise.checkpoint.read_siglip import tensor_name
from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.models.config import Config
from brise.models.pixtral import NUM_CHANNELS
from brise.models.siglip import NORM_EPS, SiglipConfig, SiglipWeights
from brise.models.weights import Array, Dense, Quant, Weight
from brise.quant.formats import FORMATS
from brise.text.images import SIGLIP_DEVIATION, SIGLIP_MEAN

KIND = "gemma3"
BEGIN, END, SOFT = "<start_of_image>", "<end_of_image>", "<image_soft_token>"
DEFAULT_POOL = 4  # where a file does not say it
_UNUSED = re.compile(r"<unused\d+>")


def is_siglip(projector: GgufFile) -> bool:
    """Whether an mmproj file says that it is of this kind."""
    metadata = projector.metadata
    return metadata.get("clip.vision.projector_type", metadata.get("clip.projector_type")) == KIND


def open_siglip(model: GgufFile, projector: GgufFile, config: Config, *,
                is_named: bool) -> tuple[SiglipConfig, SiglipWeights] | None:
    """The encoder of an mmproj file. One of another model is ignored, unless it `is_named`: stands in the folder that
    was asked for."""
    width = projector.metadata.get("clip.vision.projection_dim")
    if not is_named and (width != config.width or find_token(model, BEGIN) is None):
        return None
    with renamed(projector):
        return _read(projector, model, config)


def _read(projector: GgufFile, model: GgufFile, config: Config) -> tuple[SiglipConfig, SiglipWeights]:
    keys = keys_of(projector.metadata, "clip")
    if projector.metadata.get("clip.use_gelu") is False:
        raise UnsupportedError("clip.use_gelu is false: brise runs this encoder with GELU")
    for name, expected in (("image_mean", SIGLIP_MEAN), ("image_std", SIGLIP_DEVIATION)):
        check_colours(projector.metadata.get(f"clip.vision.{name}"), name, expected)
    width = keys.integer("vision.projection_dim")
    if width != config.width:
        raise bad_value("clip.vision.projection_dim", width, f"{config.width}, the width of the model")
    vision = read_siglip.checked(SiglipConfig(
        width=keys.integer("vision.embedding_length"), num_layers=keys.integer("vision.block_count"),
        num_heads=keys.integer("vision.attention.head_count"), ffn_width=keys.integer("vision.feed_forward_length"),
        patch_size=keys.integer("vision.patch_size"), image_size=keys.integer("vision.image_size"),
        pool=keys.integer("vision.projector.scale_factor", default=DEFAULT_POOL),
        norm_eps=keys.number("vision.attention.layer_norm_epsilon", default=NORM_EPS), text_width=config.width,
        image_token=_image_token(model), begin_token=_token(model, BEGIN), end_token=_token(model, END)))
    keys.refuse_rest(known_keys.GGUF_CLIP)
    tensors = GgufSiglipTensors(projector, vision)
    weights = read_siglip.read_weights(tensors, vision, is_less_one=False)
    tensors.refuse_rest()
    return vision, weights


def _image_token(model: GgufFile) -> int:
    """What stands for a row of an image in a prompt. llama.cpp's converter cuts the token for it off the vocabulary:
    then the last unused one."""
    token = find_token(model, SOFT)
    if token is not None:
        return token
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    texts: Sequence[str] = tokens if isinstance(tokens, StringArray) else ()
    for index in range(len(texts) - 1, -1, -1):
        if _UNUSED.fullmatch(texts[index]):
            return index
    raise CheckpointError(f"the vocabulary has neither {SOFT} nor an unused token", field="tokenizer.ggml.tokens",
                          limit=f"a token {SOFT}")


def _token(model: GgufFile, name: str) -> int:
    token = find_token(model, name)
    if token is None:
        raise CheckpointError(f"the vocabulary has no {name}, which a model with this vision encoder needs",
                              field="tokenizer.ggml.tokens", limit=f"a token {name}")
    return token


class GgufSiglipTensors:
    """The tensors of an encoder by path (read_siglip.SiglipTensors); remembers which were taken."""

    def __init__(self, gguf: GgufFile, config: SiglipConfig) -> None:
        self._gguf = gguf
        self._taken: set[str] = set()
        up = gguf.tensors.get(tensor_name("layers.0.w1", "gguf"))
        self._are_swapped = up is not None and up.shape == (config.width, config.ffn_width) != (
            config.ffn_width, config.width)

    def vector(self, path: str, size: int) -> Weight:
        tensor, data = self._take(path, (size,))
        _check_plain(tensor)
        return Dense(tensor.format, (size,), data)

    def matrix(self, path: str, rows: int, cols: int) -> Weight:
        tensor, data = self._take(path, (rows, cols))
        if FORMATS[tensor.format].is_plain:
            return Dense(tensor.format, (rows, cols), data)
        return Quant(tensor.format, (rows, cols), data)

    def kernel(self, path: str, config: SiglipConfig) -> Weight:
        tensor, data = self._take(path, (config.width, NUM_CHANNELS, config.patch_size, config.patch_size))
        _check_plain(tensor)
        return Dense(tensor.format, (config.width, config.patch_values), data.reshape(config.width, -1))

    def refuse_rest(self) -> None:
        """UnsupportedError for the first tensor that nothing took."""
        for name in self._gguf.tensors:
            if name not in self._taken:
                raise UnsupportedError(f"the vision encoder has a tensor {name}, which brise does not implement")

    def _take(self, path: str, shape: tuple[int, ...]) -> tuple[GgufTensor, Array]:
        name = tensor_name(path, "gguf")
        if self._are_swapped:
            name = {"ffn_up": name.replace("ffn_up", "ffn_down"), "ffn_down": name.replace("ffn_down", "ffn_up")}.get(
                name.split(".")[-2], name)
        if name not in self._gguf.tensors:
            raise CheckpointError(f"the tensor {name} is missing", field=name, limit="a tensor of this name")
        tensor = self._gguf.tensors[name]
        if tensor.shape != shape:
            raise bad_value(f"shape of {name}", tensor.shape, shape)
        self._taken.add(name)
        return tensor, self._gguf.array(name)


def _check_plain(tensor: GgufTensor) -> None:
    if not FORMATS[tensor.format].is_plain:
        raise UnsupportedError(f"tensor {tensor.name} has the format {tensor.format}, allowed are F32, F16 and BF16")
