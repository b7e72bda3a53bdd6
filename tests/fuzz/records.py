"""Parsers of data: logs, rows, labels, certificates, the ledger, prices, rights, keys, runs, and the store itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path
from typing import Any

from brise.data.parse_row import RowRules
from brise.data.read_rows import read_rows
from brise.data.rights import read_rights
from brise.errors import CertificateError
from brise.evals import answers_file
from brise.evals import data as eval_data
from brise.hub.store import ModelStore
from brise.prove import certificates, label_book, pairs_log
from brise.serve.access import host_name, read_keys
from brise.stats import certificate as forms
from brise.switch import rule, state
from brise.switch.rule import Rule, RuleBaseline, Term
from brise.text.json_text import parse_json
from brise.traffic import label_files, redact
from brise.traffic.imports.read import read as read_log
from brise.traffic.ledger import check_chain
from brise.traffic.prices import read_prices
from brise.traffic.records import LedgerEntry
from brise.traffic.scrub import Scrubber
from brise.traffic.seal import public_key_in
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import EVERYTHING
from brise.traffic.stores import open_store
from brise.tune import kept_options, run_folder
from tests.data import test_read_fuzz
from tests.fuzz.target import Target, as_json, as_lines, scratch, written
from tests.prove import logs
from tests.switch import ledger_lines
from tests.traffic import records, test_import_formats, test_imports

STORED = Path(__file__).parents[1] / "stored" / "v0_1"
COMPLETION: Any = {"prompt": "a", "completion": "b"}


def targets() -> list[Target]:
    return [
        Target("log import, jsonl", _log("log.jsonl"), _logs, "lines"),
        Target("log import, json", _log("log.json"), lambda: as_json(
            [test_imports.GENERATION], {"data": [test_import_formats.LITELLM]}, test_imports.otlp(test_imports.NEWEST)),
            "json"),
        Target("log import, csv", _log("log.csv"), lambda: [
            b'id,traceId,type,startTime,input,output\no,t,GENERATION,2026-03-01T10:00:00Z,"""hi""","{""role"": 1}"\n']),
        Target("rows, jsonl", _rows("rows.jsonl"), lambda: [
            as_lines(test_read_fuzz.ROW, COMPLETION), as_lines({"conversations": [{"from": "human", "value": "a"}, {
                "from": "gpt", "value": "b"}]})], "lines"),
        Target("rows, csv", _rows("rows.csv"), lambda: [b'prompt,completion\na,"b ""c"""\n"d\ne",f\n']),
        Target("pairs", lambda data: pairs_log.read(written("pairs.jsonl", data)), lambda: [
            as_lines(*logs.rows(2)), _stored("pairs.jsonl")], "lines"),
        Target("verdicts", lambda data: label_book.read(written("verdicts.jsonl", data)),
               lambda: [_stored("verdicts.jsonl")], "lines"),
        Target("answers", lambda data: answers_file.read(written("answers.jsonl", data)),
               lambda: [_stored("answers.jsonl")], "lines"),
        Target("labels, jsonl", _labels("labels.jsonl"), lambda: [as_lines(
            {"id": "a", "score": 1, "answer": "s", "answer_score": 0, "at": "2026-01-01"},
            {"request_id": "b", "outcome": False, "who": "shop", "note": "x"})], "lines"),
        Target("labels, csv", _labels("labels.csv"), lambda: [b"id,score,who\na,1,x\nb,true,y\n"]),
        Target("certificate", _certificate, lambda: [_stored("certificate.json")], "json"),
        Target("certificate, bytes", _certificate, lambda: [_stored("certificate.json")]),
        Target("ledger", _ledger, lambda: as_json(_ledger_lines()), "json"),
        Target("prices.toml", lambda data: read_prices(written("prices.toml", data)), lambda: [
            _stored("home/gateway/prices.toml"), b'[models."a"]\ninput = 1\noutput = 2.5\nlong = {over = 9, input = 1, '
            b'output = 2}\n[hardware]\nprice = 1\nyears = 1\nwatts = 1\nusd_per_kwh = 1\n']),
        Target("rights.toml", lambda data: read_rights(written("rights.toml", data)), lambda: [_stored("rights.toml")]),
        Target("keys of the server", _keys, lambda: [b"# keys\nsk-one\n\nsk-two\n"]),
        Target("public key", public_key_in, lambda: [b"ab" * 32, (
            b"-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n"
            b"-----END PUBLIC KEY-----\n")]),
        Target("host header", lambda data: host_name(data.decode("latin-1")), lambda: [b"localhost:8080", b"[::1]:1"]),
        Target("manifest", _manifest, lambda: [_stored("home/manifests/tiny.json"),
                                               _stored("home/manifests/tiny-hf.json")], "json"),
        Target("run.json", lambda data: run_folder.read_identity(written("run/run.json", data).parent),
               lambda: [_stored("run/run.json")], "json"),
        Target("log of a run", lambda data: list(run_folder.read_log(written("run/log.jsonl", data).parent)),
               lambda: [_stored("run/log.jsonl")], "lines"),
        Target("options of a run", lambda data: kept_options.read(written(f"run/{kept_options.FILE}", data).parent),
               lambda: as_json({"data": ["a.jsonl"], "model": "m", "out": "x"}), "json"),
        Target("scrub and redact", _scrub, lambda: [
            b"mail anna@example.org or call 030 1234567, card 4111 1111 1111 1111, key sk-abcdefghijklmnop",
            b'{"password": "x", "a": [{"b": "DE89 3704 0044 0532 0130 00"}]}']),
        Target("store", _store, lambda: [_sqlite_file()], max_bytes=1 << 18, slow_s=2)]


def _stored(name: str) -> bytes:
    return (STORED / name).read_bytes()


def _log(name: str) -> Callable[[bytes], object]:
    return lambda data: read_log([written(name, data)])


def _logs() -> Sequence[bytes]:
    rows = [*test_import_formats.FORMATS.values(), test_imports.GENERATION, test_imports.otlp(test_imports.NEWEST),
            test_imports.otlp({}, test_imports.OLD), test_imports.otlp(test_imports.NUMBERED), COMPLETION,
            {"messages": [*test_imports.MESSAGES, {"role": "assistant", "content": "x"}]}]
    batch = as_lines({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {
        "model": "m", "messages": test_imports.MESSAGES}}, {"id": "b", "custom_id": "a", "response": {
            "status_code": 200, "body": test_import_formats.LITELLM["response"]}, "error": None})
    return [*(as_lines(row) for row in rows), batch]


def _rows(name: str) -> Callable[[bytes], object]:
    def run(data: bytes) -> None:
        path = written(name, data)
        rows = read_rows([path], RowRules())
        assert all(bad.place.startswith(str(path)) and bad.reason for bad in rows.bad)
        eval_data.read([path])

    return run


@cache
def _open_store() -> SqlStore:
    (scratch() / "home").mkdir(exist_ok=True)
    store = open_store(scratch() / "home" / "labels.sqlite", scratch() / "home")
    store.add([records.exchange(id) for id in "ab"], [records.answer("s", "a")])
    return store


def _labels(name: str) -> Callable[[bytes], object]:
    return lambda data: label_files.load_file(_open_store(), written(name, data))


def _certificate(data: bytes) -> None:
    signed = certificates.read(written("certificate.json", data))
    assert isinstance(signed.is_genuine, bool)
    certificates.claim_words(signed.certificate)
    forms.replay(signed.certificate)


def _ledger_lines() -> list[object]:
    baseline = RuleBaseline((0.5,), (0.4, 0.6), 0.0, 0.1, 0.1, 90)
    body = rule.to_body(Rule("calls", "small", (Term("margin", 0.5, 1.0, 2.0),), 0.1, 0.5, 0.6, 0.05, 0.05, 0.8, 0.04,
                             "m", 100, 90, 0.0, 1.0, "human", "exact", baseline))
    switch = ledger_lines.switched(auto=True, share=0.1, certificate=ledger_lines.certified(), rule=body["digest"])
    lines: list[tuple[str, Any]] = [
        (certificates.KIND, json.loads(_stored("certificate.json"))), ("cascade", body),
        ("switch", switch),
        *(("audit", ledger_lines.audit(difference)) for difference in (0.0, -1.0, 1.0)), ("raise", {"task": "calls"}),
        ("step", {"task": "calls", "share": 0.5, "from": 0.1}), ("context", {"task": "calls", "context": "c"}),
        ("tighten", {"task": "calls"}), ("void", {"task": "calls", "reason": "x"})]
    return [{"number": number, "at_s": 1.5, "kind": kind, "body": body} for number, (kind, body) in enumerate(lines, 1)]


def _ledger(data: bytes) -> None:
    lines = parse_json(data)
    entries = []
    for line in lines if isinstance(lines, list) else ():
        match line:
            case {"number": int(number), "at_s": float(at_s), "kind": str(kind), "body": dict(body)}:
                entries.append(LedgerEntry(number, at_s, kind, body, "0" * 64, "1" * 64))
    check_chain(entries)
    switches = state.fold(entries)
    for each in switches.tasks.values():
        state.due(each, 2.0)
        state.gateway_line(each)
    for entry in entries:
        with suppress(CertificateError):
            certificates.of_line(entry.body)


def _keys(data: bytes) -> None:
    path = written("keys.txt", data)
    path.chmod(0o600)
    read_keys(path)


def _manifest(data: bytes) -> None:
    store = ModelStore(written("models/manifests/tiny.json", data).parents[1])
    store.path(store.get("tiny"))


def _scrub(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    Scrubber().scrub(text)
    with suppress(ValueError, RecursionError):
        Scrubber().scrub(json.loads(text))
    secrets = tuple(word for word in text.split()[:20] if len(word) >= redact.LEAST)
    shown = redact.text(text, secrets)
    assert not any(secret in shown for secret in secrets if secret.isalnum()), "a secret stays"
    redact.secrets_of([(b"authorization", data), (b"cookie", data)], b"/x?" + data, None)


@cache
def _sqlite_file() -> bytes:
    home = scratch() / "store"
    home.mkdir(exist_ok=True)
    with closing(open_store(home / "s.sqlite", home)) as store:
        store.add([records.FULL, records.exchange("a")], [records.answer("s", "a")])
        store.append("note", {"a": 1})
    return (home / "s.sqlite").read_bytes()


def _store(data: bytes) -> None:
    _sqlite_file()
    home = scratch() / "store"
    for end in ("-wal", "-shm"):
        (home / f"changed.sqlite{end}").unlink(missing_ok=True)
    with closing(open_store(written("store/changed.sqlite", data), home)) as store:
        for exchange in store.exchanges(EVERYTHING):
            assert exchange.id
        check_chain(store.ledger())
