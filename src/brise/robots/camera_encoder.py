"""A model that sees the gate course: a small vision encoder in front of a text model, made from the demo's own renders.

Each cell of a picture is trained to become the sum of the text model's own embeddings of the words that say what it
shows: a gate's color, the sector of its bearing and its metres, as the drone's text has them. A text model reads such a
picture as it reads the words. Its weights stay as they are; three control tokens that no chat uses get the names by
which a picture's tokens are known, and the encoder lies beside it in an mmproj file.
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
from brise.robots.camera import SIZE, Picture, SeenThing
from brise.robots.gate_course import SECTORS
from brise.text.images import DEVIATION, MEAN
from brise.text.load import tokens_for
from brise.text.protocols import TextTokenizer
from brise.tune import vision_encoder
from brise.tune.vision_encoder import EncoderOptions, TrainedEncoder
from brise.watch import SILENT, Watcher

NOTHING = "wall"
CYLINDER = "black"
LEAST_PIXELS = 3  # of a thing in a cell, or the cell shows nothing
FARTHEST = 9  # metres that are told
NEW_PICTURES = 1 << 30  # their number: no training has so many steps
CONTROL = 3  # the type of a control token in a GGUF file
TOKENS, TYPES, TEMPLATE = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.chat_template"

Words = tuple[str, ...]  # of a cell


@dataclass(frozen=True)
class CameraModelOptions:
    """The defaults are those of `brise act camera`. `out` is the folder to write; `model` a GGUF model."""

    out: Path
    model: str = "smollm2"
    encoder: EncoderOptions = field(default_factory=EncoderOptions)


@dataclass(frozen=True)
class CameraModel:
    """What was made, and the shares of `cells` of new pictures with a gate that are read right from the encoder's rows.
    """

    path: Path
    loss: float
    cells: int
    color: float
    sector: float
    metres: float  # within one


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
    """A picture with the words of its cells, row by row."""

    pixels: Picture
    cells: tuple[Words, ...]


def pictures(number: int, count: int, seed: int, cell_size: int = 16) -> list[DrawnPicture]:
    """Random places of random courses; another `number`, others."""
    random = np.random.default_rng([seed, number])
    flights, states = gate_course.scattered(random, "train", count)
    return [drawn(*camera.painted(flight.course, states.position[at], float(states.yaw[at])), cell_size)
            for at, flight in enumerate(flights)]


def drawn(pixels: Picture, shown: NDArray[np.int64], things: Sequence[SeenThing], cell_size: int) -> DrawnPicture:
    """A picture with its words: each cell tells the thing that most of its pixels show, the hall aside."""
    side = SIZE // cell_size
    cells = shown.reshape(side, cell_size, side, cell_size).transpose(0, 2, 1, 3).reshape(side * side, -1)
    words: list[Words] = []
    for cell in cells:
        counts = np.bincount(cell[cell >= 0], minlength=1)
        words.append(_words(things[int(counts.argmax())]) if counts.max() >= LEAST_PIXELS else (NOTHING,))
    return DrawnPicture(pixels, tuple(words))


class CellWords:
    """The rows of a text model that words of cells become."""

    def __init__(self, original: Original, tokenizer: TextTokenizer) -> None:
        words = (*camera.RGB, CYLINDER, NOTHING, *SECTORS, *map(str, range(1, FARTHEST + 1)))
        self.rows: dict[str, NDArray[np.float32]] = {}
        for word in words:
            tokens = min((tokenizer.encode(text) for text in (f" {word}", word)), key=len)
            self.rows[word] = np.mean([float_rows(original.weights.tok_embeddings, token, token + 1)[0]
                                       for token in tokens], 0, dtype=np.float32)
        # What all words have in common is in a sum once: it is taken out of all but the first.
        self._mean = np.mean(list(self.rows.values()), 0)
        self._said = [(color, sector, str(metres)) for color in (*camera.RGB, CYLINDER) for sector in SECTORS
                      for metres in range(1, FARTHEST + 1)]
        self._sums = np.stack([self.row(words) for words in self._said])

    def row(self, words: Words) -> NDArray[np.float32]:
        """What a cell should become, (D,)."""
        first, *rest = (self.rows[word] for word in words)
        return np.asarray(first + sum((each - self._mean for each in rest), np.zeros_like(first)), np.float32)

    def batch(self, drawn_pictures: Sequence[DrawnPicture]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The pixels, normalized, (N, 3, S, S), and what their cells should become, (N, M, D)."""
        pixels = np.stack([normalized(each.pixels) for each in drawn_pictures])
        return pixels, np.stack([[self.row(cell) for cell in each.cells] for each in drawn_pictures])

    def read(self, row_D: NDArray[np.float32]) -> Words:
        """The color, sector and metres whose row is the nearest."""
        return self._said[int(np.argmin(((self._sums - row_D) ** 2).sum(1)))]


def normalized(pixels: Picture) -> NDArray[np.float32]:
    """A picture as an encoder takes it, (3, S, S)."""
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


def _words(thing: SeenThing) -> Words:
    sector = SECTORS[round(thing.bearing / (2 * math.pi) * len(SECTORS)) % len(SECTORS)]
    metres = min(max(round(thing.range), 1), FARTHEST)
    return CYLINDER if thing.name == "cylinder" else thing.name, sector, str(metres)


def _checked(path: Path, encoder: TrainedEncoder, vocabulary: CellWords) -> CameraModel:
    """Reads the folder back, and new pictures by it."""
    sizes = open_checkpoint(path).vision
    assert sizes is not None, "the encoder was written"
    loaded = vision.open_vision(*sizes, open_backend(threads=1))
    drawn_pictures = pictures(NEW_PICTURES, 200, seed=1)
    encoded = loaded.encode([normalized(each.pixels) for each in drawn_pictures])
    right, cells = np.zeros(3), 0
    for each, rows in zip(drawn_pictures, encoded, strict=True):
        for words, row in zip(each.cells, rows, strict=True):
            if words[0] in camera.RGB:
                color, sector, metres = vocabulary.read(row)
                right += (color == words[0], sector == words[1], abs(int(metres) - int(words[2])) <= 1)
                cells += 1
    if not cells:
        raise EvidenceError("no picture shows a gate")
    color, sector, metres = (right / cells).tolist()
    return CameraModel(path, encoder.loss, cells, color, sector, metres)
