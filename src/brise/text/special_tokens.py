"""Finds special tokens such as <|im_end|> in text, and defines the sentinels that stand for them in answers.

A request names the tokens that mean something ([TOOL_CALLS], [THINK], ...) and the sentinel that each becomes in the
text of the answer. Sentinels are noncharacters of Unicode. Where one stands in ordinary text it is replaced, so text
that looks like a special token stays text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from os.path import commonprefix

from brise.errors import bad_value
from brise.text.protocols import Before

# Patterns over the special tokens take 4 us a character. The longest in use has 36, and a model of speech 28,672.
MAX_LENGTH, MAX_COUNT, MAX_CHARS = 256, 1 << 15, 1 << 20

THINK, END_THINK, CALL, END_CALL, CALL_ID, ARGS = (chr(0xFDD0 + number) for number in range(6))

_REPLACED: Mapping[int, str] = {0xFDD0 + number: "\ufffd" for number in range(6)}


def check(control: Mapping[str, int]) -> None:
    """CheckpointError for special tokens that are too long or too many, or no text."""
    check_unicode(control)
    for name, limit, value in (("number of special tokens", MAX_COUNT, len(control)),
                               ("length of all special tokens", MAX_CHARS, sum(map(len, control)))):
        if value > limit:
            raise bad_value(name, value, f"at most {limit}")
    for text, token in control.items():
        if len(text) > MAX_LENGTH:
            raise bad_value(f"length of the special token {token}", len(text), f"at most {MAX_LENGTH} characters")


def check_unicode(tokens: Iterable[str]) -> None:
    """CheckpointError for a token with half a surrogate pair, which a JSON file can write."""
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        raise bad_value("a token of the vocabulary", error.object[max(error.start - 8, 0):error.end + 8],
                        "text without half a surrogate pair") from None


class SpecialTokenSplitter:
    """Cuts text at special tokens; if one begins another, the longest counts.

    The white space before those in `left` and behind those in `right` belongs to them, as in Phi-3's `<|end|>`.
    """

    def __init__(self, control: Iterable[str], *, left: Collection[str] = (), right: Collection[str] = ()) -> None:
        self._pattern = re.compile(f"({_any_of(control)})")
        self._left, self._right = left, right

    def split(self, text: str) -> list[str]:
        """Text and special tokens in turn."""
        pieces: list[str] = self._pattern.split(text)
        if self._left or self._right:
            for index in range(1, len(pieces), 2):
                if pieces[index] in self._left:
                    pieces[index - 1] = pieces[index - 1].rstrip()
                if pieces[index] in self._right:
                    pieces[index + 1] = pieces[index + 1].lstrip()
        return pieces


def encode(text: str, control: Mapping[str, int], splitter: SpecialTokenSplitter,
           plain: Callable[[str, Before], list[int]], before: Before = "start") -> list[int]:
    """Ids of text in which special tokens become those tokens; `plain` encodes what is between them."""
    ids: list[int] = []
    for index, piece in enumerate(splitter.split(text)):
        if index % 2:
            ids.append(control[piece])
            before = "special"
        elif piece:
            ids.extend(plain(piece, before))
    return ids


def beginnings(control: Iterable[str]) -> re.Pattern[str]:
    """Matches each character at which a special token begins, also within another one."""
    rests: dict[str, list[str]] = {}
    for text in control:
        rests.setdefault(text[0], []).append(text[1:])
    return re.compile("|".join(f"{re.escape(first)}(?={_any_of(rest)})" for first, rest in rests.items())
                      or _NEVER)


def without_sentinels(text: str) -> str:
    """Ordinary text, in which no sentinel may stand."""
    return text.translate(_REPLACED)


def _any_of(words: Iterable[str]) -> str:
    """A pattern with common beginnings written once: vocabularies with 1000 special tokens exist."""
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
