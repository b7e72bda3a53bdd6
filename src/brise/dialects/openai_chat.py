"""OpenAI's chat completions: /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from brise.dialects import bodies, chat_form, choices, failures, sse, token_counts
from brise.dialects.bodies import Body, Fields, Kind, Usage, first_choice, objects
from brise.dialects.chat_form import Message
from brise.dialects.choices import SAME, joined, joined_logprobs
from brise.dialects.dialect import Progress
from brise.dialects.items import ConversationItem, message_items
from brise.text import finish_reasons
from brise.text.finish_reasons import FinishReason


class OpenAIChat:
    """Implements `Dialect`."""

    name: Kind = "chat"
    path = "/v1/chat/completions"
    is_read = is_served = is_switched = has_small_models = continues = True
    counts_on_request = True
    names_events = False

    def key_header(self, key: bytes) -> tuple[bytes, bytes]:
        return b"authorization", b"Bearer " + key

    def conversation(self, request: Body) -> list[ConversationItem]:
        return [item for message in objects(request.get("messages")) for item in message_items(message)]

    def continued_id(self, request: Body) -> None:
        return None

    def context_digest(self, request: Body) -> str | None:
        return bodies.context_digest(request)

    def with_prefix(self, request: Body, prefix: str) -> Body | None:
        messages = request.get("messages")
        if not isinstance(messages, list):
            return None
        return {**request, "messages": [*messages, {"role": "assistant", "content": prefix, "prefix": True}]}

    def answers(self, response: Body) -> list[list[ConversationItem]]:
        messages = [choice.get("message") for choice in objects(response.get("choices"))]
        return [list(message_items({"role": "assistant", **message})) for message in messages
                if isinstance(message, dict)]

    def answer_id(self, response: Body) -> None:
        return None

    def failure(self, response: object) -> str | None:
        return failures.of_choices(response, "message", dict)

    def finish_reason(self, response: Body) -> FinishReason | None:
        return finish_reasons.common((first_choice(response) or {}).get("finish_reason"))

    def usage(self, response: Body) -> Usage | None:
        return token_counts.of_openai(response)

    def error_body(self, message: str, code: str) -> Body:
        return bodies.openai_error(message, code)

    def error_event(self, message: str, code: str) -> Body:
        return bodies.openai_error(message, code)

    def advance(self, progress: Progress, event_type: str, event: Body) -> None:
        choices.advance(progress, event)

    def assemble(self, events: Sequence[Fields]) -> tuple[Body | None, bool]:
        return choices.assemble(events, "chat.completion", _GrowingMessage)

    def encode(self, event: Body) -> bytes:
        return sse.encode(event)

    def stream_end(self) -> bytes:
        return sse.END

    def is_last(self, event: Body) -> bool:
        return choices.is_last(event)

    def continuation(self, event: Body, progress: Progress) -> Body | None:
        return choices.continuation(event, progress)

    def chat_messages(self, request: Body) -> list[Message]:
        return [chat_form.chat_message(message)
                for message in chat_form.required_objects(request.get("messages"), "messages")]

    def chat_answer(self, response: Body) -> Message:
        choice = first_choice(response)
        if choice is None:
            raise ValueError("its answer has no choices")
        message = choice.get("message")
        if not isinstance(message, dict):
            raise ValueError("its answer has no message")
        return chat_form.answered(chat_form.chat_message({"role": "assistant", **message}))

    def chat_tools(self, request: Body) -> list[Message]:
        return chat_form.functions(request, lambda tool: dict(tool) if tool.get("type") == "function" else None)


def chunks_of(body: Body, request: Body) -> Iterator[Body]:
    """The stream that would have made this body: each choice's message in one piece, and then its end."""
    head = {"id": body.get("id"), "object": "chat.completion.chunk", "created": body.get("created"),
            "model": body.get("model")}
    options = request.get("stream_options")
    with_usage = isinstance(options, dict) and options.get("include_usage") is True
    head |= {"usage": None} if with_usage else {}
    for choice in body["choices"]:
        message, index = choice["message"], choice["index"]
        delta = {name: value for name, value in message.items() if value is not None}
        if "tool_calls" in delta:
            delta["tool_calls"] = [{"index": at, **call} for at, call in enumerate(delta["tool_calls"])]
        yield {**head, "choices": [{"index": index, "delta": delta, "logprobs": choice.get("logprobs"),
                                    "finish_reason": None}]}
        yield {**head, "choices": [{"index": index, "delta": {}, "logprobs": None,
                                    "finish_reason": choice["finish_reason"]}]}
    if with_usage:
        yield {**head, "choices": [], "usage": body.get("usage")}


class _GrowingMessage:
    """One answer of a chat as it grows."""

    def __init__(self, index: int) -> None:
        self._index, self._finish = index, None  # type: int, object
        self._texts: dict[str, list[str]] = {}  # pieces of fields that are text, joined at the end
        self._message: Fields = {"role": "assistant", "content": None, "refusal": None}
        self._calls: list[_GrowingCall] = []
        self._places: dict[int, _GrowingCall] = {}  # by index, the call that pieces with this index belong to
        self._legacy: _GrowingCall | None = None
        self._logprobs: Fields | None = None
        self._others: Fields = {}

    def push(self, piece: Fields) -> None:
        for name, value in piece.items():
            if name == "delta" or value is None:
                continue
            if name == "finish_reason":
                self._finish = value
            elif name == "logprobs":
                self._logprobs = joined_logprobs(self._logprobs, value)
            elif name != "index":
                self._others[name] = value
        delta = piece.get("delta")
        for name, value in (delta if isinstance(delta, dict) else {}).items():
            self._take(name, value)

    def whole(self) -> Fields:
        message = dict(self._message)
        for name, pieces in self._texts.items():
            text = "".join(pieces)
            message[name] = joined(message[name], text) if isinstance(message.get(name), list) else text
        if self._calls:
            message["tool_calls"] = [call.whole() for call in self._calls]
        if self._legacy is not None:
            message["function_call"] = self._legacy.function()
        if not message["content"] and (self._calls or self._legacy or message["refusal"]):
            message["content"] = None  # streams begin with "", bodies have null
        return {"index": self._index, "message": message, "logprobs": self._logprobs, "finish_reason": self._finish,
                **self._others}

    def _take(self, name: str, value: object) -> None:
        if value is None:
            return
        if name == "tool_calls" and isinstance(value, list):
            for place, piece in enumerate(value):
                if isinstance(piece, dict):
                    self._call(piece, place).push(piece)
        elif name == "function_call" and isinstance(value, dict):
            self._legacy = self._legacy or _GrowingCall()
            self._legacy.push({"function": value})
        elif isinstance(value, str) and name not in SAME:
            self._texts.setdefault(name, []).append(value)
        elif name == "content" and isinstance(value, list):  # parts: what came as text so far stands before them
            text = "".join(self._texts.pop(name, ()))
            self._message[name] = joined(joined(self._message[name], text) if text else self._message[name], value)
        else:
            self._message[name] = value if name in SAME else joined(self._message.get(name), value)

    def _call(self, piece: Fields, place: int) -> _GrowingCall:
        """Pieces of a call have its index. Some servers give all calls index 0, or none, and tell them apart by id."""
        given_index, id = piece.get("index"), piece.get("id")
        index = given_index if isinstance(given_index, int) else place
        known = self._places.get(index)
        if known is not None and (not id or not known.id or id == known.id):
            return known
        call = self._places[index] = _GrowingCall()
        self._calls.append(call)
        return call


class _GrowingCall:
    """A call of a function as it grows."""

    def __init__(self) -> None:
        self.id: object = None
        self._name, self._arguments, self._others = "", list[str](), Fields()

    def push(self, piece: Fields) -> None:
        self.id = self.id or piece.get("id")
        self._others |= {name: value for name, value in piece.items()
                         if name not in ("index", "id", "function") and value is not None}
        function = piece.get("function")
        if not isinstance(function, dict):
            return
        name, arguments = function.get("name"), function.get("arguments")
        if isinstance(name, str) and name != self._name:  # the whole name again, in every piece, is no piece of it
            self._name += name
        if arguments is not None:
            self._arguments.append(arguments if isinstance(arguments, str) else json.dumps(arguments))

    def function(self) -> Fields:
        return {"name": self._name, "arguments": "".join(self._arguments)}

    def whole(self) -> Fields:
        return {"id": self.id, "type": "function", **self._others, "function": self.function()}
