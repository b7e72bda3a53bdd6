"""Token buckets in a store: what all servers together may still send to an upstream, by the database's time."""

from __future__ import annotations

from dataclasses import dataclass

from brise.traffic.schema import Database

BURST_SHARE = 0.1  # of a minute's requests may come at once, so that no minute has more than 1.1 times as many


@dataclass(frozen=True)
class Taken:
    """How many were granted, and how long it takes until there is one more."""

    granted: int
    wait_s: float


class RateBuckets:
    """The buckets in a database, by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, name: str, per_minute: float, most: int) -> Taken:
        """Takes up to `most` from a bucket, as many as there are."""
        now_s = self._database.now_s()
        with self._database.transaction() as transaction:
            transaction.run("INSERT INTO rate_buckets (name, level, at_s) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
                            (name, capacity(per_minute), now_s))
            transaction.run("UPDATE rate_buckets SET at_s = at_s WHERE name = ?", (name,))  # locks the row
            (level, at_s), = transaction.rows("SELECT level, at_s FROM rate_buckets WHERE name = ?", (name,))
            level, granted, wait_s = drawn(float(level), max(now_s - at_s, 0.0), per_minute, most)
            transaction.run("UPDATE rate_buckets SET level = ?, at_s = ? WHERE name = ?",
                            (level, max(now_s, at_s), name))
        return Taken(granted, wait_s)

    def close(self) -> None:
        self._database.close()


def capacity(per_minute: float) -> float:
    """How many a full bucket holds."""
    return max(per_minute * BURST_SHARE, 1.0)


def drawn(level: float, seconds: float, per_minute: float, most: int) -> tuple[float, int, float]:
    """What is left of a bucket after so many seconds and this draw; how many were granted; when there is one more."""
    level = min(level + seconds * per_minute / 60, capacity(per_minute))
    granted = min(int(level), most)
    level -= granted
    return level, granted, max(1.0 - level, 0.0) * 60 / per_minute
