"""`brise demo --car`: an assistant that knows the car's state, and rules outside of the model that hold it back.

Each stage ends with a check of what it shows; ChildError says what did not hold.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from brise.api.answers import ToolCall
from brise.demo.car_talk import CarTalk, Utterance, car_rules
from brise.demo.child import Brise, ChildError, shown
from brise.demo.stages import MODEL, StageWatcher
from brise.demo.story import Stage
from brise.errors import RequestError
from brise.evals import answers_file, data, scorers
from brise.evals.data import Reading
from brise.robots.call_rules import ConfirmationDesk, JudgedCall

TRAIN, SEEN, HELD_OUT = "car-train.jsonl", "car-seen.jsonl", "car-held-out.jsonl"
ANSWER_TOKENS = 200


@dataclass(frozen=True)
class CarSize:
    """How much is trained, and how many utterances are asked of each kind."""

    rows: int = 2000
    steps: int = 150
    batch_size: int = 8
    asked: int = 150


@dataclass
class CarDemo:
    """What the stages share. `adapter` is one that an earlier run has made, or what is trained here."""

    folder: Path
    brise: Brise
    size: CarSize
    show: StageWatcher
    adapter: Path | None = None
    answers: dict[str, list[tuple[Utterance, list[ToolCall]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.asked = {SEEN: CarTalk(3).utterances(self.size.asked, is_held_out=False),
                      HELD_OUT: CarTalk(2).utterances(self.size.asked, is_held_out=True)}

    def run(self, *words: str) -> str:
        """What a command prints; it is shown, too."""
        self.show.command(shown(words))
        return self.brise.run(*words).out


def rows(demo: CarDemo) -> None:
    """Rows to train on, and utterances of phrasings that are in them and that are not."""
    training = CarTalk(1).utterances(demo.size.rows, is_held_out=False)
    for name, said in {TRAIN: training, **demo.asked}.items():
        (demo.folder / name).write_text("".join(each.row() for each in said), encoding="utf-8")
    several = sum(len(each.calls) > 1 for each in training) / len(training)
    demo.show.say(f"{len(training)} rows, {several:.0%} of them with several calls; an example:")
    demo.show.say(f"  {training[0].state.words()} | {training[0].text}")
    demo.show.say(f"  {training[0].answer()}")


def tune(demo: CarDemo) -> None:
    """A short training, unless an adapter was given."""
    if demo.adapter is not None:
        demo.show.say(f"takes the adapter in {demo.adapter}")
        return
    if find_spec("torch") is None:
        raise ChildError("torch, which trains, is not installed", hint="pip install 'brise[tune]', or --adapter FOLDER")
    out = demo.folder / "car"
    demo.run("tune", str(demo.folder / TRAIN), "--model", MODEL, "--out", str(out), "--steps", str(demo.size.steps),
             "--batch-size", str(demo.size.batch_size), "--eval-rows", "20", "--parity-rows", "4",
             "--held-out-count", "40")
    demo.adapter = out / "adapter"


def ask(demo: CarDemo) -> None:
    """How often all calls of an utterance are right, on phrasings that were trained on and on held-out ones."""
    assert demo.adapter is not None
    for name in (SEEN, HELD_OUT):
        path, answers = demo.folder / name, demo.folder / name.replace(".jsonl", "-answers.jsonl")
        printed = demo.run("eval", str(path), "--model", MODEL, "--adapter", str(demo.adapter), "--score", "call",
                           "--max-tokens", str(ANSWER_TOKENS), "--out", str(answers), "--json")
        figure: Mapping[str, Any] = json.loads(printed)["figures"]["call_exact"]
        interval = "" if figure["low"] is None else f" ({figure['low']:.1%} to {figure['high']:.1%})"
        demo.show.say(f"{path.stem}: all calls right in {figure['estimate']:.1%}{interval} of {len(demo.asked[name])} "
                      "utterances")
        demo.answers[name] = list(_answered(path, answers, demo.asked[name]))


def rules(demo: CarDemo) -> None:
    """What the rules make of the model's calls, right and wrong ones, and of those that were meant."""
    meant = [(utterance, [ToolCall("", call.function, json.dumps(dict(call.arguments))) for call in utterance.calls])
             for said in demo.asked.values() for utterance in said]
    because: Counter[str] = Counter()
    for whose, answered in (("of the model", [each for some in demo.answers.values() for each in some]),
                            ("that were meant", meant)):
        decided = Counter[str]()
        for utterance, calls in answered:
            for judged in (car_rules().judge(call, utterance.state.values()) for call in calls):
                decided[judged.decision] += 1
                because.update(judged.because)
                if judged.decision == "run" and _is_dangerous(judged, utterance):
                    raise ChildError(f"{judged.name} would run at {utterance.state.speed_kmh} km/h: {judged.arguments}")
        demo.show.say(f"{decided.total()} calls {whose}: {decided['run']} run at once, {decided['confirm']} wait for a "
                      f"person, {decided['refuse']} are refused")
    for reason, count in because.most_common(5):
        demo.show.say(f"  {count} x {reason}")
    demo.show.say("none of them opens a door or moves the driver's seat while the car moves")


def confirm(demo: CarDemo) -> None:
    """A confirmation: for one call, and for the state at that time."""
    stands: dict[str, object] = {"speed_kmh": 0, "seats": ("driver",), "route": "none"}
    desk, call = ConfirmationDesk(car_rules()), ToolCall("", "door", '{"door":"all","action":"unlock"}')
    (number,) = desk.submit([call], stands).to_confirm
    first = desk.confirm(number, stands)
    (again,) = desk.submit([call], stands).to_confirm
    later = desk.confirm(again, {**stands, "speed_kmh": 12})
    try:
        desk.confirm(number, stands)
    except RequestError:
        if (first.decision, later.decision) == ("run", "refuse"):
            demo.show.say("'unlock all doors' at rest waits for a person; confirmed, it runs once")
            demo.show.say(f"confirmed when the car has begun to move, it is refused: {later.because[0]}")
            return
    raise ChildError(f"a confirmation was good twice, or for another state: {first}, {later}")


CAR_STAGES: Sequence[Stage[CarDemo]] = (
    Stage("rows", "utterances with the car's state, and the calls that they mean", rows),
    Stage("tune", "a small model learns them on this machine", tune),
    Stage("ask", "phrasings that it knows, and phrasings that it does not", ask),
    Stage("rules", "rules outside of the model decide what may run", rules),
    Stage("confirm", "a person confirms one call, in the state at that time", confirm),
)


@contextmanager
def opened(folder: Path, home: Path, size: CarSize, show: StageWatcher, adapter: Path | None) -> Iterator[CarDemo]:
    """The demo's parts; what was started is ended with the block."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    brise = Brise(home, logs)
    try:
        yield CarDemo(folder, brise, size, show, adapter)
    finally:
        brise.close()


def _answered(path: Path, answers: Path, asked: Sequence[Utterance]) -> Iterator[tuple[Utterance, list[ToolCall]]]:
    """The model's calls for each utterance; an answer that is no list of calls has none, and runs nothing."""
    saved = answers_file.read(answers).answers
    for utterance, example in zip(asked, data.read([path], Reading()), strict=True):
        called = scorers.calls_of(saved[example.digest]) if example.digest in saved else []
        yield utterance, [ToolCall("", name, json.dumps(dict(arguments))) for name, arguments in called]


def _is_dangerous(judged: JudgedCall, utterance: Utterance) -> bool:
    """By other words than the rules': a moving car's doors and driver's seat."""
    if utterance.state.speed_kmh == 0:
        return False
    opens = judged.name == "door" and judged.arguments.get("action") in ("open", "unlock")
    return opens or (judged.name == "recline" and judged.arguments.get("seat") == "driver")
