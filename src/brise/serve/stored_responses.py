"""StoredResponses keeps the last responses in memory, so that a request can go on behind one by its id alone."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from brise.errors import RequestError
from brise.text.json_text import Json

if TYPE_CHECKING:
    from starlette.requests import Request

MAX_STORED = 1024
VALUE_BYTES = 64  # of a JSON value in memory, without its text


class UnknownResponseError(RequestError):
    """No response of this id is stored, or it belongs to another key."""

    status = 404

    def __init__(self, id: str) -> None:
        super().__init__(f"no response {id[:64]!r} is stored here; the last are kept in memory until the server ends",
                         param="previous_response_id", code="previous_response_not_found")


@dataclass(frozen=True)
class StoredResponse:
    """A response, and the conversation up to its end as items. `owner` is the virtual key that asked for it."""

    body: Mapping[str, object]
    items: Sequence[Json]
    owner: str | None
    num_bytes: int


class StoredResponses:
    """At most `max_bytes` of conversations; those that were not used for longest go first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._num_bytes = max_bytes, 0
        self._responses = OrderedDict[str, StoredResponse]()
        self._lock = Lock()  # long bodies are parsed in threads, and look for what they continue

    def put(self, id: str, response: StoredResponse) -> None:
        """Keeps a response, unless it alone is larger than all that may be kept."""
        if response.num_bytes > self._max_bytes:
            return
        with self._lock:
            self._responses[id] = response
            self._num_bytes += response.num_bytes
            while self._num_bytes > self._max_bytes or len(self._responses) > MAX_STORED:
                _, oldest = self._responses.popitem(last=False)
                self._num_bytes -= oldest.num_bytes

    def get(self, id: str, owner: str | None) -> StoredResponse:
        """The response, or UnknownResponseError."""
        with self._lock:
            response = self._responses.get(id)
            if response is None or response.owner != owner:
                raise UnknownResponseError(id)
            self._responses.move_to_end(id)
            return response

    def remove(self, id: str, owner: str | None) -> None:
        """Forgets the response, or raises UnknownResponseError."""
        response = self.get(id, owner)
        with self._lock:
            if self._responses.pop(id, None) is not None:
                self._num_bytes -= response.num_bytes


def owner_of(request: Request) -> str | None:
    """The virtual key of the request: nobody gets what is kept for another one."""
    caller = request.scope.get("brise.caller")
    return None if caller is None else str(caller.key.name)


def memory_size(value: object) -> int:
    """About how many bytes a JSON value takes."""
    total, waiting = 0, [value]
    while waiting:
        value = waiting.pop()
        total += VALUE_BYTES
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
            total += sum(VALUE_BYTES + len(name) for name in value)
        elif isinstance(value, Sequence):
            waiting.extend(value)
    return total
