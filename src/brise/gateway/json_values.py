"""Where the values stand in JSON text, also if there is other text around it or the end is missing."""

from __future__ import annotations

import re

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_PLAIN = re.compile(rb"-?[0-9][0-9.eE+-]*|true|false|null")
_KEY_END = re.compile(rb"\s*:")

Span = tuple[int, int]


def spans(text: bytes) -> list[Span]:
    """Start and end of each string, number, true, false and null that is a value, not the name of a field.

    What stands outside of objects and lists is no value.
    """
    found: list[Span] = []
    depth = at = 0
    while at < len(text):
        char = text[at:at + 1]
        match_ = (_STRING if char == b'"' else _PLAIN).match(text, at) if depth else None
        if match_ is not None:
            if char != b'"' or not _KEY_END.match(text, match_.end()):
                found.append(match_.span())
            at = match_.end()
            continue
        depth += (char in b"{[") - (char in b"}]" and depth > 0)
        at += 1
    return found
