"""The server of the local gate: the bundle's own, as it is going to run, on a port of this machine for nobody else."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from brise.fleet.bundle import Bundle
from brise.fleet.gate_prompts import read_gate
from brise.fleet.local_gate import GateResult, run_gate
from brise.fleet.refusals import UnfitError
from brise.fleet.supervisor import PROGRAM, Child, ServerOrder

READY_S, ANSWER_S = 600.0, 600.0  # for a server to get ready, and for one answer
TICK_S = 0.05


@dataclass(frozen=True)
class GateServer:
    """Runs the gate. What the server says goes to `log`; `headers` have the key that it asks for."""

    log: Path
    home: Path
    headers: Mapping[str, str]
    program: Sequence[str] = PROGRAM

    def run(self, order: ServerOrder, bundle: Bundle, place: Path) -> GateResult:
        """UnfitError if the server does not start within its memory, is not the model that was shipped, or gives no
        answer."""
        with self._started(order) as url, httpx.Client(base_url=url, headers=dict(self.headers), trust_env=False,
                                                       timeout=ANSWER_S) as client:
            card = _json(client, "GET", f"/v1/models/{bundle.name}", None)
            if card.get("fingerprint") != bundle.fingerprint:
                raise UnfitError(f"what answers here has the fingerprint {card.get('fingerprint')}, "
                                 f"{bundle.fingerprint} was shipped")
            if bundle.gate is None:
                return GateResult((), ())
            prompts = read_gate((place / bundle.gate.path).read_bytes())
            return run_gate(prompts, bundle.limits, bundle.name,
                            lambda body: _json(client, "POST", "/v1/chat/completions", body))

    @contextmanager
    def _started(self, order: ServerOrder) -> Iterator[str]:
        self.log.unlink(missing_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            child = Child(order.words, listener, self.log, self.home, self.program)
            try:
                end_s = time.monotonic() + READY_S
                while not child.is_ready:
                    if child.has_ended or time.monotonic() > end_s:
                        raise UnfitError(f"its server did not start: {_last_lines(self.log)}")
                    time.sleep(TICK_S)
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                listener.close()  # where the server ends now, nobody waits for an answer
                yield url
            finally:
                child.kill()


def _json(client: httpx.Client, method: str, path: str, body: Mapping[str, Any] | None) -> Mapping[str, Any]:
    try:
        response = client.request(method, path, json=None if body is None else dict(body))
        found = response.json()
    except (httpx.HTTPError, ValueError) as error:
        raise UnfitError(f"its server does not answer {path}: {type(error).__name__}: {error}") from None
    if response.status_code != 200 or not isinstance(found, dict):
        raise UnfitError(f"its server answers {path} with status {response.status_code}: {response.text[:300]}")
    return found


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text("utf-8", "replace").strip().splitlines()
    except OSError:
        lines = []
    return " ".join(lines[-3:])[-500:] or "it said nothing"
