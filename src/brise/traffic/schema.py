"""The tables of a store, how records become their rows, and what a store needs of the database under it.

    exchanges   one request and its answer; `body` is sealed under the key with the id `key`
    answers     other answers to it          labels    what is known of the quality of either
    pending     requests that wait           threads   digests by which the next request finds its conversation
    skipped     how many requests were not written, by hour and reason
    ledger      the hash chain               keys      a subject's wrapped key (of SQLite in a file of their own)
    meta        the store's id, drawn once   given_up  keys that stores shared before layout 3, and a store gave up
                                             stores    which stores have keys here, and where they are
    derived     files sealed under keys of their own    derived_from    whose data went into each of them (keys.py)
    servers     who shares the store, by heartbeat    shared_adapters    what each of them loads (servers.py)
    rate_buckets    what is left of an upstream's rate limit (rate_buckets.py)
    audits_waiting  kept answers whose audit is still to be made
    virtual_keys, key_spans    the keys of clients (virtual_keys.py), and what each has used (key_budgets.py)

A body is zlib(JSON): of an exchange {"request", "response", "error"}, of an answer {"response", "error"}, of a label
{"note"}. An error's text may quote what was asked, so the column has only what kind of error it was.
"""

from __future__ import annotations

import json
import secrets
import zlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, Protocol, cast

from brise.dialects.bodies import Usage
from brise.text.json_text import mended_text
from brise.traffic.records import Exchange, Label, RecordedAnswer

Row = Sequence[Any]
VERSION = 6
# From the version before to this one. A store that is new has it all from TABLES.
MIGRATIONS: Mapping[int, Sequence[str]] = {
    2: ("ALTER TABLE answers ADD COLUMN IF NOT EXISTS fingerprint TEXT",),
    3: tuple(f"ALTER TABLE {table} ADD COLUMN IF NOT EXISTS token_details TEXT" for table in ("exchanges", "answers")),
    4: ("ALTER TABLE exchanges ADD COLUMN IF NOT EXISTS upstream TEXT",)}
# Written for SQLite but for ADD COLUMN IF NOT EXISTS, which `sqlite_store` does by itself; where PostgreSQL has other
# words for a type, `postgres_store` puts them in.
TABLES: Sequence[str] = (
    """CREATE TABLE IF NOT EXISTS exchanges (
        id TEXT PRIMARY KEY, at_s DOUBLE PRECISION NOT NULL, task TEXT NOT NULL, kind TEXT NOT NULL,
        path TEXT NOT NULL, model TEXT NOT NULL, mode TEXT NOT NULL, status BIGINT NOT NULL,
        conversation TEXT NOT NULL, parent TEXT, subject TEXT, labels TEXT NOT NULL, served_by TEXT,
        fingerprint TEXT, context_digest TEXT, error TEXT, streamed BIGINT NOT NULL, prompt_tokens BIGINT,
        completion_tokens BIGINT, cached_tokens BIGINT, cost_usd DOUBLE PRECISION, first_token_s DOUBLE PRECISION,
        total_s DOUBLE PRECISION NOT NULL, signals TEXT NOT NULL, audit_probability DOUBLE PRECISION,
        key TEXT NOT NULL, body BLOB, token_details TEXT, upstream TEXT)""",
    "CREATE INDEX IF NOT EXISTS exchanges_at ON exchanges (at_s, id)",
    "CREATE INDEX IF NOT EXISTS exchanges_task ON exchanges (task, at_s, id)",
    "CREATE INDEX IF NOT EXISTS exchanges_conversation ON exchanges (conversation, at_s)",
    "CREATE INDEX IF NOT EXISTS exchanges_subject ON exchanges (subject)",
    """CREATE TABLE IF NOT EXISTS answers (
        id TEXT PRIMARY KEY, exchange TEXT NOT NULL, at_s DOUBLE PRECISION NOT NULL, role TEXT NOT NULL,
        served_by TEXT, status BIGINT NOT NULL, error TEXT, prompt_tokens BIGINT, completion_tokens BIGINT,
        cached_tokens BIGINT, cost_usd DOUBLE PRECISION, first_token_s DOUBLE PRECISION,
        total_s DOUBLE PRECISION NOT NULL, signals TEXT NOT NULL, probability DOUBLE PRECISION, fingerprint TEXT,
        key TEXT NOT NULL, body BLOB, token_details TEXT)""",
    "CREATE INDEX IF NOT EXISTS answers_exchange ON answers (exchange, role)",
    """CREATE TABLE IF NOT EXISTS labels (
        id TEXT PRIMARY KEY, exchange TEXT NOT NULL, at_s DOUBLE PRECISION NOT NULL, rung TEXT NOT NULL,
        who TEXT NOT NULL, score DOUBLE PRECISION, answer TEXT, answer_score DOUBLE PRECISION,
        key TEXT NOT NULL, body BLOB)""",
    "CREATE INDEX IF NOT EXISTS labels_exchange ON labels (exchange)",
    """CREATE TABLE IF NOT EXISTS pending (
        exchange TEXT PRIMARY KEY, at_s DOUBLE PRECISION NOT NULL, attempts BIGINT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS threads (
        digest TEXT NOT NULL, exchange TEXT NOT NULL, conversation TEXT NOT NULL, at_s DOUBLE PRECISION NOT NULL,
        PRIMARY KEY (digest, exchange))""",
    "CREATE INDEX IF NOT EXISTS threads_exchange ON threads (exchange)",
    "CREATE INDEX IF NOT EXISTS threads_at ON threads (at_s)",
    """CREATE TABLE IF NOT EXISTS skipped (
        hour BIGINT NOT NULL, reason TEXT NOT NULL, number BIGINT NOT NULL, PRIMARY KEY (hour, reason))""",
    """CREATE TABLE IF NOT EXISTS ledger (
        number BIGINT PRIMARY KEY, at_s DOUBLE PRECISION NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
        previous TEXT NOT NULL, digest TEXT NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS virtual_keys (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, digest TEXT NOT NULL, old_digest TEXT,
        old_until_s DOUBLE PRECISION, created_s DOUBLE PRECISION NOT NULL, expires_s DOUBLE PRECISION,
        state TEXT NOT NULL, limits TEXT NOT NULL, last_used_s DOUBLE PRECISION)""",
    # Money is in billionths of a USD: sums of whole numbers do not depend on their order.
    """CREATE TABLE IF NOT EXISTS key_spans (
        key TEXT NOT NULL, span TEXT NOT NULL, start BIGINT NOT NULL, reserved_requests BIGINT NOT NULL,
        reserved_tokens BIGINT NOT NULL, reserved_nano_usd BIGINT NOT NULL, requests BIGINT NOT NULL,
        tokens BIGINT NOT NULL, nano_usd BIGINT NOT NULL, estimated_nano_usd BIGINT NOT NULL,
        unknown_requests BIGINT NOT NULL, PRIMARY KEY (key, span, start))""",
    """CREATE TABLE IF NOT EXISTS servers (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, started_s DOUBLE PRECISION NOT NULL,
        seen_s DOUBLE PRECISION NOT NULL, state TEXT NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS shared_adapters (
        name TEXT PRIMARY KEY, model TEXT NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, any_base BIGINT NOT NULL,
        removed BIGINT NOT NULL, at_s DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS rate_buckets (
        name TEXT PRIMARY KEY, level DOUBLE PRECISION NOT NULL, at_s DOUBLE PRECISION NOT NULL)""",
    """CREATE TABLE IF NOT EXISTS audits_waiting (
        exchange TEXT PRIMARY KEY, at_s DOUBLE PRECISION NOT NULL, probability DOUBLE PRECISION NOT NULL,
        switch BIGINT NOT NULL, server TEXT NOT NULL)""")
KEY_TABLES: Sequence[str] = (
    "CREATE TABLE IF NOT EXISTS keys (id TEXT PRIMARY KEY, owner TEXT NOT NULL UNIQUE, wrapped BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS given_up (store TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (store, id))",
    "CREATE TABLE IF NOT EXISTS stores (id TEXT NOT NULL, place TEXT NOT NULL, PRIMARY KEY (id, place))",
    """CREATE TABLE IF NOT EXISTS derived (
        key TEXT PRIMARY KEY, store TEXT NOT NULL, path TEXT NOT NULL, oldest_s DOUBLE PRECISION NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS derived_from (key TEXT NOT NULL, owner TEXT NOT NULL, PRIMARY KEY (key, owner))",
    "CREATE INDEX IF NOT EXISTS derived_from_owner ON derived_from (owner)")


class Transaction(Protocol):
    """Statements that happen together or not at all."""

    def run(self, sql: str, values: Row = ()) -> int:
        """One statement; the number of rows that it wrote."""
    def run_many(self, sql: str, rows: Iterable[Row]) -> None:
        """One statement for each of the rows."""
    def rows(self, sql: str, values: Row = ()) -> list[Row]:
        """What a query gives."""


class Database(Protocol):
    """May be called from any thread. What fails is a StoreError that names the place."""

    place: str  # to be shown: without passwords

    def rows(self, sql: str, values: Row = ()) -> list[Row]:
        """What a query gives; it waits for no writer."""
    def transaction(self, *, alone: bool = False) -> AbstractContextManager[Transaction]:
        """Durable when it is left without an error. `alone`: no other such transaction of any process meanwhile."""
    def now_s(self) -> float:
        """The time of the database's machine, in seconds since the epoch: one clock for all that share it."""
    def lead(self) -> bool:
        """Whether this process may do what one of those that share the database is to do; asked again and again. The
        first one may, until it closes the database or dies. A file is nobody else's: who opens it leads."""
    def purge(self, table: str) -> None:
        """Takes deleted rows of the table out of the database's files, as far as no reader needs them."""
    def close(self) -> None: ...


@dataclass(frozen=True)
class DatabaseSchema:
    """The tables of a database, and for each version the steps from the one before it."""

    tables: Sequence[str]
    migrations: Mapping[int, Sequence[str]] = field(default_factory=dict)

    def steps_from(self, version: int) -> list[str]:
        """The statements that bring a database of this version (0: an empty one) to ours."""
        later = range(version + 1, VERSION + 1) if version else ()
        return [*self.tables, *(statement for step in later for statement in self.migrations.get(step, ()))]


TRAFFIC, KEYS = DatabaseSchema(TABLES, MIGRATIONS), DatabaseSchema(KEY_TABLES)
ALL = DatabaseSchema((*TABLES, *KEY_TABLES), MIGRATIONS)  # in one database

EXCHANGE_COLUMNS = ("id, at_s, task, kind, path, model, mode, status, conversation, parent, subject, labels, "
                    "served_by, fingerprint, context_digest, error, streamed, prompt_tokens, completion_tokens, "
                    "cached_tokens, token_details, cost_usd, first_token_s, total_s, signals, audit_probability, "
                    "upstream, key, body")
ANSWER_COLUMNS = ("id, exchange, at_s, role, served_by, status, error, prompt_tokens, completion_tokens, "
                  "cached_tokens, token_details, cost_usd, first_token_s, total_s, signals, probability, fingerprint, "
                  "key, body")
LABEL_COLUMNS = "id, exchange, at_s, rung, who, score, answer, answer_score, key, body"
TOKEN_COLUMNS = ("prompt_tokens", "completion_tokens", "cached_tokens")
MOST_COUNTED = 2**53  # a server may claim any number of tokens; a column holds 63 bits, JSON's readers 53


def store_id(database: Database) -> str:
    """The id of the store in this database, which its copies share; whoever comes first draws it."""
    query = "SELECT value FROM meta WHERE name = 'store'"
    if not (rows := database.rows(query)):
        with database.transaction(alone=True) as transaction:
            transaction.run("INSERT INTO meta (name, value) VALUES ('store', ?) ON CONFLICT DO NOTHING",
                            (secrets.token_hex(16),))
            rows = transaction.rows(query)
    return str(rows[0][0])


def insert(table: str, columns: str) -> str:
    """The statement that adds a row unless its key is there already."""
    marks = ", ".join("?" for _ in columns.split(","))
    return f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"


# A request that was sent again is one exchange, and an answer counts more than a failure before it.
INSERT_EXCHANGE = (
    insert("exchanges", EXCHANGE_COLUMNS).removesuffix("DO NOTHING") + "(id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in EXCHANGE_COLUMNS.split(", ")[1:])
    + " WHERE (exchanges.status >= 400 OR exchanges.error IS NOT NULL) AND excluded.status < 400 "
      "AND excluded.error IS NULL")


def exchange_row(exchange: Exchange, key: str, body: bytes | None) -> Row:
    """The row of an exchange, in the order of EXCHANGE_COLUMNS."""
    return (exchange.id, exchange.at_s, plain(exchange.task), exchange.kind, plain(exchange.path),
            plain(exchange.model), exchange.mode, exchange.status, plain(exchange.conversation), exchange.parent,
            plain(exchange.subject), _json(exchange.labels), plain(exchange.served_by), plain(exchange.fingerprint),
            exchange.context_digest, brief(exchange.error, exchange.status), int(exchange.streamed),
            *_usage_row(exchange.usage), exchange.cost_usd, exchange.first_token_s, exchange.total_s,
            _json(exchange.signals), exchange.audit_probability, exchange.upstream, key, body)


def exchange_of(row: Row, content: Mapping[str, Any]) -> Exchange:
    """The record in a row, with the content of its opened body."""
    named = dict(zip(EXCHANGE_COLUMNS.split(", "), row, strict=True))
    named |= {"labels": json.loads(named["labels"]), "signals": json.loads(named["signals"]),
              "streamed": bool(named["streamed"]), "request": content.get("request"),
              "response": content.get("response"), "error": content.get("error", named["error"])}
    return Exchange(**_with_usage(named))


def answer_row(answer: RecordedAnswer, key: str, body: bytes | None) -> Row:
    """The row of an answer, in the order of ANSWER_COLUMNS."""
    return (answer.id, answer.exchange, answer.at_s, answer.role, plain(answer.served_by), answer.status,
            brief(answer.error, answer.status), *_usage_row(answer.usage), answer.cost_usd, answer.first_token_s,
            answer.total_s, _json(answer.signals), answer.probability, plain(answer.fingerprint), key, body)


def answer_of(row: Row, content: Mapping[str, Any]) -> RecordedAnswer:
    """The record in a row, with the content of its opened body."""
    named = dict(zip(ANSWER_COLUMNS.split(", "), row, strict=True))
    named |= {"signals": json.loads(named["signals"]), "response": content.get("response"),
              "error": content.get("error", named["error"])}
    return RecordedAnswer(**_with_usage(named))


def label_row(label: Label, key: str, body: bytes | None) -> Row:
    """The row of a label, in the order of LABEL_COLUMNS."""
    return (label.id, label.exchange, label.at_s, label.rung, plain(label.who), label.score, label.answer,
            label.answer_score, key, body)


def label_of(row: Row, content: Mapping[str, Any]) -> Label:
    """The record in a row, with the content of its opened body."""
    named = dict(zip(LABEL_COLUMNS.split(", "), row, strict=True))
    del named["key"], named["body"]
    return Label(**named, note=content.get("note", ""))


def brief(error: str | None, status: int) -> str | None:
    """What of an error can be read without opening the body."""
    if error is None:
        return None
    return f"status {status}" if status >= 400 else "incomplete"


def packed(content: Mapping[str, object]) -> bytes:
    """A body as bytes. Level 1: JSON shrinks to a fifth at 100 MB/s; level 6 takes three times as long for a bit less.

    ASCII only: a client may send half a surrogate pair, which is no UTF-8.
    """
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode("ascii"), 1)


def unpacked(body: bytes) -> Mapping[str, Any]:
    """What `packed` was given."""
    return cast(Mapping[str, Any], json.loads(zlib.decompress(body)))


def label_pair(name: str, value: str) -> str:
    """How a label stands in the column `labels`: no other label's name or value can hold this text, as quotes
    in them are escaped."""
    return _json({name: value})[1:-1]


def plain(text: str | None) -> Any:
    """Text that every database accepts: without NUL and half surrogate pairs."""
    return text if text is None or text.isascii() and "\0" not in text else mended_text(text.replace("\0", "\ufffd"))


def accepted(values: Row) -> Row:
    """The values of a statement as every database accepts them: texts by `plain`."""
    return tuple(plain(value) if isinstance(value, str) else value for value in values)


def _json(value: Mapping[str, object]) -> str:
    return json.dumps(dict(value), sort_keys=True, separators=(",", ":"))


def _usage_row(usage: Usage | None) -> Row:
    """The columns of tokens; `token_details` has the counts for which there is no column, if they say something."""
    if usage is None:
        return None, None, None, None
    counts = {each.name: _kept(getattr(usage, each.name)) for each in fields(usage)}
    known = [counts.pop(name) for name in TOKEN_COLUMNS]
    said = {each.name: counts[each.name] for each in fields(usage)
            if each.name in counts and counts[each.name] != each.default}
    return *known, _json(said) if said else None


def _kept(number: int | None) -> int | None:
    return None if number is None else min(max(number, 0), MOST_COUNTED)


def _with_usage(named: dict[str, Any]) -> dict[str, Any]:
    """Columns as the fields of a record: those of tokens are one, those of the sealed body are none."""
    counts = {name: named.pop(name) for name in TOKEN_COLUMNS}
    details = named.pop("token_details")
    del named["key"], named["body"]
    is_known = counts["prompt_tokens"] is not None or counts["completion_tokens"] is not None
    return named | {"usage": Usage(**counts, **json.loads(details or "{}")) if is_known else None}
