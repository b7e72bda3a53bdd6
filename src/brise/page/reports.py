"""A task's report as the page's JSON. Of much traffic it is made in a process of its own: it takes seconds of a core,
and the requests that the server is for must not wait for it.

    python -m brise.page.reports    reads {"task", "store", "prices"} and prints the answers, or {"error", "hint"};
                                    {"verify": FILE, "store"}: the checks of a certificate
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brise.errors import BriseError, CertificateError, EvidenceError
from brise.page.documents import to_json
from brise.page.endpoint import PageOptions
from brise.prove import analyses, certificates, verify
from brise.prove.document import time_words
from brise.prove.options import PairOptions
from brise.prove.verify import VerifyOptions
from brise.report import report
from brise.report.proof_document import proof_document
from brise.report.report import ReportOptions, SwitchReport
from brise.report.summary import summarize
from brise.report.switch_document import switch_document

LONGEST_S, VERIFY_S = 600.0, 120.0
NICE = 10  # behind whatever else this machine does


def answers(options: PageOptions, task: str) -> Mapping[str, Any]:
    """What the endpoints `proof` and `report` answer for a task."""
    made = report.run(ReportOptions(task, options.place, options.prices))
    return {"proof": _proof(made), "report": to_json(switch_document(made))}


def answers_of_process(options: PageOptions, task: str) -> Mapping[str, Any]:
    """The same, made by a process of its own."""
    prices = None if options.prices is None else str(options.prices)
    return of_process({"task": task, "store": options.place, "prices": prices}, LONGEST_S)


def checks_of(options: PageOptions, certificate: str) -> Mapping[str, Any]:
    """What `brise prove --verify` says of the text of a certificate; EvidenceError if it is none. To score all answers
    again takes a while, so a process does it. It runs no code that a certificate names.
    """
    with tempfile.TemporaryDirectory(prefix="brise-") as folder:
        path = Path(folder) / "certificate.json"
        path.write_text(certificate, encoding="utf-8")
        return of_process({"verify": str(path), "store": options.place, "prices": None}, VERIFY_S)


def of_process(asked: Mapping[str, object], longest_s: float = LONGEST_S, module: str = __name__) -> Mapping[str, Any]:
    """What a module answers that is run as a process of its own, as this one is."""
    try:
        ended = subprocess.run([sys.executable, "-m", module], input=json.dumps(asked),
                               capture_output=True, text=True, check=False, timeout=longest_s)
    except subprocess.TimeoutExpired:
        raise EvidenceError(f"this takes longer than {longest_s:g} s",
                            hint="brise report and brise prove --verify take as long as they need") from None
    if ended.returncode != 0:
        raise EvidenceError(f"this failed: {(ended.stderr.splitlines() or ['the process was ended'])[-1]}")
    found: Mapping[str, Any] = json.loads(ended.stdout)
    if "error" in found:
        raise EvidenceError(found["error"], hint=found["hint"])
    return found


def main() -> None:
    """One report, from standard input to standard output."""
    os.nice(NICE)
    asked = json.load(sys.stdin)
    options = PageOptions(asked["store"], None if asked["prices"] is None else Path(asked["prices"]))
    try:
        found = answers(options, asked["task"]) if "task" in asked else verify.verify(VerifyOptions(
            Path(asked["verify"]), PairOptions(store=options.place), may_run_code=False)).to_json()
    except BriseError as error:
        found = {"error": str(error.args[0]).replace(repr(asked.get("verify")), "it"), "hint": error.hint}
    json.dump(found, sys.stdout, allow_nan=False)


def _proof(made: SwitchReport) -> dict[str, Any]:
    past, body = made.history, made.history.proof
    document, gate = None if body is None else analyses.document_of(body), (body or {}).get("gate") or {}
    return {
        "task": made.traffic.task, "made_s": made.made_s, "summary": summarize(made).to_json(),
        "against": [one.said for one in past.against], "next": made.advice.next, "headline": made.advice.headline,
        "at_s": past.proof_at_s, "document": None if document is None else to_json(proof_document(document)),
        "path": None if not gate.get("path") else {
            "at": gate["at"], "for": gate["path"], "against": gate["futility_path"], "level": gate["level"],
            "end": None if document is None else document["terms"]["futility"], "decided_at": gate.get("decided_at")},
        "certificates": [_listed(entry.body, entry.at_s) for entry in reversed(made.traffic.ledger)
                         if entry.kind == certificates.KIND]}


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


if __name__ == "__main__":
    main()
