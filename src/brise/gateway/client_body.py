"""A request's body as it came: decoded, read, and every place in it that names a model.

Servers differ in what they make of a body: which of two fields of one name counts, whether the case of a name does,
which encodings they know. So all of these places are found, and the body goes on in one spelling: UTF-8, not
compressed.
"""

from __future__ import annotations

import codecs
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from brise.dialects.bodies import Body
from brise.dialects.bodies import text as text_of
from brise.errors import RequestError
from brise.files import long_json

RawHeaders = Sequence[tuple[bytes, bytes]]
FIELD, FIELDS = "model", ("model", "models")  # the second is OpenRouter's, for models to fall back on
MAX_NAMES = 1000  # different models in one body
MAX_WORDS = 200_000  # places that are looked at
MAX_CODINGS = 4  # of one body, each around the one before
# Character encodings that JSON comes in. What is pure ASCII is the same in all but the last two families.
CHARSETS = frozenset({"utf-8", "ascii", "iso8859-1", "cp1252", "utf-16", "utf-16-le", "utf-16-be", "utf-32",
                      "utf-32-le", "utf-32-be"})
_CHARSET = re.compile(rb";\s*charset\s*=\s*\"?([^\s\";]*)", re.IGNORECASE)
_INVISIBLE = " \t\r\n\0\ufeff"
_OBJECT = re.compile(rb"\s*\{")
_END = b'model"'  # of the field's name, whatever stands before it
_STRING = re.compile(rb'\s*:\s*("(?:[^"\\]|\\.)*")')  # a field's value
_SPACE = re.compile(r"[ \t\n\r]*")
# What may follow the word `model` where it names one, and what a form has before and after it. Everything has a length
# that it can have, so that no part of a body is read again and again.
WORDS = (b"model", b"deployment")
_VALUE = re.compile(rb"""["']?\s{0,99}[:=]\s{0,99}("(?:[^"\\]|\\.){0,256}"|'[^']{0,256}'|[^\s"',;&<>{}\[\]]{1,256})""")
_FORM_NAME = re.compile(rb"name\*?\s{0,9}=\s{0,9}(?:[\w-]{0,20}''|)\"?\Z", re.IGNORECASE)
_FORM_VALUE = re.compile(rb"\"?[^\n]{0,999}+\n(?:[^\r\n]{1,999}+\r?\n){0,9}+\r?\n([^\r\n]{0,256})")
FORM_NAME_BYTES = 48
MAX_QUOTED = 1 << 20  # bytes of a form that may be percent-encoded


class EncodingError(RequestError):
    """The body is encoded in a way that is not read here."""

    status = 415


class BodySizeError(RequestError):
    """The body is too large when it is decompressed."""

    status = 413


@dataclass(frozen=True)
class ReadBody:
    """What a body says. `fields` is a JSON object, or None. `names` are the models that it could mean, in any field
    that a server might read; `times` is how often it has the field `model`, and `span` where its value stands, in
    bytes, quotes included."""

    fields: Body | None = None
    model: str = ""
    names: tuple[str, ...] = ()
    times: int = 0
    span: tuple[int, int] | None = None


def decompressed(headers: RawHeaders, body: bytes, max_bytes: int) -> tuple[RawHeaders, bytes]:
    """The request without its content codings; EncodingError names one that is not read here."""
    given = b",".join(value for name, value in headers if name == b"content-encoding")
    codings = [word.strip().lower().decode("latin-1") for word in given.split(b",") if word.strip()]
    codings = [coding for coding in codings if coding != "identity"]
    if len(codings) > MAX_CODINGS:
        raise EncodingError(f"the body has {len(codings)} content encodings, at most {MAX_CODINGS} are read",
                            code="unsupported_encoding")
    for coding in reversed(codings):
        if coding not in ("gzip", "x-gzip", "deflate"):
            raise EncodingError(f"the body's content encoding is {coding[:32]!r}; gzip and deflate are read",
                                code="unsupported_encoding", hint="send it uncompressed")
        body = _inflated(coding, body, max_bytes)
    return [(name, value) for name, value in headers if name != b"content-encoding"] if given else headers, body


def in_utf8(headers: RawHeaders, body: bytes) -> tuple[RawHeaders, bytes]:
    """A JSON body in UTF-8 without a byte order mark; EncodingError if its charset is none that JSON comes in."""
    kind = b",".join(value for name, value in headers if name == b"content-type")
    stated = _CHARSET.search(kind)
    charset = _charset(stated[1]) if stated is not None and stated[1] else None
    if charset in (None, "utf-8", "ascii") and (body[:1] == b"{" and body[1:2] != b"\0"):
        return headers, body
    text = _text(body, charset)
    if text is None:
        return headers, body  # whoever reads it says so
    body = text.removeprefix("\ufeff").encode("utf-8", "surrogatepass")
    if stated is not None and charset not in (None, "utf-8", "ascii"):
        headers = [(name, _CHARSET.sub(b"; charset=utf-8", value) if name == b"content-type" else value)
                   for name, value in headers]
    return headers, body


def read(body: bytes) -> ReadBody:
    """Reads a body in UTF-8. Not JSON, or no object: `fields` is None, and `names` are what looks like one."""
    try:
        usual = _of_usual(body)
        if usual is not None:
            return usual
        text = long_json.decoded(body, "surrogatepass")
        members = [*_members(text, long_json.decoder(long_json.is_long(body)))]
    except (ValueError, RecursionError):
        guessed, of_form = _guessed(body)
        if len(of_form) != 1:
            return ReadBody(None, "", guessed)
        return ReadBody(None, of_form[0][1].decode("utf-8", "replace"), guessed, 0, of_form[0].span(1))
    fields = {name: value for name, value, _, _ in members}
    names, times, span = dict[str, None](), 0, None
    for name, value, begin, end in members:
        if name == FIELD:
            span = (begin, end) if text.isascii() else (_bytes(text[:begin]), _bytes(text[:end]))
        if name.strip(_INVISIBLE).lower() in FIELDS:
            names |= dict.fromkeys(_strings(value))
            times += name.strip(_INVISIBLE).lower() == FIELD
    return ReadBody(fields, text_of(fields.get(FIELD)) or "", tuple(names), times, span)


def nested_names(body: bytes) -> tuple[str, ...]:
    """The models that a body may mean below its top: batches hold whole requests, forms hold fields. Of very many, the
    first MAX_NAMES and one more."""
    return _guessed(body)[0]


def may_name(body: bytes) -> bool:
    """Whether some server could find the field `model` in a body that cannot be read here."""
    plain = body.replace(b"\0", b"").lower()
    return FIELD.encode() in plain or b"\\u" in plain


def with_model(body: bytes, span: tuple[int, int] | None, model: str) -> bytes:
    """The body with another model in its place, or with one where it names none."""
    spelled = json.dumps(model).encode()
    if span is not None:
        is_json = _OBJECT.match(body) is not None  # the rest are forms
        return body[:span[0]] + (spelled if is_json else model.encode()) + body[span[1]:]
    start = body.index(b"{") + 1
    is_empty = body[start:].lstrip()[:1] == b"}"
    return body[:start] + b'"model": ' + spelled + (b"" if is_empty else b", ") + body[start:]


def query_names(query: bytes) -> tuple[str, ...]:
    """The models that a query names."""
    if b"=" not in query:
        return ()
    return tuple(value for name, value in parse_qsl(query.decode("latin-1"), errors="replace")
                 if name.lower() in ("model", "deployment", "deployment_id", "deployment-id", "engine"))


def _inflated(coding: str, body: bytes, max_bytes: int) -> bytes:
    """RFC 9110 calls zlib's format `deflate`; some senders leave its head out."""
    bits = 31 if "gzip" in coding else 15 if body[:1] and body[0] & 15 == 8 else -15
    pieces, size = list[bytes](), 0
    try:
        while body:
            inflater = zlib.decompressobj(wbits=bits)
            pieces.append(inflater.decompress(body, max_bytes + 1 - size))
            size += len(pieces[-1])
            if size > max_bytes:
                raise BodySizeError(f"the body is larger than {max_bytes} bytes when it is decompressed",
                                    code="body_too_large")
            if not inflater.eof:
                raise EncodingError(f"the body's {coding} data end too soon", code="unsupported_encoding")
            body = inflater.unused_data if bits == 31 else b""  # gzip may hold several members
    except zlib.error as error:
        raise EncodingError(f"the body is not {coding}: {error}", code="unsupported_encoding") from None
    return b"".join(pieces)


def _charset(stated: bytes) -> str:
    try:
        charset = codecs.lookup(stated.decode("latin-1")).name
    except LookupError:
        charset = ""
    if charset not in CHARSETS:
        raise EncodingError(f"the body's charset is {stated[:32].decode('latin-1')!r}; JSON comes in utf-8",
                            code="unsupported_encoding", hint="Content-Type: application/json")
    return charset


def _of_usual(body: bytes) -> ReadBody | None:
    """What a usual body says, in a third of the time: the field is in it once, without escapes, and is a string."""
    lowered = body.lower()
    if b"\\u" in lowered or lowered.count(_END) != 1:
        return None
    fields = long_json.decoder(long_json.is_long(body)).decode(long_json.decoded(body, "surrogatepass"))
    if not isinstance(fields, dict) or not isinstance(model := fields.get(FIELD), str):
        return None
    value = _STRING.match(body, lowered.index(_END) + len(_END))
    if value is None or any(name.strip(_INVISIBLE).lower() in FIELDS for name in fields if name != FIELD):
        return None
    return ReadBody(fields, model, (model,), 1, value.span(1))


def _text(body: bytes, charset: str | None) -> str | None:
    """Its first bytes say more than its label, and so does that it is UTF-8, which JSON is by RFC 8259."""
    found = json.detect_encoding(body)
    for each in (found, charset):
        if each is not None:
            try:
                return body.decode(each, "surrogatepass" if each.startswith("utf") else "strict")
            except UnicodeDecodeError:
                continue
    return None


def _members(text: str, decoder: json.JSONDecoder) -> Iterator[tuple[str, Any, int, int]]:
    """The members of a JSON object: name, value, and where the value stands. ValueError if it is none."""
    at = _skip(text, 0)
    if text[at:at + 1] != "{":
        raise ValueError("no object")
    at = _skip(text, at + 1)
    if text[at:at + 1] == "}":
        at += 1
    else:
        while True:
            name, at = decoder.raw_decode(text, at)
            at = _skip(text, at)
            if not isinstance(name, str) or text[at:at + 1] != ":":
                raise ValueError("no member")
            begin = _skip(text, at + 1)
            value, end = decoder.raw_decode(text, begin)
            yield name, value, begin, end
            at = _skip(text, end)
            if text[at:at + 1] == "}":
                at += 1
                break
            if text[at:at + 1] != ",":
                raise ValueError("no comma")
            at = _skip(text, at + 1)
    if _skip(text, at) != len(text):
        raise ValueError("more than one value")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def _strings(value: object) -> Iterator[str]:
    """A name, or the names in a list or an object."""
    pending = [value]
    while pending:
        match pending.pop():
            case str() as name:
                yield name
            case list() as items:
                pending += items
            case dict() as members:
                pending += members.values()


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _guessed(body: bytes, decodings: int = 2) -> tuple[tuple[str, ...], Sequence[re.Match[bytes]]]:
    """Values of what looks like a field `model`: in JSON below the top or cut off, in forms, in anything else; and
    those that are fields of a form."""
    names, fields = dict[str, None](), list[re.Match[bytes]]()
    for number, (begin, end) in enumerate(_words(body)):
        if (value := _VALUE.match(body, end)) is not None:
            names[_plain(value[1].decode("utf-8", "replace"))] = None
        if (field := _form_value(body, begin, end)) is not None:
            fields.append(field)
            names[field[1].decode("utf-8", "replace").strip()] = None
        if number >= MAX_WORDS or len(fields) > MAX_NAMES:
            names |= dict.fromkeys(f"another {each}" for each in range(MAX_NAMES + 1))
        if len(names) > MAX_NAMES:
            break
    if decodings and len(body) <= MAX_QUOTED and b"%" in body and (decoded := unquote_to_bytes(body)) != body:
        names |= dict.fromkeys(_guessed(decoded, decodings - 1)[0])
    return tuple(names), fields


def _words(body: bytes) -> Iterator[tuple[int, int]]:
    """Where words stand that name models. `find` is many times faster than a pattern that ignores case."""
    lowered = body.lower()
    for word in WORDS:
        at = lowered.find(word)
        while at >= 0:
            yield at, at + len(word)
            at = lowered.find(word, at + 1)


def _plain(value: str) -> str:
    if value[:1] == '"':
        try:
            return str(json.loads(value))
        except ValueError:
            return value[1:-1]
    return value.strip("'")


def _form_value(body: bytes, begin: int, end: int) -> re.Match[bytes] | None:
    """The value of a form's field, if its name stands here."""
    before = body[max(begin - FORM_NAME_BYTES, 0):begin]
    if before.rstrip(b'" ')[-1:] not in (b"=", b"'") or _FORM_NAME.search(before) is None:
        return None
    return _FORM_VALUE.match(body, end)
