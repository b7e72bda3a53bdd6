"""Which candidate a test is: all that are tried on the same data share one alpha, whatever it is that differs.

A test is a model, a definition of what is shown of it, and where its data begin. Looked at again with more data it is
the same one, which is what it was made for. Anything else, chosen afterwards, might be chosen because it is lucky.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from brise.prove.open_tests import LOOK
from brise.prove.pairs import Pair
from brise.prove.prove import Terms
from brise.prove.scoring import PairScores
from brise.traffic.ledger import canonical
from brise.traffic.records import LedgerEntry


@dataclass(frozen=True)
class Shown:
    """One look: `definition` is the digest of what is shown, `since_s` and `until_s` are when the data were asked."""

    task: str
    student: str
    fingerprint: str | None
    definition: str
    since_s: float | None
    until_s: float | None


def definition(terms: Terms, scored: PairScores, pairs: Sequence[Pair], selected: Mapping[str, object]) -> str:
    """The digest of the claim: rung and score, margins of quality, guards and slices, and how pairs were `selected`.

    Not of alpha and power: at which level the same evidence is read changes nothing in it.
    """
    judges = sorted({known.who for pair in pairs for known in pair.judgements if known.rung == "judge"})
    claim = {"rung": scored.rung, "delta": terms.delta, "futility": terms.futility, "margins": asdict(terms.margins),
             "slice_delta": terms.slice_delta, "dimensions": terms.dimensions, "selected": dict(selected),
             "scored": scored.definition if scored.rung == "outcome" else None,
             "judge": [judges, scored.bound] if scored.rung == "judge" else None}
    return hashlib.sha256(canonical(claim).encode()).hexdigest()


def number(entries: Iterable[LedgerEntry], this: Shown) -> int:
    """The other tests that were looked at on data from its first request on, and one.

    A test that was looked at before keeps its number; other weights under the same name are another test. Only
    if another one began behind its data, counting from one again, and it now grows into these, it counts anew.
    """
    name = this.student, this.fingerprint, this.definition, this.since_s
    own, own_until = None, None
    others, missed = set[tuple[object, ...]](), list[float]()
    for entry in entries:
        body = entry.body
        if entry.kind != LOOK or body.get("task") != this.task:
            continue
        began, until = _time(body.get("since_s")), _time(body.get("until_s"))
        test = str(body.get("student")), body.get("fingerprint"), body.get("definition"), began
        if test == name:
            own, own_until = max(int(body["candidate"]), 1), until
            missed = [time for time in missed if until is not None and time > until]
        elif this.since_s is None or until is None or until >= this.since_s:  # else its data are older than these
            others.add(test)
            if own_until is not None and began is not None and began > own_until:
                missed.append(began)
    grown = any(this.until_s is None or time <= this.until_s for time in missed)
    if own is None:
        return len(others) + 1
    return max(own, len(others) + 1) if grown else own


def _time(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None
