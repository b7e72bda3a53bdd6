"""OpenAI's Responses API: /v1/responses, items in and items out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brise.dialects import bodies, chat_form, failures, sse, token_counts
from brise.dialects.bodies import Body, Fields, Kind, Usage, objects
from brise.dialects.chat_form import Message
from brise.dialects.dialect import Progress
from brise.dialects.items import REASONING, ConversationItem, canonical, message_items
from brise.text import finish_reasons
from brise.text.finish_reasons import FinishReason

TEXT_EVENT, REFUSAL_EVENT = "response.output_text.delta", "response.refusal.delta"  # what a client reads
ITEM_DONE = "response.output_item.done"
CALL_EVENT = "response.function_call_arguments.delta"
LAST_EVENTS = frozenset({"response.completed", "response.incomplete", "response.failed"})
LAST = (*sorted(LAST_EVENTS), "response.cancelled")  # they hold the response, whole
# Events that make a part of an item grow: the field of the part, and the type of a part that begins.
GROWING: Mapping[str, str] = {
    "response.output_text.delta": "text", "response.refusal.delta": "refusal", "response.reasoning_text.delta": "text",
    "response.reasoning_summary_text.delta": "text"}
PART_TYPES: Mapping[str, str] = {
    "response.output_text.delta": "output_text", "response.refusal.delta": "refusal",
    "response.reasoning_text.delta": "reasoning_text", "response.reasoning_summary_text.delta": "summary_text"}


class OpenAIResponses:
    """Implements `Dialect`."""

    name: Kind = "responses"
    path = "/v1/responses"
    operation, provider = "chat", "openai"
    is_read = is_served = has_small_models = names_events = True
    is_switched = continues = counts_on_request = is_deployed = False

    def key_header(self, key: bytes) -> tuple[bytes, bytes]:
        return b"authorization", b"Bearer " + key

    def conversation(self, request: Body) -> list[ConversationItem]:
        given = request.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else objects(given)
        return [compared for item in items for compared in _items(item)]

    def continued_id(self, request: Body) -> str | None:
        conversation: Any = request.get("conversation")
        return bodies.text(request.get("previous_response_id") or (
            conversation.get("id") if isinstance(conversation, dict) else conversation))

    def context_digest(self, request: Body) -> str | None:
        return bodies.context_digest(request)

    def with_prefix(self, request: Body, prefix: str) -> None:
        return None

    def answers(self, response: Body) -> list[list[ConversationItem]]:
        return [[compared for item in objects(response.get("output")) for compared in _items(item)]]

    def answer_id(self, response: Body) -> str | None:
        return bodies.text(response.get("id"))

    def failure(self, response: object) -> str | None:
        why = failures.of_body(response)
        if why is not None or not isinstance(response, dict):
            return why
        output, status = response.get("output"), response.get("status")
        if status in ("queued", "in_progress"):  # a stream that was cut has it so
            return None if response.get("background") is True else f"it ended with the status {status!r}"
        if status in ("failed", "cancelled"):
            return f"it ended with the status {status!r}"
        if not isinstance(output, list) or (not output and status != "incomplete"):
            return "the body has no output"
        return None

    def finish_reason(self, response: Body) -> FinishReason | None:
        details, status = response.get("incomplete_details"), response.get("status")
        if status == "incomplete":
            return finish_reasons.common(details.get("reason")) if isinstance(details, dict) else None
        calls = any(str(item.get("type")).endswith("_call") for item in objects(response.get("output"))[-1:])
        return "tool_calls" if status == "completed" and calls else finish_reasons.common(status)

    def usage(self, response: Body) -> Usage | None:
        return token_counts.of_openai(response)

    def error_body(self, message: str, code: str) -> Body:
        return bodies.openai_error(message, code)

    def error_event(self, message: str, code: str) -> Body:
        return {"type": "error", "code": code, "message": message, "param": None}

    def advance(self, progress: Progress, event_type: str, event: Body) -> None:
        response, delta = event.get("response"), event.get("delta")
        if isinstance(response, dict):
            progress.id = progress.id or bodies.text(response.get("id"))
            progress.model = progress.model or bodies.text(response.get("model"))
        if event_type == TEXT_EVENT and isinstance(delta, str):
            progress.texts.append(delta)
        progress.has_refusal |= event_type == REFUSAL_EVENT
        progress.has_calls |= event_type == CALL_EVENT
        progress.has_content |= event_type in (TEXT_EVENT, REFUSAL_EVENT, CALL_EVENT)
        progress.is_complete |= event_type in LAST_EVENTS

    def assemble(self, events: Sequence[Fields]) -> tuple[Body | None, bool]:
        """The last event has the response whole; of a stream that was cut, or whose last event has no output, there is
        what its events said."""
        last = next((event["response"] for event in reversed(events)
                     if event.get("type") in LAST and isinstance(event.get("response"), dict)), None)
        if last is not None and last.get("output"):
            return last, True
        body: Fields | None = last
        items: dict[int, _GrowingItem] = {}
        for event in events:
            response, item, index = event.get("response"), event.get("item"), event.get("output_index")
            if isinstance(response, dict) and last is None:
                body = response
            if not isinstance(index, int):
                continue
            if isinstance(item, dict):  # as it begins, and again, whole, when it is done
                if index not in items or event.get("type") != ITEM_DONE or _says_something(item):
                    items[index] = _GrowingItem(item)
            elif index in items:
                items[index].push(event)
            elif event.get("type") in (CALL_EVENT, TEXT_EVENT, REFUSAL_EVENT):  # it begins without its item
                items[index] = _GrowingItem({"type": "function_call"} if event["type"] == CALL_EVENT
                                            else {"type": "message", "role": "assistant"})
                items[index].push(event)
        if body is None and not items:
            return None, False
        output = [items[index].whole() for index in sorted(items)]
        return {**(body or {}), "output": output}, last is not None

    def encode(self, event: Body) -> bytes:
        return sse.encode(event, str(event["type"]))

    def stream_end(self) -> bytes:
        return b""

    def is_last(self, event: Body) -> bool:
        return event["type"] in ("response.completed", "response.incomplete")

    def continuation(self, event: Body, progress: Progress) -> Body:
        return event

    def chat_messages(self, request: Body) -> list[Message]:
        if request.get("previous_response_id") or request.get("conversation"):
            raise ValueError("the server keeps the beginning of its conversation")
        system, given = chat_form.system_messages(request.get("instructions")), request.get("input")
        if isinstance(given, str):
            return [*system, {"role": "user", "content": given}]
        return [*system, *_chat_messages(chat_form.required_objects(given, "input"))]

    def chat_answer(self, response: Body) -> Message:
        messages = list(_chat_messages(chat_form.required_objects(response.get("output"), "output")))
        if len(messages) != 1:
            raise ValueError("its answer is no single message")
        return chat_form.answered(messages[0])

    def chat_tools(self, request: Body) -> list[Message]:
        return chat_form.functions(request, lambda tool: chat_form.function_tool(tool, "parameters")
                                   if tool.get("type") == "function" else None)


def _items(item: Body) -> Iterator[ConversationItem]:
    """An item as it is compared; reasoning is left out."""
    item_type = str(item.get("type") or "message")
    if item_type == "message":
        yield from message_items(item)
    elif item_type not in REASONING:
        kept = {name: value for name, value in item.items() if name not in ("id", "status") and value is not None}
        yield ConversationItem(item_type.endswith("_call"), canonical(kept))


def _chat_messages(items: Sequence[Body]) -> Iterator[Message]:
    """Calls belong to the assistant's message before them, or are one."""
    open_: Message | None = None
    for item in items:
        item_type = item.get("type") or "message"
        if item_type == "reasoning":
            continue
        if item_type == "function_call":
            open_ = open_ or {"role": "assistant", "content": ""}
            open_.setdefault("tool_calls", []).append(
                chat_form.tool_call(item.get("call_id"), item.get("name"), str(item.get("arguments"))))
            continue
        if open_ is not None:
            yield open_
            open_ = None
        if item_type == "message" and item.get("role") == "assistant":
            open_ = {"role": "assistant", "content": chat_form.plain_text(item.get("content"))}
        elif item_type == "message":
            yield {"role": item.get("role"), "content": chat_form.plain_text(item.get("content"))}
        elif item_type == "function_call_output":
            yield {"role": "tool", "tool_call_id": item.get("call_id"),
                   "content": chat_form.plain_text(item.get("output"))}
        else:
            raise ValueError(f"it has an item of type {str(item_type)[:32]!r}")
    if open_ is not None:
        yield open_


def _says_something(item: Body) -> bool:
    return bool(item.get("content") or item.get("summary") or item.get("arguments")) or item.get("type") not in (
        "message", "reasoning", "function_call")


class _GrowingItem:
    """An item of the output as it grows."""

    def __init__(self, begun: Fields) -> None:
        self._item: Fields = {**begun, **{name: [part for part in begun[name] if isinstance(part, dict)]
                                          for name in ("content", "summary") if isinstance(begun.get(name), list)}}
        self._texts: dict[tuple[str, int], tuple[str, list[str]]] = {}  # by part, its field's name and pieces
        self._arguments: list[str] = []

    def push(self, event: Fields) -> None:
        kind, delta = str(event.get("type")), event.get("delta")
        if not isinstance(delta, str):
            return
        if kind == CALL_EVENT:
            self._arguments.append(delta)
        elif kind in GROWING:
            is_summary = kind == "response.reasoning_summary_text.delta"
            place = event.get("summary_index" if is_summary else "content_index", 0)
            parts = self._item.setdefault("summary" if is_summary else "content", [])
            if isinstance(parts, list) and isinstance(place, int) and 0 <= place <= len(parts):
                if place == len(parts):
                    parts.append({"type": PART_TYPES[kind]})
                key = "summary" if is_summary else "content", place
                self._texts.setdefault(key, (GROWING[kind], []))[1].append(delta)

    def whole(self) -> Fields:
        item = {name: list(value) if isinstance(value, list) else value for name, value in self._item.items()}
        for (name, place), (field, pieces) in self._texts.items():
            part = item[name][place]
            item[name][place] = {**part, field: str(part.get(field) or "") + "".join(pieces)}
        if self._arguments:
            item["arguments"] = str(item.get("arguments") or "") + "".join(self._arguments)
        return item
