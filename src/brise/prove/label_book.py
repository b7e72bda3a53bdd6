"""Books keep verdicts on pairs of answers, people's and a judge's: as labels in the store, or in a file beside a log.

A file has a line each: {"id": of the pair, "small_score", "large_score", "rung": "human" or "judge", "who", "at",
"second_look"}.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from brise.errors import EvidenceError, RequestError
from brise.files.atomic import output_errors, private
from brise.prove.pairs import Judgement, Pair, read_evidence
from brise.prove.pairs_store import SECOND_LOOK
from brise.text.fields import RequestFields
from brise.text.json_text import parse_json
from brise.traffic.records import Label, new_id
from brise.traffic.store import TrafficStore

VerdictSource = Literal["human", "judge"]
VERDICT_SOURCES: Sequence[VerdictSource] = ("human", "judge")
BATCH = 500  # exchanges whose labels are read at one time


@dataclass(frozen=True)
class Verdict:
    """Scores of the two answers of a pair: 1 for a good one.

    A second verdict on the same pair measures how consistent people are.
    """

    pair: str
    small: float
    large: float
    who: str
    at_s: float
    is_second: bool = False
    label_source: VerdictSource = "human"


class Book(Protocol):
    """Keeps verdicts; what was written is there after a crash."""

    def verdicts(self, label_source: VerdictSource = "human") -> Sequence[Verdict]:
        """The verdicts so far, in the order in which they were given."""
    def write(self, pair: Pair, verdict: Verdict) -> None: ...


class StoreBook:
    """Labels in the store of captured traffic."""

    def __init__(self, store: TrafficStore, pairs: Sequence[Pair]) -> None:
        self._store, self._pairs = store, pairs

    def verdicts(self, label_source: VerdictSource = "human") -> Sequence[Verdict]:
        """The verdicts that score both answers of one of these pairs."""
        answers = {pair.id: pair.small.id for pair in self._pairs}
        ids = list(answers)
        labels = [label for start in range(0, len(ids), BATCH)
                  for label in self._store.labels(ids[start:start + BATCH])
                  if label.rung == label_source and label.answer == answers[label.exchange]]
        return [Verdict(label.exchange, label.answer_score, label.score, label.who, label.at_s,
                        label.note == SECOND_LOOK, label_source)
                for label in sorted(labels, key=lambda label: label.at_s)
                if label.answer_score is not None and label.score is not None]

    def write(self, pair: Pair, verdict: Verdict) -> None:
        """Adds one label."""
        self._store.add(labels=[Label(
            new_id(), pair.id, verdict.at_s, verdict.label_source, verdict.who, verdict.large, pair.small.id,
            verdict.small, SECOND_LOOK if verdict.is_second else "")])


class FileBook:
    """A file that grows by whole lines; a last line that a crash cut is written anew."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def verdicts(self, label_source: VerdictSource = "human") -> Sequence[Verdict]:
        """The verdicts of the file; none if it does not exist yet."""
        found = read(self._path) if self._path.exists() else []
        return [verdict for verdict in found if verdict.label_source == label_source]

    def write(self, pair: Pair, verdict: Verdict) -> None:
        """Appends one line, in one write."""
        line = json.dumps({"id": pair.id, "small_score": verdict.small, "large_score": verdict.large,
                           "rung": verdict.label_source, "who": verdict.who, "at": verdict.at_s,
                           "second_look": verdict.is_second})
        with output_errors(self._path), open(self._path, "ab+", opener=private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)
            file.write(line.encode() + b"\n")


def read(path: Path) -> Sequence[Verdict]:
    """The verdicts of a file; EvidenceError names the line that is none."""
    data = read_evidence(path)
    found = []
    for number, line in enumerate(data[:data.rfind(b"\n") + 1].splitlines(), 1):
        try:
            found.append(_verdict(RequestFields(parse_json(line, "the line"))))
        except RequestError as error:
            raise EvidenceError(f"{path}:{number}: {error.args[0]}") from None
    return found


def with_verdicts(pairs: Sequence[Pair], verdicts: Iterable[Verdict]) -> tuple[Pair, ...]:
    """The pairs with their verdicts; EvidenceError for verdicts on pairs that are not there."""
    known = {pair.id for pair in pairs}
    newest: dict[tuple[str, VerdictSource], Judgement] = {}
    for verdict in verdicts:
        if verdict.pair not in known:
            raise EvidenceError(f"there is a verdict on the pair {verdict.pair[:64]!r}, which the log does not have",
                                hint="is it the same log? A row's id is its line's number, unless it says another")
        if not verdict.is_second:
            newest[verdict.pair, verdict.label_source] = Judgement(verdict.label_source, verdict.small, verdict.large,
                                                                   who=verdict.who)
    return tuple(replace(pair, judgements=(*pair.judgements, *(
        newest[pair.id, source] for source in VERDICT_SOURCES if (pair.id, source) in newest))) for pair in pairs)


def _verdict(fields: RequestFields) -> Verdict:
    small, large = fields.number("small_score", 0, 1), fields.number("large_score", 0, 1)
    if small is None or large is None:
        raise fields.missing("small_score" if small is None else "large_score")
    source = next(known for known in VERDICT_SOURCES if known == fields.required_choice("rung", VERDICT_SOURCES))
    verdict = Verdict(fields.required_text("id"), small, large, fields.text("who") or "",
                      fields.number("at", 0, 1e11) or 0.0, fields.flag("second_look") or False, source)
    fields.done()
    return verdict


def first_and_second(verdicts: Sequence[Verdict]) -> tuple[Mapping[str, Verdict], Mapping[str, Verdict]]:
    """The newest first and the newest second verdict on each pair."""
    return ({verdict.pair: verdict for verdict in verdicts if not verdict.is_second},
            {verdict.pair: verdict for verdict in verdicts if verdict.is_second})
