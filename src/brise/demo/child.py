"""The real commands, as processes of their own: what the demo runs is what a user would type."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import httpx

from brise import settings
from brise.errors import BriseError

_READY_S, _STOP_S = 120.0, 20.0
_SHARED = ("blobs", "folders", "manifests")  # of the model store


class ChildError(BriseError):
    """A command of the demo ended otherwise than it should."""


@dataclass(frozen=True)
class Done:
    """How a command ended, and what it printed."""

    status: int
    out: str
    notes: str


@dataclass(frozen=True)
class Running:
    """A command that runs on, and the file with what it says."""

    process: subprocess.Popen[str]
    log: Path

    def said(self) -> str:
        """All of it until now."""
        return self.log.read_text("utf-8", "replace")

    def has_ended(self) -> bool:
        return self.process.poll() is not None


@dataclass
class Brise:
    """Runs `brise WORD...` with its own home; what they say goes to files in `logs`, too."""

    home: Path
    logs: Path
    _running: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, *words: str, allowed: Sequence[int] = (0,)) -> Done:
        """Waits for the end; ChildError if the status is none of the `allowed`."""
        process = self._start(words, subprocess.PIPE, subprocess.PIPE)
        out, notes = process.communicate()
        self._running.remove(process)
        self._write(words, out + notes)
        self._check(words, process.returncode, notes, allowed)
        return Done(process.returncode, out, notes)

    def lines(self, *words: str, allowed: Sequence[int] = (0,)) -> Iterator[str]:
        """Lines of stdout as they come; ChildError at the end if the status is none of the `allowed`."""
        notes = self._place(words)
        with notes.open("a") as file:
            process = self._start(words, subprocess.PIPE, file)
            assert process.stdout is not None, "it is a pipe"
            with process.stdout:
                yield from process.stdout
            process.wait()
        self._running.remove(process)
        self._check(words, process.returncode, notes.read_text("utf-8", "replace"), allowed)

    @contextlib.contextmanager
    def server(self, *words: str) -> Iterator[str]:
        """`brise serve WORD...` on a free port, until the block ends; gives what stands before /chat/completions."""
        with reserved_port() as port, self._place(("serve",)).open("a") as file:
            words = ("serve", *words, "--port", str(port), "--log-level", "warning")
            process = self._start(words, file, file)
            try:
                self._wait_ready(words, process, port)
                yield f"http://127.0.0.1:{port}/v1"
            finally:
                self._stop(process)

    @contextlib.contextmanager
    def running(self, name: str, *words: str, secrets: Mapping[str, str] | None = None) -> Iterator[Running]:
        """`brise WORD...` until the block ends; what it says goes to the log NAME, `secrets` into its environment."""
        log = self.logs / f"{name}.log"
        with log.open("a") as file:
            process = self._start(words, file, file, secrets or {})
            try:
                yield Running(process, log)
            finally:
                self._stop(process)

    def close(self) -> None:
        """Ends whatever still runs."""
        for process in list(self._running):
            self._stop(process)

    def _start(self, words: Sequence[str], out: object, notes: object,
               secrets: Mapping[str, str] = MappingProxyType({})) -> subprocess.Popen[str]:
        # In a session of its own: Ctrl-C is for the demo, which ends its children one after the other.
        process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-m", "brise", *words], stdout=out, stderr=notes,  # type: ignore[call-overload]
            stdin=subprocess.DEVNULL, text=True, start_new_session=True, cwd=self.logs,
            env=settings.child_environment({"BRISE_HOME": str(self.home), **secrets}))
        self._running.append(process)
        return process

    def _stop(self, process: subprocess.Popen[str]) -> None:
        """Asks it to end, then ends it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_S)
        if process in self._running:
            self._running.remove(process)

    def _wait_ready(self, words: Sequence[str], process: subprocess.Popen[str], port: int) -> None:
        end = time.monotonic() + _READY_S
        with httpx.Client(trust_env=False, timeout=5.0) as client:
            while time.monotonic() < end:
                if process.poll() is not None:
                    self._check(words, process.returncode, self._place(words).read_text("utf-8", "replace"), ())
                with contextlib.suppress(httpx.HTTPError):
                    if client.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                        return
                time.sleep(0.1)
        raise ChildError(f"brise serve did not answer within {_READY_S:g} s", hint=f"see {self._place(words)}")

    def _check(self, words: Sequence[str], status: int, notes: str, allowed: Sequence[int]) -> None:
        if status not in allowed:
            last = "\n".join(notes.strip().splitlines()[-4:])
            raise ChildError(f"`{shown(words)}` ended with status {status}: {last}", hint=f"see {self._place(words)}")

    def _place(self, words: Sequence[str]) -> Path:
        return self.logs / f"{words[0]}.log"

    def _write(self, words: Sequence[str], text: str) -> None:
        with self._place(words).open("a") as file:
            file.write(f"$ {shown(words)}\n{text}\n")


def share_models(home: Path, own: Path) -> None:
    """Makes a home of its own, so that keys and traffic mix with none of the user's; the models are shared."""
    own.mkdir(parents=True)
    for name in _SHARED:
        if (home / name).is_dir():
            os.symlink(home / name, own / name)


def shown(words: Sequence[str]) -> str:
    """The command as one types it."""
    return f"brise {shlex.join(words)}"


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A port at which nobody listens, and which the system gives to nobody else until the block ends. A server that
    asks for it by number, with SO_REUSEADDR as servers do, gets it: Linux refuses that only beside another listener."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
