"""`brise demo --drone`: a model flies missions in words, its engine stalls and dies, and the vehicle holds, then lands.

Each stage ends with a check of what it shows; ChildError says what did not hold.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np

from brise.demo import drone_flight
from brise.demo.child import Brise, ChildError, Running, reserved_port, shown
from brise.demo.drone_flight import FALLBACK, Fault, FlownMission
from brise.demo.stages import MODEL, StageWatcher
from brise.demo.story import Stage
from brise.report import html
from brise.report.document import Document, Figure, FigureRow, KeyFigures, Part, ReportTable, Section
from brise.robots import gate_course, jitter
from brise.robots.acting_server import ActingServer, ServerAddress
from brise.robots.missions import Split

ADAPTER, PAGE = "drone", "drone.html"
STALL_S, READY_S = 2.0, 120.0
MOST_TRIES = 4  # of a mission that ends before its fault comes


@dataclass(frozen=True)
class DroneSize:
    """Which missions are flown, with what, and how long a training takes if no adapter is given."""

    faults: tuple[Fault, ...] = ("none", "none", "stall", "stall", "kill")
    split: Split = "combination"
    episodes: int = 60
    states: int = 2000
    steps: int = 60
    batch_size: int = 16
    most_s: float = 60.0
    fault_at_s: float = 3.0


@dataclass
class DroneDemo:
    """What the stages share. `adapter` is one that `brise tune --actions` made, or what is trained here."""

    folder: Path
    brise: Brise
    size: DroneSize
    show: StageWatcher
    stack: ExitStack
    adapter: Path | None = None
    seed: int = 5
    engine: Running | None = None
    url: str = ""
    flown: list[FlownMission] = field(default_factory=list)

    @property
    def page(self) -> Path:
        return self.folder / PAGE

    def run(self, *words: str) -> str:
        """What a command prints; it is shown, too."""
        self.show.command(shown(words))
        return self.brise.run(*words).out


def tune(demo: DroneDemo) -> None:
    """Rows of the expert and a short training, unless an adapter was given."""
    if demo.adapter is not None:
        demo.show.say(f"takes the adapter in {demo.adapter}")
        return
    if find_spec("torch") is None:
        raise ChildError("torch, which trains, is not installed", hint="pip install 'brise[tune]', or --adapter FOLDER")
    rows, out, size = demo.folder / "drone.jsonl", demo.folder / "drone", demo.size
    demo.run("act", "rows", str(rows), "--episodes", str(size.episodes), "--states", str(size.states))
    demo.run("tune", str(rows), "--model", MODEL, "--actions", str(rows.with_suffix(".toml")), "--out", str(out),
             "--steps", str(size.steps), "--batch-size", str(size.batch_size), "--lr", "1.5e-3", "--warmup", "0.05",
             "--ngrams", "0", "--eval-rows", "20", "--parity-rows", "0")
    demo.adapter = out / "adapter"
    demo.show.say("a training this short flies badly; docs/guides/robots.md has the one whose figures stand there")


def serve(demo: DroneDemo) -> None:
    """The engine, in a process of its own."""
    assert demo.adapter is not None
    port = demo.stack.enter_context(reserved_port())
    words = ("serve", MODEL, "--adapter", f"{ADAPTER}={demo.adapter}", "--port", str(port), "--log-level", "warning")
    demo.show.command(shown(words))
    demo.engine = demo.stack.enter_context(demo.brise.running("engine", *words))
    demo.url = f"http://127.0.0.1:{port}"
    end = time.monotonic() + READY_S
    with httpx.Client(trust_env=False, timeout=5.0) as client:
        while time.monotonic() < end and not demo.engine.has_ended():
            with suppress(httpx.HTTPError):
                if client.get(f"{demo.url}/health").status_code == 200:
                    return
            time.sleep(0.1)
    raise ChildError(f"the engine did not answer within {READY_S:g} s: {demo.engine.said()[-300:]}")


def fly(demo: DroneDemo) -> None:
    """Missions that no training row had, one after the other, in real time."""
    with closing(ActingServer(ServerAddress(demo.url, ADAPTER))) as server:
        if server.space() != gate_course.SPACE:
            raise ChildError("the adapter was trained on another action space than that of the gate course",
                             hint="brise act rows, then brise tune --actions")
        random = np.random.default_rng(demo.seed)
        for number, fault in enumerate(demo.size.faults, 1):
            one = _flown(demo, server, random, number, fault)
            for _ in range(MOST_TRIES - 1):
                if fault == "none" or one.has_fault:
                    break
                demo.show.say("   it ended before the fault came: another mission")
                one = _flown(demo, server, random, number, fault)
            demo.flown.append(one)
            demo.show.progress(number, len(demo.size.faults), "missions")
    _check(demo.flown)


def _flown(demo: DroneDemo, server: ActingServer, random: np.random.Generator, number: int, fault: Fault,
           ) -> FlownMission:
    (flight,), states = gate_course.started(random, demo.size.split, 1)
    demo.show.say(f"{number}: {flight.mission.text}" + {
        "none": "", "stall": f"; the engine will stop for {STALL_S:g} s", "kill": "; the engine will be killed"}[fault])
    one = drone_flight.fly(flight, states, server, fault, lambda: _cause(demo, fault), demo.size.fault_at_s,
                           demo.size.most_s)
    counts = {source: one.sources.count(source) for source in ("model", "hold", "brake", "scripted")}
    demo.show.say(f"   {one.ending} after {flight.seconds:.0f} s; commands: " + ", ".join(
        f"{count} {source}" for source, count in counts.items() if count))
    return one


def report(demo: DroneDemo) -> None:
    """The paths as pictures, and the jitter report, on a page."""
    found = jitter.document(jitter.summarize(drone_flight.merged([one.times for one in demo.flown]),
                                             drone_flight.PERIOD_S, drone_flight.REACH_S / 2))
    names = {"none": "no fault", "stall": f"stopped for {STALL_S:g} s", "kill": "engine killed"}
    titles = [f"{number}: {names[one.fault]}" for number, one in enumerate(demo.flown, 1)]
    figures = [Figure(title, one.picture(title)) for title, one in zip(titles, demo.flown, strict=True)]
    rows = [(title, one.flight.mission.text, one.ending, f"{one.flight.seconds:.0f}")
            for title, one in zip(titles, demo.flown, strict=True)]
    table: Part = ReportTable(("flight", "mission", "ended", "seconds"), rows, (3,))
    document = Document(
        "A drone that is told in words", f"{len(demo.flown)} flights of a simulated drone by a model in another "
        "process, in real time. Soft real time, and not safety-rated.",
        (Section("Flights", [table, FigureRow(figures)]), *found.sections),
        (KeyFigures([("crashed", str(sum(one.ending == "crashed" for one in demo.flown)), f"of {len(demo.flown)}"),
                     ("done", str(sum(one.ending == "done" for one in demo.flown)),
                      f"of {sum(one.fault != 'kill' for one in demo.flown)} whose engine lived")]), *found.top),
        found.foot)
    html.write(demo.page, html.page(document))
    demo.show.say(f"the paths and the jitter report: {demo.page.name}")


DRONE_STAGES: Sequence[Stage[DroneDemo]] = (
    Stage("tune", "a small model learns what an expert does, or comes from an earlier run", tune),
    Stage("serve", "its engine runs in a process of its own", serve),
    Stage("fly", "unseen missions, a stall of 2 s, a killed engine", fly),
    Stage("report", "the paths from above, and how late the loop was", report),
)


@contextmanager
def opened(folder: Path, home: Path, size: DroneSize, show: StageWatcher, adapter: Path | None) -> Iterator[DroneDemo]:
    """The demo's parts; what was started is ended with the block."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    brise = Brise(home, logs)
    with ExitStack() as stack:
        stack.callback(brise.close)
        yield DroneDemo(folder, brise, size, show, stack, adapter)


def _cause(demo: DroneDemo, fault: Fault) -> None:
    """Stops the engine's process for a while, or ends it."""
    assert demo.engine is not None
    if fault == "kill":
        os.kill(demo.engine.process.pid, signal.SIGKILL)
        return
    os.kill(demo.engine.process.pid, signal.SIGSTOP)
    time.sleep(STALL_S)
    os.kill(demo.engine.process.pid, signal.SIGCONT)


def _check(flown: Sequence[FlownMission]) -> None:
    """No flight crashed or broke a rate; where the engine stood, the fallback took over; where it died, it landed."""
    for number, one in enumerate(flown, 1):
        if one.ending == "crashed" or one.largest_step > 1 + 1e-6:
            raise ChildError(f"flight {number} {one.ending}; its largest step was {one.largest_step:.2f} of a rate")
        if one.fault != "none" and not one.has_fault:
            raise ChildError(f"flight {number} ended before its fault came: {one.ending}")
        if one.fault != "none" and not {"hold", "brake"} & set(one.sources) and one.flight.seconds > 5 + STALL_S:
            raise ChildError(f"flight {number}: no fallback came although the engine stood still")
        if one.fault == "kill" and one.ending != "landed":
            raise ChildError(f"flight {number} did not land after its engine died: {one.ending}",
                             hint=f"it holds {FALLBACK.first_s:g} s, hovers {FALLBACK.then_s} s, then lands")
