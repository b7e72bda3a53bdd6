"""Runs of a model while it is quantised: calibration of the original, and its comparison with the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from brise.backends import open_planner
from brise.checkpoint.read_original import Original, open_original
from brise.engine.scoring import PASS_TOKENS, WINDOW, Machine, ScoringModel, calibrate, compare, cut, output_rows
from brise.errors import UnsupportedError
from brise.memory.process import resident_bytes
from brise.models.config import Config
from brise.models.weights import Array, Weight, Weights, weights_with_paths
from brise.quant.importance import Importance
from brise.quant.quality import QuantQuality
from brise.quant.rows import format_of, matrix_shape, row_bytes
from brise.text import corpus
from brise.text.chat import ChatTemplate
from brise.text.load import gguf_tokenizer
from brise.text.protocols import TextTokenizer
from brise.watch import Watcher, size_text

# Logits of both models and what comparing them takes, beside everything else.
_COMPARING_BYTES = 150_000_000


@dataclass(frozen=True)
class TokenWindows:
    """A text as windows of tokens; `total_tokens` is how many the file has, of which not all may be used."""

    path: Path
    windows: tuple[Array, ...]
    total_tokens: int

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.windows))


@dataclass(frozen=True)
class ModelRuns:
    """Runs of the original, and of what it became. `memory` is the memory limit in bytes, if there is one."""

    original: Original
    num_threads: int
    memory: int | None
    watcher: Watcher

    def text(self, path: Path, max_tokens: int) -> TokenWindows:
        """A file as the model reads it, up to about `max_tokens`."""
        tokenizer = self._tokenizer
        texts = corpus.read(path, tokenizer.encode, _conversations(self.original, tokenizer))
        windows = cut(texts, tokenizer.bos_id if tokenizer.add_bos else None, max_tokens)
        return TokenWindows(path, tuple(windows), sum(map(len, texts)))

    def calibrate(self, text: TokenWindows) -> Importance:
        """The importance of the original's weights on a text."""
        machine = self._machine([self.original.weights], with_heads=False)
        self.watcher.note(f"calibrating with {text.num_tokens} of {text.total_tokens} tokens of {text.path}")
        with self.watcher.progress("calibrating", text.num_tokens, "tokens") as advance:
            return calibrate(machine, _scored(self.original), self.original.held_weights(), text.windows,
                             text.path.name, advance)

    def check_evaluation(self) -> None:
        """Refuses before anything is written what `evaluate` would refuse; the result is taken to be no larger."""
        self._pass_tokens([self.original.weights] * 2, with_heads=True)

    def evaluate(self, text: TokenWindows, result: Path) -> QuantQuality:
        """The quality of the file that was written, on a text."""
        quantised = open_original(result)
        machine = self._machine([self.original.weights, quantised.weights], with_heads=True)
        self.watcher.note(f"comparing on {text.num_tokens} of {text.total_tokens} tokens of {text.path}")
        with self.watcher.progress("comparing", text.num_tokens, "tokens") as advance:
            return compare(machine, _scored(self.original), _scored(quantised), text.windows, advance)

    @cached_property
    def _tokenizer(self) -> TextTokenizer:
        return gguf_tokenizer(self.original.metadata)

    def _machine(self, models: Sequence[Weights], *, with_heads: bool) -> Machine:
        backend = open_planner(self.num_threads)
        return Machine(backend, backend.ops(), self._pass_tokens(models, with_heads=with_heads))

    def _pass_tokens(self, models: Sequence[Weights], *, with_heads: bool) -> int:
        """As many tokens a pass as the memory limit allows; UnsupportedError if not one window fits."""
        if self.memory is None:
            return PASS_TOKENS
        needed = resident_bytes() + needed_bytes(models, with_heads=with_heads)
        pass_tokens = (self.memory - needed) // token_bytes(self.original.config)
        if pass_tokens < WINDOW:
            least = needed + WINDOW * token_bytes(self.original.config)
            raise UnsupportedError(
                f"running the model needs {size_text(least)}, --memory allows {size_text(self.memory)}",
                hint="leave --evaluate and --calibration away, or calibrate on a larger machine: "
                     "--save-importance there, --calibration FILE.gguf here")
        return min(pass_tokens, PASS_TOKENS)


def _conversations(original: Original,
                   tokenizer: TextTokenizer) -> Callable[[Sequence[Mapping[str, object]]], list[int]] | None:
    chat = ChatTemplate.from_gguf(original.metadata, tokenizer)
    if chat is None:
        return None

    def encode(messages: Sequence[Mapping[str, object]]) -> list[int]:
        tokens = list(chat.prompt(messages, add_generation_prompt=False).tokens)
        return tokens[1:] if tokenizer.add_bos and tokens[:1] == [tokenizer.bos_id] else tokens

    return encode


def _scored(original: Original) -> ScoringModel:
    return ScoringModel(original.config, original.weights, original.forget)


def needed_bytes(models: Sequence[Weights], *, with_heads: bool) -> int:
    """What runs take beside the process and its tokens. A matrix is there twice: from the file and for the kernels."""
    needed = max(map(_largest_matrix, models))
    if with_heads:
        needed = max(needed, sum(map(_nbytes_of_output_block, models)))
    return 2 * needed + _COMPARING_BYTES


def _largest_matrix(weights: Weights) -> int:
    """Bytes of the largest matrix in a layer."""
    def nbytes(weight: Weight) -> int:
        rows, cols = matrix_shape(weight.shape[-2:])
        return rows * row_bytes(format_of(weight), cols)

    return max(nbytes(weight) for _, weight in weights_with_paths(weights.layers))


def _nbytes_of_output_block(weights: Weights) -> int:
    num_rows, width = matrix_shape(weights.output.shape)
    return output_rows(num_rows, width) * row_bytes(format_of(weights.output), width)


def token_bytes(config: Config) -> int:
    """Activations of a token while a layer runs op by op, with the copies at the seams between ops."""
    widest = max(config.ffn_width, config.num_heads * config.head_dim, config.width)
    return 4 * (8 * config.width + 8 * widest)
