"""Reads a Pixtral vision encoder from GGUF: an mmproj file of llama.cpp, or a model's own file as Ollama packs it.

Sources: llama.cpp's names of keys and tensors (architecture "clip", projector "pixtral"), Ollama's for mistral3. Rows
of q and k lie with rope pairs as neighbours in the first, halves apart in the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np

from brise.checkpoint import known_keys
from brise.checkpoint.gguf.file import GgufFile, GgufTensor, StringArray
from brise.checkpoint.gguf.read_model import VISION_ARCHITECTURE, keys_of
from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.files.fields import Fields
from brise.models.config import Config
from brise.models.pixtral import NORM_EPS, NUM_CHANNELS, VisionConfig, VisionWeights
from brise.models.weights import Array, Attention, Dense, FeedForward, Layer, Quant, Stored, Weight
from brise.quant.formats import FORMATS
from brise.text.images import DEVIATION, MEAN

ROPE_THETA = 10000.0  # of every vision encoder so far; llama.cpp has no key for it
IMAGE, BREAK, END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
BREAK_ROW = "v.token_embd.img_break"


@dataclass(frozen=True)
class _Names:
    """Tensor names, without `.weight`, of one layout of the encoder; those of a layer follow v.blk.N."""

    whole: Mapping[str, str]
    layer: Mapping[str, str]
    are_halves: bool


_LAYER = MappingProxyType({"wq": "attn_q", "wk": "attn_k", "wv": "attn_v", "w1": "ffn_gate", "w2": "ffn_down",
                           "w3": "ffn_up"})
LLAMA_CPP = _Names(
    MappingProxyType({"patch_conv": "v.patch_embd", "ln_pre": "v.pre_ln", "norm": "mm.input_norm",
                      "merging_layer": "mm.patch_merger", "w_in": "mm.1", "w_out": "mm.2"}),
    MappingProxyType({**_LAYER, "attention_norm": "ln1", "ffn_norm": "ln2", "wo": "attn_out"}), are_halves=False)
OLLAMA = _Names(
    MappingProxyType({"patch_conv": "v.patch_conv", "ln_pre": "v.encoder_norm", "norm": "mm.norm",
                      "merging_layer": "mm.patch_merger.merging_layer", "w_in": "mm.linear_1",
                      "w_out": "mm.linear_2"}),
    MappingProxyType({**_LAYER, "attention_norm": "attn_norm", "ffn_norm": "ffn_norm", "wo": "attn_output"}),
    are_halves=True)


def open_vision(model: GgufFile, projector: GgufFile | None, config: Config, *,
                is_named: bool) -> tuple[VisionConfig, VisionWeights] | None:
    """The model's vision encoder: the one inside its own file, or in the mmproj file beside it.

    An mmproj file of another model is ignored, unless it `is_named`: stands in the folder that was asked for.
    """
    if f"{OLLAMA.whole['patch_conv']}.weight" in model.tensors:
        vision = _ollama_config(model, config)
        return vision, _read(_Tensors(model), OLLAMA, vision)
    if projector is None or _is_for_audio(projector):
        return None
    width = projector.metadata.get("clip.vision.projection_dim")
    fits = width == config.width and find_token(model, IMAGE) is not None
    if not fits and not is_named:
        return None
    with renamed(projector):
        if not fits:
            raise bad_value("clip.vision.projection_dim", width, f"{config.width}, the width of a model with {IMAGE}")
        vision = _clip_config(projector, model, config)
        return vision, _read(_Tensors(projector), LLAMA_CPP, vision)


@contextmanager
def renamed(projector: GgufFile) -> Iterator[None]:
    """Puts the name of the mmproj file before the messages of errors in it."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{projector.path.name}: {error.args[0]}", field=error.field, value=error.value,
                              limit=error.limit, hint=error.hint) from None
    except UnsupportedError as error:
        raise UnsupportedError(f"{projector.path.name}: {error.args[0]}", hint=error.hint) from None


def _is_for_audio(projector: GgufFile) -> bool:
    """Whether the file has an encoder of audio, and none of images."""
    has = (projector.metadata.get(f"clip.has_{kind}_encoder") is True for kind in ("audio", "vision"))
    return tuple(has) == (True, False)


def _clip_config(projector: GgufFile, model: GgufFile, config: Config) -> VisionConfig:
    metadata = projector.metadata
    if metadata.get("general.architecture") != "clip":
        raise bad_value("general.architecture", metadata.get("general.architecture"), "'clip'")
    kind = metadata.get("clip.vision.projector_type", metadata.get("clip.projector_type"))
    if kind != "pixtral":
        raise UnsupportedError(f"the vision encoder is of type {kind!r}, allowed is 'pixtral'")
    if metadata.get("clip.use_gelu") is True:
        raise UnsupportedError("clip.use_gelu is true: brise runs encoders with SiLU")
    for name, expected in (("image_mean", MEAN), ("image_std", DEVIATION)):
        check_colours(metadata.get(f"clip.vision.{name}"), name, expected)
    keys = keys_of(metadata, "clip")
    keys.integer("vision.projection_dim")
    vision = _config(
        keys, model, config, norm_eps=keys.number("vision.attention.layer_norm_epsilon", default=NORM_EPS),
        merge=keys.integer("vision.spatial_merge_size", default=2), rope_theta=ROPE_THETA,
        image_token=_token(model, IMAGE))
    keys.refuse_rest(known_keys.GGUF_CLIP)
    return vision


def _ollama_config(model: GgufFile, config: Config) -> VisionConfig:
    keys = keys_of(model.metadata, VISION_ARCHITECTURE)
    if model.metadata.get("mistral3.mm.projector_bias") is True:
        raise UnsupportedError("mistral3.mm.projector_bias is true: brise runs projectors without biases")
    if model.metadata.get("mistral3.mm.projector_hidden_act", "gelu") != "gelu":
        raise bad_value("mistral3.mm.projector_hidden_act", model.metadata["mistral3.mm.projector_hidden_act"],
                        "'gelu'")
    if keys.integer("vision.num_channels", default=NUM_CHANNELS) != NUM_CHANNELS:
        raise bad_value("mistral3.vision.num_channels", keys.integer("vision.num_channels"), NUM_CHANNELS)
    return _config(
        keys, model, config, norm_eps=keys.number("vision.attention.layer_norm_epsilon", default=NORM_EPS),
        merge=keys.integer("spatial_merge_size", default=2),
        rope_theta=keys.number("vision.rope.freq_base", default=ROPE_THETA),
        image_token=keys.integer("image_token_index", default=_token(model, IMAGE)))


def _config(keys: Fields, model: GgufFile, config: Config, *, norm_eps: float, merge: int, rope_theta: float,
            image_token: int) -> VisionConfig:
    """The sizes that both layouts call by the same names."""
    width, num_heads = keys.integer("vision.embedding_length"), keys.integer("vision.attention.head_count")
    head_dim = keys.integer("vision.attention.key_length", default=width // num_heads)
    if head_dim * num_heads != width:
        raise bad_value("vision.attention.head_count", num_heads, f"a divisor of the width {width}")
    if head_dim % 4:
        raise bad_value("width of a head", head_dim, "a multiple of 4, for rope of two dimensions")
    return VisionConfig(
        width=width, num_layers=keys.integer("vision.block_count"), num_heads=num_heads, head_dim=head_dim,
        ffn_width=keys.integer("vision.feed_forward_length"), patch_size=keys.integer("vision.patch_size"),
        image_size=keys.integer("vision.image_size"), merge=merge, norm_eps=norm_eps,
        projector_norm_eps=config.norm_eps, rope_theta=rope_theta, text_width=config.width, image_token=image_token,
        break_token=_token(model, BREAK), end_token=_token(model, END))


def check_colours(value: object, name: str, expected: tuple[float, ...]) -> None:
    """CheckpointError unless the file's mean or deviation of colours is the expected one, or not there."""
    if value is not None and not (isinstance(value, np.ndarray) and value.shape == (3,)
                                  and np.allclose(value.astype(np.float64), expected, atol=1e-6)):
        raise bad_value(f"clip.vision.{name}", value, expected)


def find_token(model: GgufFile, name: str) -> int | None:
    """The id of a token in the model's vocabulary."""
    tokens = model.metadata.get("tokenizer.ggml.tokens")
    try:
        return tokens.index(name) if isinstance(tokens, StringArray) else None
    except ValueError:
        return None


def _token(model: GgufFile, name: str) -> int:
    token = find_token(model, name)
    if token is None:
        raise CheckpointError(f"the vocabulary has no {name}, which a model with a vision encoder needs",
                              field="tokenizer.ggml.tokens", limit=f"a token {name}")
    return token


def _read(tensors: _Tensors, names: _Names, config: VisionConfig) -> VisionWeights:
    width, text_width = config.width, config.text_width
    weights = VisionWeights(
        patch_conv=tensors.kernel(names.whole["patch_conv"], config),
        ln_pre=tensors.vector(names.whole["ln_pre"], width),
        layers=tuple(_layer(tensors, names, config, index) for index in range(config.num_layers)),
        norm=tensors.vector(names.whole["norm"], width),
        merging_layer=tensors.matrix(names.whole["merging_layer"], width, width * config.merge**2),
        w_in=tensors.matrix(names.whole["w_in"], text_width, width),
        w_out=tensors.matrix(names.whole["w_out"], text_width, text_width),
        break_row=tensors.optional_vector(BREAK_ROW, text_width))
    tensors.refuse_rest()
    return weights


def _layer(tensors: _Tensors, names: _Names, config: VisionConfig, index: int) -> Layer:
    def matrix(name: str, rows: int, cols: int, num_heads: int | None = None) -> Weight:
        return tensors.matrix(f"v.blk.{index}.{names.layer[name]}", rows, cols, num_heads)

    width, ffn_width = config.width, config.ffn_width
    rotated_heads = config.num_heads if names.are_halves else None
    return Layer(
        attention_norm=tensors.vector(f"v.blk.{index}.{names.layer['attention_norm']}", width),
        attention=Attention(wq=matrix("wq", width, width, rotated_heads), wk=matrix("wk", width, width, rotated_heads),
                            wv=matrix("wv", width, width), wo=matrix("wo", width, width)),
        ffn_norm=tensors.vector(f"v.blk.{index}.{names.layer['ffn_norm']}", width),
        feed_forward=FeedForward(w1=matrix("w1", ffn_width, width), w2=matrix("w2", width, ffn_width),
                                 w3=matrix("w3", ffn_width, width)))


class _Tensors:
    """Takes the encoder's tensors by name, each with the shape that the config asks for, and remembers which."""

    def __init__(self, gguf: GgufFile) -> None:
        self._gguf = gguf
        self._taken: set[str] = set()

    def matrix(self, module: str, rows: int, cols: int, num_heads: int | None = None) -> Weight:
        """A matrix; with `num_heads` the halves of each head's rows become neighbours."""
        tensor, data = self._take(f"{module}.weight", (rows, cols))
        if num_heads is not None:
            order = np.arange(rows).reshape(num_heads, 2, -1).swapaxes(1, 2).reshape(-1)
            return Stored(tensor.format, (rows, cols), partial(_rows, data, order))
        if FORMATS[tensor.format].is_plain:
            return Dense(tensor.format, tensor.shape, data)
        return Quant(tensor.format, (rows, cols), data)

    def kernel(self, module: str, config: VisionConfig) -> Weight:
        """The convolution as a matrix of flattened patches."""
        shape = (config.width, NUM_CHANNELS, config.patch_size, config.patch_size)
        tensor, data = self._take(f"{module}.weight", shape)
        _check_plain(tensor, module)
        return Dense(tensor.format, (config.width, config.patch_values), data.reshape(config.width, -1))

    def vector(self, module: str, size: int) -> Weight:
        tensor, data = self._take(f"{module}.weight", (size,))
        _check_plain(tensor, module)
        return Dense(tensor.format, tensor.shape, data)

    def optional_vector(self, name: str, size: int) -> Weight | None:
        """Converters write it with and without `.weight`."""
        for full in (name, f"{name}.weight"):
            if full in self._gguf.tensors:
                tensor, data = self._take(full, (size,))
                _check_plain(tensor, full)
                return Dense(tensor.format, tensor.shape, data)
        return None

    def refuse_rest(self) -> None:
        for name in self._gguf.tensors:
            if name.startswith(("v.", "mm.")) and name not in self._taken:
                raise UnsupportedError(f"the vision encoder has a tensor {name}, which brise does not implement")

    def _take(self, name: str, shape: tuple[int, ...]) -> tuple[GgufTensor, Array]:
        if name not in self._gguf.tensors:
            raise CheckpointError(f"the tensor {name} is missing", field=name, limit="a tensor of this name")
        tensor = self._gguf.tensors[name]
        if tensor.shape != shape:
            raise bad_value(f"shape of {name}", tensor.shape, shape)
        self._taken.add(name)
        return tensor, self._gguf.array(name)


def _rows(data: Array, order: Array, first: int, last: int) -> Array:
    return data[order[first:last]]


def _check_plain(tensor: GgufTensor, name: str) -> None:
    if not FORMATS[tensor.format].is_plain:
        raise UnsupportedError(f"tensor {name} has the format {tensor.format}, allowed are F32, F16 and BF16")
