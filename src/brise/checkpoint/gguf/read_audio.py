"""Reads Voxtral's audio encoder from an mmproj file of llama.cpp (architecture "clip", projector "voxtral")."""

from __future__ import annotations

from brise.checkpoint import known_keys, read_audio
from brise.checkpoint.gguf.file import GgufFile, GgufTensor
from brise.checkpoint.gguf.read_mmproj import find_token, renamed
from brise.checkpoint.gguf.read_model import keys_of
from brise.checkpoint.read_audio import tensor_name
from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.models.config import Config
from brise.models.weights import Array, Dense, Quant, Weight
from brise.models.whisper import KERNEL, NORM_EPS, AudioConfig, AudioWeights
from brise.quant.formats import FORMATS

KIND = "voxtral"
AUDIO, BEGIN = "[AUDIO]", "[BEGIN_AUDIO]"


def open_audio(model: GgufFile, projector: GgufFile | None, config: Config, *,
               is_named: bool) -> tuple[AudioConfig, AudioWeights] | None:
    """The audio encoder in the mmproj file beside a model.

    An mmproj file of another model is ignored, unless it `is_named`: stands in the folder that was asked for.
    """
    if projector is None or projector.metadata.get("clip.has_audio_encoder") is not True:
        return None
    width = projector.metadata.get("clip.audio.projection_dim")
    is_own = width == config.width and find_token(model, AUDIO) is not None
    if not is_own and not is_named:
        return None
    with renamed(projector):
        if not is_own:
            raise bad_value("clip.audio.projection_dim", width, f"{config.width}, the width of a model with {AUDIO}")
        audio = _config(projector, model, config)
        tensors = GgufAudioTensors(projector)
        weights = read_audio.read_weights(tensors, audio)
        tensors.refuse_rest()
        return audio, weights


def _config(projector: GgufFile, model: GgufFile, config: Config) -> AudioConfig:
    metadata = projector.metadata
    kind = metadata.get("clip.audio.projector_type", metadata.get("clip.projector_type"))
    if kind != KIND:
        raise UnsupportedError(f"the audio encoder is of type {kind!r}, allowed is {KIND!r}")
    if metadata.get("clip.has_vision_encoder") is True:
        raise UnsupportedError("the file has encoders of images and of audio; brise runs one of them in a model")
    positions = tensor_name("positions", "gguf")
    if positions not in projector.tensors:
        raise _missing(positions)
    keys = keys_of(metadata, "clip")
    begin, token = find_token(model, BEGIN), find_token(model, AUDIO)
    if begin is None or token is None:
        raise CheckpointError(f"the vocabulary has no {AUDIO if token is None else BEGIN}, which a model with an audio "
                              "encoder needs", field="tokenizer.ggml.tokens", limit=f"tokens {BEGIN} and {AUDIO}")
    keys.integer("audio.projection_dim")
    audio = AudioConfig(
        width=keys.integer("audio.embedding_length"), num_layers=keys.integer("audio.block_count"),
        num_heads=keys.integer("audio.attention.head_count"), ffn_width=keys.integer("audio.feed_forward_length"),
        num_mels=keys.integer("audio.num_mel_bins"), num_positions=projector.tensors[positions].shape[0],
        stack=keys.integer("audio.projector.stack_factor"),
        norm_eps=keys.number("audio.attention.layer_norm_epsilon", default=NORM_EPS), text_width=config.width,
        audio_token=token, begin_token=begin)
    keys.refuse_rest(known_keys.GGUF_CLIP)
    return read_audio.checked(audio, keys, "audio.attention.head_count")


class GgufAudioTensors:
    """The tensors of an encoder by path (read_audio.AudioTensors); remembers which were taken."""

    def __init__(self, gguf: GgufFile) -> None:
        self._gguf = gguf
        self._taken: set[str] = set()

    def has(self, path: str) -> bool:
        return tensor_name(path, "gguf") in self._gguf.tensors

    def vector(self, path: str, size: int) -> Weight:
        """Converters write the biases of convolutions as columns."""
        tensor, data = self._take(path, (size,), (size, 1))
        _check_plain(tensor)
        return Dense(tensor.format, (size,), data.reshape(size))

    def matrix(self, path: str, rows: int, cols: int) -> Weight:
        tensor, data = self._take(path, (rows, cols))
        if FORMATS[tensor.format].is_plain:
            return Dense(tensor.format, (rows, cols), data)
        return Quant(tensor.format, (rows, cols), data)

    def kernel(self, path: str, rows: int, channels: int) -> Weight:
        tensor, data = self._take(path, (rows, channels, KERNEL))
        _check_plain(tensor)
        return Dense(tensor.format, (rows, channels * KERNEL), data.reshape(rows, channels * KERNEL))

    def refuse_rest(self) -> None:
        """UnsupportedError for the first tensor that nothing took."""
        for name in self._gguf.tensors:
            if name not in self._taken:
                raise UnsupportedError(f"the audio encoder has a tensor {name}, which brise does not implement")

    def _take(self, path: str, *shapes: tuple[int, ...]) -> tuple[GgufTensor, Array]:
        name = tensor_name(path, "gguf")
        if name not in self._gguf.tensors:
            raise _missing(name)
        tensor = self._gguf.tensors[name]
        if tensor.shape not in shapes:
            raise bad_value(f"shape of {name}", tensor.shape, shapes[0])
        self._taken.add(name)
        return tensor, self._gguf.array(name)


def _missing(name: str) -> CheckpointError:
    return CheckpointError(f"the tensor {name} is missing", field=name, limit="a tensor of this name")


def _check_plain(tensor: GgufTensor) -> None:
    if not FORMATS[tensor.format].is_plain:
        raise UnsupportedError(f"tensor {tensor.name} has the format {tensor.format}, allowed are F32, F16 and BF16")
