"""What `brise fleet` asks of a hub: the operator's requests over HTTP, with the operator's key."""

from __future__ import annotations

import getpass
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from brise.errors import FleetError
from brise.fleet.hub_process import OPERATOR_KEY, PORT
from brise.fleet.sources import trusted
from brise.serve.access import is_key

TIMEOUT_S = 60.0
MOST_DEVICES = 1000  # of one answer


@dataclass(frozen=True)
class OperatorOptions:
    """Which hub, and with which key. `authority` is a PEM file with the certificate that signed the hub's."""

    home: Path
    hub: str = f"http://127.0.0.1:{PORT}"
    key: Path | None = None
    authority: Path | None = None


class FleetOperator:
    """One operator's connection. What the hub refuses is a FleetError with its words. `client` is for tests."""

    def __init__(self, options: OperatorOptions, client: httpx.Client | None = None) -> None:
        self._url = options.hub.rstrip("/")
        self._headers = {"authorization": f"Bearer {_read_key(options)}"}
        self._client = client or httpx.Client(trust_env=False, timeout=TIMEOUT_S,
                                              verify=trusted(options.authority) or True)

    def status(self) -> Mapping[str, Any]:
        """The whole state (hub.status)."""
        found: Mapping[str, Any] = self._ask("GET", "status")
        return found

    def bundles(self) -> list[Mapping[str, Any]]:
        """The bundles that the release key has signed into the hub's repository."""
        found: list[Mapping[str, Any]] = self._ask("GET", "bundles")
        return found

    def devices(self, state: str | None = None) -> Iterator[Mapping[str, Any]]:
        """All devices, or those whose last report says this state."""
        after, more = "", "" if state is None else f"&state={quote(state, safe='')}"
        while found := self._ask("GET", f"devices?limit={MOST_DEVICES}&after={quote(after, safe='')}{more}"):
            yield from found
            after = found[-1]["device"]

    def roll_out(self, terms: Mapping[str, Any]) -> Mapping[str, Any]:
        """Begins a roll-out; `terms` are those of hub_operations.terms_of."""
        found: Mapping[str, Any] = self._ask("POST", "roll-outs", {**terms, "user": user()})
        return found

    def change(self, rollout: str, action: str, reason: str) -> Mapping[str, Any]:
        """`pause`, `resume` or `back`."""
        found: Mapping[str, Any] = self._ask("POST", f"roll-outs/{quote(rollout, safe='')}/{action}",
                                             {"user": user(), "reason": reason})
        return found

    def add_token(self, label: str, uses: int, valid_s: float) -> Mapping[str, Any]:
        """A new token, with its text."""
        found: Mapping[str, Any] = self._ask("POST", "tokens", {"label": label, "uses": uses, "valid_s": valid_s})
        return found

    def tokens(self) -> list[Mapping[str, Any]]:
        """All tokens, without their texts."""
        found: list[Mapping[str, Any]] = self._ask("GET", "tokens")
        return found

    def revoke_token(self, id: str) -> None:
        """Ends a token."""
        self._ask("DELETE", f"tokens/{quote(id, safe='')}")

    def revoke(self, device: str) -> None:
        """Takes nothing more of a device."""
        self._ask("POST", f"devices/{quote(device, safe='')}/revoke", {})

    def forget(self, subject: str | None, digest: str | None) -> str:
        """Destroys what is known of a subject, here and on all devices; its digest."""
        return str(self._ask("POST", "forget", {"subject": subject, "digest": digest, "user": user()})["digest"])

    def records(self, kind: str | None = None) -> Iterator[str]:
        """What devices sent, opened by the hub: a JSON object a line."""
        more = "" if kind is None else f"?kind={quote(kind, safe='')}"
        try:
            with self._client.stream("GET", f"{self._url}/v1/fleet/records{more}", headers=self._headers) as response:
                if response.status_code != 200:
                    raise FleetError(_words(response.read(), response.status_code))
                yield from response.iter_lines()
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            response = self._client.request(method, f"{self._url}/v1/fleet/{path}", headers=self._headers, json=body)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from None
        if response.status_code != 200:
            raise FleetError(_words(response.content, response.status_code))
        return response.json()

    def _unreachable(self, error: httpx.HTTPError) -> FleetError:
        return FleetError(f"the hub {self._url} cannot be reached: {type(error).__name__}: {error}",
                          hint="is `brise hub` running there? --hub URL names another one")


def user() -> str:
    """Who stands in the ledger."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return "unknown"


def _words(body: bytes, status: int) -> str:
    try:
        return str(httpx.Response(status, content=body).json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the hub answers with status {status}: {body[:200].decode(errors='replace')}"


def _read_key(options: OperatorOptions) -> str:
    path = options.key or options.home / "fleet" / "hub" / OPERATOR_KEY
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(f"cannot read the operator's key {str(path)!r}: {error}",
                         hint="brise hub makes it in its folder; copy it here, and name it with --key FILE") from None
    if not is_key(key):
        raise FleetError(f"{str(path)!r} holds no operator's key")
    return key
