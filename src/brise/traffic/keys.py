"""The key ring: a key for each subject of a store, wrapped by the master key. Without it even backups are useless.

A key belongs to one store, which has an id of its own (schema.py): the store's id and the subject's name give the name
that the key has here. Copies of a store have its id, and forget with it. Before layout 3 all SQLite stores of one
BRISE_HOME shared a subject's key. Such a key still opens what it sealed, and it cannot be destroyed for one store
without the others: a store that forgets its subject gives it up (`given_up`), and `destroy_everywhere` destroys it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from brise.traffic.schema import Database
from brise.traffic.seal import derived, new_key, seal, unseal

AT_ONCE = 500  # values in one statement


@dataclass(frozen=True)
class Key:
    """A subject's key. `id` is stored beside what the key has sealed."""

    id: str
    secret: bytes = field(repr=False)


class KeyRing:
    """The keys of the store with the id `store` in a database, which may hold those of other stores.

    `place` is where the store is, if others share the database. Nothing is remembered between calls: another process
    may have destroyed a key.
    """

    def __init__(self, database: Database, master: bytes, store: str, place: str | None = None) -> None:
        self._database, self._master, self._store, self._place = database, master, store, place
        if place is not None and not database.rows("SELECT 1 FROM stores WHERE id = ? AND place = ?", (store, place)):
            with database.transaction() as transaction:
                transaction.run("INSERT INTO stores (id, place) VALUES (?, ?) ON CONFLICT DO NOTHING", (store, place))

    def of_subjects(self, subjects: Iterable[str | None]) -> Mapping[str | None, Key]:
        """The keys of subjects; a subject without one gets one. None stands for all data without a subject."""
        owners = {self._owner(self._store, subject): subject for subject in subjects}
        rows = self._rows("owner", owners)
        missing = [owner for owner in owners if owner not in rows]
        if missing:
            with self._database.transaction() as transaction:
                transaction.run_many("INSERT INTO keys (id, owner, wrapped) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                                     [self._new_row(owner) for owner in missing])
            rows |= self._rows("owner", missing)
        return {owners[owner]: key for owner, key in rows.items()}

    def by_id(self, ids: Iterable[str]) -> Mapping[str, Key]:
        """The keys that still exist, and that this store has not given up."""
        return self._rows("id", ids, " AND NOT EXISTS (SELECT 1 FROM given_up WHERE given_up.store = ? "
                                     "AND given_up.id = keys.id)", (self._store,))

    def destroy(self, subject: str) -> None:
        """Makes what this store sealed for this subject unreadable. New data get a new key."""
        shared = self._shared(subject)
        with self._database.transaction() as transaction:
            transaction.run("DELETE FROM keys WHERE owner = ?", (self._owner(self._store, subject),))
            if self._place is None:  # all in this database is of this store
                transaction.run("DELETE FROM keys WHERE owner = ?", (self._shared_owner(subject),))
            else:
                transaction.run_many("INSERT INTO given_up (store, id) VALUES (?, ?) ON CONFLICT DO NOTHING",
                                     [(self._store, id) for id in shared])
        self._database.purge("keys")

    def destroy_everywhere(self, subject: str) -> None:
        """Makes what any store of this database sealed for this subject unreadable."""
        stores = {self._store, *(id for id, _ in self._stores())}
        owners = [self._shared_owner(subject), *(self._owner(store, subject) for store in sorted(stores))]
        with self._database.transaction() as transaction:
            transaction.run_many("DELETE FROM keys WHERE owner = ?", [(owner,) for owner in owners])
        self._database.purge("keys")

    def is_shared(self, subject: str) -> bool:
        """Whether stores of an earlier version may still open something of this subject."""
        return self._place is not None and bool(self._shared(subject))

    def places_of(self, subject: str) -> list[str]:
        """Other stores that have a key of this subject."""
        places = {self._owner(id, subject): place for id, place in self._stores() if id != self._store}
        return sorted({places[owner] for owner in self._rows("owner", places)})

    def close(self) -> None:
        self._database.close()

    def _stores(self) -> list[tuple[str, str]]:
        return [(id, place) for id, place in self._database.rows("SELECT id, place FROM stores")]

    def _shared(self, subject: str) -> list[str]:
        return [id for id, in self._database.rows("SELECT id FROM keys WHERE owner = ?",
                                                  (self._shared_owner(subject),))]

    def _owner(self, store: str, subject: str | None) -> str:
        """The subject's name in a store, in a form that says nothing without the master key."""
        return derived(self._master, f"store {store}: " + (
            "no subject" if subject is None else f"subject:{subject}")).hex()

    def _shared_owner(self, subject: str) -> str:
        """Its name as it was before keys belonged to a store."""
        return derived(self._master, f"subject:{subject}").hex()

    def _new_row(self, owner: str) -> tuple[str, str, bytes]:
        id = secrets.token_hex(8)
        return id, owner, seal(self._master, f"keys:{id}", new_key())

    def _rows(self, column: str, values: Iterable[str], condition: str = "",
              more: tuple[str, ...] = ()) -> dict[str, Key]:
        wanted, keys = sorted(set(values)), dict[str, Key]()
        for start in range(0, len(wanted), AT_ONCE):
            part = wanted[start:start + AT_ONCE]
            for name, id, wrapped in self._database.rows(
                    f"SELECT {column}, id, wrapped FROM keys WHERE {column} IN ({', '.join('?' * len(part))})"
                    f"{condition}", (*part, *more)):
                keys[name] = Key(id, unseal(self._master, f"keys:{id}", bytes(wrapped)))
        return keys
