"""Normalizes text by SentencePiece's precompiled map of characters, such as NFKC.

    4 bytes      the size of the trie
    trie         a double array (Darts) of 32-bit units: bytes of UTF-8 lead to the place of a replacement
    the rest     replacements, UTF-8, each with a zero behind it

From the left, the longest key of the trie that begins at a character is replaced; else the character stays. The unit of
a double array: bit 31 says that it is a value (the other bits), else bits 0 to 7 are its label, bit 8 says that a value
lies below it, and bits 10 and up are its offset, times 256 if bit 9 is set. The `tokenizers` library walks over
graphemes instead, so it misses keys of several characters, such as Hangul in parts.
"""

from __future__ import annotations

import numpy as np

from brise.errors import CheckpointError
from brise.models.weights import Array

MAX_KEY_BYTES = 64  # Unicode's longest key has 18 bytes; a trie with a loop must end


class CharsMap:
    """The map. `apply` takes time in proportion to the text, at most MAX_KEY_BYTES steps of it."""

    def __init__(self, blob: bytes) -> None:
        size = int.from_bytes(blob[:4], "little")
        if len(blob) < 4 or size % 4 or not 0 < size <= len(blob) - 4:
            raise CheckpointError(f"the map of characters has {len(blob)} bytes, and a trie of {size}",
                                  field="precompiled_charsmap", value=size, limit=max(len(blob) - 4, 0))
        self.blob = blob
        self._units = np.frombuffer(blob, "<u4", size // 4, 4).astype(np.int64)
        self._texts = blob[4 + size:]
        self._replacements: dict[int, bytes] = {}

    def apply(self, text: str) -> str:
        """The normalized text."""
        data = text.encode()
        starts, lengths, places = self._matches(data)
        out: list[bytes] = []
        at = 0
        for start, length, place in zip(starts.tolist(), lengths.tolist(), places.tolist(), strict=True):
            if start < at:
                continue
            out += (data[at:start], self._replacement(place))
            at = start + length
        return text if not out else b"".join([*out, data[at:]]).decode(errors="replace")

    def _matches(self, data: bytes) -> tuple[Array, Array, Array]:
        """Of each character at which a key begins: its position, the length of the longest key, and its value."""
        bytes_B = np.frombuffer(data, np.uint8).astype(np.int64)
        starts = np.flatnonzero((bytes_B & 0xC0) != 0x80)
        lengths, places = np.zeros(len(starts), np.int64), np.zeros(len(starts), np.int64)
        units, at = self._units, np.arange(len(starts))
        nodes = np.full(len(starts), self._offset(units[:1])[0])
        for depth in range(MAX_KEY_BYTES):
            positions = starts[at] + depth
            is_within = positions < len(data)
            at, positions, nodes = at[is_within], positions[is_within], nodes[is_within]
            labels = bytes_B[positions]
            children = nodes ^ labels
            children[children >= len(units)] = 0
            found = units[children]
            fits = (labels != 0) & ((found & 0x800000FF) == labels) & (children != 0)
            at, found, children = at[fits], found[fits], children[fits]
            if not len(at):
                break
            nodes = children ^ self._offset(found)
            ends = (found >> 8) & 1 == 1
            values = nodes[ends]
            values[values >= len(units)] = 0
            lengths[at[ends]], places[at[ends]] = depth + 1, units[values] & 0x7FFFFFFF
        has_match = lengths > 0
        return starts[has_match], lengths[has_match], places[has_match]

    @staticmethod
    def _offset(units: Array) -> Array:
        return (units >> 10) << ((units & 0x200) >> 6)

    def _replacement(self, place: int) -> bytes:
        text = self._replacements.get(place)
        if text is None:
            end = self._texts.find(b"\0", place)
            text = self._replacements[place] = self._texts[place:end if end >= 0 else len(self._texts)][:256]
        return text
