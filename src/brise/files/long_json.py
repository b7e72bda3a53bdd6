"""JSON that is long is read in short steps, so that other threads may run between them.

Python's parser in C holds up every other thread until it is done: 40 ms for a megabyte of empty lists. Its twin in
Python takes ten times as long for such a one and holds nobody up; strings are read in pieces besides.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from json.decoder import scanstring  # type: ignore[attr-defined]
from json.scanner import py_make_scanner  # type: ignore[attr-defined]
from typing import Any

# Reading and checking a node takes up to 2 us, a byte of a string 3 ns: under these it is 5 ms at most.
MANY_NODES, LONG_BYTES = 2000, 256 << 10
STEP_BYTES = 1 << 20
# A part of a string that cuts no escape and no pair of surrogates in two, and has nothing wrong in it.
_PIECE = re.compile(r'(?:[^"\\\x00-\x1f]{1,4096}|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}'
                    r'|\\u[0-9a-fA-F]{4}|\\["\\/bfnrt]){1,256}')


def is_long(data: bytes) -> bool:
    """Whether reading this JSON may take more than 5 ms. Commas in strings count, too."""
    return len(data) > LONG_BYTES or sum(map(data.count, (b",", b"[", b"{"))) > MANY_NODES


def decoded(data: bytes, errors: str = "strict") -> str:
    """The text of bytes in UTF-8."""
    if len(data) <= STEP_BYTES:
        return data.decode("utf-8", errors)
    decoder = codecs.getincrementaldecoder("utf-8")(errors)
    try:
        steps = [decoder.decode(data[at:at + STEP_BYTES]) for at in range(0, len(data), STEP_BYTES)]
        return "".join([*steps, decoder.decode(b"", final=True)])
    except UnicodeDecodeError:
        return data.decode("utf-8", errors)  # fails with the place in all of the bytes


def decoder(is_long: bool, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
            parse_constant: Callable[[str], Any] | None = None,
            parse_float: Callable[[str], Any] | None = None) -> json.JSONDecoder:
    """A decoder that takes short steps if the JSON is long; the hooks are those of `json.loads`."""
    made = json.JSONDecoder(object_pairs_hook=object_pairs_hook, parse_constant=parse_constant, parse_float=parse_float)
    if is_long:
        made.parse_string = _string  # type: ignore[attr-defined]
        made.scan_once = py_make_scanner(made)  # type: ignore[attr-defined]
    return made


def _string(text: str, begin: int, strict: bool = True) -> tuple[str, int]:
    """The string whose content begins there, and the place behind its closing quote."""
    end = text.find('"', begin, begin + 4096)
    if end >= 0 and text.find("\\", begin, end) < 0:
        return scanstring(text, begin, strict)  # type: ignore[no-any-return]
    pieces, at = list[str](), begin
    while text[at:at + 1] != '"':
        piece = _PIECE.match(text, at)
        if piece is None:
            return scanstring(text, begin, strict)  # type: ignore[no-any-return]  # it fails and says where
        pieces.append(scanstring(f'{piece[0]}"', 0, strict)[0])
        at = piece.end()
    return "".join(pieces), at + 1
