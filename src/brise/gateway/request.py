"""A client's request: what is sent upstream, and what its headers and its body say about it."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from brise.dialects import table
from brise.dialects.bodies import Body, Kind, person
from brise.dialects.dialect import Dialect
from brise.traffic import redact
from brise.traffic.records import new_id

Headers = Sequence[tuple[bytes, bytes]]  # as ASGI has them: names in lower case, in the order of the wire

OWN, LABEL = b"x-brise-", b"x-brise-label-"  # headers for the gateway: none of them goes upstream
MAX_NAME, MAX_LABELS = 256, 32  # characters of a header's value or of a name, and labels, that are kept


@dataclass(frozen=True)
class ClientRequest:
    """One request. `fields` is its JSON body; None if the body is not a JSON object."""

    id: str  # of its exchange
    method: str
    path: str
    target: bytes  # percent-encoded path, and the query with its question mark
    headers: Headers
    body: bytes
    fields: Body | None
    dialect: Dialect
    model: str  # "" if none is named
    task: str
    conversation: str | None = None  # as the client calls it
    subject: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    is_captured: bool = True
    secrets: Sequence[str] = field(default=(), repr=False)  # what must not be written down (traffic/redact.py)
    at_s: float = field(default_factory=time.time)
    started_s: float = field(default_factory=time.monotonic)

    @property
    def kind(self) -> Kind:
        """The name of the dialect."""
        return self.dialect.name

    @property
    def streams(self) -> bool:
        """Whether the client asked for a stream."""
        return self.fields is not None and self.fields.get("stream") is True

    def header(self, name: bytes) -> str | None:
        """The value of a header; the first, if there are several."""
        return next((value.decode("latin-1") for known, value in self.headers if known == name), None)


def read(method: str, path: str, target: bytes, headers: Headers, body: bytes,
         secrets: Sequence[str] = ()) -> ClientRequest:
    """Never fails: a body that is not JSON is passed on all the same, and the upstream says what is wrong with it.

    `secrets` of the gateway itself are added to those that the request came with.
    """
    dialect = table.of_request(method, path)
    fields = _object(body) if dialect.is_read else None
    model = fields.get("model") if fields is not None else None
    model = model if isinstance(model, str) else ""
    own = {name.removeprefix(OWN).decode("latin-1"): _text(value) for name, value in headers if name.startswith(OWN)}
    labels = [(name.removeprefix("label-"), value) for name, value in own.items() if name.startswith("label-")]
    task = (own.get("task") or model or path)[:MAX_NAME]
    return ClientRequest(new_id(), method, path, target, headers, body, fields, dialect, model, task,
                         own.get("conversation"), own.get("subject") or _person(fields), dict(labels[:MAX_LABELS]),
                         own.get("capture", "on").lower() != "off", (*redact.secrets_of(headers, target, fields),
                                                                     *secrets))


def _person(fields: Body | None) -> str | None:
    name = person(fields) if fields is not None else None
    return name if name is None else name[:MAX_NAME]


def _object(body: bytes) -> Body | None:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _text(value: bytes) -> str:
    """A header's value; clients percent-encode text that is not ASCII."""
    return unquote(value.decode("latin-1").strip())[:MAX_NAME]
