"""Both sides of parity: the model as the trainer runs it, and as it is served, from files or from a run's memory.

Needs the extra `tune`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from brise import settings
from brise.backends import num_cores, open_planner
from brise.backends.torch import weights
from brise.backends.torch.ops import TorchOps
from brise.checkpoint.adapters.lineage import check_base, read_lineage
from brise.checkpoint.adapters.merge import rows_of
from brise.checkpoint.adapters.peft import read_adapter
from brise.checkpoint.open import Checkpoint, open_checkpoint
from brise.data.example import EncodedRow, TrainingExample
from brise.data.prepare import DataOptions, Dataset, prepare
from brise.errors import UnsupportedError
from brise.evals.endpoint import Endpoint
from brise.hub.locate import find_model
from brise.models import decoder
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.lora import LowRanks, adapted
from brise.models.weights import Array, Lora, LowRank, Weight, Weights, place
from brise.text.load import Tokens, tokens_for
from brise.tune import row_images
from brise.tune.packing import FeaturesOf
from brise.tune.parity import parity, templates
from brise.tune.parity.endpoint import TOP, EndpointReport, TrainedModel, compare_endpoint
from brise.tune.parity.openai_server import ServerClient
from brise.tune.parity.options import ParityOptions
from brise.tune.parity.parity import ParityPair, ParityReport, Tolerance
from brise.tune.parity.served import NativeSide
from brise.watch import Watcher

Tensor = torch.Tensor
T = TypeVar("T")


@dataclass(frozen=True)
class TorchSide:
    """Placed weights with adapters as they were trained; `ops` without dropout."""

    config: Config
    weights: Weights
    ops: TorchOps = TorchOps()

    @torch.no_grad()
    def hidden(self, batch: Batch) -> Array:
        """See ParitySide."""
        return _array(decoder.hidden(self.ops, self.config, self.weights, batch))

    @torch.no_grad()
    def logits(self, hidden_RD: Array) -> Array:
        """See ParitySide."""
        return _array(self.ops.linear(torch.from_numpy(hidden_RD).to(self.ops.device), self.weights.output))

    def trace(self, batch: Batch) -> dict[str, Array]:
        """See ParitySide."""
        return self._trace(self.ops, batch)

    def guided_trace(self, batch: Batch, guide: Mapping[str, Array]) -> dict[str, Array]:
        """See GuidedSide."""
        values = {name: torch.from_numpy(value).to(self.ops.device) for name, value in guide.items()}
        return self._trace(replace(self.ops, guide=values), batch)

    @torch.no_grad()
    def _trace(self, ops: TorchOps, batch: Batch) -> dict[str, Array]:
        values: dict[str, Tensor] = {}
        decoder.forward(replace(ops, trace=values), self.config, self.weights, batch)
        return {name: _array(value) for name, value in values.items()}


@dataclass(frozen=True)
class ParityReplay:
    """The pairs to compare: with the adapter and, if there is one, without it; and the tokenizers of both sides."""

    config: Config
    adapted: ParityPair
    base: ParityPair | None
    trained_tokens: Tokens
    served_tokens: Tokens


def compare_models(options: ParityOptions, watcher: Watcher) -> ParityReport:
    """The report of `brise parity`."""
    settings_ = settings.read()
    threads = options.threads or settings_.threads or num_cores()
    torch.set_num_threads(threads)
    base = find_model(options.model, settings_)
    served = None if options.served is None else find_model(options.served, settings_).path
    check_base(read_lineage(options.adapter), base, any_base=options.any_base)
    checkpoint = open_checkpoint(base.path)
    low_ranks = read_adapter(options.adapter, checkpoint.config, rows_of(checkpoint.weights())).low_ranks
    replay = open_replay(base.path, low_ranks, served, threads, options.device)
    rows = options.data_options(replay.config.max_context)
    dataset = prepare(options.data, replay.trained_tokens, rows, images=row_images.settings_of(checkpoint))
    # A merged model was rounded again, so that a smaller difference of its base means nothing.
    tolerance = options.tolerance if served is None else replace(options.tolerance, max_times_base=None)
    return compare_rows(replay, dataset, options.max_rows, tolerance, rows, watcher,
                        row_images.load(checkpoint, dataset, threads))


def compare_server(options: ParityOptions, watcher: Watcher) -> EndpointReport:
    """The report of `brise parity --endpoint`: the trained model against a server that serves it."""
    assert options.endpoint is not None
    settings_ = settings.read()
    threads = options.threads or settings_.threads or num_cores()
    torch.set_num_threads(threads)
    base = find_model(options.model, settings_)
    check_base(read_lineage(options.adapter), base, any_base=options.any_base)
    checkpoint = open_checkpoint(base.path)
    low_ranks = read_adapter(options.adapter, checkpoint.config, rows_of(checkpoint.weights())).low_ranks
    tokens = tokens_for(checkpoint)
    rows = options.data_options(checkpoint.config.max_context)
    if rows.as_text or tokens.chat is None:
        raise UnsupportedError("a server is compared by its chats, and these rows are text without a chat format",
                               hint="--served MODEL compares a file")
    dataset = prepare(options.data, tokens, rows)
    key = None if options.key_env is None else settings.secret(options.key_env)
    with ServerClient(Endpoint(options.endpoint, options.name or "", key), TOP) as client:
        if options.name is None:
            client.endpoint = replace(client.endpoint, model=client.only_model())
        placed = _in_torch(checkpoint)
        checkpoint.forget()
        config = checkpoint.config
        trained = TrainedModel(TorchSide(config, _with(placed, low_ranks)), TorchSide(config, placed), tokens)
        examples = _picked_examples(dataset, options.max_rows)
        with watcher.progress("asking", len(examples), "prompts") as advance:
            return compare_endpoint(trained, client, examples, max_tokens=options.max_tokens,
                                    tolerance=options.tolerance, progress=advance)


def compare_rows(replay: ParityReplay, dataset: Dataset, num_rows: int, tolerance: Tolerance, options: DataOptions,
                 watcher: Watcher, features_of: FeaturesOf | None = None) -> ParityReport:
    """Replays about `num_rows` held-out rows, or training rows where nothing is held out."""
    rows = _picked(dataset, num_rows)
    faults = templates.check(replay.served_tokens, dataset.held_out_examples or dataset.train_examples, rows,
                             targets=options.targets, as_text=options.as_text or replay.trained_tokens.chat is None)
    num_sides = 1 if replay.base is None else 2
    with watcher.progress("replaying", num_sides * len(rows), "rows") as advance:
        return parity.run(replay.adapted, replay.base, rows, template_faults=faults, tolerance=tolerance,
                          num_templates=len({row.place for row in rows}), features_of=features_of,
                          progress=advance)


def open_replay(model: Path, low_ranks: LowRanks, served: Path | None, threads: int,
                device: str = "cpu") -> ParityReplay:
    """The base `model` with an adapter, against the same in the engine or a model that the adapter was merged into."""
    checkpoint = open_checkpoint(model)
    backend = open_planner(threads, device=device)
    trained = _in_torch(checkpoint)
    base = place(checkpoint.weights(), backend.place)
    other = checkpoint if served is None else open_checkpoint(served)
    if served is not None:
        _check_same(checkpoint.config, other.config, served)
    own = NativeSide.of(backend, checkpoint.config, base)
    answers = own.with_adapter(low_ranks) if served is None else NativeSide.of(
        backend, other.config, place(other.weights(), backend.place))
    checkpoint.forget()
    return ParityReplay(
        checkpoint.config, ParityPair(TorchSide(checkpoint.config, _with(trained, low_ranks)), answers),
        ParityPair(TorchSide(checkpoint.config, trained), own),
        tokens_for(checkpoint), tokens_for(other))


def _in_torch(checkpoint: Checkpoint) -> Weights:
    cpu = torch.device("cpu")
    return place(checkpoint.weights(),
                 lambda name, weight: weights.place(name, weight, cpu, torch.float32, keep="packed"))


def _with(trained: Weights, low_ranks: LowRanks) -> Weights:
    return adapted(trained, {path: on_tensors(low_rank) for path, low_rank in low_ranks.items()})


def replay_in_memory(checkpoint: Checkpoint, trained: TorchSide, low_ranks: LowRanks, tokens: Tokens,
                     threads: int) -> ParityReplay:
    """The model in the trainer, against the base with its adapter in the engine."""
    def bare(name: str, weight: Weight) -> Weight:
        return weight.base if isinstance(weight, Lora) else weight

    backend, config = open_planner(threads), checkpoint.config
    own = NativeSide.of(backend, config, place(checkpoint.weights(), backend.place))
    checkpoint.forget()
    without = replace(trained, weights=place(trained.weights, bare))
    return ParityReplay(config, ParityPair(trained, own.with_adapter(low_ranks)), ParityPair(without, own), tokens,
                        tokens)


def replay_of_written(written: Checkpoint, trained: TorchSide, tokens: Tokens, threads: int) -> ParityReplay:
    """A model that was trained whole, in the trainer, against its written file in the engine."""
    backend = open_planner(threads)
    served = NativeSide.of(backend, written.config, place(written.weights(), backend.place))
    written.forget()
    return ParityReplay(trained.config, ParityPair(trained, served), None, tokens, tokens_for(written))


def on_tensors(low_rank: LowRank) -> LowRank:
    """An adapter with torch tensors in place of its arrays."""
    magnitude = None if low_rank.magnitude is None else torch.from_numpy(np.array(low_rank.magnitude))
    return replace(low_rank, a=torch.from_numpy(np.array(low_rank.a)), b=torch.from_numpy(np.array(low_rank.b)),
                   magnitude=magnitude)


def _check_same(config: Config, served: Config, path: Path) -> None:
    """UnsupportedError for a served model of other sizes, which cannot be this one with an adapter."""
    own, other = asdict(config), asdict(served)
    for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_width"):
        if own[name] != other[name]:
            raise UnsupportedError(f"{str(path)!r} has a {name} of {other[name]}, the base one of {own[name]}",
                                   hint="give the model that the adapter was merged into")


def _picked(dataset: Dataset, num_rows: int) -> list[EncodedRow]:
    """Evenly picked rows. All rows of an example or none, as chat templates are compared by example."""
    rows = dataset.held_out or dataset.train
    chosen = set(_spread(list(dict.fromkeys(row.place for row in rows)), num_rows))
    return [row for row in rows if row.place in chosen]


def _picked_examples(dataset: Dataset, num: int) -> list[TrainingExample]:
    """Evenly picked conversations that end in an answer to compare."""
    examples = dataset.held_out_examples or dataset.train_examples
    return _spread([example for example in examples
                    if any(message["role"] == "assistant" for message in example.messages)], num)


def _spread(items: Sequence[T], num: int) -> list[T]:
    """About `num` of them, evenly picked."""
    return list(items[::-(-len(items) // num) or 1])


def _array(x: Tensor) -> Array:
    return x.detach().float().cpu().numpy()
