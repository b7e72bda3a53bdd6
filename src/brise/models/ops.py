"""Declares the ops: everything a model may ask of a backend. backends/reference/ops.py is their specification in NumPy.

Activations are float32 and row-major. An op returns a new value; a backend may reuse the memory of an
argument that the model does not use again, so a model never relies on identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.rope import Layout
from brise.models.weights import Array, Layer, LowRank, Stack, Weight, Weights

CacheFormat = Literal["f16", "q8", "q4", "f32"]


@dataclass(frozen=True)
class Room:
    """Bytes in the host's memory and in that of a GPU; rooms add up, and a number of them is a product."""

    host: int = 0
    device: int = 0

    def __add__(self, other: Room) -> Room:
        return Room(self.host + other.host, self.device + other.device)

    def __mul__(self, count: int) -> Room:
        return Room(self.host * count, self.device * count)


class Cache(Protocol):
    """Keys and values of all layers in pages of `page_size` tokens; page 0 is as good as any other."""

    @property
    def num_pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def nbytes(self) -> int: ...


class Ops(Protocol):
    """Shapes: T tokens, D width, H heads, E numbers a head, O outputs, R rows."""

    def embed(self, table: Weight, tokens: Array) -> Array:
        """Rows `tokens` (T,) of the table (V, D), as float32 (T, D)."""

    def take_rows(self, x: Array, rows: Array) -> Array:
        """Rows `rows` (R,) of x (T, D)."""

    def put_rows(self, x: Array, features: Array | None, rows: Array | None) -> Array:
        """x (T, D) with row t replaced by features[rows[t]] where rows[t] >= 0; x itself without features."""

    def linear(self, x: Array, w: Weight) -> Array:
        """x (T, D) times w (O, D) transposed: (T, O). A Lora adds what its adapters say (models/weights.py)."""

    def linears(self, x: Array, weights: Sequence[Weight]) -> tuple[Array, ...]:
        """Several linears of one x, so that a backend quantises x once."""

    def bias(self, x: Array, b: Weight) -> Array:
        """x (T, O) + b (O,)."""

    def add(self, x: Array, y: Array) -> Array:
        """x + y of one shape; the result may lie in x's memory."""

    def scale(self, x: Array, factor: float) -> Array:
        """x times `factor`, which is rounded to float32; the result may lie in x's memory."""

    def rms_norm(self, x: Array, w: Weight, eps: float) -> Array:
        """x / sqrt(mean(x^2) + eps) * w over the last axis, whose length is w's: (T, D) or (T, H, E)."""

    def layer_norm(self, x: Array, w: Weight, b: Weight, eps: float) -> Array:
        """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) * w + b over the last axis of x (T, D); w, b (D,)."""

    def heads(self, x: Array, num_heads: int) -> Array:
        """(T, H * E) seen as (T, H, E)."""

    def flat(self, x: Array) -> Array:
        """(T, H, E) seen as (T, H * E)."""

    def columns(self, x: Array, first: int, last: int) -> Array:
        """Numbers first to last of each head of x (T, H, E): (T, H, last - first)."""

    def concat(self, x: Array, y: Array) -> Array:
        """x (T, H, E) and y (T, H, G) head by head: (T, H, E + G)."""

    def heads_linear(self, x: Array, w: Weight) -> Array:
        """Head h of x (T, H, E) times matrix h of the stack w (H, O, E) transposed: (T, H, O)."""

    def rope_table(self, positions: Array, inv_freq: Sequence[float], attention_factor: float) -> Array:
        """(T, E) table, E/2 cosines then E/2 sines of positions * inv_freq, all times attention_factor. Angles are
        computed in float64."""

    def rope(self, x: Array, table: Array, layout: Layout) -> Array:
        """Rotates the first table-width numbers of each head of x (T, H, E)."""

    def scale_queries(self, x: Array, positions: Array, beta: float, period: int) -> Array:
        """x (T, H, E) times 1 + beta * ln(1 + floor(positions / period))."""

    def attend(self, q: Array, k: Array, v: Array, batch: Batch, cache: Cache | None, layer: int,
               scale: float, window: int | None) -> Array:
        """Causal attention: q (T, H, E), k and v (T, K, E) -> (T, H * E).

        With a cache, k and v are first written to batch.slots of `layer`, then every query sees the keys of
        its own sequence at positions <= its own, or batch.reach (and > its own - window). Without one, the keys are the
        packed tokens themselves, and those of the sequence's parent in batch.parents. Head h uses key/value head
        h // (H // K). Softmax in float32.
        """

    def attend_latent(self, q: Array, kv: Array, batch: Batch, cache: Cache | None, layer: int, scale: float,
                      rank: int) -> Array:
        """Causal attention to one shared vector a token: q (T, H, C + R), kv (T, 1, C + R) -> (T, H, C).

        As `attend` with one key/value head whose value is the first `rank` = C numbers of its key; the cache holds
        each vector once. There is no window.
        """

    def route(self, logits: Array, per_token: int, scale: float) -> Array:
        """Gates (T, X) of experts from logits (T, X): softmax over all, the best `per_token` (of equal ones the lower
        index) divided by their sum and times `scale`, zero elsewhere."""

    def experts(self, x: Array, gates: Array, w1: Weight, w2: Weight, w3: Weight) -> Array:
        """Sum over experts e with gates[t, e] != 0, e ascending, of gate * w2_e(silu(w1_e x) * w3_e x): (T, D).

        Stacks w1, w3 (X, F, D) and w2 (X, D, F)."""

    def gelu(self, x: Array) -> Array:
        """x * Phi(x), exact (erf), as torch's default."""

    def gelu_tanh(self, x: Array) -> Array:
        """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2, as torch's gelu with approximate="tanh"."""

    def silu_mul(self, gate: Array, up: Array) -> Array:
        """gate * sigmoid(gate) * up."""

    def gelu_mul(self, gate: Array, up: Array) -> Array:
        """gelu_tanh(gate) * up."""

    def layer(self, body: Callable[[Array, Layer], Array], x: Array, layer: Layer) -> Array:
        """body(x, layer): one decoder block. A backend for training may compute it again for the gradient, or fetch
        the layer's weights from other machines first."""

    def named(self, x: Array, name: str) -> Array:
        """x itself; a tracing backend keeps a copy under `name`."""


class EncoderOps(Ops, Protocol):
    """What an encoder of images or audio asks for besides."""

    @property
    def is_recorded(self) -> bool:
        """Whether the ops make a program that runs later. It cuts rows and heads by itself; on arrays the encoder does.
        """

    def rope_table_2d(self, rows: Array, columns: Array, inv_freq: Sequence[float]) -> Array:
        """(T, E) table of places on a grid, for the E/2 frequencies `inv_freq`: those of even index turn with the
        row, those of odd index with the column; E/4 cosines of rows, E/4 of columns, then the sines likewise."""

    def slice_heads(self, x: Array, first: int, last: int) -> Array:
        """Heads first to last of x (T, H, E)."""

    def join_heads(self, parts: Sequence[Array]) -> Array:
        """The numbers of all parts (T, C), side by side."""

    def slice_rows(self, x: Array, first: int, last: int) -> Array:
        """Rows first to last of x."""

    def join_rows(self, parts: Sequence[Array]) -> Array:
        """The rows of all parts, one after the other."""

    def merge_patches(self, x: Array, grids: Sequence[tuple[int, int]], merge: int) -> Array:
        """Squares of merge x merge neighbours of each image of x (N, C) as one row: (N / merge^2, merge^2 * C).

        x has the images one after the other, of grids[i] = (rows, columns) patches, row by row; so has the result.
        Number c * merge^2 + y * merge + x of a row is number c of the neighbour at (y, x).
        """

    def mean_patches(self, x: Array, grids: Sequence[tuple[int, int]], size: int) -> Array:
        """The mean of size x size neighbours of each image of x (N, C): (N / size^2, C), in the order of
        `merge_patches`."""

    def stack_rows(self, x: Array, count: int) -> Array:
        """Every `count` neighbouring rows of x (T, C) as one row: (T / count, count * C)."""

    def windows(self, x: Array, size: int, stride: int) -> Array:
        """Windows of `size` rows (odd) of x (T, C) around every `stride`-th row, from row 0 on: (ceil(T / stride),
        C * size), so that a convolution over time is a linear.

        Number c * size + i of a row is number c of row i of the window; rows before and after x are zeros.
        """


Forward = Callable[[Ops, Config, Weights, Batch, Cache | None], Array]
# An encoder over the ops, in short steps: its config, its weights and what it encodes. None until the last, the
# features (M, D).
Encode = Callable[[EncoderOps, Any, Any, Any], Iterator[Array | None]]


class Encoder(Protocol):
    """An encoder of images or audio that is ready to run."""

    def steps(self, source: Any) -> Iterator[Array | None]:
        """Encodes patches or a chunk in steps, so that a caller can do other work between them: None until the last."""


class StepCancelledError(Exception):
    """A step was ended by `Runner.cancel`. No user sees it: who cancels a step ends its requests."""


class Runner(Protocol):
    """A loaded model: numpy in, numpy out.

    Of a runner with an AdapterTable, token t goes through the adapter in slot batch.adapters[t] (-1: none); ValueError
    names a token whose slot the table does not have, or that is empty.
    """

    def logits(self, batch: Batch, cache: Any) -> Array:
        """float32 (R, V)."""

    def hidden(self, batch: Batch, cache: Any) -> Array:
        """float32 (R, D), normalised."""

    def cancel(self) -> None:
        """Ends the step that runs, or the next one, by a StepCancelledError, where a device can. From any thread."""


class AdapterTable(Protocol):
    """Adapters that the steps of one model may go through: Batch.adapters (T,) holds slots of it, -1 for none."""

    @property
    def num_slots(self) -> int: ...
    @property
    def max_rank(self) -> int: ...

    def prepare(self, low_ranks: Mapping[str, LowRank], gains: Mapping[str, Array]) -> Any:
        """An adapter packed for `put`, from its matrices by path ("layers.3.attention.wq"); on any thread, also while
        steps run.

        `gains` has the paths with a magnitude, and no others: (O,) float32, magnitude / |rows of W + scale * B A|.
        UnsupportedError for a path that the model does not have or that takes no adapter, a matrix that does not fit,
        and a rank over max_rank.
        """

    def rows(self, path: str, first: int, last: int) -> Array:
        """Rows first to last of one of the model's own matrices as float32, to work gains out; on any thread."""

    def nbytes(self, prepared: Any) -> int:
        """Memory of a prepared adapter."""

    def put(self, slot: int, prepared: Any | None) -> None:
        """Fills a slot, or with None empties it: for the steps that begin from now on. Between steps."""


class Backend(Protocol):
    """Where a model runs. `place` refuses a weight that it cannot run, when the model loads, never later."""

    @property
    def name(self) -> str: ...
    def facts(self) -> Mapping[str, str | int]:
        """What a report says of it: its name, and what decides its speed, such as the instruction set."""

    def place(self, name: str, weight: Weight) -> Weight:
        """The weight as this backend runs it."""

    def ops(self, trace: dict[str, Array] | None = None) -> EncoderOps:
        """The ops one at a time, on arrays and placed weights; `trace` collects the values that a model names."""

    def encoder(self, encode: Encode, config: Any, weights: Any) -> Encoder:
        """An encoder whose weights this backend has placed."""

    def new_expert_store(self, num_bytes: int) -> Any:
        """Room for `num_bytes` of experts that are read when a token needs them. UnsupportedError if it has none."""

    def place_experts(self, name: str, stack: Stack, store: Any, on_read: Callable[[Weight], None]) -> Weight:
        """A stack whose matrices are placed when a token needs them and kept in `store`, which all layers share.
        `on_read` is called with each matrix that was read."""

    def expert_bytes(self, stack: Weight) -> int:
        """Memory of one matrix of a placed stack of experts."""

    def new_cache(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Cache: ...
    def cache_bytes(self, config: Config, num_pages: int, page_size: int, format: CacheFormat) -> Room:
        """Memory that `new_cache` would take, without taking it."""

    def available(self) -> Room:
        """Memory that is free at this moment; the device's is 0 without one."""

    def adapters(self, config: Config, weights: Weights, num_slots: int, max_rank: int) -> AdapterTable:
        """A table of empty slots for the model of these placed weights."""

    def runner(self, config: Config, weights: Weights, max_tokens: int, adapters: Any | None = None) -> Runner:
        """`max_tokens` is the largest T of a step; work space is sized by it. `adapters` is a table that this backend
        made for the same weights."""


class PlannedRunner(Runner, Protocol):
    """A runner whose memory is known before it has run."""

    def planned_bytes(self, num_tokens: int, num_rows: int) -> Room:
        """Work space of a step of `num_tokens` tokens that gives `num_rows` rows of logits; weights may be
        shape-only."""


@dataclass(frozen=True)
class DeviceMemory:
    """Which device a backend's models lie on. `is_shared`: its memory is the host's, so that one limit bounds both."""

    label: str  # such as "NVIDIA GeForce GTX 1650 (vulkan:0)"
    is_shared: bool


@dataclass(frozen=True)
class LayerSplit:
    """A model whose first layers the CPU computes and whose last `num_on_device` layers, with the head, a GPU."""

    num_layers: int
    num_on_device: int
    is_tied: bool  # embedding and head are one matrix

    @property
    def num_on_host(self) -> int:
        return self.num_layers - self.num_on_device


class Planner(Backend, Protocol):
    """A backend that can say what a model takes before a byte of its weights is read."""

    @property
    def device(self) -> DeviceMemory | None:
        """The device that models lie on; None: all is in the host's memory."""

    @property
    def split(self) -> LayerSplit | None:
        """Which layers of its model lie on the device, if not all of them."""

    def shape_only(self, name: str, weight: Weight) -> Weight:
        """What `place` would give, without its memory: it can be measured and planned with, not run."""

    def nbytes(self, weight: Weight) -> Room:
        """Memory of a placed weight, or of the one that a shape-only weight stands for."""

    def own_bytes(self) -> Room:
        """What the backend takes besides its models, such as memory through which they reach a device."""

    def encoder_room(self, encode: Encode, config: Any, weights: Any, source: Any, num_bytes: int) -> Room:
        """Work space of an encoder for a source of this size, whose numbers are not read; weights may be shape-only.
        `num_bytes` is what the encoder takes op by op."""

    @property
    def encodes_on_device(self) -> bool:
        """Whether encoders of images lie on the device."""

    def encoding_on_host(self) -> Planner:
        """The same backend with all encoders on the host; itself if they are there."""

    def adapter_room(self, num_bytes: int) -> Room:
        """Where so many bytes of prepared adapters lie."""

    def taken(self) -> int:
        """Bytes of the device that are taken now, without those that count in the process's resident memory."""

    def runner(self, config: Config, weights: Weights, max_tokens: int, adapters: Any | None = None) -> PlannedRunner:
        """As of any backend; over shape-only weights one to plan with."""
