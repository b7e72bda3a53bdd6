"""Routing: whether the large model answers a request, or the small one that its task was switched to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from brise.dialects.bodies import Body
from brise.files.digests import blake_draw
from brise.gateway.interfaces import Decision
from brise.gateway.request import ClientRequest
from brise.switch.ledger_follower import Follower
from brise.switch.state import Action, TaskState, gateway_line
from brise.traffic import slice_keys

MAX_CONTEXTS = 16  # contexts without a certificate that are noted for one switch


class SwitchRouter:
    """Decides by the ledger as it is known here; lines that a decision causes go to the ledger."""

    def __init__(self, follower: Follower, clock: Callable[[], float] = time.time) -> None:
        self._follower, self._clock = follower, clock

    def decide(self, request: ClientRequest) -> Decision:
        """Decides without waiting; `SmallModel` reads what other gateways have written since."""
        state = self._follower.state(request.task)
        if state is None:
            return Decision()
        route = decide(state, request, self._clock())
        if route.action is not None:
            self._follower.write(route.action)
        return Decision("small" if route.is_small else "hosted", state.candidate if route.is_small else None, route.why)


@dataclass(frozen=True)
class Route:
    """Where one request goes, and why. `action` is a line for the ledger that it causes."""

    is_small: bool
    why: str
    action: Action | None = None


def decide(state: TaskState, request: ClientRequest, now_s: float) -> Route:
    """Pure: the same request in the same state goes the same way, in every gateway."""
    if not state.is_on:
        return Route(False, f"switched back: {state.ended or 'the alarm rang'}")
    if not request.dialect.is_switched or request.fields is None:
        return Route(False, "only chat completions are switched")
    if state.is_expired(now_s):
        return Route(False, "the certificate has expired")
    unproven = _unproven(state, request.labels, request.fields)
    if unproven is not None:
        return Route(False, f"no certificate for {unproven}")
    context = request.dialect.context_digest(request.fields) or "none"
    if state.warrant is not None and state.warrant.contexts and context not in state.warrant.contexts:
        return Route(False, "no certificate for this system prompt and these tools", _noted(state, context))
    if blake_draw(state.task, conversation_key(request.conversation, request.subject, request.fields)) >= state.share:
        return Route(False, f"not in the share of {100 * state.share:g} %")
    return Route(True, f"switch {state.number} at {100 * state.share:g} %")


def conversation_key(conversation: str | None, subject: str | None, fields: Body) -> str:
    """What all requests of a conversation have in common: its name if the client gave one, else its first message."""
    if conversation:
        return f"c:{conversation}"
    messages = fields.get("messages")
    first = next((message for message in messages if isinstance(message, dict) and message.get("role") == "user"),
                 None) if isinstance(messages, list) else None
    return f"m:{subject or ''}:{json.dumps(first, sort_keys=True)}"


def _unproven(state: TaskState, labels: Mapping[str, str], fields: Body) -> str | None:
    """A slice of this request that the certificate looked at but did not prove."""
    if state.warrant is None or not state.warrant.dimensions:
        return None
    text = slice_keys.last_text(fields)
    slices = (f"{name}={slice_keys.value_of(labels, text, name)}" for name in state.warrant.dimensions)
    return next((slice_ for slice_ in slices if slice_ not in state.warrant.proven), None)


def _noted(state: TaskState, context: str) -> Action | None:
    if context in state.warned or len(state.warned) >= MAX_CONTEXTS:
        return None
    return Action("context", gateway_line(state) | {
        "context": context, "reason": "the certificate is not of this system prompt and these tools"})
