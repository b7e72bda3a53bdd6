"""Batches of OpenAI, Mistral and Anthropic: requests in one file, responses in another, told apart by `custom_id`.

    {"custom_id": "1", "method": "POST", "url": "/v1/...", "body": {...}}          a request
    {"custom_id": "1", "response": {"status_code": 200, "body": {...}}}            its response
    {"custom_id": "1", "params": {...}}   {"custom_id": "1", "result": {"type": "succeeded", "message": {...}}}

An id is unique within one batch only. A file of responses that answers a request which is not there is of another
batch: all of it is refused. Where two files of requests use an id for different questions, a file of
responses is joined with the file of requests that it must belong to, and refused by name if it may belong to either.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from brise.dialects import table
from brise.dialects.bodies import Body
from brise.dialects.dialect import Dialect
from brise.traffic.imports.row import (
    BadRowError,
    ImportedRow,
    exchange,
    fields_of,
    identity,
    seconds,
    text,
    whole,
)
from brise.traffic.records import Exchange

MOST_TRIES = 10_000  # steps of looking for a second way to join the files
MOST_FILES = 200  # of responses that are joined so
Ids = Mapping[str, list[ImportedRow]]


def is_row(value: Mapping[str, Any]) -> bool:
    """Whether a row is a request of a batch, or a response."""
    return isinstance(value.get("custom_id"), str | int) and bool(_is_request(value) or _is_response(value))


def read(rows: Sequence[ImportedRow]) -> Iterator[tuple[ImportedRow, Exchange | BadRowError]]:
    """An exchange for each request; an error for each that has no response of its own, and the other way round."""
    joined = _Joined()
    _join(_by_file(rows, _is_request), _by_file(rows, _is_response), joined)
    for row in rows:
        try:
            if (problem := joined.problems.get(id(row))) is not None:
                raise BadRowError(problem)
            if _is_request(row.value) and id(row) not in joined.repeated:
                _dialect(row)
                answers = joined.answers.get(id(row))
                if not answers:
                    raise BadRowError(f"the request {_name(row)[:64]!r} of a batch has no response in the files")
                for answer in answers:
                    yield row, _exchange(row, answer)
        except BadRowError as error:
            yield row, error


@dataclass
class _Joined:
    """The responses of each request, and what is wrong with rows, by the rows' own `id()`.

    `repeated` are requests that stand somewhere else, too, word for word: the first one has the answers.
    """

    answers: dict[int, list[ImportedRow]] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)


def _join(asked: Mapping[str, Ids], answered: Mapping[str, Ids], joined: _Joined) -> None:
    places = _places(asked, joined)
    contested = {name for name, files in places.items() if len({_content(row) for row in files.values()}) > 1}
    homes = _homes(asked, answered, places, contested)
    for file, ids in answered.items():
        stranger = next((name for name in ids if name not in places), None)
        for name, rows in ids.items():
            request = _request_of(name, file, places, contested, homes) if stranger is None else (
                f"its file answers the request {stranger[:64]!r} of a batch, which is in none of the files")
            if isinstance(request, str):
                joined.problems |= {id(row): request for row in rows}
            elif id(request) in joined.problems:
                joined.problems |= {id(row): joined.problems[id(request)] for row in rows}
            else:
                joined.answers.setdefault(id(request), []).extend(rows)
    for name, files in places.items():
        rows = list(files.values())
        if name not in contested:
            joined.repeated |= set(map(id, rows[1:]))
        for row in rows if name in contested else rows[:1]:
            _refuse_second_answers(row, 1 if name in contested else len(rows), joined)
    for name in {name for file, ids in answered.items() if file not in homes for name in contested & ids.keys()}:
        joined.problems |= {id(row): _unsure(name, places[name]) for file, row in places[name].items()
                            if file not in homes.values() and id(row) not in joined.problems}


def _places(asked: Mapping[str, Ids], joined: _Joined) -> Mapping[str, dict[str, ImportedRow]]:
    """The requests of each id, by file; notes ids that one file has for several requests."""
    places: defaultdict[str, dict[str, ImportedRow]] = defaultdict(dict)
    for file, ids in asked.items():
        for name, rows in ids.items():
            if len({_content(row) for row in rows}) > 1:
                joined.problems |= {id(row): f"{name[:64]!r} stands for {len(rows)} requests in {file}: each batch "
                                             "needs a file of its own" for row in rows}
            places[name][file] = rows[0]
            joined.repeated |= set(map(id, rows[1:]))
    return places


def _refuse_second_answers(row: ImportedRow, most: int, joined: _Joined) -> None:
    """A batch answers each request once: of more different answers than batches one is of another batch."""
    rows = joined.answers.get(id(row), [])
    different = {_content(answer): answer for answer in rows}
    if len(different) > most:
        where = " and ".join(sorted({answer.place for answer in different.values()}))
        why = f"the request {_name(row)[:64]!r} is answered twice, in {where}: which one is of this batch?"
        joined.problems |= dict.fromkeys((id(row), *map(id, rows)), why)
    joined.answers[id(row)] = list(different.values())


def _request_of(name: str, file: str, places: Mapping[str, Mapping[str, ImportedRow]], contested: set[str],
                homes: Mapping[str, str]) -> ImportedRow | str:
    """The request that a response of a file answers, or why there is none."""
    found = places[name]
    if name not in contested:
        return next(iter(found.values()))
    home = homes.get(file)
    if home is not None and home in found:
        return found[home]
    return _unsure(name, found)


def _unsure(name: str, files: Iterable[str]) -> str:
    return (f"{name[:64]!r} stands for different requests in {' and '.join(sorted(files))}, and it cannot be told "
            "which of them a response belongs to: import one batch at a time")


def _homes(asked: Mapping[str, Ids], answered: Mapping[str, Ids], places: Mapping[str, Mapping[str, ImportedRow]],
           contested: set[str]) -> dict[str, str]:
    """The file of requests that the contested ids of a file of responses belong to, where only one way is possible."""
    wanted = {file: contested & ids.keys() for file, ids in answered.items() if contested & ids.keys()}
    allowed = dict[str, list[str]]()
    for file, names in wanted.items():
        homes = [home for home in asked if names <= asked[home].keys()]
        own = {next(iter(places[name])) for name in answered[file] if name in places and len(places[name]) == 1}
        allowed[file] = [home for home in homes if home in own] or homes
    ways = list[dict[str, str]]()
    if len(wanted) <= MOST_FILES:
        _ways(sorted(wanted, key=lambda file: len(allowed[file])), wanted, allowed, {}, ways, [MOST_TRIES])
    return ways[0] if len(ways) == 1 else {file: homes[0] for file, homes in allowed.items() if len(homes) == 1}


def _ways(files: Sequence[str], wanted: Mapping[str, set[str]], allowed: Mapping[str, list[str]],
          chosen: dict[str, str], ways: list[dict[str, str]], tries: list[int]) -> None:
    """Up to two ways to give each file of responses a home, in which no request is answered twice; none if that takes
    too many tries."""
    if len(ways) > 1:
        return
    tries[0] -= 1
    if tries[0] < 0:
        ways.clear()
        return
    if not files:
        ways.append(dict(chosen))
        return
    file, rest = files[0], files[1:]
    for home in allowed[file]:
        if all(other != home or not wanted[file] & wanted[known] for known, other in chosen.items()):
            _ways(rest, wanted, allowed, {**chosen, file: home}, ways, tries)


def _by_file(rows: Sequence[ImportedRow],
             is_wanted: Callable[[Mapping[str, Any]], bool]) -> dict[str, dict[str, list[ImportedRow]]]:
    found: dict[str, dict[str, list[ImportedRow]]] = {}
    for row in rows:
        if is_wanted(row.value):
            found.setdefault(row.file, {}).setdefault(_name(row), []).append(row)
    return found


def _is_request(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("body"), dict) or isinstance(value.get("params"), dict)


def _is_response(value: Mapping[str, Any]) -> bool:
    return not _is_request(value) and ("response" in value or "result" in value)


def _name(row: ImportedRow) -> str:
    return str(row.value["custom_id"])


def _content(row: ImportedRow) -> str:
    return json.dumps(dict(row.value), sort_keys=True)


def _exchange(row: ImportedRow, answer: ImportedRow) -> Exchange:
    body: Body = row.value["body" if isinstance(row.value.get("body"), dict) else "params"]
    dialect = _dialect(row)
    response, error = _result(answer.value)
    about = response or {}
    created = seconds(about.get("created") or about.get("created_at"))
    model = text(body.get("model")) or "unknown"
    return exchange(identity(created or 0.0, "batch", row.value["custom_id"], body, answer.value.get("id"), response,
                             error),
                    created or row.at_s, dialect.name, body, response,
                    task=model, model=model, path=dialect.path, error=error, served_by=text(about.get("model")),
                    fingerprint=text(about.get("system_fingerprint")), usage=dialect.usage(about))


def _dialect(row: ImportedRow) -> Dialect:
    usual = "/v1/chat/completions" if isinstance(row.value.get("body"), dict) else "/v1/messages"
    url = str(row.value.get("url") or usual)
    dialect = table.of_request("POST", url)
    if dialect not in table.ALL:
        raise BadRowError(f"its url is {url[:64]!r}; read are {', '.join(table.BY_PATH)}")
    return dialect


def _result(value: Mapping[str, Any]) -> tuple[Body | None, str | None]:
    """The body of a response, and why it is none."""
    if "result" in value:
        result = fields_of(value.get("result"))
        message = result.get("message")
        if result.get("type") == "succeeded" and isinstance(message, dict):
            return message, None
        return None, _said(result.get("error")) or f"the batch says {str(result.get('type'))[:64]!r}"
    response = fields_of(value.get("response"))
    body, status = response.get("body"), whole(response.get("status_code"))
    problem = value.get("error") or (body.get("error") if isinstance(body, dict) else None)
    error = None if status == 200 and not problem else _said(problem) or f"status {status}"
    return body if isinstance(body, dict) else None, error


def _said(problem: object) -> str | None:
    """The message of an error, which Anthropic wraps twice."""
    if not isinstance(problem, dict):
        return str(problem) if problem else None
    inner = problem.get("error")
    return _said(inner) if isinstance(inner, dict) else text(problem.get("message")) or json.dumps(problem)
