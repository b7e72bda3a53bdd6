"""Gates that are still open: tasks that `brise prove` looked at, and neither promoted nor found not good enough.

What such a gate is made of must not be trained on until it closes. Once it was, it is no evidence any more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from brise.errors import EvidenceError
from brise.traffic.records import LedgerEntry
from brise.traffic.store import Query, TrafficStore

LOOK, EXPORTED = "proof", "export"  # lines of the ledger
UNDECIDED = "undecided"


def open_since(entries: Iterable[LedgerEntry]) -> dict[str, float | None]:
    """The tasks with an open gate, and when its data begin (None: nobody knows).

    A gate is one model's of a task, by name and fingerprint; its newest look says whether it is open.
    """
    newest = dict[tuple[str, str, str], Mapping[str, Any]]()
    for entry in entries:
        if entry.kind == LOOK:
            body = entry.body
            newest[str(body.get("task")), str(body.get("student")), str(body.get("fingerprint"))] = body
    found = dict[str, float | None]()
    for (task, _, _), body in newest.items():
        if body.get("verdict") != UNDECIDED:
            continue
        began = body.get("since_s")
        since_s = float(began) if isinstance(began, int | float) else None
        known = found.get(task, since_s)
        found[task] = None if since_s is None or known is None else min(since_s, known)
    return found


def held(store: TrafficStore) -> dict[str, str]:
    """Conversations with an answer in the shadow since an open gate's data began, and its task: later ones, too, for it
    goes on.
    """
    return {exchange.conversation or exchange.id: task for task, since_s in open_since(store.ledger()).items()
            for exchange in store.exchanges(Query(task=task, since_s=since_s, has_answer="shadow", content=False))}


def record(store: TrafficStore, tasks: Mapping[str, Iterable[str]]) -> None:
    """That conversations of open gates were exported all the same: a line for each task, with digests of their names.
    """
    for task, names in tasks.items():
        store.append(EXPORTED, {"task": task, "conversations": sorted({_digest(name) for name in names}),
                                "by": "user", "reason": "brise log export --include-gate"})


def require_unexported(store: TrafficStore, task: str, exchanges: Collection[str]) -> None:
    """EvidenceError if the conversation of one of these was exported while a gate of the task was open."""
    taken = {name for entry in store.ledger() if entry.kind == EXPORTED and entry.body.get("task") == task
             for name in entry.body["conversations"]}
    if not taken:
        return
    times = [exchange.at_s for exchange in store.exchanges(Query(task=task, has_answer="shadow", content=False))
             if exchange.id in exchanges and _digest(exchange.conversation or exchange.id) in taken]
    if times:
        last = datetime.fromtimestamp(max(times) + 1, UTC).isoformat(timespec="seconds")
        raise EvidenceError(f"{len(times)} of {len(exchanges)} pairs are of conversations that were exported for "
                            "training while the gate was open (brise log export --include-gate)",
                            hint=f"--since {last} begins behind them")


def _digest(conversation: str) -> str:
    return hashlib.sha256(conversation.encode(errors="surrogatepass")).hexdigest()[:32]
