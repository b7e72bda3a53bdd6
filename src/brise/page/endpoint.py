"""What the page asks the server for: an endpoint is a path below /page/api/, who may ask, and a function.

The functions are those of the commands, so page and terminal say the same. They run one at a time on a thread of the
page's own, those that wait for a process on others: an open page must not be in the way of the requests that the server
is for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from brise.errors import RequestError
from brise.memory.serving_plan import ServingPlan
from brise.serve.serving import ServerState
from brise.traffic.virtual_keys import PageScope


@dataclass(frozen=True)
class PageOptions:
    """Where the page's data are: the store and the prices of the server, by default those in BRISE_HOME; and the plans
    of its models under a memory limit, by name, as they are made.
    """

    store: str | Path | None = None
    prices: Path | None = None
    plans: dict[str, ServingPlan] = field(default_factory=dict)

    @property
    def place(self) -> str | None:
        """The store as the commands take it."""
        return None if self.store is None else str(self.store)


@dataclass(frozen=True)
class PageRequest:
    """One request of the page. `body` is the JSON of a POST; `sender` says who asks, for the ledger, and `key` is the
    name of the virtual key that was sent, if one was."""

    serving: ServerState
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    may_read_content: bool = False
    may_operate: bool = False
    sender: str = ""
    key: str | None = None

    def text(self, name: str) -> str:
        """A text of the body, or RequestError."""
        value = self.body.get(name) if isinstance(self.body, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise RequestError(f"{name!r} is missing, a text is wanted", param=name)
        return value

    def number(self, name: str, default: int, most: int) -> int:
        """A whole number of the query, or RequestError."""
        text = self.query.get(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or int(text[:9]) > most:
            raise RequestError(f"{name!r} is {text[:40]!r}, a whole number from 0 to {most} is allowed", param=name)
        return int(text)


@dataclass(frozen=True)
class Download:
    """A file that the browser saves under a name."""

    name: str
    content: bytes


Answer = Callable[[PageRequest], object]  # a JSON value, or a Download


@dataclass(frozen=True)
class PageEndpoint:
    """A path below /page/api/; `needs` is what the sender's key must allow. One that may take seconds, because it waits
    for a process, `is_slow`: no other waits for it.
    """

    path: str
    answer: Answer
    needs: PageScope = "view"
    method: Literal["GET", "POST"] = "GET"
    most_bytes: int = 1 << 16  # of a body
    is_slow: bool = False
