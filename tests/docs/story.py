"""A page, run from top to bottom: console blocks command by command, Python as written, TOML and JSON read.

A command of brise runs in this process, with `EXTRA` words that keep it short. `brise serve` runs in one of its own,
which stays up for the blocks that follow, until the next one or the end. What cannot run is in `CHECKED`, with the
reason: it is parsed by brise, and by bash.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import brise
from brise.cli.main import main, parse
from brise.data.rights import read_rights
from brise.demo.child import reserved_port
from brise.traffic.prices import read_prices
from tests.docs import stand_ins
from tests.docs.pages import ROOT, Block, Given, NewFolder, Step, commands
from tests.docs.stand_ins import Place
from tests.waiting import LIMIT_S

PORT = 8080  # of `brise serve`, where an example names none
CHECKED: Mapping[str, str] = MappingProxyType({
    r"(sudo|\S*pip|python3 -m venv|python scripts/locked\.py|\.) ": "changes the machine, or needs a package index",
    r"(export \w+=|sqlite3 )": "belongs to the reader's shell",
    r"scripts/": "installs and runs everything, this test included",
    r"python (bench|tests)/": "takes minutes, or a program that is not installed",
    r"python examples/": "tests/test_examples.py runs them all",
    r"torchrun ": "starts processes of its own: tests/cli/test_tune_ranks.py does the same",
    r"(RAY_\w+=\d )?serve run ": "needs Ray: tests/serve/test_ray.py runs the same",
    r"docker ": "needs a container engine",
    r"curl ": "belongs to another terminal: tests/serve/test_adapters.py sends the same",
    r"brise serve(rs)? .*postgresql://": "needs a PostgreSQL server: tests/serve/test_several_servers.py starts one",
    r"brise deploy .*--store \S+ *$": "needs servers that run: tests/deploy has the rest",
    r"brise pull (smollm2$|[\w.-]+:)": "needs the network",
    r"brise doctor .*--(airgap|reach https)": "takes a minute, or asks another host: tests/doctor runs it",
    r"brise node (?!--status)": "runs until it is ended, and needs a fleet: tests/fleet has devices",
    r"brise hub": "runs until it is ended, and needs a fleet: tests/fleet/test_hub_process.py runs it",
    r"brise fleet (?!keys)": "asks a hub that runs: tests/fleet/test_hub_process.py has one",
    r"brise ship .*oci://": "needs a registry: tests/fleet/test_registry.py starts one",
    r"brise fleet keys sign ": "needs a change that another holder proposed: tests/fleet/test_keys.py has one",
    r"brise demo\b": "takes minutes: tests/demo runs its stages",
    r"brise .*--([\w-]*endpoint|teacher) https://": "asks another host",
    r"brise parity .*--endpoint http://": "asks another engine: tests/tune/test_parity_endpoint.py has one",
    r"brise act camera ": "takes minutes: tests/robots trains a small one",
    r"brise act walk ": "needs the extra sim: tests/robots/test_babyai.py walks where it is there",
    r"brise act (bench |.*--server )": "needs a model that was trained on actions: tests/robots has one",
    r"brise chat .*--(image|audio)": "needs a model with an encoder for it",
})
EXTRA: Mapping[str, str] = MappingProxyType({
    r"chat ": "--max-tokens 4",
    r"eval (?!.*--baseline)": "--max-tokens 4",
    r"ship (?!--(check|withdraw))": "--context 256 --gate-tokens 4 --gate-prompts 2 --gate-same 0 --parity-kl 1",
    r"act rows ": "--episodes 2 --states 50",
    r"act fly --expert": "--episodes 2",
    r"bench .*--speculate ": "--count 4",
    r"bench ": "--prompt 16 --decode 4 --depth 4 --sequences 1 --runs 1",
    r"tune ": "--batch-size 8 --eval-rows 4 --parity-rows 0 --threads 1 --dtype float32",
    r"tune .*--teacher ": "--held-out-share 0",  # a random teacher only makes it worse
    r"tune (?!.*--on-policy)": "--steps 4",
    r"tune .*--on-policy": "--rounds 1 --round-prompts 2 --round-tokens 4 --round-steps 1",
    r"parity ": "--rows 2 --min-agreement 0",  # after one step the likeliest tokens are nearly ties
})
STATUSES: Mapping[str, Sequence[int]] = MappingProxyType({  # that are answers, and no errors
    "prove": (0, 3, 4), "cascade": (0, 3), "triage": (0, 3), "plan": (0, 1)})
READERS = (("models", read_prices), ("allow", read_rights), ("values", brise.read_action_space))


class Story:
    """Runs the steps of a page in a folder, which is the current one, with its own BRISE_HOME."""

    def __init__(self, prepared: Place, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._prepared, self._folder, self._patch = prepared, folder, patch
        self._count = 0
        self._server: subprocess.Popen[bytes] | None = None
        self._ports = ExitStack()
        self._names: dict[str, Any] = {}
        self._begin()

    def run(self, step: Step) -> None:
        """One step; AssertionError, or what Python raises, if it does not do what the page says."""
        match step:
            case Given():
                stand_ins.put(self._place, step.kind, step.names)
            case NewFolder():
                self.end()
                self._begin()
            case Block(file=str() as name):
                (self._place.folder / name).write_text(step.text, encoding="utf-8")
            case Block(language="console"):
                for command in commands(step):
                    self._command(command)
            case Block(language="python"):
                with self._port_of_server():
                    exec(compile(step.text, step.place, "exec"), self._names)
            case Block(language="json"):
                json.loads(step.text)
            case Block(language="toml"):
                self._toml(step.text)

    def end(self) -> None:
        """Stops the server, if one runs: it must end by itself, with 0."""
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            assert self._server.wait(LIMIT_S) == 0
            self._server = None
        self._ports.close()

    def _begin(self) -> None:
        self._count += 1
        folder = self._folder / str(self._count)
        folder.mkdir()
        self._place = stand_ins.copy(self._prepared, folder)
        self._names = {"__name__": "docs"}
        self._patch.setenv("BRISE_HOME", str(self._place.home))
        self._patch.setenv("HOME", str(self._place.folder))  # pages say ~/.local/share/brise
        for variable in ("OPENAI_API_KEY", "MISTRAL_API_KEY"):
            self._patch.setenv(variable, "none")
        self._patch.setenv("PYTHONPATH", str(Path(brise.__file__).parents[1]))  # of other processes: the same brise
        self._patch.chdir(self._place.folder)

    def _command(self, text: str) -> None:
        subprocess.run(["bash", "-n", "-c", text], check=True)
        for words, given in split(text):
            if unrunnable(words) is not None:
                self._check(words)
            elif words[1] == "serve":
                self._serve(words[1:])
            else:
                self._brise(words[1:], given)

    def _check(self, words: Sequence[str]) -> None:
        """What can be said of a command without running it."""
        if words[0] == "brise":
            parse(words[1:])
        for word in words:
            if re.fullmatch(r"(scripts|bench|tests|examples)/[\w/.]+", word):
                assert (ROOT / word).exists(), word

    def _brise(self, words: Sequence[str], given: str) -> None:
        line = shlex.join(words)
        extra = [word for pattern, more in EXTRA.items() if re.match(pattern, line) for word in more.split()]
        self._patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        try:
            status = main([*words, *extra])
        except SystemExit as leaving:  # after --version and --help
            status = int(leaving.code or 0)
        assert status in STATUSES.get(words[0], (0,)), f"brise {line} ended with {status}"

    def _serve(self, words: Sequence[str]) -> None:
        self.end()
        self._port = self._ports.enter_context(reserved_port())
        log = self._place.home / "serve.log"
        with log.open("wb") as file:
            server = subprocess.Popen([sys.executable, "-m", "brise", *words, "--port", str(self._port)], stderr=file)
        while b"brise serves" not in log.read_bytes():
            assert server.poll() is None, log.read_text()
            time.sleep(0.05)
        self._server = server

    @contextmanager
    def _port_of_server(self) -> Iterator[None]:
        """Who connects to the port that examples name comes to the one where the server listens."""
        connect = socket.create_connection

        def connected(address: tuple[str, int], *more: Any, **named: Any) -> socket.socket:
            host, port = address
            return connect((host, self._port if port == PORT and self._server is not None else port), *more, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(socket, "create_connection", connected)
            yield

    def _toml(self, text: str) -> None:
        """Read by what reads such a file of users."""
        read = next(read for key, read in READERS if key in tomllib.loads(text))
        path = self._place.folder / "checked.toml"
        path.write_text(text, encoding="utf-8")
        read(path)


def unrunnable(words: Sequence[str]) -> str | None:
    """The pattern in CHECKED that a command has, or None if it can run."""
    return next((pattern for pattern in CHECKED if re.match(pattern, " ".join(words))), None)


def split(text: str) -> Iterator[tuple[list[str], str]]:
    """The commands of a line, each with its stdin: of `echo hi | brise chat m` the second, with "hi"."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;")
    lexer.whitespace_split = True
    words, given = list[str](), "hi\n"
    for token in (*lexer, ";"):
        if token not in ("|", "&&", ";"):
            words.append(token)
        elif words:
            if token == "|":
                assert words[0] == "echo", f"{words[0]!r} before a pipe: only echo is known"
                given = " ".join(words[1:]) + "\n"
            else:
                yield words, given
                given = "hi\n"
            words = []
