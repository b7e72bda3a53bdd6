"""A table of n-grams: after the last tokens of an answer, the token that answers of this task most often have next.

It is a source of drafts: what it says is checked by the model before it is part of an answer, so that a wrong table
costs time and nothing else. It stands in ngrams.bin beside an adapter:

    "brise-ngrams\\0\\0\\0\\1"     16 bytes
    uint32 header_bytes, uint32 num_entries
    header                     JSON in UTF-8: NgramFacts, filled up with spaces to a multiple of 8 bytes
    keys                       num_entries x uint64, ascending: `key_after` of a context of 1 to `order` tokens
    values                     num_entries x uint32: token << 8 | probability in 256 steps

All numbers are little-endian. `count_ngrams.py` makes tables. An entry takes 12 bytes. A table made of captured
traffic is sealed, and only whoever has its store's keys can open it (traffic/ngrams.py).
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.files.digests import DIGEST
from brise.files.fields import Fields, KeyTable, errors_of
from brise.files.json_file import parse_json
from brise.files.mapped import map_file
from brise.models.weights import Array
from brise.text.protocols import TextTokenizer

FILE = "ngrams.bin"  # in an adapter's folder
MAGIC = b"brise-ngrams\0\0\0\1"
SEALED = b"brise-sealed\0\0\0\1"  # what a table made of captured traffic begins with (traffic/ngrams.py)
SEALED_ID_BYTES = 16
ORDER = 4  # tokens of the longest context
MAX_ORDER = 8
MAX_HEADER_BYTES = 1 << 16
MAX_BYTES = 1 << 28
ENTRY_BYTES = 12
STEPS = 256  # of a probability
LEAST_PROBABILITY = 0.1  # of a draft whose tokens before it are right; nothing under it is ever worth a step
Source = Literal["rows", "traffic"]
Unseal = Callable[[bytes], bytes]  # the table in the bytes of a sealed file, or an error for users

_ID = re.compile(r"[0-9a-f]{16}")
_COUNTS = struct.Struct("<II")
_PREFIX = len(MAGIC) + _COUNTS.size
_MOST_TOKENS = 1 << 24  # ids fit into three bytes
_MASK = (1 << 64) - 1
_SEED, _FACTOR = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # 2^64 over the golden ratio; Mulvey's for 64 bits
_SAMPLE = 4096  # tokens whose bytes are part of a tokenizer's digest


@dataclass(frozen=True)
class NgramFacts:
    """What a table was made for and from. `tokenizer` is `tokenizer_digest`; `data` the SHA-256 of what was counted.

    Of `answers` answers with `tokens` tokens only what at least `least` conversations (from traffic: subjects) have in
    common is in the table.
    """

    tokenizer: str
    vocab_size: int
    order: int
    source: Source
    data: str
    answers: int
    tokens: int
    least: int


class NgramTable:
    """A table in memory or in a mapped file. It never changes, and may be used from several threads."""

    name = "ngrams"

    def __init__(self, facts: NgramFacts, keys: memoryview, values: memoryview, nbytes: int) -> None:
        self.facts, self.nbytes = facts, nbytes
        self._keys, self._values = keys, values

    def __len__(self) -> int:
        return len(self._keys)

    def start(self, prompt: Sequence[int]) -> NgramDrafts:
        """The drafts of an answer to this prompt."""
        return NgramDrafts(self, prompt)

    def after(self, context: Sequence[int]) -> tuple[int, float] | None:
        """The token that follows the longest known end of the context, and its probability; microseconds."""
        key, keys, found = _SEED, self._keys, -1
        for token in context[:-self.facts.order - 1:-1]:
            key = key_after(key, token)
            at = bisect_left(keys, key)
            if at < len(keys) and keys[at] == key:
                found = at
        if found < 0:
            return None
        value = self._values[found]
        return value >> 8, ((value & 0xFF) + 0.5) / STEPS


class NgramDrafts:
    """The end of one answer, as far as the table looks back."""

    def __init__(self, table: NgramTable, prompt: Sequence[int]) -> None:
        self._table, self._order = table, table.facts.order
        self._recent = list(prompt[-self._order:])

    def extend(self, tokens: Sequence[int]) -> None:
        """Goes on after tokens that the answer has got."""
        self._recent = [*self._recent, *tokens[-self._order:]][-self._order:]

    def propose(self, most: int) -> tuple[list[int], list[float]]:
        """Up to `most` tokens, and the probability of each if those before it are right."""
        tokens, probabilities, together = list[int](), list[float](), 1.0
        recent = list(self._recent)
        while len(tokens) < most and (following := self._table.after(recent)) is not None:
            together *= following[1]
            if together < LEAST_PROBABILITY:
                break
            tokens.append(following[0])
            probabilities.append(following[1])
            recent = [*recent[-self._order + 1:], following[0]] if self._order > 1 else [following[0]]
        return tokens, probabilities


def key_after(key: int, token: int) -> int:
    """The key of a context that begins one token earlier; the first is that of the newest token after `_SEED`.

    Two contexts of a full table of 2^24 entries have the same key with a probability of 2^-17: they share a draft then.
    """
    key = ((key ^ token) * _FACTOR) & _MASK
    return key ^ (key >> 32)


def keys_after(keys: Array, tokens: Array) -> Array:
    """The same for arrays of uint64."""
    mixed = (keys ^ tokens) * np.uint64(_FACTOR)
    return mixed ^ (mixed >> np.uint64(32))


def first_keys(number: int) -> Array:
    """What `keys_after` begins with."""
    return np.full(number, _SEED, np.uint64)


def read_table(path: Path, tokenizer: str | None = None, unseal: Unseal | None = None) -> NgramTable:
    """The table in a file: mapped, or if it is sealed opened by `unseal`.

    CheckpointError says what is wrong with the file; UnsupportedError that it is for another tokenizer than the one
    with this digest, or sealed and there is nothing to open it with.
    """
    with errors_of(path.name):
        mapped = map_file(path, _PREFIX)
        if mapped[:len(SEALED)] != SEALED:
            return table_in(memoryview(mapped), tokenizer)
        if unseal is None:
            raise UnsupportedError("the table is sealed, and the store that it was made of is not open here",
                                   hint="brise serve opens it, with --store if it is not the usual store")
        if len(mapped) > MAX_BYTES:
            raise bad_value("size of the table", len(mapped), f"up to {MAX_BYTES} bytes")
        return table_in(memoryview(unseal(bytes(mapped))), tokenizer)


def is_sealed(path: Path) -> bool:
    """Whether the file begins as a sealed table does."""
    with errors_of(path.name), closing(map_file(path, _PREFIX)) as mapped:
        return mapped[:len(SEALED)] == SEALED


def sealed_id(sealed: bytes) -> str:
    """The id of the key of a sealed table."""
    id = sealed[len(SEALED):len(SEALED) + SEALED_ID_BYTES].decode("latin-1")
    if _ID.fullmatch(id) is None:
        raise bad_value("id of the key", id, f"{SEALED_ID_BYTES} hexadecimal digits")
    return id


def table_in(data: memoryview, tokenizer: str | None = None) -> NgramTable:
    """The table in these bytes, which are not copied. Every length and every token is checked first."""
    if not _PREFIX <= len(data) <= MAX_BYTES:
        raise bad_value("size of the table", len(data), f"{_PREFIX} to {MAX_BYTES} bytes")
    if bytes(data[:len(MAGIC)]) != MAGIC:
        raise CheckpointError("it is no table of n-grams, or of another version", field="magic",
                              value=bytes(data[:len(MAGIC)]), limit=MAGIC)
    header_bytes, num_entries = _COUNTS.unpack(data[len(MAGIC):_PREFIX])
    if header_bytes > MAX_HEADER_BYTES or header_bytes % 8:
        raise bad_value("header_bytes", header_bytes, f"a multiple of 8 up to {MAX_HEADER_BYTES}")
    start = _PREFIX + header_bytes
    if len(data) != start + num_entries * ENTRY_BYTES:
        raise bad_value("size of the table", len(data),
                        f"{start + num_entries * ENTRY_BYTES} bytes for {num_entries} entries")
    facts = _facts(bytes(data[_PREFIX:start]))
    if tokenizer is not None and facts.tokenizer != tokenizer:
        raise UnsupportedError(f"the table is for the tokenizer {facts.tokenizer[:12]}, the model has "
                               f"{tokenizer[:12]} (SHA-256)", hint="make it again for this model")
    middle = start + num_entries * 8
    keys, values = np.frombuffer(data[start:middle], "<u8"), np.frombuffer(data[middle:], "<u4")
    if (keys[1:] <= keys[:-1]).any():
        raise bad_value("the order of the keys", "not ascending", "ascending keys")
    if num_entries and (largest := int(values.max() >> 8)) >= facts.vocab_size:
        raise bad_value("a token", largest, f"0 to {facts.vocab_size - 1}")
    return NgramTable(facts, _native(keys), _native(values), len(data))


def table_bytes(facts: NgramFacts, keys: Array, values: Array) -> bytes:
    """The contents of a file: `keys` ascending uint64, `values` uint32, of equal lengths."""
    header = json.dumps(asdict(facts), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)
    return b"".join((MAGIC, _COUNTS.pack(len(header), len(keys)), header, keys.astype("<u8").tobytes(),
                     values.astype("<u4").tobytes()))


def tokenizer_digest(tokenizer: TextTokenizer) -> str:
    """A SHA-256 that tells tokenizers apart: of the special tokens, and of the bytes of every n-th token.

    A sample is enough, since a table for another tokenizer costs time and no answer; all bytes would take as long as
    loading a small model.
    """
    digest = hashlib.sha256(repr((tokenizer.vocab_size, sorted(tokenizer.control.items()),
                                  sorted(tokenizer.end_ids))).encode())
    for token in range(0, tokenizer.vocab_size, max(1, tokenizer.vocab_size // _SAMPLE)):
        text = tokenizer.token_bytes(token, show_control=True)
        digest.update(len(text).to_bytes(4, "little") + text)
    return digest.hexdigest()


def _facts(header: bytes) -> NgramFacts:
    fields = Fields(parse_json(header, "the header"), "")
    tokenizer, data, source = fields.text("tokenizer"), fields.text("data"), fields.text("source")
    for name, value in (("tokenizer", tokenizer), ("data", data)):
        if DIGEST.fullmatch(value) is None:
            raise bad_value(name, value, "a SHA-256 of 64 hexadecimal digits")
    if source not in get_args(Source):
        raise bad_value("source", source, " or ".join(get_args(Source)))
    vocab_size, order = fields.integer("vocab_size"), fields.integer("order")
    if vocab_size > _MOST_TOKENS or order > MAX_ORDER:
        raise bad_value("vocab_size and order", (vocab_size, order), f"up to {_MOST_TOKENS} and {MAX_ORDER}")
    count = partial(fields.integer, least=0)
    facts = NgramFacts(tokenizer, vocab_size, order, "rows" if source == "rows" else "traffic", data,
                       count("answers"), count("tokens"), fields.integer("least"))
    fields.refuse_rest(KeyTable())
    return facts


def _native(numbers: Array) -> memoryview:
    """A view whose items are Python's ints."""
    return memoryview(numbers if sys.byteorder == "little" else numbers.astype(numbers.dtype.newbyteorder("=")))
