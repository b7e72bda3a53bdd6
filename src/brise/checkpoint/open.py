"""Opens a model, whatever its files are: a .gguf (in one file or several), or a folder with one or with safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

from brise.checkpoint.generation import Generation, folder_generation, gguf_generation
from brise.checkpoint.gguf.file import open_gguf, open_model_file
from brise.checkpoint.gguf.read_audio import open_audio
from brise.checkpoint.gguf.read_mmproj import open_vision
from brise.checkpoint.gguf.read_model import describe, read_weights
from brise.checkpoint.gguf.read_siglip import is_siglip, open_siglip
from brise.checkpoint.matryoshka import Matryoshka, folder_matryoshka
from brise.checkpoint.model_files import ModelFiles, find_layout
from brise.checkpoint.pooling import Pooling, folder_pooling, gguf_pooling
from brise.checkpoint.read_audio import read_weights as read_audio
from brise.checkpoint.read_decoder import Description
from brise.checkpoint.read_siglip import read_weights as read_siglip
from brise.checkpoint.safetensors.read_hf_config import read_config as read_hf_config
from brise.checkpoint.safetensors.read_hf_config import refuse_draft
from brise.checkpoint.safetensors.read_mistral_params import read_params
from brise.checkpoint.safetensors.read_model import NamedAudioTensors, read_vision
from brise.checkpoint.safetensors.read_model import read_weights as read_safetensors
from brise.checkpoint.safetensors.read_siglip import HfSiglipTensors
from brise.checkpoint.safetensors.read_tensors import SafetensorsTensors
from brise.checkpoint.safetensors.shards import Shards, open_shards
from brise.checkpoint.safetensors.tensor_names import (
    NATIVE_VISION,
    ModuleNames,
    audio_prefix,
    has_vision,
    hf_names,
    hf_vision_names,
    native_names,
)
from brise.errors import BriseError, CheckpointError
from brise.files.fields import IgnoredKey, errors_of
from brise.files.json_file import read_json
from brise.files.mapped import SourceFile
from brise.models.config import Config
from brise.models.siglip import ImageConfig, ImageWeights, SiglipConfig
from brise.models.weights import Weight, Weights, place
from brise.models.whisper import AudioConfig, AudioWeights

Kind = Literal["gguf", "hf", "mistral"]
Vision = tuple[ImageConfig, ImageWeights]
Audio = tuple[AudioConfig, AudioWeights]


class Checkpoint(Protocol):
    """An open model. Its weights are views over files and cost no memory until they are read."""

    @property
    def kind(self) -> Kind: ...
    @property
    def path(self) -> Path:
        """What was opened."""
    @property
    def folder(self) -> Path:
        """The folder of the model's other files."""
    @property
    def files(self) -> tuple[Path, ...]:
        """Every file that holds weights."""
    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """Every file that decides the weights, as it was when it was opened."""
    @property
    def config(self) -> Config: ...
    @property
    def ignored(self) -> tuple[IgnoredKey, ...]:
        """Keys of the model's description that change nothing: notes, and what brise has never heard of."""
    @property
    def pooling(self) -> Pooling | None:
        """How the model makes a vector of a text; None where it makes no embeddings."""
    @property
    def matryoshka(self) -> Matryoshka | None:
        """Which shorter vectors the model was trained for; None where there are none."""
    @property
    def vision(self) -> Vision | None:
        """The vision encoder, if the model has one."""
    @property
    def audio(self) -> Audio | None:
        """The audio encoder, if the model has one."""
    @property
    def metadata(self) -> Mapping[str, object]:
        """Keys of the GGUF file; empty for safetensors."""
    @property
    def generation(self) -> Generation:
        """How its makers want the model sampled."""
    def weights(self) -> Weights:
        """All weights of the decoder; a tensor that is missing, misshapen or unknown is an error naming it."""
    def formats(self) -> frozenset[str]:
        """What the numbers in the files are: F32, BF16, Q4_0, F8_E4M3, ..."""
    def forget(self) -> None:
        """Lets the system drop the files' pages from memory."""
    def close(self) -> None:
        """Unmaps the files once no array of them is alive."""


def open_checkpoint(path: Path | str) -> Checkpoint:
    """Opens a .gguf, or a folder with safetensors of either kind or with one .gguf (and its mmproj file)."""
    path = Path(path)
    layout = find_layout(path)
    if layout.kind == "gguf":
        return _Gguf(path, layout)
    shards = open_shards(layout.folder, layout.stem)
    try:
        return _Safetensors(path, layout, shards)
    except BriseError:
        shards.close()
        raise


def num_parameters(checkpoint: Checkpoint) -> int:
    """Numbers of all weights, those of encoders too; scales of quantised ones do not count."""
    count = 0

    def add(name: str, weight: Weight) -> Weight:
        nonlocal count
        count += prod(weight.shape)
        return weight

    place(checkpoint.weights(), add)
    for encoder in (checkpoint.vision, checkpoint.audio):
        if encoder is not None:
            place(encoder[1], add)
    return count


class _Gguf:
    """A .gguf, with the encoder of images or audio that lies in it or beside it."""

    kind: Kind = "gguf"

    def __init__(self, path: Path, layout: ModelFiles) -> None:
        self.path, self.folder = path, layout.folder
        self._file = open_model_file(layout.files[0])
        self._projector = None if layout.projector is None else open_gguf(layout.projector)
        description = describe(self._file)
        self.config, self.ignored = description.config, description.ignored
        self.vision = self._open_vision(is_named=path.is_dir())
        self.audio = open_audio(self._file, self._projector, self.config, is_named=path.is_dir())
        self._files = [file for file in (self._file, self._projector) if file is not None]

    def _open_vision(self, *, is_named: bool) -> Vision | None:
        if self._projector is not None and is_siglip(self._projector):
            return open_siglip(self._file, self._projector, self.config, is_named=is_named)
        return open_vision(self._file, self._projector, self.config, is_named=is_named)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(path for file in self._files for path in file.paths)

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        return tuple(source for file in self._files for source in file.sources)

    @property
    def metadata(self) -> Mapping[str, object]:
        return self._file.metadata

    @property
    def pooling(self) -> Pooling | None:
        return gguf_pooling(self.metadata)

    @property
    def matryoshka(self) -> None:
        """No key of the format names it."""

    @property
    def generation(self) -> Generation:
        return gguf_generation(self.metadata)

    def weights(self) -> Weights:
        return read_weights(self._file, self.config)

    def formats(self) -> frozenset[str]:
        return frozenset(tensor.format for file in self._files for tensor in file.tensors.values())

    def forget(self) -> None:
        for file in self._files:
            file.forget_all()

    def close(self) -> None:
        for file in self._files:
            file.close()


class _Safetensors:
    """A folder of Hugging Face's layout or of Mistral's own."""

    metadata: Mapping[str, object] = MappingProxyType({})

    def __init__(self, path: Path, layout: ModelFiles, shards: Shards) -> None:
        self.path, self.folder, self.kind = path, layout.folder, layout.kind
        self._shards = shards
        for name in shards.tensors:
            refuse_draft(name)
        with errors_of(layout.config):
            self._config_source = SourceFile.of(layout.folder / layout.config)
            values = read_json(layout.folder / layout.config)
            description = read_params(values) if layout.kind == "mistral" else read_hf_config(values)
        self.config, self.ignored = description.config, description.ignored
        self._is_tied, self._config_name = description.is_tied, layout.config
        self._tensors = SafetensorsTensors(shards, description.scale_block)
        self._names = (native_names(shards.tensors) if layout.kind == "mistral"
                       else hf_names(shards.tensors, self.config.family))
        self.vision, self.audio = self._read_vision(description), self._read_audio(description)

    @property
    def files(self) -> tuple[Path, ...]:
        return self._shards.files

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        return (*self._shards.sources, self._config_source)

    @property
    def pooling(self) -> Pooling | None:
        return folder_pooling(self.folder)

    @property
    def matryoshka(self) -> Matryoshka | None:
        return folder_matryoshka(self.folder, self.config.width)

    @property
    def generation(self) -> Generation:
        return folder_generation(self.folder)

    def weights(self) -> Weights:
        head = f"{self._names.module('output')}.weight"
        if self._is_tied is False and not self._tensors.has(head):
            raise CheckpointError(f"the tensor {head} is missing: {self._config_name} says that the head is not the "
                                  "embedding", field=head, limit="a tensor of this name",
                                  hint="the model is damaged or incomplete; download it again")
        weights = read_safetensors(self._tensors, self._names, self.config)
        self._tensors.refuse_rest()
        return weights

    def formats(self) -> frozenset[str]:
        return frozenset(tensor.dtype for tensor in self._shards.tensors.values())

    def forget(self) -> None:
        self._shards.forget()

    def close(self) -> None:
        self._shards.close()

    def _read_vision(self, description: Description) -> Vision | None:
        """The vision encoder, where the file has one: text-only copies keep its config."""
        tensors = self._shards.tensors
        if description.vision is None or not has_vision(tensors):
            return None
        self._check_token("image", description.vision.image_token)
        if isinstance(description.vision, SiglipConfig):
            for token in (description.vision.begin_token, description.vision.end_token):
                self._check_token("image", token)
            siglip = HfSiglipTensors(self._tensors, tensors)
            return description.vision, read_siglip(siglip, description.vision, is_less_one=True)
        names: ModuleNames = NATIVE_VISION if self.kind == "mistral" else hf_vision_names(tensors)
        return description.vision, read_vision(self._tensors, names, description.vision)

    def _read_audio(self, description: Description) -> Audio | None:
        """The audio encoder, where the file has one."""
        prefix = audio_prefix(self._shards.tensors)
        if description.audio is None or prefix is None:
            return None
        self._check_token("audio", description.audio.audio_token)
        self._check_token("audio", description.audio.begin_token)
        tensors = NamedAudioTensors(self._tensors, "native" if self.kind == "mistral" else "hf", prefix)
        return description.audio, read_audio(tensors, description.audio)

    def _check_token(self, kind: str, token: int) -> None:
        if token >= self.config.vocab_size:
            last = self.config.vocab_size - 1
            raise CheckpointError(f"the {kind} token of {self.folder} is {token}, allowed is 0 to {last}",
                                  field=f"{kind}_token", value=token, limit=last)
