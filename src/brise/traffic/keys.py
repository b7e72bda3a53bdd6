"""The key ring: a key for each subject of a store, wrapped by the master key. Without it even backups are useless.

A key belongs to one store, which has an id of its own (schema.py): the store's id and the subject's name give the name
that the key has here. Copies of a store have its id, and forget with it. Before layout 3 all SQLite stores of one
BRISE_HOME shared a subject's key. Such a key still opens what it sealed, and it cannot be destroyed for one store
without the others: a store that forgets its subject gives it up (`given_up`), and `destroy_everywhere` destroys it.

A file that was made of many subjects' data (a table of n-grams) has a key of its own. It is destroyed with the key of
any of these subjects, and when the oldest of the data expire, so that no copy of the file can be read after it either.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from brise.traffic.schema import Database, Transaction
from brise.traffic.seal import derived, new_key, seal, unseal

AT_ONCE = 500  # values in one statement
_OF_SUBJECT = "IN (SELECT key FROM derived_from WHERE owner = ?)"


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

    def ids_of(self, subjects: Iterable[str | None]) -> Mapping[str | None, str]:
        """The ids of the keys that subjects have in this store; none is made."""
        owners = {self._owner(self._store, subject): subject for subject in subjects}
        return {owners[owner]: key.id for owner, key in self._rows("owner", owners).items()}

    def of_derived(self, path: str, subjects: Iterable[str | None], oldest_s: float) -> Key:
        """A new key for a file made of data of these subjects, the oldest of them from then."""
        row = self._new_row(f"derived: {secrets.token_hex(16)}")
        with self._database.transaction() as transaction:
            transaction.run("INSERT INTO keys (id, owner, wrapped) VALUES (?, ?, ?)", row)
            transaction.run("INSERT INTO derived (key, store, path, oldest_s) VALUES (?, ?, ?, ?)",
                            (row[0], self._store, path, oldest_s))
            transaction.run_many("INSERT INTO derived_from (key, owner) VALUES (?, ?)",
                                 [(row[0], self._owner(self._store, subject)) for subject in set(subjects)])
        return self.by_id([row[0]])[row[0]]

    def derived_paths(self, subject: str, *, everywhere: bool = False) -> list[str]:
        """The files that this subject's data went into, as they were called when they were made."""
        return sorted({path for owner in self._owners(subject, everywhere=everywhere)
                       for path, in self._database.rows(f"SELECT path FROM derived WHERE key {_OF_SUBJECT}", (owner,))})

    def destroy_derived(self, *, id: str | None = None, before_s: float | None = None) -> list[str]:
        """Makes a file unreadable, or those of this store with data from before a time; what they were called."""
        condition, values = ("key = ?", (id,)) if id is not None else ("store = ? AND oldest_s < ?",
                                                                      (self._store, before_s))
        with self._database.transaction() as transaction:
            rows = transaction.rows(f"SELECT key, path FROM derived WHERE {condition}", values)
            for key, _ in rows:
                _delete_derived(transaction, "= ?", key)
        if rows:
            self._database.purge("keys")
        return sorted({path for _, path in rows})

    def destroy(self, subject: str) -> None:
        """Makes what this store sealed for this subject unreadable. New data get a new key."""
        shared = self._shared(subject)
        own = self._owner(self._store, subject)
        with self._database.transaction() as transaction:
            _delete_derived(transaction, _OF_SUBJECT, own)
            transaction.run("DELETE FROM keys WHERE owner = ?", (own,))
            if self._place is None:  # all in this database is of this store
                transaction.run("DELETE FROM keys WHERE owner = ?", (self._shared_owner(subject),))
            else:
                transaction.run_many("INSERT INTO given_up (store, id) VALUES (?, ?) ON CONFLICT DO NOTHING",
                                     [(self._store, id) for id in shared])
        self._database.purge("keys")

    def destroy_everywhere(self, subject: str) -> None:
        """Makes what any store of this database sealed for this subject unreadable."""
        owners = self._owners(subject, everywhere=True)
        with self._database.transaction() as transaction:
            for owner in owners:
                _delete_derived(transaction, _OF_SUBJECT, owner)
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

    def _owners(self, subject: str, *, everywhere: bool) -> list[str]:
        """The subject's names in this store, or in every one and in those of before."""
        if not everywhere:
            return [self._owner(self._store, subject)]
        stores = {self._store, *(id for id, _ in self._stores())}
        return [self._shared_owner(subject), *(self._owner(store, subject) for store in sorted(stores))]

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


def _delete_derived(transaction: Transaction, which: str, value: str) -> None:
    """Deletes the keys of files, with what is known of them. `which` is a condition on the key; the others go last,
    as it may ask them."""
    transaction.run(f"DELETE FROM keys WHERE id {which}", (value,))
    transaction.run(f"DELETE FROM derived WHERE key {which}", (value,))
    transaction.run(f"DELETE FROM derived_from WHERE key {which}", (value,))
