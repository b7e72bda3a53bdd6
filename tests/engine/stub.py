"""A model without weights, for tests of the engine and of everything above it.

Its logits are a hash of the whole context, read back from the cache through the page table. As real keys and
values do, what a slot holds depends on all tokens before it: a token in a wrong slot, or a page lost, shared too
early or with the wrong prefix gives other answers or an assertion. With `reply` it says that instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

import numpy as np

from brise.engine.audio import LoadedAudio
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import LoadedModel, Pooling
from brise.engine.request import Delta, Request, Sampling
from brise.engine.vision import LoadedVision
from brise.models.batch import Batch
from brise.models.config import Config
from brise.models.ops import Room
from brise.models.rope import Rope
from brise.models.weights import Dense, Weights
from brise.text.chat import ChatTemplate
from brise.text.infill import infill_of
from brise.text.load import Tokens
from brise.text.tokenizer import Tokenizer

END_OF_TEXT, IM_START, IM_END = 256, 257, 258
VOCAB_SIZE = 259
WIDTH = 8
CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
          "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
          "{% endif %}")
GREEDY = Sampling(temperature=0)


def stub_model(reply: str | None = None, *, max_context: int = 4096, pooling: Pooling | None = None,
               on_step: Callable[[Batch], None] | None = None, name: str = "stub",
               vision: LoadedVision | None = None, audio: LoadedAudio | None = None,
               tokens: Tokens | None = None) -> LoadedModel:
    """Byte tokens (id = byte), three control tokens, ChatML; or `tokens`, and then control strings in `reply` are
    control tokens. `on_step` may wait or raise before each step."""
    tokens = tokens or Tokens(byte_tokenizer(), ChatTemplate(CHATML, byte_tokenizer()))
    tokenizer = tokens.tokenizer
    vocab_size = tokenizer.vocab_size
    empty = Dense("F32", (vocab_size, WIDTH), np.zeros((vocab_size, WIDTH), np.float32))
    config = Config(family="llama", vocab_size=vocab_size, width=WIDTH, num_layers=0, num_heads=1,
                    num_kv_heads=1, head_dim=WIDTH, ffn_width=WIDTH, norm_eps=1e-5,
                    rope=Rope(10000.0, WIDTH, "half"), max_context=max_context)
    ids = None if reply is None else [*tokenizer.encode(reply, parse_control=True), max(tokenizer.end_ids)]
    return LoadedModel(config, StubBackend(ids, on_step), Weights(empty, (), empty, empty), tokenizer, tokens.chat,
                       pooling, name, Path("/nowhere/stub.gguf"), "0" * 64, system_prompt=tokens.system_prompt,
                       vision=vision, audio=audio, infill=infill_of(tokenizer, {}))


def byte_tokenizer() -> Tokenizer:
    """Token n is byte n; then come the control tokens."""
    return Tokenizer.from_gguf({
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.merges": [],
        "tokenizer.ggml.tokens": [*_byte_symbols(), "<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1] * 256 + [3] * 3,
        "tokenizer.ggml.bos_token_id": END_OF_TEXT, "tokenizer.ggml.eos_token_id": END_OF_TEXT,
        "tokenizer.ggml.eot_token_id": IM_END, "tokenizer.ggml.add_bos_token": False})


class StubCache:
    """For each slot the token and position that were written there, and a digest of all tokens up to it."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages, self.page_size = num_pages, page_size
        self.tokens = np.full(num_pages * page_size, -1, np.int32)
        self.positions = np.full(num_pages * page_size, -1, np.int32)
        self.states = np.zeros(num_pages * page_size, np.uint64)

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.positions.nbytes


@dataclass
class StubRunner:
    """Checks each batch against its contract, then answers from what the cache holds."""

    reply: list[int] | None
    on_step: Callable[[Batch], None] | None
    max_tokens: int
    vocab_size: int
    num_steps: int = 0
    num_tokens: int = 0

    def logits(self, batch: Batch, cache: StubCache) -> np.ndarray:
        return self._rows(batch, cache, self.vocab_size)

    def hidden(self, batch: Batch, cache: StubCache) -> np.ndarray:
        return self._rows(batch, cache, WIDTH)

    def cancel(self) -> None:
        """Does nothing."""

    def _rows(self, batch: Batch, cache: StubCache, width: int) -> np.ndarray:
        if self.on_step is not None:
            self.on_step(batch)
        self.num_steps += 1
        self.num_tokens += len(batch.tokens)
        self._check(batch)
        _write(batch, cache)
        out = np.empty((len(batch.rows), width), np.float32)
        for row, token in enumerate(batch.rows):
            out[row] = self._row(_context(batch, cache, int(token)), width)
        out.flags.writeable = False  # the engine has no business in a backend's memory
        return out

    def _check(self, batch: Batch) -> None:
        arrays = (batch.tokens, batch.positions, batch.query_starts, batch.rows, batch.page_table, batch.slots)
        assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in arrays)
        assert 1 <= len(batch.tokens) <= self.max_tokens
        assert len(batch.positions) == len(batch.slots) == len(batch.tokens) == batch.query_starts[-1]
        assert len(set(batch.slots.tolist())) == len(batch.slots), "two tokens in one slot"
        assert (np.diff(batch.query_starts) > 0).all() and (np.diff(batch.rows) > 0).all()

    def _row(self, context: np.ndarray, width: int) -> np.ndarray:
        key = int.from_bytes(blake2b(context.tobytes(), digest_size=16).digest(), "little")
        row = np.random.Generator(np.random.Philox(key=key)).standard_normal(width, np.float32) * 2
        if self.reply is not None and width == self.vocab_size:
            row[_next_of(self.reply, context.tolist())] += 30
        return row


@dataclass
class StubBackend:
    """Keeps its last runner, so that a test can ask what was run."""

    reply: list[int] | None = None
    on_step: Callable[[Batch], None] | None = None
    runners: list[StubRunner] = field(default_factory=list)
    name: str = "stub"

    def facts(self) -> dict[str, str]:
        return {"backend": self.name}

    def place(self, name: str, weight: Dense) -> Dense:
        return weight

    def new_cache(self, config: Config, num_pages: int, page_size: int, format: str) -> StubCache:
        return StubCache(num_pages, page_size)

    def cache_bytes(self, config: Config, num_pages: int, page_size: int, format: str) -> Room:
        return Room(self.new_cache(config, num_pages, page_size, format).nbytes)

    def runner(self, config: Config, weights: Weights, max_tokens: int) -> StubRunner:
        self.runners.append(StubRunner(self.reply, self.on_step, max_tokens, config.vocab_size))
        return self.runners[-1]


def stub_engine(reply: str | None = None, *, pooling: Pooling | None = None,
                on_step: Callable[[Batch], None] | None = None, vision: LoadedVision | None = None,
                **settings: int | bool) -> Engine:
    """An engine on the stub, with pages of 4 tokens by default."""
    model = stub_model(reply, pooling=pooling, on_step=on_step, vision=vision)
    return Engine(model, EngineSettings(**({"page_size": 4, "num_pages": 64} | settings)))


def run_all(engine: Engine, max_steps: int = 2000) -> dict[tuple[str, int], list[Delta]]:
    """Steps until nothing is left, checking the pages after each; all deltas by request and index."""
    out: dict[tuple[str, int], list[Delta]] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return out
        for delta in engine.step():
            out.setdefault((delta.request_id, delta.index), []).append(delta)
        engine.check()
    raise AssertionError(f"still working after {max_steps} steps")


def answer(engine: Engine, request: Request) -> list[Delta]:
    """The deltas of answer 0 of a request that runs alone."""
    request_id = engine.submit(request)
    return run_all(engine)[request_id, 0]


def tokens_of(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.tokens]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def _seen(batch: Batch) -> np.ndarray:
    """The step's tokens; in place of those that take features, numbers that say which features."""
    tokens = batch.tokens.copy()
    if batch.feature_rows is not None:
        assert batch.features.dtype == np.float32 and batch.feature_rows.shape == tokens.shape
        for token in np.flatnonzero(batch.feature_rows >= 0):
            row = batch.features[batch.feature_rows[token]]
            tokens[token] = 1 << 30 | int.from_bytes(blake2b(row.tobytes(), digest_size=3).digest(), "little")
    return tokens


def _write(batch: Batch, cache: StubCache) -> None:
    tokens = _seen(batch)
    cache.tokens[batch.slots] = tokens
    cache.positions[batch.slots] = batch.positions
    for sequence, (start, end) in enumerate(zip(batch.query_starts[:-1], batch.query_starts[1:], strict=True)):
        before = int(batch.positions[start]) - 1
        page = batch.page_table[sequence, before // cache.page_size]
        state = cache.states[page * cache.page_size + before % cache.page_size] if before >= 0 else np.uint64(0)
        for token in range(start, end):
            state = _mix(np.array([state]), tokens[token:token + 1])[0]
            cache.states[batch.slots[token]] = state


def _mix(states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The digest after one more token; the factor is 2^64 over the golden ratio."""
    mixed = (states + tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    return mixed ^ (mixed >> np.uint64(29))


def _context(batch: Batch, cache: StubCache, token: int) -> np.ndarray:
    """All tokens of `token`'s sequence up to it, read through the page table."""
    sequence = int(np.searchsorted(batch.query_starts, token, side="right")) - 1
    positions = np.arange(batch.positions[token] + 1)
    pages = batch.page_table[sequence, positions // cache.page_size]
    slots = pages * cache.page_size + positions % cache.page_size
    assert (cache.positions[slots] == positions).all(), "a slot holds another position"
    tokens, states = cache.tokens[slots], cache.states[slots]
    assert (_mix(np.concatenate([[np.uint64(0)], states[:-1]]), tokens) == states).all(), "another prefix"
    return tokens


def _next_of(reply: list[int], context: list[int]) -> int:
    """The token of the reply that follows its longest beginning that the context ends in."""
    for length in range(min(len(reply) - 1, len(context)), 0, -1):
        if context[-length:] == reply[:length]:
            return reply[length]
    return reply[0]


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each byte."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + rest.index(byte)) for byte in range(256)]
