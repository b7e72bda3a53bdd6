"""A device of `brise demo --fleet`: a `brise node`, what it has installed, and what it answers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from brise.demo.cable import Cable
from brise.demo.child import ChildError, Running
from brise.demo.workload import SYSTEM

BUNDLE, TASK_TOKENS = "in-car", 24


@dataclass
class DemoCar:
    """A `brise node`: its folder, its own port, and its cable to the hub."""

    name: str
    folder: Path
    port: int
    cable: Cable
    node: Running

    @property
    def state(self) -> Mapping[str, Any]:
        """What it has installed, from its own file."""
        with suppress(OSError, ValueError):
            found: Mapping[str, Any] = json.loads((self.folder / "bundles" / "state.json").read_bytes())
            return found
        return {}

    @property
    def runs(self) -> int | None:
        """The version that is committed."""
        current = self.state.get("current")
        return None if current is None else int(current["version"])

    @property
    def tries(self) -> str | None:
        """The state of an update that is under way."""
        attempt = self.state.get("attempt")
        return None if attempt is None else str(attempt["state"])

    def ask(self, text: str, seconds: float = 60.0) -> httpx.Response:
        """A request of a car, at the device's own port."""
        body = {"model": BUNDLE, "max_tokens": TASK_TOKENS, "temperature": 0,
                "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]}
        with httpx.Client(trust_env=False, timeout=seconds) as client:
            return client.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", json=body)

    def kill_server(self) -> None:
        """SIGKILL to the process that answers at the device's port; ChildError if there is none."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.node.process.pid and fields[0] != "Z":
                    os.kill(int(path.parent.name), signal.SIGKILL)
                    return
        raise ChildError(f"{self.name} has no server")
