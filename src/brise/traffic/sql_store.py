"""The store over any database that speaks SQL: one behaviour for SQLite and PostgreSQL."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from brise.dialects.bodies import Body
from brise.text.protocols import texts_of
from brise.traffic import ledger, schema
from brise.traffic.keys import Key, KeyRing
from brise.traffic.records import (
    ConversationEnd,
    Exchange,
    KnownSum,
    Label,
    LedgerEntry,
    Pending,
    RecordedAnswer,
    Role,
)
from brise.traffic.schema import Database, Row, Transaction
from brise.traffic.seal import seal, unseal
from brise.traffic.store import EVERYTHING, Company, Query, UnknownExchangeError

PAGE = 64  # rows with bodies that are read at once: a body may hold images of megabytes
MOST_IDS = 500  # values in one statement
OWN_NAME = re.compile(r"[0-9a-f]{32}")  # a conversation that we named, or a trace's id: it names nobody
NAME_COLUMNS = ("model", "served_by", "subject", "conversation", "id")  # that a query's `name` is looked for in
OWN_ROLES = ("shadow", "draft")  # answers of small models
EXPIRED_AT_ONCE = 500  # exchanges deleted in one transaction, so that writers wait for milliseconds


class SqlStore:
    """Implements `TrafficStore`. `keys` may be in another database than the rows."""

    def __init__(self, database: Database, keys: KeyRing, clock: Callable[[], float] = time.time) -> None:
        self._database, self._keys, self._clock = database, keys, clock

    @property
    def keys(self) -> KeyRing:
        """The keys of its subjects, and of files made of their data."""
        return self._keys

    @property
    def place(self) -> str:
        """Where the store is, to be shown."""
        return self._database.place

    def add(self, exchanges: Iterable[Exchange] = (), answers: Iterable[RecordedAnswer] = (),
            labels: Iterable[Label] = (),
            pending: Iterable[Pending] = (), threads: Iterable[ConversationEnd] = ()) -> None:
        # A subject's key is found by the name in its rows, so that forgetting that name finds the key.
        exchanges = tuple(replace(exchange, subject=schema.plain(exchange.subject)) for exchange in exchanges)
        answers, labels, pending = tuple(answers), tuple(labels), tuple(pending)
        keys = self._keys.of_subjects({exchange.subject for exchange in exchanges})
        rows = [schema.exchange_row(exchange, keys[exchange.subject].id, _sealed(
            keys[exchange.subject], f"exchanges:{exchange.id}", request=exchange.request, response=exchange.response,
            error=exchange.error)) for exchange in exchanges]
        with self._database.transaction() as transaction:
            transaction.run_many(schema.INSERT_EXCHANGE, rows)
            ids = self._key_ids(transaction, [*(answer.exchange for answer in answers),
                                              *(label.exchange for label in labels),
                                              *(item.exchange for item in pending)])
            by_id = self._keys.by_id(ids.values())
            transaction.run_many(schema.insert("answers", schema.ANSWER_COLUMNS), [
                schema.answer_row(answer, ids[answer.exchange], _sealed(
                    by_id.get(ids[answer.exchange]), f"answers:{answer.id}", response=answer.response,
                    error=answer.error))
                for answer in answers])
            transaction.run_many(schema.insert("labels", schema.LABEL_COLUMNS), [
                schema.label_row(label, ids[label.exchange], _sealed(
                    by_id.get(ids[label.exchange]), f"labels:{label.id}", note=label.note or None))
                for label in labels])
            transaction.run_many(schema.insert("pending", "exchange, at_s, attempts"),
                                 [(item.exchange, item.at_s, item.attempts) for item in pending])
            transaction.run_many(schema.insert("threads", "digest, exchange, conversation, at_s"),
                                 [(item.digest, item.exchange, item.conversation, item.at_s) for item in threads])

    def exchanges(self, query: Query = EVERYTHING) -> Iterator[Exchange]:
        left = query.limit
        for row, content in self._opened_pages(query):
            if left is not None and left <= 0:
                return
            if query.text is not None and not holds(content, query.text):
                continue
            left = None if left is None else left - 1
            yield schema.exchange_of(row, content if query.content else {})

    def exchange(self, id: str, *, content: bool = True) -> Exchange | None:
        rows = self._database.rows(f"SELECT {_columns(schema.EXCHANGE_COLUMNS, content)} FROM exchanges WHERE id = ?",
                                   (id,))
        return next((schema.exchange_of(row, opened) for row, opened in self._opened("exchanges", rows)), None)

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of these ids that exchanges have."""
        return {id for part in _parts(sorted(set(ids))) for id, in self._database.rows(
            f"SELECT id FROM exchanges WHERE id IN ({_marks(part)})", part)}

    def answers(self, exchanges: Sequence[str], role: Role | None = None, *,
                content: bool = True) -> Iterator[RecordedAnswer]:
        condition, values = ("", ()) if role is None else (" AND role = ?", (role,))
        columns = _columns(schema.ANSWER_COLUMNS, content)
        for rows in self._of_exchanges("answers", columns, exchanges, condition, values):
            yield from (schema.answer_of(row, opened) for row, opened in self._opened("answers", rows))

    def labels(self, exchanges: Sequence[str], *, content: bool = True) -> Iterator[Label]:
        for rows in self._of_exchanges("labels", _columns(schema.LABEL_COLUMNS, content), exchanges, "", ()):
            yield from (schema.label_of(row, opened) for row, opened in self._opened("labels", rows))

    def company(self, exchanges: Sequence[str]) -> Mapping[str, Company]:
        roles, labels = dict[str, list[Role]](), Counter[str]()
        for rows in self._of_exchanges("answers", "exchange, role", exchanges, "", ()):
            for exchange, role in rows:
                roles.setdefault(exchange, []).append(role)
        for rows in self._of_exchanges("labels", "exchange", exchanges, "", ()):
            labels.update(exchange for exchange, in rows)
        return {exchange: Company(tuple(roles.get(exchange, ())), labels[exchange]) for exchange in exchanges
                if exchange in roles or labels[exchange]}

    def count(self, query: Query = EVERYTHING) -> int:
        if query.text is not None:
            return sum(1 for _ in self.exchanges(query))
        condition, values = _conditions(query)
        number = int(self._database.rows(f"SELECT count(*) FROM exchanges WHERE {condition}", values)[0][0])
        return number if query.limit is None else min(number, query.limit)

    def tasks(self) -> list[tuple[str, int, float]]:
        """Each task with its number of exchanges, and when the newest of them was."""
        return [(str(task), int(number), float(last_s)) for task, number, last_s in self._database.rows(
            "SELECT task, count(*), max(at_s) FROM exchanges GROUP BY task")]

    def answer_costs(self, query: Query = EVERYTHING) -> Mapping[str, Mapping[str, KnownSum]]:
        """By task and role, what the other answers to these exchanges cost."""
        condition, values = _conditions(query)
        found: dict[str, dict[str, KnownSum]] = {}
        for task, role, number, known, usd in self._database.rows(
                "SELECT asked.task, answers.role, count(*), count(answers.cost_usd), sum(answers.cost_usd) "
                f"FROM answers JOIN (SELECT id, task FROM exchanges WHERE {condition}) AS asked ON exchange = asked.id "
                "GROUP BY asked.task, answers.role ORDER BY asked.task, answers.role", values):
            if role in OWN_ROLES:  # brise 0.2 did not write down that they cost nothing
                usd, known = usd or 0.0, number
            found.setdefault(task, {})[role] = KnownSum(None if usd is None else float(usd), int(known), int(number))
        return found

    def pending(self, limit: int = 100) -> list[Pending]:
        return [Pending(*row) for row in self._database.rows(
            "SELECT exchange, at_s, attempts FROM pending ORDER BY at_s, exchange LIMIT ?", (limit,))]

    def settle(self, exchange: str) -> None:
        self._run("DELETE FROM pending WHERE exchange = ?", exchange)

    def postpone(self, exchange: str) -> None:
        self._run("UPDATE pending SET attempts = attempts + 1 WHERE exchange = ?", exchange)

    def threads(self, digests: Sequence[str]) -> Sequence[ConversationEnd]:
        rows = [row for part in _parts(digests) for row in self._database.rows(
            f"SELECT digest, exchange, conversation, at_s FROM threads WHERE digest IN ({_marks(part)})", part)]
        return sorted((ConversationEnd(*row) for row in rows), key=lambda item: (item.at_s, item.exchange),
                      reverse=True)

    def skip(self, counts: Iterable[tuple[float, str, int]]) -> None:
        with self._database.transaction() as transaction:
            transaction.run_many(
                "INSERT INTO skipped (hour, reason, number) VALUES (?, ?, ?) ON CONFLICT (hour, reason) "
                "DO UPDATE SET number = skipped.number + excluded.number",
                [(int(at_s // 3600), reason, number) for at_s, reason, number in counts])

    def skipped(self) -> Mapping[str, int]:
        return {reason: int(number) for reason, number in self._database.rows(
            "SELECT reason, sum(number) FROM skipped GROUP BY reason ORDER BY reason")}

    def append(self, kind: str, body: Body) -> LedgerEntry:
        with self._database.transaction(alone=True) as transaction:
            last = transaction.rows("SELECT number, digest FROM ledger ORDER BY number DESC LIMIT 1")
            entry = ledger.next_entry((last[0][0], last[0][1]) if last else None, self._clock(), kind, body)
            transaction.run("INSERT INTO ledger (number, at_s, kind, body, previous, digest) VALUES (?, ?, ?, ?, ?, ?)",
                            (entry.number, entry.at_s, kind, ledger.canonical(entry.body), entry.previous,
                             entry.digest))
        return entry

    def ledger(self, after: int = 0) -> Iterator[LedgerEntry]:
        while rows := self._database.rows("SELECT number, at_s, kind, body, previous, digest FROM ledger "
                                          "WHERE number > ? ORDER BY number LIMIT ?", (after, MOST_IDS)):
            for number, at_s, kind, body, previous, digest in rows:
                yield LedgerEntry(number, at_s, kind, json.loads(body), previous, digest)
            after = rows[-1][0]

    def last_line(self) -> int:
        """The number of the ledger's newest line; 0: there is none."""
        return int(self._database.rows("SELECT coalesce(max(number), 0) FROM ledger")[0][0])

    def subjects(self) -> list[str]:
        """Whose data the store holds."""
        return [subject for subject, in self._database.rows(
            "SELECT DISTINCT subject FROM exchanges WHERE subject IS NOT NULL ORDER BY subject")]

    def forget(self, subject: str, *, everywhere: bool = False) -> int:
        """The key goes first: if the process is killed then, the bodies are unreadable, and a second call finishes."""
        subject = schema.plain(subject)
        (self._keys.destroy_everywhere if everywhere else self._keys.destroy)(subject)
        of_subject = "IN (SELECT id FROM exchanges WHERE subject = ?)"
        with self._database.transaction() as transaction:
            for table in ("answers", "labels"):
                transaction.run(f"UPDATE {table} SET body = NULL WHERE exchange {of_subject}", (subject,))
            for table in ("pending", "threads"):
                transaction.run(f"DELETE FROM {table} WHERE exchange {of_subject}", (subject,))
            names = [name for name, in transaction.rows(
                "SELECT DISTINCT conversation FROM exchanges WHERE subject = ?", (subject,))]
            transaction.run_many("UPDATE exchanges SET conversation = ? WHERE subject = ? AND conversation = ?", [
                (secrets.token_hex(16), subject, name) for name in names if not OWN_NAME.fullmatch(name)])
            concerned = transaction.run("UPDATE exchanges SET body = NULL, subject = NULL, labels = '{}' "
                                        "WHERE subject = ?", (subject,))
        self._database.purge("exchanges")
        return concerned

    def holders(self, subject: str) -> list[str]:
        """Other stores on this machine that hold something of this subject, as far as they are known."""
        return self._keys.places_of(schema.plain(subject))

    def shares_key(self, subject: str) -> bool:
        """Whether a key from before layout 3, which other stores may need, still opens something of this subject."""
        return self._keys.is_shared(schema.plain(subject))

    def expire(self, before_s: float) -> int:
        deleted = 0
        self._keys.destroy_derived(before_s=before_s)
        while True:
            with self._database.transaction() as transaction:
                ids = [row[0] for row in transaction.rows(
                    "SELECT id FROM exchanges WHERE at_s < ? ORDER BY at_s LIMIT ?", (before_s, EXPIRED_AT_ONCE))]
                for table in ("answers", "labels", "pending", "threads") if ids else ():
                    transaction.run(f"DELETE FROM {table} WHERE exchange IN ({_marks(ids)})", ids)
                if ids:
                    transaction.run(f"DELETE FROM exchanges WHERE id IN ({_marks(ids)})", ids)
            deleted += len(ids)
            if len(ids) < EXPIRED_AT_ONCE:
                break
        if deleted:
            self._database.purge("exchanges")
        return deleted

    def close(self) -> None:
        self._keys.close()
        self._database.close()

    def _run(self, sql: str, *values: object) -> None:
        with self._database.transaction() as transaction:
            transaction.run(sql, values)

    def _key_ids(self, transaction: Transaction, exchanges: Sequence[str]) -> Mapping[str, str]:
        """The ids of the keys of exchanges, all of which must be there."""
        found: dict[str, str] = {}
        for part in _parts(sorted(set(exchanges))):
            found |= {id: key for id, key in transaction.rows(
                f"SELECT id, key FROM exchanges WHERE id IN ({_marks(part)})", part)}
        missing = next((id for id in exchanges if id not in found), None)
        if missing is not None:
            raise UnknownExchangeError(f"there is no exchange {missing!r} in {self.place}")
        return found

    def _opened_pages(self, query: Query) -> Iterator[tuple[Row, Mapping[str, Any]]]:
        """Rows page by page, each from where the last one ended: no transaction stays open while they are used."""
        condition, values = _conditions(query)
        is_opened = query.content or query.text is not None
        columns, size = _columns(schema.EXCHANGE_COLUMNS, is_opened), PAGE if is_opened else MOST_IDS
        if query.limit is not None and query.text is None:
            size = max(min(size, query.limit), 1)
        order, sign = ("DESC", "<") if query.newest_first else ("ASC", ">")
        from_last, last = "", tuple[object, ...]()
        if query.after is not None:
            from_last, last = f" AND (at_s, id) {sign} (?, ?)", query.after
        while True:
            rows = self._database.rows(
                f"SELECT {columns} FROM exchanges WHERE {condition}{from_last} "
                f"ORDER BY at_s {order}, id {order} LIMIT ?", (*values, *last, size))
            yield from self._opened("exchanges", rows)
            if len(rows) < size:
                return
            from_last, last = f" AND (at_s, id) {sign} (?, ?)", (rows[-1][1], rows[-1][0])

    def _of_exchanges(self, table: str, columns: str, exchanges: Sequence[str], condition: str,
                      values: Row) -> Iterator[list[Row]]:
        for part in _parts(exchanges):
            yield self._database.rows(f"SELECT {columns} FROM {table} WHERE exchange IN ({_marks(part)}){condition} "
                                      "ORDER BY at_s, id", (*part, *values))

    def _opened(self, table: str, rows: Sequence[Row]) -> Iterator[tuple[Row, Mapping[str, Any]]]:
        """Rows with the content of their bodies; empty if there is none, or if its key is destroyed."""
        keys = self._keys.by_id(row[-2] for row in rows if row[-1] is not None)
        for row in rows:
            key = keys.get(row[-2])
            if key is None or row[-1] is None:
                yield row, {}
            else:
                yield row, schema.unpacked(unseal(key.secret, f"{table}:{row[0]}", bytes(row[-1])))


def _sealed(key: Key | None, binding: str, **content: object) -> bytes | None:
    """None if there is nothing to keep, or the key was destroyed meanwhile."""
    kept = {name: value for name, value in content.items() if value is not None}
    return seal(key.secret, binding, schema.packed(kept)) if key is not None and kept else None


def _columns(columns: str, content: bool) -> str:
    """Without content the sealed body is not even read."""
    return columns if content else columns.removesuffix("body") + "NULL"


def _conditions(query: Query) -> tuple[str, Row]:
    """The part of a query that the database answers: all but `text`, `after`, `limit` and the order."""
    parts, values = ["1 = 1"], list[object]()
    for column in ("task", "model", "conversation", "subject"):
        value = {"task": query.task, "model": query.model, "conversation": query.conversation,
                 "subject": schema.plain(query.subject)}[column]
        if value is not None:
            parts.append(f"{column} = ?")
            values.append(value)
    if query.modes is not None:
        parts.append(f"mode IN ({_marks(query.modes)})" if query.modes else "1 = 0")
        values += query.modes
    if query.label is not None:
        parts.append("replace(labels, ?, '') <> labels")
        values.append(schema.label_pair(*query.label))
    for sign, limit in ((">=", query.since_s), ("<", query.until_s)):
        if limit is not None:
            parts.append(f"at_s {sign} ?")
            values.append(limit)
    if query.statuses is not None:
        parts.append("status >= ? AND status < ?")
        values += query.statuses
    if query.name is not None:
        found = "%" + re.sub(r"([\\%_])", r"\\\1", str(schema.plain(query.name)).lower()) + "%"
        parts.append("(" + " OR ".join(f"lower({column}) LIKE ? ESCAPE '\\'" for column in NAME_COLUMNS) + ")")
        values += [found] * len(NAME_COLUMNS)
    if query.has_answer is not None:
        parts.append("EXISTS (SELECT 1 FROM answers WHERE answers.exchange = exchanges.id AND answers.role = ?)")
        values.append(query.has_answer)
    return " AND ".join(parts), values


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" for _ in values)


def _parts(values: Sequence[str]) -> Iterator[Sequence[str]]:
    return (values[start:start + MOST_IDS] for start in range(0, len(values), MOST_IDS))


def holds(body: object, text: str) -> bool:
    """Whether a string in the body, or a field's name, holds the text, in any case."""
    wanted = text.casefold()
    return any(wanted in found.casefold() for found in texts_of(body))
