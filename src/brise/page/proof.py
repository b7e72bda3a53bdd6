"""What the tab Proof shows: the summary of the report, the newest proof, and its certificates."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from brise import settings
from brise.errors import EvidenceError, RequestError, StoreError
from brise.page import reports
from brise.page.endpoint import Download, PageEndpoint, PageOptions, PageRequest
from brise.prove import certificates
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Query
from brise.traffic.stores import open_store

FRESH_S, PART = 30.0, 20.0  # seconds for which a report is good, if the ledger is the same; times what it took
SMALL = 1000  # requests of a task whose report takes a tenth of a second; others are made beside the server
MOST_CERTIFICATE = 8 << 20  # bytes
MOST_REPORTS, MOST_TASKS = 16, 500  # that are kept; that are listed


def endpoints(options: PageOptions) -> Sequence[PageEndpoint]:
    """The endpoints of the tab."""
    made = Reports(options)
    return (PageEndpoint("tasks", partial(_tasks, options)), PageEndpoint("proof", made.proof, is_slow=True),
            PageEndpoint("report", made.document, is_slow=True),
            PageEndpoint("certificate/{digest}", partial(_certificate, options)),
            PageEndpoint("verify", partial(_verify, options), method="POST", most_bytes=MOST_CERTIFICATE, is_slow=True))


@dataclass(frozen=True)
class _Made:
    """What a report gave: when it was made, how long that took, and from how much."""

    answers: Mapping[str, Any]
    made_s: float
    seconds: float
    ledger: int
    requests: int

    def holds(self, ledger: int, requests: int, now_s: float) -> bool:
        """Whether it need not be made again: making reports takes a twentieth of the time at most."""
        age_s = now_s - self.made_s
        if self.ledger != ledger:
            return age_s < PART * self.seconds
        return self.requests == requests or age_s < max(FRESH_S, PART * self.seconds)


@dataclass
class Reports:
    """The reports of the store's tasks. Making one opens all rows of its task, so each is kept for a while."""

    options: PageOptions
    _made: dict[str, _Made] = field(default_factory=dict)

    def proof(self, request: PageRequest) -> object:
        """The summary, the newest proof of the task with its path, and the certificates in the ledger."""
        return self._report(request).answers["proof"]

    def document(self, request: PageRequest) -> object:
        """The whole report, as `brise report --html` writes it."""
        return self._report(request).answers["report"]

    def _report(self, request: PageRequest) -> _Made:
        task = request.query.get("task") or self._busiest()
        found, now_s = self._made.get(task), time.time()
        ledger, requests = self._size(task)
        if found is None or not found.holds(ledger, requests, now_s):
            started_s = time.monotonic()
            answers = (reports.answers if requests <= SMALL else reports.answers_of_process)(self.options, task)
            seconds = time.monotonic() - started_s
            self._made.pop(task, None)
            while len(self._made) >= MOST_REPORTS:
                self._made.pop(next(iter(self._made)), None)
            found = self._made[task] = _Made(answers, now_s, seconds, ledger, requests)
        return found

    def _busiest(self) -> str:
        with closing(_store(self.options)) as store:
            tasks = store.tasks()
        if not tasks:
            raise EvidenceError("no requests were captured yet", hint="brise serve --upstream URL captures them")
        return max(tasks, key=lambda each: each[1])[0]

    def _size(self, task: str) -> tuple[int, int]:
        with closing(_store(self.options)) as store:
            return store.last_line(), store.count(Query(task=task, content=False))


def _store(options: PageOptions) -> SqlStore:
    return open_store(options.store, settings.read().home, must_exist=True)


def _tasks(options: PageOptions, request: PageRequest) -> object:
    """The tasks of the store, the busiest first; what the sender may do."""
    rights = {"content": request.may_read_content, "operate": request.may_operate}
    try:
        with closing(_store(options)) as store:
            tasks = sorted(store.tasks(), key=lambda each: (-each[1], each[0]))
    except StoreError as error:  # a server without captured traffic has a page, too
        return {"tasks": [], "why": str(error), **rights}
    listed = [{"task": name, "requests": number, "last_s": last_s} for name, number, last_s in tasks[:MOST_TASKS]]
    return {"tasks": listed, "why": None, **rights}


def _certificate(options: PageOptions, request: PageRequest) -> Download:
    """The file of a certificate, as `brise prove` wrote it."""
    digest = request.path["digest"]
    with closing(_store(options)) as store:
        body = next((entry.body for entry in store.ledger() if entry.kind == certificates.KIND
                     and entry.body.get("digest") == digest), None)
    if body is None:
        raise RequestError(f"the ledger has no certificate {digest[:64]!r}", param="digest")
    return Download(f"certificate-{digest[:8]}.json", certificates.file_bytes(certificates.of_line(body)))


def _verify(options: PageOptions, request: PageRequest) -> object:
    """The checks of a certificate, or why it is none."""
    try:
        found = reports.checks_of(options, request.text("certificate"))
    except EvidenceError as error:
        return {"checks": [], "claim": "", "why": str(error)}
    return {"checks": found["checks"], "claim": found["claim"], "why": None}
