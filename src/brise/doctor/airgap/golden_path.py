"""The golden path by the commands that a user would type, from pull to report; `watched.py` starts it and watches.

usage: python -m brise.doctor.airgap.golden_path FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType

import httpx
from starlette.routing import Route as HttpRoute

from brise.demo.child import Brise, ChildError, share_models, shown
from brise.demo.large_model import LargeModelProcess
from brise.demo.stand_in import NAME as LARGE
from brise.demo.stand_in import Nature
from brise.doctor.airgap.report import WalkedStep
from brise.doctor.airgap.watched import COMMAND, OPTIONS, STEPS
from brise.errors import BriseError
from brise.serve.app import create_app
from brise.serve.serving import RequestWatch, ServeSettings, prepare

TASK = "airgap"
_ROWS = 40  # proving takes 30 at least
_ELSEWHERE = "http://192.0.2.1/image.png"  # an address for documentation (RFC 5737); nothing may ask it
_SECONDS = 120.0
_LIBRARIES: Mapping[str, str] = MappingProxyType({
    "huggingface_hub": "from huggingface_hub import HfApi, hf_hub_download",
    "mistral_common": "from mistral_common.tokens.tokenizers.mistral import MistralTokenizer"})


class SkippedStepError(BriseError):
    """A step that cannot run here, and what it needs."""


@dataclass
class Walk:
    """What the steps share: a home of their own, data, and what earlier steps made."""

    folder: Path
    source: str  # what is pulled
    model: str
    brise: Brise
    ran: list[str] = field(default_factory=list)
    adapter: Path | None = None

    @property
    def data(self) -> Path:
        """Rows to train on and to evaluate."""
        return self.folder / "rows.jsonl"

    @property
    def store(self) -> Path:
        """The traffic that `serve` captures and `report` reads."""
        return self.folder / "traffic.sqlite"

    def run(self, *words: str, allowed: Sequence[int] = (0,)) -> str:
        """A command of brise; what it printed."""
        self.begin(shown(words))
        return self.brise.run(*words, allowed=allowed).out

    def begin(self, command: str) -> None:
        """Says which command runs from here on."""
        self.ran.append(command)
        staged = self.folder / f"{COMMAND}.new"
        staged.write_text(command, encoding="utf-8")
        os.replace(staged, self.folder / COMMAND)

    @contextlib.contextmanager
    def large_model(self) -> Iterator[str]:
        """A simulated large model on loopback."""
        large = LargeModelProcess({}, Nature(accuracy=1.0, median_s=0.01))
        large.start()
        try:
            yield large.url
        finally:
            large.kill()


def pull(walk: Walk) -> None:
    """Gets the model without a network, and is refused one of the hub that is not here."""
    name = () if walk.source == walk.model else ("--name", walk.model)
    walk.run("pull", walk.source, *name, "--offline")
    walk.run("pull", "hf:nobody/not-here", "--offline", allowed=(1,))


def plan(walk: Walk) -> None:
    """Adds up the memory."""
    walk.run("plan", walk.model, "--json", allowed=(0, 1))  # 1: it would not fit, which is an answer


def chat(walk: Walk) -> None:
    """Answers a question."""
    walk.run("chat", walk.model, "Name three winds.", "--max-tokens", "4")


def libraries(walk: Walk) -> None:
    """Imports libraries that can download; torch is imported by `tune`."""
    imports = [line for package, line in _LIBRARIES.items() if find_spec(package)]
    if not imports:
        raise SkippedStepError("needs pip install 'brise[hf,mistral]'")
    _command(walk, walk.folder, [sys.executable, "-c", "\n".join(imports)], f"python -c '{'; '.join(imports)}'")


def tune(walk: Walk) -> None:
    """Trains an adapter for two steps, and checks parity."""
    _needs("torch", "tune")
    walk.run("tune", str(walk.data), "--model", walk.model, "--out", str(walk.folder / "tuned"), "--steps", "2",
             "--batch-size", "4", "--rank", "4", "--eval-rows", "2", "--parity-rows", "2", "--json", allowed=(0, 1))
    adapter = walk.folder / "tuned" / "adapter"
    if not (walk.folder / "tuned").is_dir():
        raise ChildError("brise tune ended before it trained", hint=_last_line(walk.folder / "logs" / "tune.log"))
    walk.adapter = adapter if adapter.is_dir() else None  # none: two steps need not make a model better


def evaluate(walk: Walk) -> None:
    """Measures answers."""
    adapter = ("--adapter", str(walk.adapter)) if walk.adapter else ()
    walk.run("eval", str(walk.data), "--model", walk.model, *adapter, "--max-tokens", "4", "--sample", "4", "--json")


def serve(walk: Walk) -> None:
    """Serves the model, and stands in front of a large one on loopback; every route is asked."""
    adapter = ("--adapter", f"tuned={walk.adapter}") if walk.adapter else ()
    with walk.large_model() as url:
        words = (walk.model, *adapter, "--upstream", url, "--candidate", walk.model, "--shadow", "1", "--fallback",
                 walk.model, "--store", str(walk.store))
        walk.begin(shown(("serve", *words)))
        with walk.brise.server(*words) as base, _client(base.removesuffix("/v1")) as client:
            for route in routes(walk.model, walk.adapter):
                _ask(client, *route)


def prove(walk: Walk) -> None:
    """Asks both models, and compares their answers."""
    with walk.large_model() as url:
        walk.run("prove", str(walk.data), "--model", walk.model, "--large-endpoint", url, "--large-name", LARGE,
                 "--max-tokens", "4", "--html", str(walk.folder / "proof.html"), "--json", allowed=(0, 3, 4))


def report(walk: Walk) -> None:
    """Writes the report of the captured traffic as a page."""
    if not walk.store.is_file():
        raise SkippedStepError("needs the traffic of the step serve")
    walk.run("report", "--task", TASK, "--store", str(walk.store), "--html", str(walk.folder / "report.html"))
    walk.run("audit", "--store", str(walk.store))


Step = Callable[[Walk], None]
STEPS_BY_NAME: Sequence[tuple[str, Step]] = (
    ("pull", pull), ("plan", plan), ("chat", chat), ("libraries", libraries), ("tune", tune), ("eval", evaluate),
    ("serve", serve), ("prove", prove), ("report", report))
STEP_NAMES = tuple(name for name, _ in STEPS_BY_NAME)
Route = tuple[str, str, dict[str, object] | None]


def routes(model: str, adapter: Path | None) -> list[Route]:
    """Requests for every route of the server, some of which it has to refuse: any answer below 500 will do."""
    asked = [*_told_routes(model, adapter), *_ollama_routes(model)]
    return [*asked, *_other_routes(model, asked)]


def _told_routes(model: str, adapter: Path | None) -> list[Route]:
    messages = [{"role": "user", "content": "ticket 3: no paper"}]
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": _ELSEWHERE}}]}]
    short: dict[str, object] = {"model": model, "max_tokens": 4}
    asked: list[Route] = [("POST", "/v1/chat/completions", {"model": LARGE, "messages": [
        {"role": "user", "content": f"ticket {number}"}], "stream": number % 2 == 0}) for number in range(4)]
    return [
        *asked,
        ("POST", "/v1/chat/completions", {**short, "messages": messages}),
        ("POST", "/v1/chat/completions", {**short, "messages": messages, "stream": True}),
        ("POST", "/v1/chat/completions", {**short, "messages": image}),
        ("POST", "/v1/completions", {**short, "prompt": "ticket"}),
        ("POST", "/v1/embeddings", {"model": model, "input": "ticket"}),
        ("POST", "/v1/responses", {"model": model, "max_output_tokens": 16, "input": "ticket"}),
        ("GET", "/v1/responses/none", None), ("DELETE", "/v1/responses/none", None),
        ("POST", "/v1/messages", {**short, "messages": messages}),
        ("POST", "/v1/messages/count_tokens", {"model": model, "messages": messages}),
        ("POST", "/tokenize", {"model": model, "prompt": "ticket"}),
        ("POST", "/detokenize", {"model": model, "tokens": [5, 6]}),
        ("GET", "/v1/models", None), ("GET", "/v1/models/", None), ("GET", f"/v1/models/{model}", None),
        ("GET", "/v1/adapters", None), ("POST", "/v1/adapters", {"name": "again", "path": str(adapter)}),
        ("DELETE", "/v1/adapters/again", None),
        ("GET", "/", None), ("GET", "/health", None), ("GET", "/metrics", None)]


def _ollama_routes(model: str) -> list[Route]:
    """Those of Ollama's API. Some of them fetch or send models with Ollama; the server has to refuse these."""
    named: dict[str, object] = {"model": model, "name": model}
    short: dict[str, object] = {**named, "options": {"num_predict": 4}, "prompt": "ticket", "input": "ticket"}
    fetched: dict[str, object] = {"model": "nobody/not-here", "from": model}
    return [
        *(("GET", f"/api/{name}", None) for name in ("tags", "ps", "version")),
        ("POST", "/api/chat", {**short, "messages": [{"role": "user", "content": "ticket"}]}),
        *(("POST", f"/api/{name}", short) for name in ("generate", "embed", "embeddings", "show")),
        *(("POST", f"/api/{name}", fetched) for name in ("pull", "push", "create", "copy"))]


def _other_routes(model: str, asked: Sequence[Route]) -> Iterator[Route]:
    """Whatever else the server has, with bodies that say next to nothing."""
    app = create_app(prepare({}, ServeSettings(), sys.stderr, None, None, RequestWatch()))
    for route in app.routes:
        if not isinstance(route, HttpRoute):
            continue
        for method in sorted((route.methods or set()) - {"HEAD"}):
            if not any(method == other and route.path_regex.fullmatch(path) for other, path, _ in asked):
                yield method, re.sub(r"\{[^}]*\}", "none", route.path), {"model": model} if method == "POST" else None


def _client(base: str) -> httpx.Client:
    return httpx.Client(base_url=base, trust_env=False, timeout=_SECONDS, headers={"x-brise-task": TASK})


def _ask(client: httpx.Client, method: str, path: str, body: dict[str, object] | None) -> None:
    try:
        answer = client.request(method, path, json=body)
    except httpx.HTTPError as error:
        raise ChildError(f"{method} {path} got no answer: {error!r}") from error
    if answer.status_code >= 500:
        raise ChildError(f"{method} {path} was answered {answer.status_code}: {answer.text[:200]}")


def _needs(module: str, extra: str) -> None:
    if find_spec(module) is None:
        raise SkippedStepError(f"needs pip install 'brise[{extra}]'")


def _command(walk: Walk, place: Path, words: Sequence[str], text: str) -> None:
    """A program that is not a command of brise, in the folder `place`."""
    walk.begin(text)
    log = walk.folder / "logs" / "command.log"
    with log.open("wb") as output:  # a file: what it leaves behind would hold a pipe open
        status = subprocess.call(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=place)
    if status:
        raise ChildError(f"`{text}` ended with status {status}: {_last_line(log) or 'it said nothing'}")


def _last_line(log: Path) -> str | None:
    lines = log.read_text("utf-8", "replace").strip().splitlines() if log.is_file() else []
    return lines[-1] if lines else None


def _also(command: str, place: Path) -> Step:
    return lambda walk: _command(walk, place, shlex.split(command), command)


def walk_all(walk: Walk, steps: Sequence[tuple[str, Step]]) -> Iterator[WalkedStep]:
    """Runs the steps, one after the other; one that fails does not keep the next from running."""
    for name, step in steps:
        walk.ran, began_s = [], time.monotonic()
        try:
            step(walk)
        except SkippedStepError as error:
            yield WalkedStep(name, (), "skipped", str(error), 0.0)
            continue
        except (BriseError, OSError) as error:
            yield WalkedStep(name, tuple(walk.ran), "failed", str(error), time.monotonic() - began_s)
            continue
        yield WalkedStep(name, tuple(walk.ran), "done", "", time.monotonic() - began_s)


def main(folder: Path) -> int:
    """The process: reads the options, walks, and writes a line for each step."""
    options = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
    home = folder / "home"
    if options["shared"]:
        share_models(Path(options["shared"]), home)
    home.mkdir(exist_ok=True)
    (folder / "logs").mkdir()
    walk = Walk(folder, options["source"], options["model"], Brise(home, folder / "logs"))
    walk.data.write_text("".join(json.dumps({"prompt": f"ticket {number}: {'paper' * (number % 3)}", "completion":
                                             "yes" if number % 2 else "no"}) + "\n" for number in range(_ROWS)))
    steps = [(name, step) for name, step in STEPS_BY_NAME if name in options["steps"]]
    steps += [("also", _also(command, Path(options["folder"]))) for command in options["also"]]
    try:
        with (folder / STEPS).open("w", encoding="utf-8") as lines:
            for step in walk_all(walk, steps):
                lines.write(json.dumps(asdict(step)) + "\n")
                lines.flush()
                print(f"{step.name}: {step.state} in {step.seconds:.1f} s"  # noqa: T201 - for who started this
                      + (f": {step.why}" if step.why else ""), flush=True)
    finally:
        walk.brise.close()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
