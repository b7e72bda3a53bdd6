"""What the tab Proof shows: the summary of the report, the newest proof, and its certificates."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from brise import settings
from brise.errors import CertificateError, EvidenceError, RequestError, StoreError
from brise.page.documents import to_json
from brise.page.endpoint import Download, PageEndpoint, PageOptions, PageRequest
from brise.prove import analyses, certificates
from brise.prove.document import time_words
from brise.report import report
from brise.report.proof_document import proof_document
from brise.report.report import ReportOptions
from brise.report.summary import summarize
from brise.report.switch_document import switch_document
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Query
from brise.traffic.stores import open_store

FRESH_S = 30.0  # a report is made anew after so long, if the traffic has changed; the ledger is looked at each time
MOST_CERTIFICATE = 8 << 20  # bytes
VERIFY_S = 120.0


def endpoints(options: PageOptions) -> Sequence[PageEndpoint]:
    """The endpoints of the tab."""
    reports = Reports(options)
    return (PageEndpoint("tasks", partial(_tasks, options)), PageEndpoint("proof", reports.proof),
            PageEndpoint("report", reports.document),
            PageEndpoint("certificate/{digest}", partial(_certificate, options)),
            PageEndpoint("verify", partial(_verify, options), method="POST", most_bytes=MOST_CERTIFICATE))


@dataclass(frozen=True)
class _Made:
    """A report and when it was made, from how much."""

    report: report.SwitchReport
    made_s: float
    ledger: int
    requests: int


@dataclass
class Reports:
    """The reports of the store's tasks. Making one reads all rows of its task, so each is kept for a while."""

    options: PageOptions
    _made: dict[str, _Made] = field(default_factory=dict)

    def proof(self, request: PageRequest) -> object:
        """The summary, the newest proof of the task with its path, and the certificates in the ledger."""
        made = self._report(request)
        past, body = made.report.history, made.report.history.proof
        document = None if body is None else analyses.document_of(body)
        gate = (body or {}).get("gate") or {}
        return {
            "task": made.report.traffic.task, "made_s": made.made_s, "summary": summarize(made.report).to_json(),
            "next": made.report.advice.next, "headline": made.report.advice.headline,
            "at_s": past.proof_at_s, "document": None if document is None else to_json(proof_document(document)),
            "path": None if not gate.get("path") else {
                "at": gate["at"], "for": gate["path"], "against": gate["futility_path"], "level": gate["level"],
                "end": None if document is None else document["terms"]["futility"],
                "decided_at": gate.get("decided_at")},
            "certificates": [_listed(entry.body, entry.at_s) for entry in reversed(made.report.traffic.ledger)
                             if entry.kind == certificates.KIND]}

    def document(self, request: PageRequest) -> object:
        """The whole report, as `brise report --html` writes it."""
        return to_json(switch_document(self._report(request).report))

    def _report(self, request: PageRequest) -> _Made:
        task = request.query.get("task") or self._busiest()
        found, now_s = self._made.get(task), time.time()
        ledger, requests = self._size(task)
        if found is None or found.ledger != ledger or found.requests != requests and now_s > found.made_s + FRESH_S:
            made = report.run(ReportOptions(task, self.options.place, self.options.prices))
            found = self._made[task] = _Made(made, now_s, ledger, requests)
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
    return {"tasks": [{"task": name, "requests": number, "last_s": last_s} for name, number, last_s in tasks],
            "why": None, **rights}


def _listed(body: Mapping[str, Any], at_s: float) -> dict[str, Any]:
    """A certificate of the ledger in a few words. Whether it holds, `verify` says."""
    try:
        found = certificates.of_line(body).certificate
    except CertificateError as error:
        return {"digest": str(body.get("digest")), "at_s": at_s, "why": str(error)}
    return {"digest": str(body["digest"]), "at_s": at_s, "small_model": found.student.name,
            "large_models": list(found.teachers), "claim": certificates.claim_words(found), "clusters": found.n,
            "expires_s": found.expires_at_s, "expires": time_words(found.expires_at_s),
            "is_expired": time.time() >= found.expires_at_s}


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
    """What `brise prove --verify` says of a file. It runs as a command: to score all answers again takes a while."""
    text = request.text("certificate")
    with tempfile.TemporaryDirectory(prefix="brise-") as folder:
        path = Path(folder) / "certificate.json"
        path.write_text(text, encoding="utf-8")
        words = [sys.executable, "-m", "brise", "prove", "--verify", str(path), "--json"]
        words += [] if options.store is None else ["--store", str(options.store)]
        ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=VERIFY_S,
                               stdin=subprocess.DEVNULL)
    if not ended.stdout.strip():
        why = ended.stderr.strip().removeprefix("brise: error: ").replace(repr(str(path)), "it")
        return {"checks": [], "claim": "", "why": why}
    found = json.loads(ended.stdout)
    return {"checks": found["checks"], "claim": found["claim"], "why": None}
