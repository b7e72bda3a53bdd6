"""What an attacker sends costs time in proportion to its length: 8 times as long takes less than 24 times the time."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from brise.data.parse_row import RowRules
from brise.data.read_rows import read_rows
from brise.dialects.sse import Splitter, events
from brise.errors import BriseError
from brise.gateway import client_body
from brise.prove import certificates
from brise.serve.openai_chat import parse_chat
from brise.text.json_text import parse_json
from brise.text.schemas import enforceable
from brise.traffic.imports import read as imports
from brise.traffic.ledger import check_chain, next_entry
from brise.traffic.prices import read_prices
from brise.traffic.records import LedgerEntry
from brise.traffic.scrub import Scrubber
from tests.cpu_time import cpu_s

Make = Callable[[int], object]
STORED = Path(__file__).parent / "stored" / "v0_1" / "certificate.json"
HI = {"role": "user", "content": "hi"}


def body(**fields: object) -> dict[str, object]:
    return {"model": "m", "messages": [HI], **fields}


def tool(index: int) -> dict[str, object]:
    return {"type": "function", "function": {"name": f"f{index}", "parameters": {"type": "object", "properties": {}}}}


# A body of more than 2,000 nodes is read in steps, which takes ten times as long for a node (files/long_json.py): both
# lengths of a case that has as many nodes are longer than that.
STEPS = 4
JSON: dict[str, Make] = {
    "keys": lambda n: json.dumps({f"k{i}": i for i in range(STEPS * n)}).encode(),
    "empty lists": lambda n: b"[" + b"[]," * n + b"[]]",
    "backslashes": lambda n: b'"' + b"\\\\" * n + b'"',
    "halves of pairs": lambda n: b'"' + b"\\ud800" * n + b'"'}
CHATS: dict[str, Make] = {
    "messages": lambda n: body(messages=[HI] * n),
    "tools": lambda n: body(tools=[tool(index) for index in range(min(n // 32, 128))]),
    "parts": lambda n: body(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}] * n}])}
SCRUBBED = {name: (lambda n, piece=piece: piece * n)
            for name, piece in {"letters": "a", "dots": "a.", "digits": "1 ", "at": "a@", "slashes": "//:",
                                "quotes": 'key="'}.items()}


SSE: dict[str, Make] = {
    "long line": lambda n: b"data: " + b"x" * 16 * n + b"\n\n", "events": lambda n: b'data: {"a": 1}\n\n' * n,
    "lines": lambda n: b"data: x\n" * n + b"\n", "line ends": lambda n: b"\r\n" * n, "bytes apart": lambda n: b"x" * n}
SCHEMAS: dict[str, Make] = {
    "properties": lambda n: {"properties": {f"p{i}": {"type": "string"} for i in range(n)}},
    "required": lambda n: {"required": [f"p{i}" for i in range(n)]},
    "enum": lambda n: {"properties": {"a": {"enum": [f"v{i}" for i in range(n)]}}},
    "alternatives": lambda n: {"properties": {"a": {"anyOf": [{"const": i} for i in range(n)]}}},
    "definitions": lambda n: {"$ref": "#/$defs/0", "$defs": {f"{i}": {"$ref": f"#/$defs/{i + 1}"} for i in range(n)}},
    "anchors": lambda n: {"$defs": {f"{i}": {"$anchor": f"a{i}"} for i in range(n)},
                          "properties": {"a": {"anyOf": [{"$ref": f"#a{i}"} for i in range(n)]}}},
    "patterns": lambda n: {"patternProperties": {f"^p{i}$": {} for i in range(n)}},
    "not enforced": lambda n: {"properties": {f"p{i}": {"not": {}} for i in range(n)}},
    "items": lambda n: {"properties": {"a": {"prefixItems": [{}] * n}}}}
TEXT = {"role": "user", "content": "hi"}
LOGS: dict[str, Make] = {
    "rows": lambda n: b'{"prompt": "a", "completion": "b"}\n' * (n // 4),
    "messages": lambda n: json.dumps({"messages": [TEXT] * n + [{"role": "assistant", "content": "x"}]}).encode(),
    "spans": lambda n: b'{"spanId": "s", "attributes": {"gen_ai.prompt.0.role": "user"}}\n' * (n // 4),
    "attributes": lambda n: json.dumps({"spanId": "s", "context": {}, "attributes": {
        f"gen_ai.prompt.{i}.content": "a" for i in range(n)}}).encode(),
    "batch": lambda n: b"".join(json.dumps({"custom_id": str(i), "url": "/v1/chat/completions", "method": "POST",
                                            "body": {"messages": [TEXT]}}).encode() + b"\n" for i in range(n // 4))}
HEAD = b"prompt,completion\n"
TABLES: dict[str, Make] = {
    "rows": lambda n: HEAD + b"a,b\n" * (n // 4), "a cell": lambda n: HEAD + b'"' + b"a\n" * n,
    "quotes": lambda n: HEAD + b'"' + b'""' * n + b'",b\n', "columns": lambda n: b"a," * n + b"\n" + b"1," * n}
PRICES: dict[str, Make] = {
    "models": lambda n: b"".join(b"[models.m%d]\ninput = 1\noutput = 1\n" % i for i in range(n // 2)),
    "a name": lambda n: b'[models."' + b"m" * 16 * n + b'"]\ninput = 1\noutput = 1\n',
    "unknown": lambda n: b"x = [" + b"1, " * n + b"]"}
CERTIFICATES: dict[str, Make] = {
    "units": lambda n: with_units(n), "spaces": lambda n: b" " * 16 * n + with_units(4),
    "a text": lambda n: b'{"a": "' + b"\\\\" * n + b'"}',
    "keys": lambda n: json.dumps({f"k{i}": 1 for i in range(n)}).encode()}
LEDGERS: dict[str, Make] = {
    "lines": lambda n: chain(n),
    "a line": lambda n: [next_entry(None, 1.0, "note", {f"k{i}": i for i in range(n)})]}
BODIES: dict[str, Make] = {
    "names": lambda n: b'{"model": "a", "x": [' + b'{"model": "b"}, ' * STEPS * n + b"1]}",
    "form": lambda n: b"model=a&" * n,
    "not closed": lambda n: b'{"model": ' + b"[" * n, "spaces": lambda n: b'{"model"' + b" " * 16 * n,
    "escapes": lambda n: b'{"a": "' + b"\\u006d" * n + b'", "model": "b"}'}


def chain(number: int) -> list[LedgerEntry]:
    """A whole ledger of so many lines."""
    lines = [next_entry(None, 1.0, "note", {})]
    for _ in range(number):
        lines.append(next_entry((lines[-1].number, lines[-1].digest), 1.0, "note", {"a": 1}))
    return lines


def with_units(number: int) -> bytes:
    """The stored certificate with so many units."""
    signed = json.loads(STORED.read_text())
    signed["certificate"] |= {"differences": [0.0] * number, "path": [1.0] * number, "n": number}
    return json.dumps(signed).encode()


def refused(run: Callable[[Any], object]) -> Callable[[Any], None]:
    """The same where an error for users is as good as an answer."""
    def quietly(given: object) -> None:
        with suppress(BriseError):
            run(given)
    return quietly


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def run(data: bytes) -> object:
        with TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            return refused(read)(path)
    return run


def streamed(stream: bytes) -> None:
    """All at once, and in pieces of 64 bytes."""
    splitter = Splitter()
    for event in events(stream):
        assert event.data
    for at in range(0, len(stream), 64):
        for block in splitter.push(stream[at:at + 64]):
            _ = block.event


def cases() -> list[object]:
    paths: dict[str, tuple[dict[str, Make], Callable[..., object]]] = {
        "json": (JSON, partial(parse_json, mend=True)), "chat": (CHATS, parse_chat),
        "scrub": (SCRUBBED, lambda text: Scrubber().scrub(text)), "stream": (SSE, streamed),
        "schema": (SCHEMAS, refused(lambda schema: enforceable({"type": "object", **schema}, "p"))),
        "log": (LOGS, in_file("a.jsonl", lambda path: imports.read([path]))),
        "table": (TABLES, in_file("a.csv", lambda path: read_rows([path], RowRules()))),
        "prices": (PRICES, in_file("prices.toml", read_prices)),
        "certificate": (CERTIFICATES, in_file("c.json", certificates.read)), "ledger": (LEDGERS, check_chain),
        "client body": (BODIES, client_body.read)}
    return [pytest.param(make, run, id=f"{path}: {name}") for path, (makes, run) in paths.items()
            for name, make in makes.items()]


@pytest.mark.parametrize(("make", "run"), cases())
def test_the_time_grows_with_the_length(make: Make, run: Callable[[object], object]) -> None:
    shorter, longer = make(512), make(4096)
    short, long = (min(cpu_s(partial(run, given)) for _ in range(2)) for given in (shorter, longer))
    assert long < 24 * short + 0.01, "8 times as long if linear, 64 times if quadratic"
