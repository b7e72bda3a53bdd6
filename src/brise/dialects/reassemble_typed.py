"""Events of the Responses API and of Anthropic's messages, put together: their events say of what type they are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Fields = dict[str, Any]
LAST = ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
# Events that make a part of an item grow: the field of the part.
GROWING: Mapping[str, str] = {
    "response.output_text.delta": "text", "response.refusal.delta": "refusal", "response.reasoning_text.delta": "text",
    "response.reasoning_summary_text.delta": "text"}
PART_TYPES: Mapping[str, str] = {
    "response.output_text.delta": "output_text", "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "reasoning_text", "response.reasoning_summary_text.delta": "summary_text"}


def responses_body(events: list[Fields]) -> tuple[Fields | None, bool]:
    """The response: the last event has it whole; of a stream that was cut, what its events said."""
    last = next((event["response"] for event in reversed(events)
                 if event.get("type") in LAST and isinstance(event.get("response"), dict)), None)
    if last is not None:
        return last, True
    body: Fields | None = None
    items: dict[int, Fields] = {}
    for event in events:
        response, item, index = event.get("response"), event.get("item"), event.get("output_index")
        if isinstance(response, dict):
            body = response
        if not isinstance(index, int):
            continue
        if isinstance(item, dict):  # as it begins, and again, whole, when it is done
            items[index] = {**item, **{name: [dict(part) for part in item[name] if isinstance(part, dict)]
                                       for name in ("content", "summary") if isinstance(item.get(name), list)}}
        elif index in items:
            _grow(items[index], event)
    if body is None and not items:
        return None, False
    return {**(body or {}), "output": [items[index] for index in sorted(items)]}, False


def _grow(item: Fields, event: Fields) -> None:
    kind, delta = str(event.get("type")), event.get("delta")
    if kind == "response.function_call_arguments.delta" and isinstance(delta, str):
        item["arguments"] = str(item.get("arguments") or "") + delta
    elif kind in GROWING and isinstance(delta, str):
        is_summary = kind == "response.reasoning_summary_text.delta"
        place = event.get("summary_index" if is_summary else "content_index")
        parts = item.setdefault("summary" if is_summary else "content", [])
        if isinstance(parts, list) and isinstance(place, int) and 0 <= place <= len(parts):
            if place == len(parts):
                parts.append({"type": PART_TYPES[kind]})
            part, field = parts[place], GROWING[kind]
            part[field] = str(part.get(field) or "") + delta


def messages_body(events: list[Fields]) -> tuple[Fields | None, bool]:
    """Anthropic's message: its beginning, its blocks, and how it ended."""
    body: Fields | None = None
    blocks: dict[int, _Block] = {}
    is_complete = False
    for event in events:
        kind, place = event.get("type"), event.get("index")
        index = place if isinstance(place, int) else -1
        if kind == "message_start" and isinstance(event.get("message"), dict):
            body = dict(event["message"])
        elif kind == "content_block_start" and index >= 0 and isinstance(event.get("content_block"), dict):
            blocks[index] = _Block(event["content_block"])
        elif kind == "content_block_delta" and index in blocks and isinstance(event.get("delta"), dict):
            blocks[index].push(event["delta"])
        elif kind == "message_delta":
            body = {**(body or {}), **_said(event.get("delta")),
                    "usage": {**_said((body or {}).get("usage")), **_said(event.get("usage"))}}
        elif kind == "message_stop":
            is_complete = True
    if body is None and not blocks:
        return None, False
    return {**(body or {}), "content": [blocks[index].whole() for index in sorted(blocks)]}, is_complete


class _Block:
    """Text, thinking or the use of a tool, as it grows."""

    def __init__(self, start: Fields) -> None:
        self._block, self._json = dict(start), list[str]()

    def push(self, delta: Fields) -> None:
        match delta:
            case {"type": "input_json_delta", "partial_json": str(piece)}:
                self._json.append(piece)
            case {"type": "citations_delta", "citation": citation}:
                known = self._block.get("citations")
                self._block["citations"] = [*known, citation] if isinstance(known, list) else [citation]
            case _:
                for name, piece in delta.items():
                    if name != "type" and isinstance(piece, str):
                        self._block[name] = str(self._block.get(name) or "") + piece

    def whole(self) -> Fields:
        text = "".join(self._json)
        if not text:
            return self._block
        try:
            return {**self._block, "input": json.loads(text)}
        except (ValueError, RecursionError):  # it was cut: what there is of it, by the name that the stream has for it
            return {**self._block, "partial_json": text}


def _said(fields: object) -> Fields:
    """The fields of an object that say something."""
    return {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else {}
