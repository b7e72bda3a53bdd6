"""Anthropic's Messages API: /v1/messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from brise.dialects import bodies, chat_form, failures, sse, token_counts
from brise.dialects.bodies import Body, Fields, Kind, Usage, objects
from brise.dialects.chat_form import Message
from brise.dialects.dialect import Progress
from brise.dialects.items import ConversationItem, message_items
from brise.text import finish_reasons
from brise.text.finish_reasons import FinishReason


class AnthropicMessages:
    """Implements `Dialect`."""

    name: Kind = "messages"
    path = "/v1/messages"
    operation, provider = "chat", "anthropic"
    is_read = is_served = has_small_models = names_events = True
    is_switched = continues = False
    counts_on_request = is_deployed = False

    def key_header(self, key: bytes) -> tuple[bytes, bytes]:
        return b"x-api-key", key

    def conversation(self, request: Body) -> list[ConversationItem]:
        return [item for message in objects(request.get("messages")) for item in message_items(message)]

    def continued_id(self, request: Body) -> None:
        return None

    def context_digest(self, request: Body) -> str | None:
        return bodies.context_digest(request)

    def with_prefix(self, request: Body, prefix: str) -> None:
        return None

    def answers(self, response: Body) -> list[list[ConversationItem]]:
        return [list(message_items({"role": "assistant", "content": response.get("content")}))]

    def answer_id(self, response: Body) -> None:
        return None

    def failure(self, response: object) -> str | None:
        why = failures.of_body(response)
        if why is not None or not isinstance(response, dict):
            return why
        if not isinstance(response.get("content"), list):
            return "the body has no content"
        if response.get("stop_reason", "unknown") in (None, ""):  # a stream that was cut has it so
            return "it ended without a stop reason"
        return None

    def finish_reason(self, response: Body) -> FinishReason | None:
        return finish_reasons.common(response.get("stop_reason"))

    def usage(self, response: Body) -> Usage | None:
        return token_counts.of_messages(response)

    def error_body(self, message: str, code: str) -> Body:
        return {"type": "error", "error": {"type": "api_error", "message": message}}

    def error_event(self, message: str, code: str) -> Body:
        return self.error_body(message, code)

    def advance(self, progress: Progress, event_type: str, event: Body) -> None:
        message, delta = event.get("message"), event.get("delta")
        if isinstance(message, dict):
            progress.id = progress.id or bodies.text(message.get("id"))
            progress.model = progress.model or bodies.text(message.get("model"))
        if event_type == "content_block_delta" and isinstance(delta, dict):
            progress.texts.append(bodies.text(delta.get("text")) or "")
            progress.has_calls |= "partial_json" in delta
            progress.has_content = True
        elif event_type == "message_delta" and isinstance(delta, dict):
            progress.finish = bodies.text(delta.get("stop_reason"))
        progress.is_complete |= event_type == "message_stop"

    def assemble(self, events: Sequence[Fields]) -> tuple[Body | None, bool]:
        """The message: its beginning, its blocks, and how it ended."""
        body: Fields | None = None
        blocks: dict[int, _GrowingBlock] = {}
        is_complete = has_count = False
        for event in events:
            kind, place = event.get("type"), event.get("index")
            index = place if isinstance(place, int) else -1
            if kind == "message_start" and isinstance(event.get("message"), dict):
                body = dict(event["message"])
            elif kind == "content_block_start" and index >= 0 and isinstance(event.get("content_block"), dict):
                blocks[index] = _GrowingBlock(event["content_block"])
            elif kind == "content_block_delta" and index in blocks and isinstance(event.get("delta"), dict):
                blocks[index].push(event["delta"])
            elif kind == "message_delta":
                has_count |= "output_tokens" in _present(event.get("usage"))
                usage = token_counts.messages_so_far((body or {}).get("usage"), event.get("usage"))
                body = {**(body or {}), **_present(event.get("delta")), "usage": usage}
            elif kind == "message_stop":
                is_complete = True
        if body is None and not blocks:
            return None, False
        if body is not None and not has_count and isinstance(body.get("usage"), dict):
            body["usage"] = {**body["usage"], "output_tokens": None}  # what the beginning says of it is not the count
        is_complete = is_complete or bool((body or {}).get("stop_reason"))
        return {**(body or {}), "content": [blocks[index].whole() for index in sorted(blocks)]}, is_complete

    def encode(self, event: Body) -> bytes:
        return sse.encode(event, str(event["type"]))

    def stream_end(self) -> bytes:
        return b""

    def is_last(self, event: Body) -> bool:
        return bool(event["type"] == "message_stop")

    def continuation(self, event: Body, progress: Progress) -> Body:
        return event

    def chat_messages(self, request: Body) -> list[Message]:
        return [*chat_form.system_messages(request.get("system")), *(
            converted for message in chat_form.required_objects(request.get("messages"), "messages")
            for converted in _chat_messages(message))]

    def chat_answer(self, response: Body) -> Message:
        return chat_form.answered(next(iter(_chat_messages({"role": "assistant", "content": response.get("content")}))))

    def chat_tools(self, request: Body) -> list[Message]:
        return chat_form.functions(request, lambda tool: chat_form.function_tool(tool, "input_schema")
                                   if "input_schema" in tool else None)


def _chat_messages(message: Body) -> Iterator[Message]:
    """Its texts, calls and images as one message; results of tools are messages of their own."""
    role, content = message.get("role"), message.get("content")
    parts: Sequence[Body] = ([{"type": "text", "text": content}] if isinstance(content, str)
                             else chat_form.required_objects(content, "content"))
    texts, calls, images = list[str](), list[Message](), list[Message]()
    for part in parts:
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "thinking"} | {"type": "redacted_thinking"}:
                pass
            case {"type": "tool_use", "id": id, "name": name}:
                calls.append(chat_form.tool_call(id, name, json.dumps(part.get("input") or {})))
            case {"type": "tool_result", "tool_use_id": id}:
                yield {"role": "tool", "tool_call_id": id, "content": chat_form.plain_text(part.get("content"))}
            case {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}:
                images.append({"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}})
            case _:
                raise ValueError(f"it has a part of type {str(part.get('type'))[:32]!r}")
    text = "\n".join(texts)
    if texts or calls or images or role == "assistant":
        yield {"role": role, "content": [*images, {"type": "text", "text": text}] if images else text,
               **({"tool_calls": calls} if calls else {})}


class _GrowingBlock:
    """Text, thinking or the use of a tool, as it grows."""

    def __init__(self, start: Fields) -> None:
        self._block, self._json, self._texts = dict(start), list[str](), dict[str, list[str]]()
        citations = start.get("citations")
        self._citations: list[object] = list(citations) if isinstance(citations, list) else []

    def push(self, delta: Fields) -> None:
        match delta:
            case {"type": "input_json_delta", "partial_json": str(piece)}:
                self._json.append(piece)
            case {"type": "citations_delta", "citation": citation}:
                self._citations.append(citation)
            case _:
                for name, piece in delta.items():
                    if name != "type" and isinstance(piece, str):
                        self._texts.setdefault(name, [str(self._block.get(name) or "")]).append(piece)

    def whole(self) -> Fields:
        block = {**self._block, **{name: "".join(pieces) for name, pieces in self._texts.items()},
                 **({"citations": self._citations} if self._citations else {})}
        text = "".join(self._json)
        if not text:
            return block
        try:
            return {**block, "input": json.loads(text)}
        except (ValueError, RecursionError):  # it was cut: what there is of it, by the name that the stream has for it
            return {**block, "partial_json": text}


def _present(fields: object) -> Fields:
    """The fields of an object that are not null."""
    return {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else {}
