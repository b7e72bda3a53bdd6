"""Loading of models: configuration, weights placed in a backend, tokenizer and chat template."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import cast

from brise.backends import BackendName, num_cores, open_backend, open_planner, split_planner
from brise.checkpoint.generation import Generation
from brise.checkpoint.matryoshka import Matryoshka
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.checkpoint.pooling import Pooling
from brise.checkpoint.requantize import requantized, requantized_encoder
from brise.engine import experts
from brise.engine.audio import LoadedAudio, open_audio
from brise.engine.packed import PackedKeeper, Trees, open_packed
from brise.engine.vision import LoadedVision, open_vision
from brise.errors import UnsupportedError
from brise.hub.packed import PackedFolder
from brise.models.config import Config
from brise.models.ops import Backend, LayerSplit, Planner
from brise.models.weights import Dense, Lora, Placed, Quant, Stack, Stored, Weight, Weights, place
from brise.text.conversation import Chat
from brise.text.infill import Infill, infill_of
from brise.text.load import tokens_for
from brise.text.protocols import TextTokenizer
from brise.text.schemas import SchemaCache

# Bytes of a file that are read before their pages are released.
_READ_AHEAD = 8 << 20
CPU = "the CPU"


@dataclass(frozen=True)
class LoadedModel:
    """A model that an engine can run. `digest` is the SHA-256 of the file, if the store knows it."""

    config: Config
    backend: Backend
    weights: Weights
    tokenizer: TextTokenizer
    chat: Chat | None
    pooling: Pooling | None
    name: str
    path: Path
    digest: str | None = None
    system_prompt: str | None = None  # the one that its makers suggest; used only on request
    vision: LoadedVision | None = None
    requantized: str | None = None  # the format that matrices were quantized to while they were read
    generation: Generation = Generation()  # how its makers want it sampled
    weight_format: str | None = None  # of most of the numbers in its matrices
    matryoshka: Matryoshka | None = None  # the shorter vectors that it was trained for
    audio: LoadedAudio | None = None
    infill: Infill | None = None  # how it is asked to fill in the middle of a text
    keeper: PackedKeeper | None = None  # writes the packed weights for the next start, if they are not there yet
    schemas: SchemaCache = field(default_factory=SchemaCache, compare=False)  # of its requests

    @property
    def device(self) -> str:
        """What runs it: a GPU by its name and number, or "the CPU"."""
        return str(self.backend.facts().get("device", CPU))

    @property
    def takes_media(self) -> bool:
        """Whether it has an encoder of images or audio."""
        return self.vision is not None or self.audio is not None

    def with_image_size(self, image_size: int | None) -> LoadedModel:
        """The same model with another longest side for its images, in pixels; None: the model's own."""
        if image_size is None:
            return self
        if self.vision is None:
            raise UnsupportedError(f"an image size was requested, and {self.name} has no vision encoder")
        return replace(self, vision=self.vision.with_image_size(image_size))


def load(path: Path | str, *, backend: BackendName = "native", threads: int | None = None,
         name: str | None = None, digest: str | None = None, weights: str | None = None,
         expert_bytes: int | None = None, packed: PackedFolder | None = None, device: str = "cpu",
         gpu_layers: int | None = None, encodes_on_host: bool = False) -> LoadedModel:
    """Opens a .gguf file or a folder and places its weights. Anything that the backend cannot run is refused here.

    `device` is one of the native backend: "cpu", "vulkan:N", ... (backends.open_planner). With `gpu_layers` the last
    layers and the head lie on that GPU, the others on the CPU; with `encodes_on_host` encoders of images, too.

    With `weights` (Q4_0, Q4_K_M, ... as in `brise quantize`), matrices in FP8 or plain formats are quantized while
    they are read, and those of an encoder of images or audio to Q8_0. With `expert_bytes`, experts stay in the file: an
    expert is packed when a token needs it, and at most that many bytes of experts are kept.

    With `packed`, weights that the folder has are mapped from there. If it has none, `keeper` of the model writes them.
    """
    checkpoint = open_checkpoint(path)
    trees = _trees(checkpoint, weights, threads or num_cores())
    target = (open_backend(backend, threads, device=device) if gpu_layers is None
              else _split(open_planner(threads, device=device), trees.decoder, gpu_layers, checkpoint))
    if encodes_on_host:
        target = cast(Planner, target).encoding_on_host()
    pooling, tokens = checkpoint.pooling, tokens_for(checkpoint, begins_template=True)
    kept = None
    if packed is not None and expert_bytes is None:  # behind the tokenizer, whose building takes memory of its own
        kept = open_packed(packed, target, checkpoint.sources, trees, weights)
    put = target.place if expert_bytes is None else experts.put_on_demand(trees.decoder, target, expert_bytes,
                                                                         _PageRelease(checkpoint))
    put = _released(put, checkpoint)
    if kept is not None:
        put = kept.put(put)
    vision = None if trees.vision is None else open_vision(*trees.vision, target, put)
    audio = None if trees.audio is None else open_audio(*trees.audio, target, put)
    checkpoint.forget()
    placed = place(trees.decoder, put)
    checkpoint.forget()  # what was read last, such as a large output matrix
    if expert_bytes is not None:
        experts.check_room(placed, target, expert_bytes)
    keeper = None if kept is None else kept.keeper(Trees(
        placed, None if vision is None else (vision.config, vision.weights),
        None if audio is None else (audio.config, audio.weights)))
    return LoadedModel(checkpoint.config, target, placed, tokens.tokenizer, tokens.chat,
                       pooling, name or _name(checkpoint), Path(path), digest, tokens.system_prompt, vision,
                       weights, checkpoint.generation, _usual_format(trees.decoder),
                       None if pooling is None else checkpoint.matryoshka, audio,
                       infill_of(tokens.tokenizer, checkpoint.metadata), keeper)


def _split(planner: Planner, weights: Weights, gpu_layers: int, checkpoint: Checkpoint) -> Backend:
    """The backend with so many of the model's layers on the GPU."""
    is_tied = weights.output is weights.tok_embeddings
    return split_planner(planner, LayerSplit(len(weights.layers), gpu_layers, is_tied), checkpoint.forget)


def _trees(checkpoint: Checkpoint, mix: str | None, threads: int) -> Trees:
    """The weights as they shall be placed; nothing of them is read yet."""
    decoder, vision, audio = checkpoint.weights(), checkpoint.vision, checkpoint.audio
    if mix is not None:
        decoder = requantized(decoder, checkpoint.config, mix, checkpoint.forget, threads)
        if vision is not None:
            vision = (vision[0], requantized_encoder(vision[1], mix, checkpoint.forget, threads))
        if audio is not None:
            audio = (audio[0], requantized_encoder(audio[1], mix, checkpoint.forget, threads))
    return Trees(decoder, vision, audio)


def _released(put: experts.Put, checkpoint: Checkpoint) -> experts.Put:
    """Releases the file's pages after a weight was placed, so that the model is in memory once."""
    on_read = _PageRelease(checkpoint)

    def put_and_release(name: str, weight: Weight) -> Weight:
        placed = put(name, weight)
        on_read(weight)
        return placed

    return put_and_release


def _usual_format(weights: Weights) -> str | None:
    """The format that most numbers of the matrices have."""
    counts = Counter[str]()

    def count(name: str, weight: Weight) -> Weight:
        matrices = weight.matrices if isinstance(weight, Stack) else (weight,)
        for matrix in matrices:
            if isinstance(matrix, Dense | Quant | Stored) and len(matrix.shape) > 1:
                counts[matrix.format] += prod(matrix.shape)
        return weight

    place(weights, count)
    return max(counts, key=lambda format: counts[format], default=None)


class _PageRelease:
    """Counts the bytes of weights that were read, and releases the file's pages every _READ_AHEAD bytes."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint, self._num_read = checkpoint, 0

    def __call__(self, weight: Weight) -> None:
        self._num_read += _stored_bytes(weight)
        if self._num_read >= _READ_AHEAD:
            self._checkpoint.forget()
            self._num_read = 0


def _stored_bytes(weight: Weight) -> int:
    """About how many bytes of the files were read for a weight."""
    match weight:
        case Dense() | Quant():
            return int(weight.data.nbytes)
        case Stored():
            return 2 * prod(weight.shape)
        case Stack():
            return sum(_stored_bytes(matrix) for matrix in weight.matrices)
        case Lora():
            return _stored_bytes(weight.base)
        case Placed():
            return 0


def _name(checkpoint: Checkpoint) -> str:
    name = checkpoint.metadata.get("general.name")
    if isinstance(name, str) and name:
        return name
    return checkpoint.path.stem if checkpoint.path.is_file() else checkpoint.folder.resolve().name
