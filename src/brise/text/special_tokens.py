"""Finds control strings such as <|im_end|> in text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from os.path import commonprefix


def splitter(control: Iterable[str]) -> re.Pattern[str]:
    """`split` with it gives text and control strings in turn; if one begins another, the longest counts."""
    return re.compile(f"({_any_of(control)})")


def encode(text: str, control: Mapping[str, int], splitter: re.Pattern[str],
           plain: Callable[[str], list[int]]) -> list[int]:
    """Ids of text in which control strings are control tokens; `plain` encodes what is between them."""
    ids: list[int] = []
    for index, piece in enumerate(splitter.split(text)):
        if index % 2:
            ids.append(control[piece])
        elif piece:
            ids.extend(plain(piece))
    return ids


def beginnings(control: Iterable[str]) -> re.Pattern[str]:
    """Matches each character at which a control string begins, also within another one."""
    rests: dict[str, list[str]] = {}
    for text in control:
        rests.setdefault(text[0], []).append(text[1:])
    return re.compile("|".join(f"{re.escape(first)}(?={_any_of(rest)})" for first, rest in rests.items())
                      or _NEVER)


def _any_of(words: Iterable[str]) -> str:
    """A pattern with common beginnings written once: vocabularies with 1000 control tokens exist."""
    groups: dict[str, list[str]] = {}
    for word in sorted(words):
        groups.setdefault(word[:1], []).append(word)
    may_end = groups.pop("", None) is not None
    branches = []
    for members in groups.values():
        prefix = commonprefix(members)
        rest = _any_of(member[len(prefix):] for member in members) if len(members) > 1 else ""
        branches.append(re.escape(prefix) + rest)
    if not branches:
        return "" if may_end else _NEVER
    return f"(?:{'|'.join(branches)})" + ("?" if may_end else "")


_NEVER = "(?!)"
