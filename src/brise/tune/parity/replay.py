"""Both sides of parity from files: the base with its adapter as it was trained, and the model that is served."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from brise.backends import open_planner
from brise.backends.torch import weights
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.errors import UnsupportedError
from brise.models.config import Config
from brise.models.lora import LowRanks, adapted
from brise.models.weights import Lora, LowRank, Weight, place
from brise.text.load import Tokens, tokens_for
from brise.tune.parity.parity import ParityPair
from brise.tune.parity.served import NativeSide
from brise.tune.parity.trained import TorchSide


@dataclass(frozen=True)
class ParityReplay:
    """What is compared: with the adapter and, if there is one, without it; conversations are encoded by both."""

    config: Config
    adapted: ParityPair
    base: ParityPair | None
    trained_tokens: Tokens
    served_tokens: Tokens


def open_replay(model: Path, low_ranks: LowRanks, served: Path | None, threads: int) -> ParityReplay:
    """The base `model` with an adapter; served is that by the engine, or a model that the adapter was merged into."""
    checkpoint = open_checkpoint(model)
    backend = open_planner(threads)
    stored, cpu = checkpoint.weights(), torch.device("cpu")
    trained = place(stored, lambda name, weight: weights.place(name, weight, cpu, torch.float32, keep="packed"))
    base = place(stored, backend.place)
    other = checkpoint if served is None else open_checkpoint(served)
    if served is not None:
        _check_same(checkpoint.config, other.config, served)
    own = NativeSide.of(backend, checkpoint.config, base)
    answers = own.with_adapter(low_ranks) if served is None else NativeSide.of(
        backend, other.config, place(other.weights(), backend.place))
    checkpoint.forget()
    on = adapted(trained, {path: on_tensors(low_rank) for path, low_rank in low_ranks.items()})
    return ParityReplay(
        checkpoint.config,
        ParityPair(TorchSide(checkpoint.config, on), answers), ParityPair(TorchSide(checkpoint.config, trained), own),
        tokens_for(checkpoint), tokens_for(other))


def replay_in_memory(checkpoint: Checkpoint, trained: TorchSide, low_ranks: LowRanks, tokens: Tokens,
                     threads: int) -> ParityReplay:
    """The model as it lies in the trainer, and the base with its adapter by the engine."""
    def bare(name: str, weight: Weight) -> Weight:
        return weight.base if isinstance(weight, Lora) else weight

    backend, config = open_planner(threads), checkpoint.config
    own = NativeSide.of(backend, config, place(checkpoint.weights(), backend.place))
    checkpoint.forget()
    without = replace(trained, weights=place(trained.weights, bare))
    return ParityReplay(config, ParityPair(trained, own.with_adapter(low_ranks)), ParityPair(without, own), tokens,
                        tokens)


def replay_of_written(written: Checkpoint, trained: TorchSide, tokens: Tokens, threads: int) -> ParityReplay:
    """A model that was trained whole, as it lies in the trainer, and the file that was made of it by the engine."""
    backend = open_planner(threads)
    served = NativeSide.of(backend, written.config, place(written.weights(), backend.place))
    written.forget()
    return ParityReplay(trained.config, ParityPair(trained, served), None, tokens, tokens_for(written))


def on_tensors(low_rank: LowRank) -> LowRank:
    """An adapter's arrays as torch has them."""
    magnitude = None if low_rank.magnitude is None else torch.from_numpy(np.array(low_rank.magnitude))
    return replace(low_rank, a=torch.from_numpy(np.array(low_rank.a)), b=torch.from_numpy(np.array(low_rank.b)),
                   magnitude=magnitude)


def _check_same(config: Config, served: Config, path: Path) -> None:
    """A served model of other sizes is not this one with an adapter in it."""
    own, other = asdict(config), asdict(served)
    for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_width"):
        if own[name] != other[name]:
            raise UnsupportedError(f"{str(path)!r} has a {name} of {other[name]}, the base one of {own[name]}",
                                   hint="give the model that the adapter was merged into")
