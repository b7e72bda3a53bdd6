"""Stores for the page: evidence that was really proved, a switch with audits, names that would be code, 10,000 rows."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brise import settings
from brise.dialects.bodies import Usage
from brise.prove import cutover
from brise.prove import run as use_case
from brise.prove.cutover import SwitchOptions
from brise.prove.options import PairOptions, ProveOptions
from brise.traffic.records import Exchange, Label, Mode, RecordedAnswer
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.prove import logs
from tests.report.traffic import TASK, body, fill

NOW_S = 1_750_000_000.0
# Names, notes and texts that run as code wherever a page takes them for HTML, a link or a style.
CORPUS = (
    "<script>window.hit=1</script>", "<img src=x onerror=window.hit=2>", "<svg/onload=window.hit=3>",
    "\"><iframe srcdoc='<script>parent.hit=4</script>'>", "javascript:window.hit=5", "'-window.hit=6-'",
    "[a](javascript:window.hit=7)", "![x](https://evil.example/?leak=1)", "<style>@import 'https://evil.example'</style>",
    "<a href=\"data:text/html,<script>opener.hit=8</script>\">x</a>", "{{constructor.constructor('window.hit=9')()}}",
    "</script><script>window.hit=10</script>", "${window.hit=11}", "<math><mi xlink:href=\"javascript:window.hit=12\">",
    "<div style=\"background:url(https://evil.example/b)\">x</div>", "\u202e<b>override</b>\u202c")


def evidence(place: Path, kind: str = "undecided", number: int = 160) -> None:
    """Two tasks in the store; the first one was proved: undecided, promote or not good enough."""
    better, worse = {"undecided": (0.03, 0.03), "promote": (0.2, 0.01), "not good enough": (0.02, 0.3)}[kind]
    rows = logs.rows(number, better=better, worse=worse)
    with_times = logs.changed(rows, lambda at, row: {"at": NOW_S - 86400 * 9 + at * 2400.0})
    store = opened(place)
    fill(store, with_times)
    fill(store, logs.changed(logs.rows(40, seed=3), lambda at, row: {"id": f"x{at}", "conversation": f"y{at}"}),
         task="summaries")
    store.close()
    assert use_case.run(ProveOptions(PairOptions(task=TASK, store=str(place)))).verdict == kind


def switched(place: Path, *, audits: int = 60, wrong: float = 0.03) -> None:
    """The same, promoted and switched, with audits of which a share found another answer."""
    evidence(place, "promote", 300)
    cutover.run(SwitchOptions(TASK, share=0.01, store=str(place)))
    draws = random.Random(4)
    store = opened(place)
    for at in range(audits):
        store.append("audit", {"task": TASK, "difference": -float(draws.random() < wrong), "probability": 0.5,
                               "exchange": f"r{at}"})
    store.close()
    cutover.run(SwitchOptions(TASK, share=0.1, store=str(place)))


def hostile(place: Path) -> None:
    """Each text of the corpus as a task, a model, a label, a prompt, an answer, an error, a note and a reason."""
    store = opened(place)
    for at, text in enumerate(CORPUS):
        rows = [Exchange(
            f"h{at}-{number}", NOW_S + number, text, "chat", "/v1/chat/completions", text, mode, status,
            f"{text}{number}", labels={"route": text}, served_by=text, error=error, upstream=text,
            request={"model": text, "messages": [{"role": "user", "content": text}]}, response=body(text, text))
            for number, (mode, status, error) in enumerate((("hosted", 200, None), ("failed", 502, text)))]
        store.add(rows, [RecordedAnswer(f"s{at}", f"h{at}-0", NOW_S, "shadow", text, response=body(text, text))],
                  [Label(f"l{at}", f"h{at}-0", NOW_S, "human", text, 1.0, note=text)])
        _hostile_lines(store, text)
    store.close()


def _hostile_lines(store: SqlStore, text: str) -> None:
    """Lines of the ledger as a gateway writes them, with a name in every text."""
    store.append("proof", {
        "task": text, "student": text, "verdict": "undecided", "reason": text, "delta": 0.02, "units": 40,
        "evidence": 3.1,
        "plan": {"units": 500, "anytime_units": 1000, "have_units": 40, "labels": 90, "have_labels": 4},
        "scores": {"difference": {"estimate": 0.0, "low": -0.01, "high": 0.01, "interval": text}}, "baselines": [],
        "gate": {"level": 20.0, "decided_at": None, "at": [1, 20, 40], "path": [1.0, 2.0, 3.1],
                 "futility_path": [1.0, 0.5, 0.2]}})
    store.append("certificate", {"task": text, "digest": text, "expires_at_s": NOW_S, "student": text})
    store.append("switch", {"task": text, "candidate": text, "share": 0.1, "user": text, "tolerance": 0.02,
                            "certificate": None, "forced": text, "rule": None, "audit": 0.05, "auto": False,
                            "reason": text})
    for _ in range(3):
        store.append("audit", {"task": text, "difference": 0.0, "probability": 0.5, "exchange": text})
    store.append("context", {"task": text, "context": text, "reason": text})


def large(place: Path, number: int = 10_000) -> None:
    """So many requests of one task, in all modes, every fourth with a shadow answer."""
    modes: tuple[Mode, ...] = ("hosted", "hosted", "hosted", "small", "escalated", "degraded", "failed")
    store = opened(place)
    for first in range(0, number, 1000):
        ats = range(first, min(first + 1000, number))
        store.add([_row(at, modes[at % len(modes)]) for at in ats],
                  [RecordedAnswer(f"a{at}", f"e{at:06d}", NOW_S + at, "shadow", "mini", total_s=0.2,
                                  response=body(f"answer {at % 7}", "mini")) for at in ats if at % 4 == 0])
    store.close()


def _row(at: int, mode: Mode) -> Exchange:
    request: Mapping[str, Any] = {"model": "big", "messages": [{"role": "user", "content": f"ticket {at}"}]}
    return Exchange(f"e{at:06d}", NOW_S + at, TASK, "chat", "/v1/chat/completions", "big", mode,
                    502 if mode == "failed" else 200, f"c{at // 3}", served_by="mini" if mode == "small" else "big",
                    total_s=0.5 + at % 10 / 10, request=dict(request), response=body(f"answer {at % 5}", "big"))


def opened(place: Path) -> SqlStore:
    """The store; its keys are in BRISE_HOME, which several stores share."""
    return open_store(place, settings.read().home)


def talks(place: Path, number: int = 24) -> None:
    """Requests with a system prompt, calls and reasoning, each with a shadow answer that says a little else."""
    store = opened(place)
    for at in range(number):
        messages = [{"role": "system", "content": "You sort tickets."},
                    {"role": "user", "content": [
                        {"type": "text", "text": f"My parcel {at} is late.\nWhat now?"},
                        {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}]}]
        calls = [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": f'{{"parcel": {at}}}'}}]
        store.add([Exchange(
            f"t{at:03d}", NOW_S + 60 * at, TASK, "chat", "/v1/chat/completions", "big", "hosted", 200, f"talk{at}",
            subject=f"user-{at}", served_by="big-1", fingerprint="fp-big", usage=Usage(40 + at, 12), cost_usd=0.00012,
            first_token_s=0.4, total_s=1.5, request={"model": "big", "messages": messages}, response=answer(
                f"I am sorry. Parcel {at} arrives on Monday.", calls, "They ask for a parcel."))],
            [RecordedAnswer(f"ts{at:03d}", f"t{at:03d}", NOW_S + 60 * at, "shadow", "mini", usage=Usage(40 + at, 10),
                            total_s=0.2, response=answer(f"I am sorry. Parcel {at} arrives on Tuesday.", calls))])
    store.close()


def answer(text: str, calls: Sequence[Mapping[str, Any]] = (), reasoning: str | None = None) -> Mapping[str, Any]:
    """A chat completion that calls functions."""
    message = {"role": "assistant", "content": text, "tool_calls": list(calls), "reasoning_content": reasoning}
    return {"model": "m", "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
