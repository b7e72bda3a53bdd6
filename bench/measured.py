"""A measured process that is up and waits for commands: one a line in, one line of JSON out (worker.py)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any


class Worker:
    """`hello` is what it said when its model was loaded."""

    def __init__(self, command: Iterable[str]) -> None:
        self._process = subprocess.Popen(list(command), text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.hello = self._answer()

    @property
    def version(self) -> str:
        return str(self.hello["version"])

    def ask(self, command: str) -> Mapping[str, Any]:
        """What it says to a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Mapping[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"error: a worker died, status {self._process.wait()}")
        answer: Mapping[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
