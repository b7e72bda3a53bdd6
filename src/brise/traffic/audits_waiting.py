"""Audits that are still to be made, in the store: when a server ends or dies, another one makes those that it left."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from brise.traffic.schema import Database

MOST_ADOPTED = 100  # at one time


@dataclass(frozen=True)
class WaitingAudit:
    """A kept answer that was drawn for an audit: the exchange, with which probability, and under which switch."""

    exchange: str
    at_s: float
    probability: float
    switch: int
    server: str  # the id of the one that is to make it


class AuditsWaiting:
    """The rows in a database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, audit: WaitingAudit) -> None:
        """Writes it down before it is made."""
        with self._database.transaction() as transaction:
            transaction.run("INSERT INTO audits_waiting (exchange, at_s, probability, switch, server) "
                            "VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                            (audit.exchange, audit.at_s, audit.probability, audit.switch, audit.server))

    def remove(self, exchange: str) -> None:
        """After it was made, or given up."""
        with self._database.transaction() as transaction:
            transaction.run("DELETE FROM audits_waiting WHERE exchange = ?", (exchange,))

    def adopt(self, server: str, living: Collection[str]) -> list[WaitingAudit]:
        """The oldest ones of servers that do not live, which are this server's from now on."""
        rows = self._database.rows("SELECT exchange, at_s, probability, switch, server FROM audits_waiting "
                                   "ORDER BY at_s, exchange LIMIT ?", (10 * MOST_ADOPTED,))
        left = [WaitingAudit(*row) for row in rows if row[4] not in living and row[4] != server][:MOST_ADOPTED]
        with self._database.transaction() as transaction:
            return [audit for audit in left if transaction.run(
                "UPDATE audits_waiting SET server = ? WHERE exchange = ? AND server = ?",
                (server, audit.exchange, audit.server)) == 1]

    def close(self) -> None:
        self._database.close()
