"""Leaves keys out of what is written down. Where a record quotes the key of its request, as errors of upstreams do, it
has [key] instead: wherever the key stands, whole or cut to more than half, and escaped as in JSON or in URLs.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from brise.dialects.bodies import Body
from brise.traffic.records import Exchange, RecordedAnswer

MARK = "[key]"
LEAST = 8  # characters: anything shorter is no secret, and would be found in many words
FEW = 16  # secrets that are searched for one after the other; a request that makes sense has fewer
MOST = 64  # characters at the beginning of a key that identify it
_SECRET = re.compile(r"(?:^|[-_.])(?:api|access|subscription)?[-_]?key$|token$|secret|signature$|passw|cookie"
                     r"|authorization|authentication|(?:^|[-_.])auth(?:$|[-_.])", re.IGNORECASE)
_LISTS = ("tools", "mcp_servers", "data_sources")  # fields of a request whose entries may hold keys to other servers
_KEYS = ("api_key", "authorization")  # fields that are keys
_OWN = b"x-brise-"  # headers for the gateway, which are names
_COOKIE = 20  # characters: a session's name; shorter values are settings
_SCHEME = re.compile(r"[A-Za-z][\w-]* +(?=[^ ])")
_WORD = re.compile(r"[^\s,;]+")
_PLAIN = re.compile(r"[A-Za-z0-9]+")
_TEXTS = ("task", "path", "model", "conversation", "subject", "labels", "served_by", "fingerprint", "error")
_ANSWER_TEXTS = ("served_by", "fingerprint", "error")
T = TypeVar("T")


def secrets_of(headers: Sequence[tuple[bytes, bytes]], target: bytes, fields: Body | None) -> tuple[str, ...]:
    """The secrets of a request: in its headers, in its query, and the keys to other servers in its body."""
    secrets = set[str]()
    for name, value in headers:
        if is_secret(name):
            least = _COOKIE if b"cookie" in name else LEAST
            secrets.update(secret for secret in _of_header(value.decode("latin-1")) if len(secret) >= least)
    query = target.partition(b"?")[2]
    if query:
        secrets.update(value for name, value in parse_qsl(query.decode("latin-1"), errors="replace")
                     if _SECRET.search(name))
    if fields is not None:
        for field in _LISTS:
            if isinstance(entries := fields.get(field), list):
                secrets.update(_inside([entry for entry in entries if _may_hold_key(entry)]))
        secrets.update(_inside({name: fields[name] for name in _KEYS if name in fields}))
    return tuple(sorted(secret for secret in secrets if len(secret) >= LEAST))


def text(value: str, secrets: Sequence[str]) -> str:
    """The text without these secrets."""
    return _finders(tuple(secrets)).without(value)


def exchange(whole: Exchange, secrets: Sequence[str]) -> Exchange:
    """The row without these secrets; the same object if it holds none."""
    return _record(whole, _TEXTS, ("request", "response"), secrets)


def answer(whole: RecordedAnswer, secrets: Sequence[str]) -> RecordedAnswer:
    """The same for another answer."""
    return _record(whole, _ANSWER_TEXTS, ("response",), secrets)


def _record(whole: T, texts: Sequence[str], bodies: Sequence[str], secrets: Sequence[str]) -> T:
    if not secrets:
        return whole
    finders = _finders(tuple(secrets))
    if not _holds([getattr(whole, name) for name in (*texts, *bodies)], finders):
        return whole
    changed: dict[str, object] = {}
    for name in (*texts, *bodies):
        value = getattr(whole, name)
        if value is not None and _holds(value, finders):
            try:
                value = _without(value, finders)
                changed[name] = _unspelt(value) if name == "response" else value
            except RecursionError:  # nested deeper than any model's answer
                changed[name] = None
    return replace(whole, **changed) if changed else whole  # type: ignore[type-var]


def _holds(value: object, finders: _Few | _Many) -> bool:
    """Whether a string of a JSON value holds a secret. Not recursive: most bodies hold none, and pay for this only."""
    strings, pending = list[str](), [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            strings.append(item)
        elif isinstance(item, dict | Mapping):  # the usual type comes first
            strings += item
            pending += item.values()
        elif isinstance(item, list | tuple):
            pending += item
    return finders.finds("\n".join(strings))  # a key has no line break


def _without(value: Any, finders: _Few | _Many) -> Any:
    match value:
        case str():
            return finders.without(value)
        case dict() | Mapping():
            return {finders.without(name): _without(item, finders) for name, item in value.items()}
        case list() | tuple():
            return [_without(item, finders) for item in value]
        case _:
            return value


def _unspelt(value: Any) -> Any:
    """Without the log-probabilities, which repeat the text token by token."""
    match value:
        case dict():
            return {name: None if name == "logprobs" else _unspelt(item) for name, item in value.items()}
        case list():
            return [_unspelt(item) for item in value]
        case _:
            return value


def _may_hold_key(entry: object) -> bool:
    """Functions, of which there may be hundreds, hold no keys."""
    return isinstance(entry, dict) and entry.get("type") != "function" and "input_schema" not in entry


def _inside(value: object) -> Iterator[str]:
    """Strings of a JSON value whose name says key, token or password."""
    pending = [value]
    while pending:
        match pending.pop():
            case Mapping() as fields:
                for name, item in fields.items():
                    if isinstance(item, str) and _SECRET.search(name):
                        yield from _of_header(item)
                    else:
                        pending.append(item)
            case list() as items:
                pending += items


def _of_header(value: str) -> Iterator[str]:
    """Secrets in a header's value: the words after the scheme, what follows a "=" in them, a password in base64."""
    scheme = _SCHEME.match(value)
    words = _WORD.findall(value[scheme.end():] if scheme is not None else value)
    for word in words:
        yield word
        yield word.partition("=")[2]
        if scheme is not None and scheme[0].strip().lower() == "basic":
            with suppress(ValueError):  # no base64, or no text in it
                yield base64.b64decode(word, validate=True).decode().partition(":")[2]


@lru_cache(1024)
def is_secret(name: bytes) -> bool:
    """Whether a header of this name holds a secret."""
    return not name.startswith(_OWN) and _SECRET.search(name.decode("latin-1")) is not None


@lru_cache(64)
def _finders(secrets: tuple[str, ...]) -> _Few | _Many:
    return _Few(secrets) if len(secrets) <= FEW else _Many(secrets)


class _Few:
    """Finds each of a few secrets for itself, at the speed of the search for a plain text."""

    def __init__(self, secrets: Sequence[str]) -> None:
        # A longer one may begin with a shorter one.
        self._finders = [_finder(secret) for secret in sorted(secrets, key=len, reverse=True)]

    def finds(self, value: str) -> bool:
        return any(finder.finds(value) for finder in self._finders)

    def without(self, value: str) -> str:
        for finder in self._finders:
            value = finder.without(value)
        return value


class _Many:
    """Finds any number of secrets in one pass over each view of a text: as it is, out of JSON, out of a URL, and out of
    a URL in JSON.

    The first LEAST characters lead to the lengths that identify a secret which begins so; a set says for each length
    whether the text has one there. So a character costs at most MOST look-ups, however many secrets there are.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        self._lengths = dict[str, set[int]]()
        self._begins = dict[str, str]()  # what identifies a secret -> its rest, the longest if there are several
        written = {*secrets, *map(_out_of_json, secrets), *map(_out_of_url, secrets)}
        for secret in written:
            if len(secret) < LEAST:
                continue
            begin = secret[:_identifying(secret)]
            self._lengths.setdefault(begin[:LEAST], set()).add(len(begin))
            rest = secret[len(begin):]
            if len(rest) >= len(self._begins.get(begin, "")):
                self._begins[begin] = rest

    def finds(self, value: str) -> bool:
        return next(self._places(value), None) is not None

    def without(self, value: str) -> str:
        pieces, at = list[str](), 0
        for begin, end in sorted(self._places(value)):
            if end <= at:
                continue
            if begin >= at:
                pieces += (value[at:begin], MARK)
            at = end
        return "".join((*pieces, value[at:]))

    def _places(self, value: str) -> Iterator[tuple[int, int]]:
        whole = _View(value)
        views = [whole]
        if "\\" in value:
            views.append(whole.out_of(_JSON_ESCAPE, _json_letter))
        if "%" in value:
            views += [view.out_of(_URL_ESCAPE, _url_letters) for view in views]
        for view in views:
            for begin, end in self._found(view.text):
                yield view.starts[begin], view.starts[end]

    def _found(self, value: str) -> Iterator[tuple[int, int]]:
        at, last, lengths = 0, len(value) - LEAST, self._lengths
        while at <= last:
            known = lengths.get(value[at:at + LEAST])
            length = 0 if known is None else max(
                (length for length in known if value[at:at + length] in self._begins), default=0)
            if not length:
                at += 1
                continue
            rest = self._begins[value[at:at + length]]
            end = at + length + len(os.path.commonprefix((rest, value[at + length:at + length + len(rest)])))
            while end < len(value) and (value[end].isalnum() or value[end] in "-_"):  # another secret's rest
                end += 1
            yield at, end
            at = end


class _View:
    """A text with its escapes read, and where each of its characters begins in the original."""

    def __init__(self, text: str, starts: Sequence[int] | None = None) -> None:
        self.text, self.starts = text, range(len(text) + 1) if starts is None else starts

    def out_of(self, escape: re.Pattern[str], read: Callable[[re.Match[str]], list[tuple[str, int]]]) -> _View:
        pieces, starts, at = list[str](), list[int](), 0
        for match in escape.finditer(self.text):
            pieces.append(self.text[at:match.start()])
            starts += self.starts[at:match.start()]
            at = match.start()
            for letter, width in read(match):
                pieces.append(letter)
                starts.append(self.starts[at])
                at += width
            at = match.end()
        return _View("".join((*pieces, self.text[at:])), [*starts, *self.starts[at:]])


_JSON_ESCAPE = re.compile(r"\\+(?:u([0-9A-Fa-f]{4})|([^A-Za-z0-9\\]))?")
_URL_ESCAPE = re.compile(r"(?:%[0-9A-Fa-f]{2})+")


def _json_letter(match: re.Match[str]) -> list[tuple[str, int]]:
    letter = chr(int(match[1], 16)) if match[1] else match[2] or "\\"
    return [(letter, len(match[0]))]


def _url_letters(match: re.Match[str]) -> list[tuple[str, int]]:
    raw = bytes.fromhex(match[0].replace("%", ""))
    try:
        return [(letter, 3 * len(letter.encode())) for letter in raw.decode()]
    except UnicodeDecodeError:
        return [(chr(byte), 3) for byte in raw]


def _out_of_json(text: str) -> str:
    return _View(text).out_of(_JSON_ESCAPE, _json_letter).text


def _out_of_url(text: str) -> str:
    return _View(text).out_of(_URL_ESCAPE, _url_letters).text


def _identifying(secret: str) -> int:
    """How many of its first characters identify a secret: more than half of it."""
    return min(max(LEAST, -(-len(secret) // 2)), MOST)


@lru_cache(256)
def _finder(secret: str) -> _Finder:
    return _Finder(secret)


class _Finder:
    """Finds one secret in texts."""

    def __init__(self, secret: str) -> None:
        least = _identifying(secret)
        self._begin = re.compile("".join(map(_form, secret[:least])))
        self._rest = secret[least:]
        self._plain = max(_PLAIN.findall(secret[:least]), key=len, default="")  # in every text with the secret

    def finds(self, value: str) -> bool:
        return self._plain in value and self._begin.search(value) is not None

    def without(self, value: str) -> str:
        if not self.finds(value):
            return value
        pieces, at = list[str](), 0
        while (begin := self._begin.search(value, at)) is not None:
            pieces += (value[at:begin.start()], MARK)
            at = begin.end()
            for letter in self._rest:
                matched = _letter(letter).match(value, at)
                if matched is None:
                    break
                at = matched.end()
        return "".join((*pieces, value[at:]))


@lru_cache(256)
def _letter(letter: str) -> re.Pattern[str]:
    return re.compile(_form(letter))


def _form(letter: str) -> str:
    """A letter as it appears in text, in JSON inside text (\\/, \\u002b) or in a URL (%2B)."""
    if letter.isascii() and letter.isalnum():
        return letter
    escaped = "".join(f"%{byte:02x}" for byte in letter.encode(errors="surrogatepass"))
    # JSON in JSON in JSON has seven backslashes; a pattern without a limit is quadratic on a text of backslashes.
    return rf"(?:\\{{0,16}}{re.escape(letter)}|\\{{1,16}}(?i:u{ord(letter):04x})|(?i:{escaped}))"
