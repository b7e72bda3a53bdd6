"""Translates answers of Anthropic's Messages API into chat completions: whole ones, streams event by event, and errors.

Reasoning is left out, because a chat completion has no place for it. ValueError says what is no answer of that API.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from brise.dialects import sse, token_counts
from brise.dialects.bodies import Body, Fields, Usage

FINISH: Mapping[str, str] = {  # an unknown reason keeps its own name
    "end_turn": "stop", "stop_sequence": "stop", "pause_turn": "stop", "max_tokens": "length",
    "model_context_window_exceeded": "length", "tool_use": "tool_calls", "refusal": "content_filter"}


def chat_completion(message: Body, created: int) -> Fields:
    """A whole answer."""
    blocks, reason = message.get("content"), message.get("stop_reason")
    if message.get("type") != "message" or not isinstance(blocks, list) or not isinstance(reason, str):
        raise ValueError("the answer is no message")
    texts, calls = list[str](), list[Fields]()
    for block in blocks:
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case {"type": "tool_use", "id": str(id), "name": str(name), "input": arguments}:
                calls.append({"id": id, "type": "function",
                              "function": {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}})
    answer: Fields = {"role": "assistant", "content": "".join(texts) or (None if calls else ""), "refusal": None}
    choice = {"index": 0, "message": answer | ({"tool_calls": calls} if calls else {}), "logprobs": None,
              "finish_reason": FINISH.get(reason, reason)}
    usage = token_counts.as_openai(token_counts.of_messages(message))
    return {"id": message.get("id"), "object": "chat.completion", "created": created, "model": message.get("model"),
            "choices": [choice], **({} if usage is None else {"usage": usage})}


def error_of(body: object) -> Fields:
    """An error's body, or the event that a stream ends with."""
    match body:
        case {"type": "error", "error": {"type": str(kind), "message": str(message)}}:
            return {"error": {"message": message, "type": kind, "param": None, "code": kind}}
        case _:
            raise ValueError("the answer is no error")


class Chunks:
    """The events of one stream, as they come."""

    def __init__(self, created: int, *, with_usage: bool) -> None:
        self._with_usage = with_usage
        self._head: Fields = {"id": None, "object": "chat.completion.chunk", "created": created, "model": None}
        self._usage: Fields = {}
        self._has_count = False  # what the beginning says of the completion is not its count
        self._blocks: set[int | None] = set()  # indexes of those that have begun
        self._calls: dict[object, _Call] = {}  # by the index of their block

    @property
    def usage(self) -> Usage | None:
        """The tokens that were counted so far."""
        counted = self._usage if self._has_count else {**self._usage, "output_tokens": None}
        return token_counts.of_messages({"usage": counted})

    def push(self, event: sse.ServerSentEvent) -> bytes:
        """The chunks that an event becomes, perhaps none. Unknown events hold nothing that a chat completion has."""
        fields = event.fields
        if fields is None:
            raise ValueError(f"an event that is no JSON object: {event.data[:40]!r}")
        match fields:
            case {"type": "message_start", "message": {"id": str(id), "model": str(model)}}:
                self._head |= {"id": id, "model": model}
                self._usage = token_counts.messages_so_far(None, fields["message"].get("usage"))
                return self._delta({"role": "assistant", "content": ""})
            case {"type": "message_delta", "delta": dict(delta)}:
                self._usage = token_counts.messages_so_far(self._usage, fields.get("usage"))
                self._has_count = True
                reason = delta.get("stop_reason")
                return self._delta({}, FINISH.get(reason, reason)) if isinstance(reason, str) else b""
            case {"type": "message_stop"}:
                usage = [self._chunk([], token_counts.as_openai(self.usage))] if self._with_usage else []
                return b"".join([*usage, _event(sse.DONE)])
            case {"type": "ping"}:
                return b": ping\n\n"
            case {"type": "error"}:
                return b"event: error\n" + _event(json.dumps(error_of(fields)))
            case _:
                return self._block(fields)

    def _block(self, fields: Body) -> bytes:
        """A part of a block of the content."""
        place = fields.get("index")
        index = place if isinstance(place, int) else None
        if fields.get("type") == "content_block_start":
            self._blocks.add(index)
        match fields:
            case {"type": "content_block_start", "content_block": {"type": "text", "text": str(text)}} if text:
                return self._delta({"content": text})
            case {"type": "content_block_start", "content_block": {"type": "tool_use", "id": str(id),
                                                                   "name": str(name), **about}}:
                call = self._calls[index] = _Call(len(self._calls), about.get("input") or {})
                return self._delta(call.piece("", {"id": id, "type": "function"}, {"name": name}))
            case {"type": "content_block_delta", "delta": {"type": "text_delta", "text": str(text)}}:
                return self._delta({"content": text})
            case {"type": "content_block_delta", "delta": {"type": "input_json_delta", "partial_json": str(piece)}}:
                if index not in self._blocks:
                    raise ValueError("arguments of a call that has not begun")
                # Of blocks that a chat completion has nothing for, such as a server's own tools, nothing is said.
                return self._delta(self._calls[index].piece(piece)) if piece and index in self._calls else b""
            case {"type": "content_block_stop"} if index in self._calls and not self._calls[index].has_arguments:
                call = self._calls[index]  # they came with the call's beginning, or there are none
                return self._delta(call.piece(json.dumps(call.input, ensure_ascii=False)))
            case _:
                return b""

    def _delta(self, delta: Fields, finish: str | None = None) -> bytes:
        if self._head["id"] is None:
            raise ValueError("an answer without its beginning")
        return self._chunk([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}])

    def _chunk(self, choices: list[Fields], usage: Fields | None = None) -> bytes:
        counted = {"usage": usage} if self._with_usage else {}
        return _event(json.dumps({**self._head, "choices": choices, **counted}, ensure_ascii=False,
                                 separators=(",", ":")))


class _Call:
    """A call of a function as it grows."""

    def __init__(self, place: int, input: object) -> None:
        self.place, self.input, self.has_arguments = place, input, False

    def piece(self, arguments: str, about: Body | None = None, function: Body | None = None) -> Fields:
        """A delta with a piece of the arguments."""
        self.has_arguments |= bool(arguments)
        return {"tool_calls": [{"index": self.place, **(about or {}),
                                "function": {**(function or {}), "arguments": arguments}}]}


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode("utf-8", "replace")
