"""A model that sees the gate course: a small vision encoder in front of a text model, made from the demo's own renders.

The encoder answers as the text of an observation has it: two cells of the ring's picture become the text model's own
embeddings of a gate's color and of the sector where it is seen, or of a dash and the sector if there is none. So a text
model reads a picture as it reads "- j - i red h - g blue f", and an adapter that was trained on words knows what that
means. The text model's weights stay as they are; three control tokens that no chat uses get the names by which a
picture's tokens are known, and the encoder lies beside it in an mmproj file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brise import settings
from brise.backends import open_backend
from brise.checkpoint.gguf.read_mmproj import BREAK, END, IMAGE
from brise.checkpoint.gguf.write_file import write_gguf
from brise.checkpoint.gguf.write_mmproj import projector_path, write_projector
from brise.checkpoint.open import open_checkpoint
from brise.checkpoint.read_original import Original, open_original
from brise.checkpoint.write_gguf import outgoing
from brise.engine import vision
from brise.errors import EvidenceError, UnsupportedError
from brise.files.atomic import refuse_existing
from brise.hub.locate import find_model
from brise.models.pixtral import VisionConfig
from brise.quant.rows import float_rows, format_of
from brise.robots import camera, gate_course
from brise.robots.camera import Picture
from brise.robots.gate_course import SECTORS
from brise.robots.missions import COLORS
from brise.text.images import DEVIATION, MEAN
from brise.text.load import tokens_for
from brise.text.protocols import TextTokenizer
from brise.tune import vision_encoder
from brise.tune.vision_encoder import EncoderOptions, TrainedEncoder
from brise.watch import SILENT, Watcher

EMPTY = "-"
# The sectors that the cells tell, two cells for each, as one reads: under each other are neighbors.
ORDER = tuple((9 - 2 * block - row) % len(SECTORS) for row in range(2) for block in range(len(SECTORS) // 2))
NEW_PICTURES = 1 << 30  # their number: no training has so many steps
CONTROL = 3  # the type of a control token in a GGUF file
TOKENS, TYPES, TEMPLATE = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.chat_template"


@dataclass(frozen=True)
class CameraModelOptions:
    """The defaults are those of `brise act camera`. `out` is the folder to write; `model` a GGUF model."""

    out: Path
    model: str = "smollm2"
    encoder: EncoderOptions = field(default_factory=EncoderOptions)


@dataclass(frozen=True)
class CameraModel:
    """What was made, and how it reads new pictures: of the `gates` in them, the share whose color stands at its sector,
    and the share of the sectors without a gate that it says are empty."""

    path: Path
    loss: float
    gates: int
    right: float
    empty: float


def make(options: CameraModelOptions, watcher: Watcher = SILENT) -> CameraModel:
    """Trains the encoder and writes the folder; it may be trained further as any model with images."""
    refuse_existing(options.out)
    located = find_model(options.model, settings.read())
    if not located.path.is_file():
        raise UnsupportedError(f"{options.model} is a folder of safetensors; the camera takes a model in one GGUF file")
    original = _with_image_tokens(open_original(located.path))
    vocabulary = CellWords(original, tokens_for(open_checkpoint(located.path)).tokenizer)
    encoder = vision_encoder.train(
        lambda step: vocabulary.batch(pictures(step, options.encoder.batch_size, options.encoder.seed)),
        original.config.width, _names(original).index(IMAGE), original.config.norm_eps, options.encoder, watcher)
    options.out.mkdir(parents=True)
    path = options.out / f"{Path(options.model).stem}.gguf"
    seeing = replace(original, vision=(_placed(encoder, original), encoder.weights))
    write_gguf(path, seeing.metadata, [outgoing(tensor, format_of(tensor.weight), seeing.forget)
                                       for tensor in seeing.tensors])
    write_projector(seeing, projector_path(path))
    return _checked(path, encoder, vocabulary)


@dataclass(frozen=True)
class DrawnPicture:
    """A picture of the ring with the words of its cells."""

    pixels: Picture
    cells: tuple[str, ...]


def pictures(number: int, count: int, seed: int) -> list[DrawnPicture]:
    """What the ring shows at random places of random courses; another `number`, others."""
    random = np.random.default_rng([seed, number])
    flights, states = gate_course.scattered(random, "train", count)
    return [drawn(camera.ring(flight.course, states.position[at], float(states.yaw[at])))
            for at, flight in enumerate(flights)]


def drawn(ring: camera.Ring) -> DrawnPicture:
    """A picture with its words: for each sector the color of the gate that is seen there, and the sector.

    One word has room for one gate: of two in a sector, the one that less shows of is told a sector beside it.
    """
    told: dict[int, str] = {}
    for color, bearing in ring.gates.items():
        middle = bearing / (2 * math.pi) * len(SECTORS)
        nearest = sorted((round(middle) + off for off in (-1, 0, 1)), key=lambda sector: abs(sector - middle))
        free = [sector % len(SECTORS) for sector in nearest if sector % len(SECTORS) not in told]
        if free:
            told[free[0]] = color
    return DrawnPicture(ring.pixels, tuple(word for sector in ORDER
                                           for word in (told.get(sector, EMPTY), SECTORS[sector])))


class CellWords:
    """The rows of a text model that words of cells become."""

    def __init__(self, original: Original, tokenizer: TextTokenizer) -> None:
        self.rows: dict[str, NDArray[np.float32]] = {}
        for word in (*COLORS, EMPTY, *SECTORS):
            tokens = min((tokenizer.encode(text) for text in (f" {word}", word)), key=len)
            self.rows[word] = np.mean([float_rows(original.weights.tok_embeddings, token, token + 1)[0]
                                       for token in tokens], 0, dtype=np.float32)
        self._said = (*COLORS, EMPTY)
        self._said_rows = np.stack([self.rows[word] for word in self._said])

    def batch(self, drawn_pictures: Sequence[DrawnPicture]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The pixels, normalized, (N, 3, H, W), and what their cells should become, (N, M, D)."""
        pixels = np.stack([normalized(each.pixels) for each in drawn_pictures])
        return pixels, np.stack([[self.rows[word] for word in each.cells] for each in drawn_pictures])

    def read(self, row_D: NDArray[np.float32]) -> str:
        """The color, or that there is none, whose row is the nearest."""
        return self._said[int(np.argmin(((self._said_rows - row_D) ** 2).sum(1)))]


def normalized(pixels: Picture) -> NDArray[np.float32]:
    """A picture as an encoder takes it, (3, H, W)."""
    scaled = (pixels / 255 - np.array(MEAN)) / np.array(DEVIATION)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), np.float32)


def _with_image_tokens(original: Original) -> Original:
    """The model with the names of an image's tokens for its last control tokens that its chats do not use."""
    names, template = _names(original), str(original.metadata.get(TEMPLATE, ""))
    ends = {value for key, value in original.metadata.items() if key.endswith("_token_id")}
    unused = [number for number, kind in enumerate(np.asarray(original.metadata[TYPES]).tolist())
              if kind == CONTROL and names[number] not in template and number not in ends]
    if len(unused) < 3 or IMAGE in names:
        raise UnsupportedError("the camera takes a text model whose vocabulary has three control tokens that no chat "
                               "uses")
    for number, name in zip(unused[-3:], (IMAGE, BREAK, END), strict=True):
        names[number] = name
    return replace(original, metadata={**original.metadata, TOKENS: names})


def _names(original: Original) -> list[str]:
    tokens = original.metadata[TOKENS]
    return [tokens[number] for number in range(len(tokens))]  # type: ignore[index, arg-type]


def _placed(encoder: TrainedEncoder, original: Original) -> VisionConfig:
    """The encoder's config with the tokens of this vocabulary."""
    names = _names(original)
    return replace(encoder.config, break_token=names.index(BREAK), end_token=names.index(END))


def _checked(path: Path, encoder: TrainedEncoder, vocabulary: CellWords) -> CameraModel:
    """Reads the folder back, and new pictures by it."""
    sizes = open_checkpoint(path).vision
    assert sizes is not None, "the encoder was written"
    loaded = vision.open_vision(*sizes, open_backend(threads=1))
    drawn_pictures = pictures(NEW_PICTURES, 200, seed=1)
    encoded = loaded.encode([normalized(each.pixels) for each in drawn_pictures])
    gates: list[bool] = []
    empty: list[bool] = []
    for each, rows in zip(drawn_pictures, encoded, strict=True):
        for word, row in zip(each.cells[::2], rows[::2], strict=True):
            (empty if word == EMPTY else gates).append(vocabulary.read(row) == word)
    if not gates:
        raise EvidenceError("no picture shows a gate")
    return CameraModel(path, encoder.loss, len(gates), float(np.mean(gates)), float(np.mean(empty)))
