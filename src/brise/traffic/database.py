"""What a store needs of a database. Statements have `?` for values and are of the SQL that both databases speak."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

Row = Sequence[Any]


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
    def purge(self, table: str) -> None:
        """Takes deleted rows of the table out of the database's files, as far as no reader needs them."""
    def close(self) -> None: ...
