"""A model that acts, in a server of its own: what the pilot asks, over one connection that stays open."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from brise.errors import AnswerError, NetworkError, UnsupportedError
from brise.robots.pilot import PolicyAnswer
from brise.text.action_space import ActionSpace, parse_action_space

GRACE_S = 0.25  # that an answer may take beyond its deadline before the server counts as dead
MAX_ANSWER_BYTES = 4 << 20
MAX_ANSWERS = 1_000_000  # of one that draws, before it would draw what the next seed drew

Messages = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class ServerAddress:
    """A brise server, and the name of the adapter that acts there."""

    url: str
    model: str
    key: str | None = None


class ActingServer:
    """Implements the pilot's `Pilotable` over `POST /v1/actions`. It belongs to one thread at a time.

    It takes the model's best guess at temperature 0; above, answers are drawn, the same ones for the same `seed`.
    AnswerError for a refusal, which would come again; NetworkError or OSError if the server is not there.
    """

    def __init__(self, address: ServerAddress, temperature: float = 0.0, seed: int = 0) -> None:
        parts = urlsplit(address.url if "//" in address.url else f"http://{address.url}")
        if parts.scheme != "http" or parts.hostname is None:
            raise UnsupportedError(f"the server is {address.url!r}; a control loop asks http://HOST:PORT on its own "
                                   "machine or network")
        self._address, self._host, self._port = address, parts.hostname, parts.port or 80
        self._path = parts.path.rstrip("/").removesuffix("/v1")
        self._connection: http.client.HTTPConnection | None = None
        self._temperature, self._seed, self._num_asked = temperature, seed, 0
        self.usage: Mapping[str, Any] = {}  # of the last answer

    def space(self) -> ActionSpace:
        """The action space of the model."""
        card = self._ask("GET", f"/v1/models/{quote(self._address.model, safe='')}", None, 10.0)
        if not isinstance(card.get("actions"), dict):
            raise UnsupportedError(f"{self._address.model!r} was trained on no actions",
                                   hint="name an adapter that `brise tune --actions` made")
        return parse_action_space(json.dumps(card["actions"]))

    def decide(self, observation: Messages, deadline_s: float) -> PolicyAnswer:
        """The model's steps; what it did not decide in time is left to the pilot's fallback."""
        body: dict[str, object] = {"model": self._address.model, "messages": list(observation),
                                   "deadline_ms": 1e3 * deadline_s}
        if self._temperature > 0:
            self._num_asked += 1
            body |= {"temperature": self._temperature, "seed": MAX_ANSWERS * self._seed + self._num_asked}
        answer = self._ask("POST", "/v1/actions", body, deadline_s + GRACE_S)
        try:
            commands = np.array(answer["commands"][:answer["num_decided"]], np.float64)
            self.usage = answer["usage"]
            return PolicyAnswer(commands.reshape(-1, len(answer["names"])), bool(answer["late"]))
        except (KeyError, TypeError, ValueError) as error:
            raise AnswerError(f"{self._address.url} sent no actions: {error!r}") from error

    def close(self) -> None:
        """Closes the connection; the next question opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, method: str, path: str, body: object, timeout_s: float) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        if self._address.key is not None:
            headers["authorization"] = f"Bearer {self._address.key}"
        sent = None if body is None else json.dumps(body)
        is_kept = self._connection is not None
        try:
            try:
                status, data = self._exchange(method, path, sent, headers, timeout_s)
            except ConnectionError:
                if not is_kept:
                    raise
                # The server has ended the connection, as servers do with idle ones: ask by a new one.
                status, data = self._exchange(method, path, sent, headers, timeout_s)
        except (OSError, http.client.HTTPException) as error:
            raise NetworkError(f"{self._address.url} does not answer: {error or type(error).__name__}") from error
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if status != 200 or not isinstance(answer, dict):
            said = answer.get("error", {}).get("message") if isinstance(answer, dict) else None
            raise AnswerError(f"{self._address.url} refuses ({status}): {said or data[:200]!r}")
        return answer

    def _exchange(self, method: str, path: str, body: str | None, headers: Mapping[str, str], timeout_s: float,
                  ) -> tuple[int, bytes]:
        """The status and the body of an answer. A connection that fails is closed."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        connection = self._connection
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        try:
            connection.request(method, self._path + path, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.read(MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException):
            self.close()
            raise
