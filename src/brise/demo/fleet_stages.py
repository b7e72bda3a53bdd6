"""`brise demo --fleet`: a hub and five devices as processes, a good bundle, a bad one, a cut cable, a peer.

Each stage ends with a check of what it shows; ChildError says what did not hold.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx

from brise.checkpoint.adapters.peft import WEIGHTS_FILE
from brise.demo.cable import Cable
from brise.demo.child import Brise, ChildError, Running, reserved_port, shown
from brise.demo.demo_car import BUNDLE, TASK_TOKENS, DemoCar
from brise.demo.stages import MODEL, SkippedError, StageWatcher
from brise.demo.story import Stage
from brise.demo.workload import SYSTEM, Workload

TOKEN = "BRISE_FLEET_TOKEN"
ADAPTERS, WRONG, GATE = "good", "wrong", "gate.jsonl"
_LOOK_S = 0.05
_LINE = re.compile(r"at (http://127\.0\.0\.1:\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class FleetSize:
    """How many devices, and how long the two adapters are tuned. `limit_s` is how long the demo waits for one thing.
    """

    devices: int = 5
    rows: int = 60
    steps: int = 6
    batch_size: int = 4
    gate_prompts: int = 4
    trial_requests: int = 2
    stages: str = "20,60,100"
    limit_s: float = 180.0


@dataclass
class FleetDemo:
    """What the stages share. `stack` holds what has to be ended; `kept` is where adapters are that are made once."""

    folder: Path
    brise: Brise
    size: FleetSize
    show: StageWatcher
    stack: ExitStack
    kept: Path
    seed: int = 11
    hub: str = ""
    devices: list[DemoCar] = field(default_factory=list)

    def __post_init__(self) -> None:
        workload = Workload(self.seed)
        self.training = workload.talks(self.size.rows, held_out=0.0)
        self.asked = [talk.turns[0].text for talk in workload.talks(200, held_out=0.0)]

    @property
    def page(self) -> Path:
        return self.folder / "fleet.html"

    def run(self, *words: str) -> str:
        """What a command prints; it is shown, too."""
        self.show.command(shown(words))
        return self.brise.run(*words).out

    def fleet(self, *words: str, is_shown: bool = True) -> str:
        """`brise fleet`, with this hub."""
        words = ("fleet", *words, "--hub", self.hub)
        return self.run(*words) if is_shown else self.brise.run(*words).out

    def rollout(self, name: str) -> Mapping[str, Any]:
        """A roll-out as the hub sees it."""
        key = (self.brise.home / "fleet" / "hub" / "operator.key").read_text().strip()
        with httpx.Client(trust_env=False, timeout=30.0) as client:
            found = client.get(f"{self.hub}/v1/fleet/status", headers={"authorization": f"Bearer {key}"}).json()
        return next(one for one in found["rollouts"] if one["rollout"] == name)

    def wait(self, what: Callable[[], bool], about: str, note: Callable[[], str] = str) -> None:
        """Until it holds; ChildError with `about` if it does not in time, or a process has ended."""
        end = time.monotonic() + self.size.limit_s
        while not what():
            for one in self.devices:
                if one.node.has_ended():
                    raise ChildError(f"{one.name} has ended: {_last(one.node)}", hint=f"see {one.node.log}")
            if time.monotonic() > end:
                raise ChildError(f"{about}: it did not come in {self.size.limit_s:g} s",
                                 hint=f"see the logs in {self.brise.logs}")
            have = sum(one.runs is not None for one in self.devices)
            self.show.progress(have, self.size.devices, f"have a bundle; {note() or about}")
            time.sleep(_LOOK_S)

    def versions(self) -> str:
        """Who runs what, in a line."""
        return ", ".join(f"{one.name} {one.runs or '-'}" + (f" ({one.tries})" if one.tries else "")
                         for one in self.devices)


def adapters(demo: FleetDemo) -> None:
    """The two adapters, made by a short training the first time and kept in BRISE_HOME/demo/fleet."""
    if all((demo.kept / name / WEIGHTS_FILE).exists() for name in (ADAPTERS, WRONG)):
        demo.show.say(f"made by an earlier run: {demo.kept}")
        return
    if find_spec("torch") is None:
        raise ChildError("no adapters are here yet, and torch, which trains them, is not installed",
                         hint="pip install 'brise[tune]'")
    rows, size = demo.folder / "train.jsonl", demo.size
    rows.write_text("".join(json.dumps({"messages": talk.messages(0, []) + [
        {"role": "assistant", "content": talk.turns[0].call.text()}]}) + "\n" for talk in demo.training))
    for name, more in ((ADAPTERS, ("--lr", "1e-3")), (WRONG, ("--lr", "5e-3", "--seed", "2"))):
        out = demo.folder / f"tuned-{name}"
        demo.run("tune", str(rows), "--model", MODEL, "--out", str(out), "--steps", str(size.steps), "--batch-size",
                 str(size.batch_size), "--eval-rows", "4", "--parity-rows", "0", "--held-out-share", "0.1", *more)
        demo.kept.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(demo.kept / name, ignore_errors=True)
        shutil.copytree(out / "adapter", demo.kept / name)
    demo.show.say(f"two short trainings: {size.steps} steps each, enough for a story and for nothing else; kept in "
                  f"{demo.kept}")


def keys(demo: FleetDemo) -> None:
    """Keys, hub, devices that enrol with a token."""
    demo.run("fleet", "keys", "create")
    hub = demo.stack.enter_context(demo.brise.running("hub", "hub", "--port", "0"))
    demo.show.command("brise hub")
    demo.wait(lambda: _LINE.search(hub.said()) is not None or hub.has_ended(), "the hub starts")
    found = _LINE.search(hub.said())
    if found is None:
        raise ChildError(f"the hub has ended: {_last(hub)}", hint=f"see {hub.log}")
    demo.hub = found[1]
    token = demo.fleet("token", "cars", "--devices", str(demo.size.devices)).strip()
    ports = [demo.stack.enter_context(reserved_port()) for _ in range(2 * demo.size.devices)]
    for number in range(demo.size.devices):
        cable = Cable(int(demo.hub.rpartition(":")[2]))
        demo.stack.callback(cable.close)
        name, folder = f"car-{number + 1}", demo.folder / "cars" / f"car-{number + 1}"
        peer, other = ports[demo.size.devices + number], ports[demo.size.devices + (number + 1) % demo.size.devices]
        peers = ("--peer-listen", f"127.0.0.1:{peer}", "--peer", f"https://127.0.0.1:{other}") if _has_peers() else ()
        words = ("node", "--folder", str(folder), "--name", name, "--hub", f"http://127.0.0.1:{cable.port}",
                 "--token-env", TOKEN, "--port", str(ports[number]), "--poll-every", "1", "--jitter", "0.1", *peers)
        if not number:
            demo.show.command(shown(words))
        node = demo.stack.enter_context(demo.brise.running(name, *words, secrets={TOKEN: token}))
        demo.devices.append(DemoCar(name, folder, ports[number], cable, node))
    demo.wait(lambda: all("answers at" in one.node.said() for one in demo.devices), "all devices enrol")
    enrolled = demo.fleet("devices", "--json", is_shown=False).splitlines()
    if len(enrolled) != demo.size.devices:
        raise ChildError(f"{len(enrolled)} of {demo.size.devices} devices are enrolled")
    demo.show.say(f"{len(enrolled)} devices enrolled by one token; each has the fleet's root, and trusts nothing else")


def ship(demo: FleetDemo) -> None:
    """The good bundle by brise ship; and one that brise ship would refuse to make."""
    gate = demo.folder / GATE
    gate.write_text("".join(json.dumps({"messages": [
        {"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]}) + "\n"
        for text in demo.asked[:demo.size.gate_prompts]))
    demo.run("ship", MODEL, "--name", BUNDLE, "--adapter", str(demo.kept / ADAPTERS), "--gate", str(gate),
             "--gate-tokens", str(TASK_TOKENS), "--context", "512", "--parallel", "1", "--gate-same", "0.5",
             "--parity-kl", "1", "--parity-logprob", "4")
    demo.show.say(f"{BUNDLE} 1: signed, with {demo.size.gate_prompts} prompts that each device must answer as here")
    _ship_mixed_up(demo)
    demo.show.say(f"{BUNDLE} 2: its manifest says the adapter of 1, its file is another one. brise ship asks the model "
                  "itself, so it cannot make this; a build that mixes up two files, with the release key, can")


def _ship_mixed_up(demo: FleetDemo) -> None:
    """Signs version 2 with the release key: all of version 1 but for the bytes of its adapter."""
    from brise.fleet.bundle import Blob, blob_target, bundle_json, manifest_target  # noqa: PLC0415 - tuf is an extra
    from brise.fleet.repository import Repository  # noqa: PLC0415
    from brise.fleet.shipped_adapter import convert  # noqa: PLC0415
    from brise.fleet.signing import read_key  # noqa: PLC0415
    place = demo.brise.home / "fleet"
    repository = Repository(place / "repository")
    good = repository.bundle(manifest_target(BUNDLE, 1))
    files = convert(demo.kept / WRONG, demo.folder / "converted-wrong").folder
    blobs, content = list[Blob](), dict[str, Path | bytes]()
    for blob in good.adapter:
        data = (files / Path(blob.path).name).read_bytes()
        made = Blob(blob.path, hashlib.sha256(data).hexdigest(), len(data))
        blobs.append(made)
        content[blob_target(made.sha256)] = data
    mixed = replace(good, version=2, adapter=tuple(blobs))
    repository.release({**content, mixed.target: bundle_json(mixed)}, read_key(place / "keys" / "release.key"))


def roll_out(demo: FleetDemo) -> None:
    """The good bundle by stages, until all devices have committed it."""
    demo.fleet("roll-out", f"{BUNDLE}:1", "--stages", demo.size.stages, "--trial-requests",
               str(demo.size.trial_requests), "--wait", "1m", "--reason", "the first")
    in_before = 0

    def is_complete() -> bool:
        nonlocal in_before
        drive(demo)
        found = demo.rollout(f"{BUNDLE}-1")
        if found["in"] > in_before:
            in_before = found["in"]
            demo.show.say(f"stage {found['stage']}: {in_before} of {found['enrolled']} devices are let in")
        if found["state"] not in ("running", "complete"):
            raise ChildError(f"the roll-out of the good bundle is {found['state']}: {found['reason']}; "
                             f"{_reasons(found)}")
        return bool(found["state"] == "complete")

    demo.wait(is_complete, "all devices commit the good bundle", demo.versions)
    if any(one.runs != 1 for one in demo.devices):
        raise ChildError(f"the hub says that all committed; the devices say: {demo.versions()}")
    demo.show.say("all devices have committed version 1: local gate passed, then its trial of "
                  f"{demo.size.trial_requests} requests")


def drive(demo: FleetDemo) -> None:
    """A request to each device whose bundle is on trial."""
    for one in demo.devices:
        if one.tries == "trial":
            with suppress(httpx.HTTPError):
                one.ask(demo.asked[time.monotonic_ns() % len(demo.asked)], 10.0)


def bad(demo: FleetDemo) -> None:
    """The mixed-up bundle meets the local gate of one device; the hub stops, and all go on with the good one."""
    name = f"{BUNDLE}-2"
    _begin_bad(demo, name)
    demo.wait(lambda: demo.rollout(name)["state"] != "running", "the hub stops the bad bundle", demo.versions)
    found = demo.rollout(name)
    if found["state"] not in ("paused", "halted") or found["failed"] != 1 or found["committed"]:
        raise ChildError(f"the roll-out of the bad bundle is {found['state']} with {found['failed']} failed and "
                         f"{found['committed']} committed devices")
    _all_answer_as_before(demo)
    demo.show.say(f"one device tried it and went back by itself: {_reasons(found)}")
    demo.show.say(f"the hub has {found['state']} the roll-out ({found['reason']}); {found['in']} of "
                  f"{found['enrolled']} devices were let in, all answer with version 1")
    demo.fleet("back", name, "--reason", "its gate fails")


def cable(demo: FleetDemo) -> None:
    """The same bundle again; the cable of the device that tries it is cut before its gate has ended."""
    name = "again"
    _begin_bad(demo, name)
    demo.wait(lambda: any(one.tries for one in demo.devices), "a device fetches the bad bundle", demo.versions)
    one = next(one for one in demo.devices if one.tries)
    one.cable.cut()
    demo.show.say(f"{one.name} has fetched it; its cable is cut")
    demo.wait(lambda: one.tries is None, f"{one.name} ends the update", demo.versions)
    if one.runs != 1 or one.ask(demo.asked[0]).status_code != 200:
        raise ChildError(f"{one.name} does not answer with version 1 while its cable is out")
    seen = demo.rollout(name)
    if seen["failed"]:
        raise ChildError("the hub knows of the failure although the cable was out")
    demo.show.say(f"{one.name} went back and answers, with the cable out; the hub knows nothing of it yet")
    one.cable.mend()
    demo.wait(lambda: demo.rollout(name)["state"] != "running", "the report arrives", demo.versions)
    found = demo.rollout(name)
    again = [line for line in demo.fleet("devices", "--json", is_shown=False).splitlines()
             if json.loads(line)["state"] == "gate-failed" and json.loads(line)["device"] == one.name]
    if found["failed"] != 1 or len(again) != 1:
        raise ChildError(f"after the cable was mended the hub counts {found['failed']} failures, not one")
    demo.show.say(f"the cable is back: the report arrived and counts once; the roll-out is {found['state']}")
    demo.fleet("back", name, "--reason", "still wrong")


def _begin_bad(demo: FleetDemo, name: str) -> None:
    demo.fleet("roll-out", f"{BUNDLE}:2", "--name", name, "--stages", demo.size.stages, "--trial-requests",
               str(demo.size.trial_requests), "--wait", "1m", "--reason", "nobody looked")


def _all_answer_as_before(demo: FleetDemo) -> None:
    for one in demo.devices:
        if one.runs != 1 or one.ask(demo.asked[0]).status_code != 200:
            raise ChildError(f"{one.name} does not answer with version 1: {demo.versions()}")


def peer(demo: FleetDemo) -> None:
    """The server of a device is killed; another device answers until it is back."""
    if not _has_peers():
        raise SkippedError("devices know each other by certificates, which need pip install 'brise[fleet,peers]'")
    one = demo.devices[0]
    for _ in range(5):
        one.kill_server()
        answer = one.ask(demo.asked[0])
        mode = answer.headers.get("x-brise-mode")
        if answer.status_code == 200 and mode == "peer":
            demo.show.say(f"SIGKILL to the server of {one.name}; the next request at its port was answered by another "
                          "device (x-brise-mode: peer), which has the same fingerprint")
            break
        demo.wait(lambda: one.ask(demo.asked[0]).headers.get("x-brise-mode") != "peer", f"{one.name} is back")
    else:
        raise ChildError(f"no peer answered for {one.name} (its last answer has status {answer.status_code}, mode "
                         f"{mode})", hint=f"see {one.node.log}")
    demo.wait(lambda: one.ask(demo.asked[0]).headers.get("x-brise-mode") != "peer", f"{one.name} answers itself again")
    demo.show.say(f"{one.name} answers itself again")


def page(demo: FleetDemo) -> None:
    """The hub's page as a file, who runs what, and the ledger."""
    key = (demo.brise.home / "fleet" / "hub" / "operator.key").read_text().strip()
    with httpx.Client(trust_env=False, timeout=30.0) as client:
        answer = client.get(f"{demo.hub}/fleet", auth=("operator", key))
    if answer.status_code != 200:
        raise ChildError(f"the hub's page has status {answer.status_code}")
    demo.page.write_text(answer.text, "utf-8")
    demo.show.text(demo.fleet("devices"))
    demo.show.say(f"versions of {BUNDLE}: {demo.versions()}")
    demo.show.say(demo.run("audit").strip().splitlines()[0])


def _has_peers() -> bool:
    return find_spec("cryptography") is not None


def _reasons(found: Mapping[str, Any]) -> str:
    return "; ".join(one["reason"] for one in found["reasons"]) or "no device gave a reason"


def _last(process: Running) -> str:
    return " / ".join(process.said().strip().splitlines()[-3:])


FLEET_STAGES = (
    Stage("adapters", "two adapters for the story", adapters),
    Stage("enrol", "keys, a hub, and five devices with one token", keys),
    Stage("ship", "a good bundle is signed, and a bad one", ship),
    Stage("roll-out", "the good one reaches the devices in stages", roll_out),
    Stage("bad bundle", "the bad one fails at one device's gate, and no other gets it", bad),
    Stage("cut cable", "a device goes back while its cable is out", cable),
    Stage("peer", "a device answers for another", peer),
    Stage("page", "what the hub knows", page),
)


@contextmanager
def opened(folder: Path, home: Path, kept: Path, size: FleetSize, show: StageWatcher) -> Iterator[FleetDemo]:
    """A demo whose processes end with the block."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    brise = Brise(home, logs)
    with ExitStack() as stack:
        stack.callback(brise.close)
        yield FleetDemo(folder, brise, size, show, stack, kept)
