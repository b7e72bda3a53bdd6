"""Labels in bulk: what is known of many answers, by the ids of their requests, from a table or from Python.

    id,score                                     a table; the id is the answer's header x-brise-id
    {"id": "...", "score": 1, "note": "..."}     JSON lines, with any of: answer, answer_score, who, note, at

A label's id is made from its exchange, its source, who gave it and the answer that it is of. So a file that is loaded
twice adds nothing, and one that was interrupted goes on where it ended. Rows are read and written some thousands at a
time: a file of any size takes the same memory.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from brise.data.left_out import LeftOut
from brise.errors import EvidenceError, RequestError
from brise.files import tables
from brise.files.digests import text_digest
from brise.text.json_text import Json, parse_json
from brise.traffic.imports.row import seconds
from brise.traffic.records import Label
from brise.traffic.schema import plain
from brise.traffic.sql_store import SqlStore

AT_ONCE = 5000  # rows in one transaction
SUFFIXES = (".csv", ".jsonl")
IDS, SCORES = ("id", "request_id", "exchange"), ("score", "outcome")  # names of the column, the first that is there
WORDS: Mapping[str, float] = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
MOST_PLACES = 20  # of bad rows that are named

NO_ID = "it has no id of a request"
UNKNOWN = "the store has no request of this id"
UNKNOWN_ANSWER = "the request has no other answer of this id"
NO_SCORE = "it has no score"
BAD_SCORE = "its score is no number from 0 to 1"
ALONE = "'answer' and 'answer_score' belong together"
BAD_TIME = "its time is none: seconds or ISO 8601 are read"
SAME = "the same label is there already"
OTHER = "another score of the same source and person is there already"


@dataclass(frozen=True)
class LabelRow:
    """What an outcome or a person says of the answer to the request `id`, or of another `answer` to it: 0 wrong,
    1 right. `at_s`: when, in seconds since the epoch; None: now.
    """

    id: str
    score: float | None = None
    answer: str | None = None
    answer_score: float | None = None
    who: str | None = None
    note: str = ""
    at_s: float | None = None
    place: str = ""


@dataclass
class LoadedLabels:
    """How many labels were added, and how many rows were not, by reason. `bad` names the first of these."""

    added: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    bad: list[tuple[str, str]] = field(default_factory=list)

    def leave_out(self, place: str, reason: str) -> None:
        """Counts a row that is no new label."""
        self.left_out[reason] += 1
        if reason != SAME and len(self.bad) < MOST_PLACES:
            self.bad.append((place, reason))

    def to_json(self) -> dict[str, object]:
        """For machines."""
        return {"added": self.added, "left_out": self.left_out.to_json(),
                "bad": [{"place": place, "reason": reason} for place, reason in self.bad]}


def load_file(store: SqlStore, path: Path, source: Literal["outcome", "human"] = "outcome",
              who: str = "outcome") -> LoadedLabels:
    """Writes the labels of a table (.csv) or of JSON lines (.jsonl) down. EvidenceError if the file is no such."""
    if path.suffix.lower() not in SUFFIXES:
        raise EvidenceError(f"{str(path)!r} is no file of labels; allowed are {' and '.join(SUFFIXES)}")
    loaded = LoadedLabels()
    try:
        load(store, _rows(path, loaded), source, who, loaded)
    except OSError as error:
        raise EvidenceError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if not loaded.added and not loaded.left_out:
        raise EvidenceError(f"there is no row in {str(path)!r}")
    return loaded


def load(store: SqlStore, rows: Iterable[LabelRow], source: Literal["outcome", "human"] = "outcome",
         who: str = "outcome", loaded: LoadedLabels | None = None) -> LoadedLabels:
    """Writes these labels down; what is none is counted, and costs no other row."""
    loaded = LoadedLabels() if loaded is None else loaded
    rows = iter(rows)
    while batch := list(islice(rows, AT_ONCE)):
        _write(store, batch, source, who, loaded)
    return loaded


def _write(store: SqlStore, batch: list[LabelRow], source: Literal["outcome", "human"], who: str,
           loaded: LoadedLabels) -> None:
    known = store.known(plain(row.id) for row in batch)
    answers = {(answer.exchange, answer.id) for answer in store.answers(sorted(
        known & {row.id for row in batch if row.answer is not None}))}
    there = {label.id: (label.score, label.answer_score) for label in store.labels(sorted(known))}
    new, now = list[Label](), time.time()
    for row in batch:
        problem = _problem(row, known, answers)
        if problem is None:
            label = Label(_label_id(row, source, who), row.id, now if row.at_s is None else row.at_s, source,
                          row.who or who, row.score, row.answer, row.answer_score, row.note)
            scores = (label.score, label.answer_score)
            if label.id in there:
                problem = SAME if there[label.id] == scores else OTHER
            else:
                there[label.id] = scores
                new.append(label)
        if problem is not None:
            loaded.leave_out(row.place, problem)
    store.add(labels=new)
    loaded.added += len(new)


def _problem(row: LabelRow, known: set[str], answers: set[tuple[str, str]]) -> str | None:
    if not row.id:
        return NO_ID
    if row.id not in known:
        return UNKNOWN
    if (row.answer is None) != (row.answer_score is None):
        return ALONE
    if row.answer is not None and (row.id, row.answer) not in answers:
        return UNKNOWN_ANSWER
    scores = [score for score in (row.score, row.answer_score) if score is not None]
    if not scores:
        return NO_SCORE
    return None if all(0 <= score <= 1 for score in scores) else BAD_SCORE


def _label_id(row: LabelRow, source: str, who: str) -> str:
    return text_digest(json.dumps([row.id, source, row.who or who, row.answer]))[:32]


def _rows(path: Path, loaded: LoadedLabels) -> Iterator[LabelRow]:
    """The rows that can be read; the others are counted."""
    values = _table(path) if path.suffix.lower() == ".csv" else _lines(path)
    for line, value in values:
        place = f"{path}:{line}"
        if isinstance(value, str):
            loaded.leave_out(place, value)
            continue
        row = _row(value, place)
        if isinstance(row, str):
            loaded.leave_out(place, row)
        else:
            yield row


def _row(value: Mapping[str, Json], place: str) -> LabelRow | str:
    """A row, or what is wrong with it."""
    named = {name: item for name, item in value.items() if item is not None and item != ""}
    id = next((named[name] for name in IDS if name in named), None)
    if not isinstance(id, str):
        return NO_ID
    scores = [_score(next((named[name] for name in SCORES if name in named), None)), _score(named.get("answer_score"))]
    if any(score is not None and math.isnan(score) for score in scores):
        return BAD_SCORE
    at_s = seconds(named["at"]) if "at" in named else None
    if "at" in named and at_s is None:
        return BAD_TIME
    return LabelRow(id.strip(), scores[0], _text(named.get("answer")), scores[1], _text(named.get("who")),
                    _text(named.get("note")) or "", at_s, place)


def _score(value: Json) -> float | None:
    """A score; NaN for what is none."""
    if value is None:
        return None
    if isinstance(value, str):
        word = value.strip().lower()
        if word in WORDS:
            return WORDS[word]
        try:
            return float(word)
        except ValueError:
            return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float(value) if isinstance(value, bool) else math.nan
    return float(value) if 0 <= value <= 1 else math.nan


def _text(value: Json) -> str | None:
    return None if value is None else value if isinstance(value, str) else str(value)


def _lines(path: Path) -> Iterator[tuple[int, Mapping[str, Json] | str]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                try:
                    value = parse_json(text, "the row", mend=True)
                    yield number, value if isinstance(value, dict) else "the row is no object"
                except RequestError as error:
                    yield number, str(error).partition(":")[0]


def _table(path: Path) -> Iterator[tuple[int, Mapping[str, Json] | str]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header: list[str] | None = None
        for line, cells in tables.records(file):
            if header is None:
                header = [name.strip() for name in cells] if isinstance(cells, list) else []
                _check_header(header, path)
            elif isinstance(cells, str):
                yield line, cells
            elif len(cells) != len(header):
                yield line, f"it has not the {len(header)} cells of the table's header"
            else:
                yield line, dict(zip(header, cells, strict=True))


def _check_header(header: list[str], path: Path) -> None:
    for wanted in (IDS, (*SCORES, "answer_score")):
        if not any(name in header for name in wanted):
            raise EvidenceError(f"{str(path)!r} has no column {' or '.join(map(repr, wanted))}; it has "
                                f"{', '.join(map(repr, header)) or 'none'}")
