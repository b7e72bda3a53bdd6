"""OpenAI's chat completions: /v1/chat/completions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from brise.dialects import bodies, chat_form, choices, failures, sse, token_counts
from brise.dialects.bodies import Body, Fields, Kind, Usage, first_choice, objects
from brise.dialects.chat_form import Message
from brise.dialects.choices import SAME, GrowingValue, joined_logprobs, piece_of
from brise.dialects.dialect import Progress
from brise.dialects.items import ConversationItem, message_items
from brise.text import finish_reasons
from brise.text.finish_reasons import FinishReason

DECODER = json.JSONDecoder()


class OpenAIChat:
    """Implements `Dialect`."""

    name: Kind = "chat"
    path = "/v1/chat/completions"
    operation, provider = "chat", "openai"
    is_read = is_served = is_switched = has_small_models = continues = True
    counts_on_request = is_deployed = True
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
        return chat_form.answered(_with_ids(chat_form.chat_message({"role": "assistant", **message})))

    def chat_tools(self, request: Body) -> list[Message]:
        return chat_form.functions(request, lambda tool: dict(tool) if tool.get("type") == "function" else None)


def _with_ids(message: Message) -> Message:
    """Calls need ids: Gemini's layer for OpenAI's clients leaves them empty."""
    calls = message.get("tool_calls")
    if not calls or all(call.get("id") for call in calls):
        return message
    return {**message, "tool_calls": [{**call, "id": call.get("id") or f"call_{place}"}
                                      for place, call in enumerate(calls)]}


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
        self._message: dict[str, GrowingValue] = {
            "role": GrowingValue("assistant"), "content": GrowingValue(None), "refusal": GrowingValue(None)}
        self._calls: list[_GrowingCall] = []
        self._places: dict[int, _GrowingCall] = {}  # by index, the call that pieces with this index belong to
        self._legacy: _GrowingCall | None = None
        self._logprobs: Fields | None = None
        self._others: Fields = {}

    def push(self, piece: Fields) -> None:
        for name, value in piece.items():
            if name in ("delta", "message") or value is None:
                continue
            if name == "finish_reason":
                self._finish = value
            elif name == "logprobs":
                self._logprobs = joined_logprobs(self._logprobs, value)
            elif name != "index":
                self._others[name] = value
        for name, value in piece_of(piece).items():
            self._take(name, value)

    def whole(self) -> Fields:
        message = {name: value.value() for name, value in self._message.items()}
        if self._calls:
            message["tool_calls"] = [call for growing in self._calls for call in growing.whole()]
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
            self._take_calls(value)
        elif name == "function_call" and isinstance(value, dict):
            self._legacy = self._legacy or _GrowingCall()
            self._legacy.push({"function": value})
        elif name in SAME or name not in self._message:
            self._message[name] = GrowingValue(value)
        else:
            self._message[name].push(value)

    def _take_calls(self, pieces: list[object]) -> None:
        """Pieces of a call have its index. Some servers give all calls index 0, or none, and tell them apart by id, or
        by nothing but their names."""
        indexes = set[int]()  # in one delta each stands once
        for place, piece in enumerate(pieces):
            if not isinstance(piece, dict):
                continue
            index = piece.get("index")
            index = index if isinstance(index, int) else place
            known = self._places.get(index)
            if known is None or (index in indexes and _field(piece, "name")) or known.is_followed_by(piece):
                known = self._places[index] = _GrowingCall()
                self._calls.append(known)
            indexes.add(index)
            known.push(piece)


class _GrowingCall:
    """A call of a function as it grows."""

    def __init__(self) -> None:
        self._id: object = None
        self._name, self._arguments, self._others = "", list[str](), Fields()
        self._named_at: list[int] = []  # where in the arguments pieces began that brought the name, but no id
        self._num_characters = 0

    def is_followed_by(self, piece: Fields) -> bool:
        """Whether a piece is of another call: it has another id, or, behind arguments, the first id or another name."""
        id, name, has_begun = piece.get("id"), _field(piece, "name"), bool(self._num_characters)
        if id and self._id:
            return bool(id != self._id)
        return has_begun and isinstance(name, str) and name != "" and (bool(id) or name != self._name)

    def push(self, piece: Fields) -> None:
        self._id = self._id or piece.get("id")
        self._others |= {name: value for name, value in piece.items()
                         if name not in ("index", "id", "function") and value is not None}
        name, arguments = _field(piece, "name"), _field(piece, "arguments")
        if isinstance(name, str) and name:
            if name != self._name:  # the whole name again, in every piece, is no piece of it
                self._name += name
            elif not self._id:
                self._named_at.append(self._num_characters)
        if arguments is not None:
            text = arguments if isinstance(arguments, str) else json.dumps(arguments)
            self._arguments.append(text)
            self._num_characters += len(text)

    def function(self) -> Fields:
        return {"name": self._name, "arguments": "".join(self._arguments)}

    def whole(self) -> list[Fields]:
        """The call; or several, where the name came again exactly behind the end of whole arguments."""
        text, about = "".join(self._arguments), {"id": self._id, "type": "function", **self._others}
        return [{**about, "function": {"name": self._name, "arguments": arguments}}
                for arguments in _apart(text, self._named_at)]


def _field(piece: Fields, name: str) -> object:
    function = piece.get("function")
    return function.get(name) if isinstance(function, dict) else None


def _apart(text: str, places: Sequence[int]) -> Iterator[str]:
    """JSON values that stand one behind the other, each but the first at one of the places; else the text."""
    begin, known = 0, set(places)
    while known and begin < len(text):
        try:
            _, end = DECODER.raw_decode(text, begin)
        except (ValueError, RecursionError):
            break
        if end not in known:
            break
        yield text[begin:end]
        begin = end
    if begin < len(text) or not text:
        yield text[begin:]
