"""The trace of one request, as W3C's Trace Context passes it on: plain values, whoever exports them.

    traceparent: 00-TRACE-SPAN-FLAGS    the client's, whose span is the parent of ours; each step upstream has its own
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

RawHeaders = Sequence[tuple[bytes, bytes]]
Attribute = str | int | float | bool | Sequence[str]
PARENT, STATE = b"traceparent", b"tracestate"
SAMPLED = 1
MOST_STEPS = 64
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(eq=False)
class TraceStep:
    """A part of a request's way, such as one attempt at the upstream. `error` is a kind of failure."""

    name: str
    is_client: bool  # another server answers it
    attributes: dict[str, Attribute]
    span_id: str = field(default_factory=lambda: new_id(8))
    begun_ns: int = field(default_factory=time.time_ns)
    ended_ns: int = 0
    error: str | None = None


@dataclass(eq=False)
class RequestTrace:
    """One request's place in a trace, and the steps of its way. `parent_id` is the client's span."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    flags: int = SAMPLED
    begun_ns: int = field(default_factory=time.time_ns)
    ended_ns: int = 0
    steps: list[TraceStep] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, attributes: Mapping[str, Attribute], *, is_client: bool = False) -> Iterator[TraceStep]:
        """Measures a step. Whoever takes it says what failed."""
        step = TraceStep(name, is_client, dict(attributes))
        if len(self.steps) < MOST_STEPS:
            self.steps.append(step)
        try:
            yield step
        finally:
            step.ended_ns = time.time_ns()

    def passed_on(self, headers: RawHeaders, step: TraceStep) -> RawHeaders:
        """The headers of a request that a step sends, with the step's span as the parent of what happens there."""
        has_state = self.parent_id is not None
        kept = [(name, value) for name, value in headers if name != PARENT and (has_state or name != STATE)]
        return [*kept, (PARENT, f"00-{self.trace_id}-{step.span_id}-{self.flags:02x}".encode())]


def read(headers: RawHeaders) -> RequestTrace:
    """The trace that a client's headers name; a new one if they name none, or not well."""
    given = [value for name, value in headers if name == PARENT]
    matched = _PARENT.fullmatch(given[0].strip()) if len(given) == 1 else None
    if matched is None or matched[1] == b"ff" or (matched[1] == b"00" and matched[5]) or (
            not int(matched[2], 16) or not int(matched[3], 16)):
        return RequestTrace(new_id(16), new_id(8))
    return RequestTrace(matched[2].decode(), new_id(8), matched[3].decode(), int(matched[4], 16) & SAMPLED)


def new_id(num_bytes: int) -> str:
    """A random id, which is not all zeros."""
    while not int(id := secrets.token_hex(num_bytes), 16):
        pass
    return id
