"""The stages of the demo, by the commands that a user would type. Each stage says what it found, good or bad."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from brise.demo import drive, outcomes
from brise.demo.child import Brise, ChildError, shown
from brise.demo.drive import TASK, CarReply, DriveTally
from brise.demo.large_model import LargeModelProcess
from brise.demo.size import Size
from brise.demo.stand_in import NAME, truth_of
from brise.demo.workload import Talk, Workload
from brise.errors import BriseError
from brise.report import figures
from brise.traffic.sql_store import SqlStore
from brise.traffic.store import Query
from brise.traffic.stores import open_store

MODEL, ADAPTER = "smollm2", "in-car"
# Shadow answers that may be waited for at one time: the gateway's queue holds 256 and sheds what is over.
_BACKLOG = 100
_STALLED_S, RECOVERED_S = 60.0, 75.0
PRICES = f"""# Examples, edit them: USD a million tokens, and the machine of the small model.
[models."{NAME}"]
input = 2.50
output = 10.00

[hardware]
price = 600
years = 4
watts = 35
usd_per_kwh = 0.30
utilisation = 0.25
"""
RIGHTS = """# Whose answers may be trained on. The demo's large model is simulated: it is a part of brise.
[[allow]]
provider = "simulated"
basis = "no hosted model at all: brise's own generator wrote these answers"
date = {today}
scope = "training"
"""


class StageWatcher(Protocol):
    """Shows what the demo does while it runs."""

    def command(self, line: str) -> None:
        """A command that is run now; a user could type it."""

    def progress(self, done: float, total: float, note: str) -> None:
        """How far the stage has come."""

    def say(self, line: str) -> None:
        """A line of what was found."""

    def text(self, text: str) -> None:
        """Output of a command, as it is."""


@dataclass(frozen=True)
class RemoteSmallModel:
    """A small model behind another server: the URL, `#MODEL` at its end if it has several, and where its key is."""

    url: str
    key_env: str | None = None


class SkippedError(BriseError):
    """A stage that cannot run, and why."""


@dataclass
class Demo:
    """What the stages share. `stack` holds what has to be ended: the large model, the gateway, the store.

    With `remote`, the small model is behind another server, and nothing is tuned.
    """

    folder: Path
    brise: Brise
    size: Size
    show: StageWatcher
    stack: ExitStack
    remote: RemoteSmallModel | None = None
    seed: int = 7
    url: str = ""
    adapter: Path | None = None
    verdict: str | None = None
    is_switched: bool = False
    calibrate_s: float = 0.0
    prove_s: float = 0.0
    began_s: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        size, workload = self.size, Workload(self.seed)
        self.training = workload.talks(size.train, held_out=0.0)
        later = (size.calibrate, size.prove, size.first_step, size.half, size.whole, size.outage, size.after)
        stretches = [workload.talks(count, held_out=size.held_out) for count in later]
        (self.calibrating, self.proving, self.first, self.half, self.whole, self.outage, self.after) = stretches
        self.truth = truth_of(talk for talks in (self.training, *stretches) for talk in talks)
        self.large = LargeModelProcess(self.truth, size.nature)
        self.store_path, self.prices = self.folder / "traffic.sqlite", self.folder / "prices.toml"

    @property
    def has_small(self) -> bool:
        """Whether there is a small model: one that was tuned, or one behind another server."""
        return self.remote is not None or self.adapter is not None

    @property
    def small_words(self) -> tuple[str, ...]:
        """How `brise serve` gets the small model."""
        if self.remote is not None:
            return ("--small", f"{ADAPTER}={self.remote.url}", *(
                ("--small-key-env", self.remote.key_env) if self.remote.key_env else ()))
        return MODEL, "--adapter", f"{ADAPTER}={self.adapter}"

    @property
    def file_words(self) -> tuple[str, ...]:
        """The small model's files, for commands that look at them; of one behind a server there are none here."""
        return ("--model", MODEL, "--adapter", str(self.adapter)) if self.adapter is not None else ()

    @property
    def store(self) -> SqlStore:
        """Opened anew: the gateway writes to it from another process."""
        return open_store(self.store_path, self.brise.home)

    def run(self, *words: str, allowed: tuple[int, ...] = (0,)) -> Any:
        """A command with --json, and its status."""
        self.show.command(shown(words))
        return self.brise.run(*words, allowed=allowed)

    def drive(self, talks: list[Talk], parallel: int, note: str, *, shadows: bool = False) -> DriveTally:
        """Traffic through the gateway, with a bar; with `shadows` as fast as the small model keeps up."""
        total, seen = sum(len(talk.turns) for talk in talks), DriveTally()

        def on_reply(reply: CarReply) -> None:
            seen.add(reply)
            self.show.progress(seen.asked, total, f"{note}: {seen.answered} answered, {seen.right} right")

        async def go() -> DriveTally:
            pace = _Pace(self, seen).wait if shadows else drive.nothing
            return await drive.drive(self.url, talks, parallel=parallel, on_reply=on_reply, before=pace)

        return asyncio.run(go())

    def label(self) -> None:
        """Outcomes, for all answers that have none yet."""
        store = self.store
        try:
            outcomes.write(store, self.truth, self.began_s)
        finally:
            store.close()

    def count(self, **query: Any) -> int:
        store = self.store
        try:
            return store.count(Query(task=TASK, **query))
        finally:
            store.close()


class _Pace:
    """Holds the traffic back while the shadow is behind, so that none of it is shed."""

    def __init__(self, demo: Demo, seen: DriveTally) -> None:
        self._demo, self._seen = demo, seen
        self._since_s, self._lock = time.time(), asyncio.Lock()
        self._shadows, self._looked_s = 0, 0.0

    async def wait(self) -> None:
        moved_s = time.monotonic()
        while self._seen.answered - self._shadows > _BACKLOG and time.monotonic() - moved_s < _STALLED_S:
            async with self._lock:
                if time.monotonic() - self._looked_s > 0.5:
                    found = await asyncio.to_thread(self._demo.count, since_s=self._since_s, has_answer="shadow")
                    moved_s = time.monotonic() if found > self._shadows else moved_s
                    self._shadows, self._looked_s = found, time.monotonic()
            await asyncio.sleep(0.1)


def traffic(demo: Demo) -> None:
    """Cars ask the large model, through the gateway, which writes everything down."""
    demo.prices.write_text(PRICES)
    demo.large.start()
    demo.stack.callback(demo.large.kill)
    words = ("--upstream", demo.large.url, "--store", str(demo.store_path), "--prices", str(demo.prices))
    demo.show.command(shown(("serve", *words)))
    with demo.brise.server(*words) as demo.url:
        found = demo.drive(demo.training, demo.size.parallel, "hosted")
    demo.label()
    others = {mode: count for mode, count in found.modes.items() if mode != "hosted"}
    demo.show.say(f"{found.answered} of {found.asked} requests were answered, {_share(found.right, found.asked)} right "
                  f"(the stand-in is set to {figures.percent(demo.size.nature.accuracy, 0)})"
                  + (f"; {others}" if others else ""))


def tune(demo: Demo) -> None:
    """The small model learns from the answers whose outcome was good."""
    if demo.remote is not None:
        raise SkippedError(f"the small model is behind {demo.remote.url}, as it is")
    rows, rights, out = demo.folder / "train.jsonl", demo.folder / "rights.toml", demo.folder / "tuned"
    rights.write_text(RIGHTS.format(today=datetime.now(UTC).date()))
    demo.show.say("rights.toml says why the simulated model's answers may be trained on; a real provider needs yours")
    demo.run("log", "export", "--task", TASK, "--store", str(demo.store_path), "--answer", "best", "--min-score", "1",
             "--provider", "simulated", "--out", str(rows))
    size = demo.size
    words = ("tune", str(rows), "--model", MODEL, "--out", str(out), "--rights", str(rights), "--steps",
             str(size.steps), "--batch-size", str(size.batch_size), "--lr", f"{size.learning_rate:g}", "--rank",
             str(size.rank), "--eval-rows", str(size.eval_rows), "--eval-every", str(max(size.steps // 3, 1)),
             "--parity-rows", str(size.parity_rows), "--held-out-share", "0.06", "--json")
    demo.show.command(shown(words))
    done: dict[str, Any] = {}
    for line in demo.brise.lines(*words, allowed=(0, 1)):
        event = json.loads(line)
        if event["event"] == "step":
            demo.show.progress(event["step"], event["steps"],
                               f"loss {event['loss']:.3f}, {event['tokens_per_s']:.0f} tokens/s")
        elif event["event"] == "done":
            done = event
    if not done:
        raise ChildError("brise tune ended without an adapter", hint=f"see {demo.brise.logs / 'tune.log'}")
    demo.adapter = out / "adapter"
    best = done["best"]
    demo.show.say(f"{done['step']} steps in {figures.seconds(done['seconds'])}"
                  + (f", held-out loss {best['loss']:.4f} after step {best['step']}" if best else ""))
    _parity(demo, done["parity"])


def _parity(demo: Demo, found: dict[str, Any] | None) -> None:
    """What is served is what was trained, or the demo says that it is not."""
    if found is None:
        return
    quality = found["adapted"]
    demo.show.say(f"parity, {found['num_rows']} held-out rows: served and trained "
                  + ("agree" if found["passed"] else f"DIFFER ({'; '.join(found['failures'])})")
                  + f", mean KL {quality['kl_mean']:.5f}, the same token in {figures.percent(quality['agreement'])}")


def shadow(demo: Demo) -> None:
    """The tuned model answers the same requests in the background; the cars see the large model's answers."""
    if not demo.has_small:
        raise SkippedError("there is no tuned model")
    words = (*demo.small_words, "--upstream", demo.large.url, "--candidate", ADAPTER, "--shadow", "1", "--fallback",
             ADAPTER, "--store", str(demo.store_path), "--prices", str(demo.prices))
    demo.show.command(shown(("serve", *words)))
    demo.url = demo.stack.enter_context(demo.brise.server(*words))
    demo.calibrate_s = time.time()
    demo.drive(demo.calibrating, 8, "to calibrate", shadows=True)
    _drained(demo, demo.calibrate_s)
    demo.prove_s = time.time()
    demo.drive(demo.proving, 8, "to prove", shadows=True)
    ended_s = time.monotonic()
    _drained(demo, demo.prove_s)
    demo.label()
    time.sleep(max(demo.size.settle_s - (time.monotonic() - ended_s), 0.0))
    pairs = demo.count(since_s=demo.calibrate_s, has_answer="shadow")
    demo.show.say(f"{pairs} requests have both answers; every fourth one has a phrasing or values that no training "
                  "row has")


def _drained(demo: Demo, since_s: float) -> None:
    """Until the shadow has caught up, or does not move any more."""
    moved_s, before = time.monotonic(), -1
    while time.monotonic() - moved_s < _STALLED_S:
        asked, found = demo.count(since_s=since_s), demo.count(since_s=since_s, has_answer="shadow")
        demo.show.progress(found, asked, f"the small model has answered {found} of {asked}")
        if found >= asked:
            return
        if found > before:
            moved_s, before = time.monotonic(), found
        time.sleep(0.5)


def iso(at_s: float) -> str:
    """A time as options take it."""
    return datetime.fromtimestamp(at_s, UTC).isoformat()


def _share(part: int, whole: int) -> str:
    return figures.percent(part / whole if whole else None)


def until(what: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true within so many seconds."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.5)
    return True
