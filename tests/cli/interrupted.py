"""A run of `brise tune --json` that gets Ctrl-C after its first step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ended:
    """How it ended: its exit status, its last event, and what it said on stderr."""

    status: int
    last: Mapping[str, object]
    said: str


def interrupted(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Ended:
    """Starts it, waits for a step, and interrupts it."""
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "step":
                break
        os.kill(process.pid, signal.SIGINT)
        rest, said = process.communicate()
    return Ended(process.returncode, json.loads(rest.splitlines()[-1]), said)
