"""The second half of the demo: prove, cascade, switch, outage, report."""

from __future__ import annotations

import json
from typing import Any

from brise.demo.drive import TASK, DriveTally
from brise.demo.stages import ADAPTER, RECOVERED_S, Demo, SkippedError, iso, until
from brise.report import figures

PROMOTED, REFUTED, UNDECIDED = 0, 3, 4  # exit statuses of brise prove
IMPOSSIBLE = 3  # of brise cascade


def prove(demo: Demo) -> None:
    """May the small model take over? Whatever the statistics say stands."""
    if not demo.has_small or not demo.prove_s:
        raise SkippedError("there are no pairs of answers")
    size = demo.size
    trained = () if demo.adapter is None else ("--train", str(demo.folder / "train.jsonl"))
    found = demo.run("prove", "--task", TASK, "--store", str(demo.store_path), "--since", iso(demo.prove_s), "--settle",
                     f"{size.settle_s:g}", "--margin", f"{size.delta:g}", *demo.file_words, *trained, "--html",
                     str(demo.folder / "proof.html"), "--json", allowed=(PROMOTED, REFUTED, UNDECIDED))
    proof: dict[str, Any] = json.loads(found.out)
    demo.verdict = proof["verdict"]
    scores, gate = proof["scores"], proof["gate"]
    for name, what in (("large", "simulated large model"), ("small", "small model")):
        found_of = scores[name]
        demo.show.say(f"{what}: {figures.percent(found_of['estimate'])} right "
                      f"{figures.interval(found_of['low'], found_of['high'])}")
    gap = scores["difference"]
    demo.show.say(f"difference {figures.points(gap['estimate'])} {figures.interval(gap['low'], gap['high'])}, allowed "
                  f"is -{size.delta:g} points; evidence {gate['evidence']:.3g}, needed are {gate['level']:.3g}, over "
                  f"{gate['units']} conversations")
    demo.show.say(f"verdict: {proof['verdict'].upper()} ({proof['reason']})")


def cascade(demo: Demo) -> None:
    """Which of its answers may be kept, by requests from before those of the proof."""
    if not demo.prove_s:
        raise SkippedError("there are no pairs of answers")
    found = demo.run("cascade", TASK, "--store", str(demo.store_path), "--small-model", ADAPTER, "--since",
                     iso(demo.calibrate_s), "--until", iso(demo.prove_s), "--risk", f"{demo.size.risk:g}",
                     "--label-source", "outcome", "--json", allowed=(0, IMPOSSIBLE))
    document: dict[str, Any] = json.loads(found.out)
    rule = document["rule"]
    if rule is None:
        demo.show.say(f"this guarantee is impossible on these data: {document['why_not']}")
        return
    demo.show.say(f"of kept answers at most {demo.size.risk:g} % are wrong; {figures.percent(rule['kept'])} are kept, "
                  f"the rest is escalated ({rule['units']} answers, {rule['method']})")


def switch(demo: Demo) -> None:
    """Cut over in steps: 1 % by the certificate, 50 % by hand for want of days, 100 % by its audits."""
    if demo.verdict != "promote":
        raise SkippedError(f"the proof says {demo.verdict or 'nothing'}: without a certificate nothing is switched")
    size, words = demo.size, ("switch", TASK, "--store", str(demo.store_path), "--json")
    demo.run(*words, "--share", "1", "--audit", f"{size.audit:g}")
    demo.is_switched = True
    _say_answers(demo, "1 %", demo.drive(demo.first, 4, "switched at 1 %"))
    demo.run(*words, "--share", "50", "--force", "--reason", "the demo has minutes, not days, for audits at 1 and 10 %")
    demo.show.say("50 % by force: at 1 and 10 % the 30 audits of a step take thousands of requests; the ledger says so")
    _say_answers(demo, "50 %", demo.drive(demo.half, 4, "switched at 50 %"))
    until(lambda: _state(demo)["why_not_up"] is None, 20.0)
    why_not = _state(demo)["why_not_up"]
    if why_not is not None:
        demo.show.say(f"not switched further: {why_not}")
        return
    demo.run(*words, "--share", "100")
    _say_answers(demo, "100 %, earned by its audits", demo.drive(demo.whole, 4, "switched at 100 %"))


def _state(demo: Demo) -> dict[str, Any]:
    done = demo.brise.run("switch", TASK, "--store", str(demo.store_path), "--status", "--json")
    state: dict[str, Any] = json.loads(done.out)[0]
    return state


def _say_answers(demo: Demo, share: str, found: DriveTally) -> None:
    ways = ", ".join(f"{count} {mode}" for mode, count in found.modes.most_common())
    demo.show.say(f"at {share}: {found.answered} of {found.asked} answered ({ways}), "
                  f"{figures.percent(found.right / max(found.asked, 1))} right")


def outage(demo: Demo) -> None:
    """The large model's process is killed while cars drive; then it comes back."""
    if not demo.url or not demo.has_small:
        raise SkippedError("no gateway with a small model runs")
    demo.large.kill()
    demo.show.say("SIGKILL to the simulated large model: connections are refused from here on")
    found = demo.drive(demo.outage, 4, "large model down")
    _say_answers(demo, "no large model", found)
    demo.large.start()
    demo.show.say("the simulated large model is back")
    _say_answers(demo, "its return", demo.drive(demo.after, 4, "large model back"))
    waiting = _pending(demo)
    if not waiting:
        return
    demo.show.say("what was answered without it is asked again in the background, one request a second")
    if not until(lambda: _caught_up(demo, waiting), RECOVERED_S):
        demo.show.say(f"{_pending(demo)} requests still wait for its answer")


def _caught_up(demo: Demo, waiting: int) -> bool:
    left = _pending(demo)
    demo.show.progress(waiting - left, waiting, f"{left} requests wait for the large model's answer")
    return left == 0


def _pending(demo: Demo) -> int:
    store = demo.store
    try:
        return len(store.pending(10_000))
    finally:
        store.close()


def report(demo: Demo) -> None:
    """Everything in one page, and what is not known."""
    demo.label()
    page = demo.folder / "report.html"
    found = demo.run("report", "--task", TASK, "--store", str(demo.store_path), "--prices", str(demo.prices),
                     *demo.file_words, "--html", str(page))
    demo.show.text(found.out)
    audit = demo.run("audit", "--store", str(demo.store_path))
    demo.show.say(audit.out.strip().splitlines()[0] if audit.out.strip() else "the ledger is whole")
