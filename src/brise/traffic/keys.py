"""The key ring: a key for each subject, wrapped by the master key. Without it, even backups of its data are useless."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from brise.traffic.schema import Database
from brise.traffic.seal import derived, new_key, seal, unseal


@dataclass(frozen=True)
class Key:
    """A subject's key. `id` is stored beside what the key has sealed."""

    id: str
    secret: bytes = field(repr=False)


class KeyRing:
    """The keys in a database. Nothing is remembered between calls: another process may have destroyed a key."""

    def __init__(self, database: Database, master: bytes) -> None:
        self._database, self._master = database, master

    def of_subjects(self, subjects: Iterable[str | None]) -> Mapping[str | None, Key]:
        """The keys of subjects; a subject without one gets one. None stands for all data without a subject."""
        owners = {self._owner(subject): subject for subject in subjects}
        rows = self._rows("owner", owners)
        missing = [owner for owner in owners if owner not in rows]
        if missing:
            with self._database.transaction() as transaction:
                transaction.run_many("INSERT INTO keys (id, owner, wrapped) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                                     [self._new_row(owner) for owner in missing])
            rows |= self._rows("owner", missing)
        return {owners[owner]: key for owner, key in rows.items()}

    def by_id(self, ids: Iterable[str]) -> Mapping[str, Key]:
        """The keys that still exist."""
        return self._rows("id", ids)

    def destroy(self, subject: str) -> None:
        """Makes what was sealed for this subject unreadable. New data get a new key."""
        with self._database.transaction() as transaction:
            transaction.run("DELETE FROM keys WHERE owner = ?", (self._owner(subject),))
        self._database.purge("keys")

    def close(self) -> None:
        self._database.close()

    def _owner(self, subject: str | None) -> str:
        """The subject's name in a form that says nothing without the master key."""
        return derived(self._master, "no subject" if subject is None else f"subject:{subject}").hex()

    def _new_row(self, owner: str) -> tuple[str, str, bytes]:
        id = secrets.token_hex(8)
        return id, owner, seal(self._master, f"keys:{id}", new_key())

    def _rows(self, column: str, values: Iterable[str]) -> dict[str, Key]:
        wanted, keys = sorted(set(values)), dict[str, Key]()
        for start in range(0, len(wanted), 500):
            part = wanted[start:start + 500]
            for name, id, wrapped in self._database.rows(
                    f"SELECT {column}, id, wrapped FROM keys WHERE {column} IN ({', '.join('?' * len(part))})", part):
                keys[name] = Key(id, unseal(self._master, f"keys:{id}", bytes(wrapped)))
        return keys
