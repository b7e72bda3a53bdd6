"""Trains a small vision encoder of Pixtral's shape from nothing, to give the rows for the text model that it is told.

`brise tune` leaves encoders as they are. Who knows what its pictures show, because a simulator drew them, can say which
row each cell of a picture should become: the sum of the text model's own embeddings of the words for it, say. The text
model then reads a picture as it reads those words. The encoder runs on what serves it: models/pixtral.py over the ops.

Legend: N pictures of a step, H x W pixels, M cells of a picture, D width of the text model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from brise.engine.vision import pack
from brise.errors import MissingExtraError, UnsupportedError
from brise.models import pixtral
from brise.models.pixtral import BREAK_TOKEN, END_TOKEN, VisionConfig, VisionWeights
from brise.models.weights import Attention, Dense, FeedForward, Layer, Placed, Weight, place, weights_with_paths
from brise.watch import SILENT, Watcher

Floats = NDArray[np.float32]
# N pictures (N, 3, H, W), normalized, and the rows that their cells should become, (N, M, D).
Batches = Callable[[int], tuple[Floats, Floats]]

NOTES = 10  # lines about the loss in a run


@dataclass(frozen=True)
class EncoderOptions:
    """The encoder's sizes, and how it is trained: AdamW, a rate that rises for a tenth and falls to 0 as a cosine."""

    width: int = 192
    num_layers: int = 3
    num_heads: int = 6
    ffn_width: int = 384
    patch_size: int = 32
    image_size: int = 768  # pixels of the longer side
    merge: int = 1
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        head_dim, rest = divmod(self.width, self.num_heads)
        if rest or head_dim % 4:
            raise UnsupportedError(f"{self.num_heads} heads of a width of {self.width} have "
                                   f"{self.width / self.num_heads:g} numbers each; it must be a multiple of 4")
        if self.image_size % (self.patch_size * self.merge):
            raise UnsupportedError(f"the image size is {self.image_size}, it must be a multiple of "
                                   f"{self.patch_size * self.merge}: patches of {self.patch_size}, {self.merge} a cell")
        if min(self.steps, self.batch_size) < 1:
            raise UnsupportedError(f"{self.steps} steps of {self.batch_size} pictures were asked for; 1 is the least")


@dataclass(frozen=True)
class TrainedEncoder:
    """The encoder, and its mean squared error over the last tenth of the steps, in shares of the targets' own."""

    config: VisionConfig
    weights: VisionWeights
    loss: float


def train(batches: Batches, text_width: int, image_token: int, text_eps: float, options: EncoderOptions,
          watcher: Watcher = SILENT) -> TrainedEncoder:
    """Trains on what `batches` gives for each step's number."""
    try:
        import torch  # noqa: PLC0415 - an extra

        from brise.backends.torch.backend import TorchBackend  # noqa: PLC0415 - needs torch
    except ModuleNotFoundError:
        raise MissingExtraError("torch", "tune", "training a vision encoder") from None
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    config = VisionConfig(options.width, options.num_layers, options.num_heads, options.width // options.num_heads,
                          options.ffn_width, options.patch_size, options.image_size, options.merge, pixtral.NORM_EPS,
                          text_eps, 10000.0, text_width, image_token, BREAK_TOKEN, END_TOKEN)
    backend = TorchBackend()
    spread = float(np.sqrt(np.mean(batches(0)[1] ** 2)))
    weights = place(_drawn(config, np.random.default_rng(options.seed), spread), backend.place)
    tensors = [placed.handle.requires_grad_() for _, placed in weights_with_paths(weights)
               if isinstance(placed, Placed)]
    optimizer = torch.optim.AdamW(tensors, options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    losses: list[float] = []
    with watcher.progress("encoder", options.steps, "steps") as advance:
        for step in range(options.steps):
            pictures, targets = batches(step)
            patches = pack(config, list(pictures))
            own = pixtral.Patches(torch.from_numpy(patches.values), patches.rows, patches.columns, patches.grids,
                                  patches.batch)
            features = pixtral.forward(backend.ops(), config, weights, own)
            wanted = torch.from_numpy(targets.reshape(-1, text_width))
            loss = torch.mean((features - wanted) ** 2) / torch.mean(wanted**2)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(tensors, 1.0)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * _rate(step / options.steps)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            advance(1)
            if (step + 1) % max(options.steps // NOTES, 1) == 0:
                watcher.note(f"step {step + 1}: error {losses[-1]:.3f} of the targets'")
    last = losses[-max(options.steps // 10, 1):]
    return TrainedEncoder(config, place(weights, lambda _, placed: _dense(placed)), float(np.mean(last)))


def _rate(done: float) -> float:
    return float(min(done / 0.1, 1.0) * 0.5 * (1 + np.cos(np.pi * done)))


def _dense(placed: Weight) -> Dense:
    assert isinstance(placed, Placed), "the weights are in torch"
    return Dense("F32", placed.shape, placed.handle.detach().numpy().copy())


def _drawn(config: VisionConfig, random: np.random.Generator, spread: float) -> VisionWeights:
    """Weights that keep the size of what goes through them, and end with numbers of this spread."""
    def matrix(rows: int, columns: int, gain: float = 1.0) -> Dense:
        drawn = gain * random.standard_normal((rows, columns)) / np.sqrt(columns)
        return Dense("F32", (rows, columns), drawn.astype(np.float32))

    def ones() -> Dense:
        return Dense("F32", (width,), np.ones(width, np.float32))

    width, wide = config.width, config.ffn_width
    layers = tuple(Layer(
        attention_norm=ones(), ffn_norm=ones(),
        attention=Attention(matrix(width, width), matrix(width, width), matrix(width, width), matrix(width, width)),
        feed_forward=FeedForward(matrix(wide, width), matrix(width, wide), matrix(wide, width)))
        for _ in range(config.num_layers))
    text = config.text_width
    return VisionWeights(matrix(width, config.patch_values), ones(), layers, ones(),
                         matrix(width, config.merge**2 * width), matrix(text, width), matrix(text, text, spread))
