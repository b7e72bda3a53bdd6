"""Chunks of chats and completions, put together choice by choice.

Fields around the choices that we do not know (other servers have some) are taken over as the last chunk has them;
pieces of a delta that we do not know are joined as text, lists and objects are.
"""

from __future__ import annotations

import json
from typing import Any

Fields = dict[str, Any]
PADDING = "obfuscation"  # random letters with which OpenAI hides the length of a chunk
SAME = frozenset({"id", "type", "role", "index", "expires_at"})  # named again in every piece, not in pieces


def chat_body(chunks: list[Fields]) -> tuple[Fields | None, bool]:
    """A chat.completion, and whether every choice has come to its end."""
    return _body(chunks, "chat.completion", _ChatChoice)


def completion_body(chunks: list[Fields]) -> tuple[Fields | None, bool]:
    """A text_completion, and whether every choice has come to its end."""
    return _body(chunks, "text_completion", _TextChoice)


def _body(chunks: list[Fields], kind: str, make: type[_ChatChoice] | type[_TextChoice]) -> tuple[Fields | None, bool]:
    choices: dict[int, _ChatChoice | _TextChoice] = {}
    body: Fields = {}
    for chunk in chunks:
        for name, value in chunk.items():
            if name not in ("choices", PADDING) and (value is not None or name not in body):
                body[name] = value
        found = chunk.get("choices")
        for place, piece in enumerate(found if isinstance(found, list) else ()):
            if isinstance(piece, dict):
                index = piece.get("index")
                index = index if isinstance(index, int) else place
                choices.setdefault(index, make(index)).push(piece)
    if not choices and not body:
        return None, False
    body = {name: value for name, value in body.items() if name != "usage" or value is not None}
    if choices or "object" in body:
        body["object"] = kind
    whole = [choices[index].whole() for index in sorted(choices)]
    usage = {"usage": body.pop("usage")} if "usage" in body else {}
    return {**body, "choices": whole, **usage}, bool(whole) and all(each["finish_reason"] for each in whole)


class _ChatChoice:
    """One answer of a chat as it grows."""

    def __init__(self, index: int) -> None:
        self._index, self._finish = index, None  # type: int, object
        self._texts: dict[str, list[str]] = {}  # pieces of fields that are text, joined at the end
        self._message: Fields = {"role": "assistant", "content": None, "refusal": None}
        self._calls: list[_Call] = []
        self._places: dict[int, _Call] = {}  # by index, the call that pieces with this index go to
        self._legacy: _Call | None = None
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
            self._legacy = self._legacy or _Call()
            self._legacy.push({"function": value})
        elif isinstance(value, str) and name not in SAME:
            self._texts.setdefault(name, []).append(value)
        elif name == "content" and isinstance(value, list):  # parts: what came as text so far stands before them
            text = "".join(self._texts.pop(name, ()))
            self._message[name] = joined(joined(self._message[name], text) if text else self._message[name], value)
        else:
            self._message[name] = value if name in SAME else joined(self._message.get(name), value)

    def _call(self, piece: Fields, place: int) -> _Call:
        """Pieces of a call have its index. Some servers give all calls index 0, or none, and tell them apart by id."""
        found, id = piece.get("index"), piece.get("id")
        index = found if isinstance(found, int) else place
        known = self._places.get(index)
        if known is not None and (not id or not known.id or id == known.id):
            return known
        call = self._places[index] = _Call()
        self._calls.append(call)
        return call


class _Call:
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


class _TextChoice:
    """One legacy completion as it grows."""

    def __init__(self, index: int) -> None:
        self._index, self._finish = index, None  # type: int, object
        self._texts: list[str] = []
        self._logprobs: Fields | None = None
        self._others: Fields = {}

    def push(self, piece: Fields) -> None:
        for name, value in piece.items():
            if value is None or name == "index":
                continue
            if name == "text" and isinstance(value, str):
                self._texts.append(value)
            elif name == "finish_reason":
                self._finish = value
            elif name == "logprobs":
                self._logprobs = joined_logprobs(self._logprobs, value)
            else:
                self._others[name] = value

    def whole(self) -> Fields:
        return {"text": "".join(self._texts), "index": self._index, "logprobs": self._logprobs,
                "finish_reason": self._finish, **self._others}


def joined_logprobs(before: Fields | None, piece: object) -> Fields | None:
    """Lists of tokens grow; null says nothing. `before` is ours to change: copying it each time would be quadratic."""
    if not isinstance(piece, dict):
        return before
    whole = {} if before is None else before
    for name, value in piece.items():
        known = whole.get(name)
        if isinstance(known, list) and isinstance(value, list):
            known.extend(value)
        elif value is not None or name not in whole:
            whole[name] = list(value) if isinstance(value, list) else value
    return whole


def joined(before: Any, piece: Any) -> Any:
    """A piece behind what there was: text, parts of a message, objects whose fields grow."""
    match before, piece:
        case None, _:
            return piece
        case str(), str():
            return before + piece
        case list(), str():
            return joined(before, [{"type": "text", "text": piece}])
        case str(), list():
            return joined([{"type": "text", "text": before}] if before else [], piece)
        case list(), list():
            return _parts(before, piece)
        case dict(), dict():
            return {**before, **{name: value if name in SAME else joined(before.get(name), value)
                                 for name, value in piece.items() if value is not None}}
        case _:
            return piece


def _parts(before: list[Any], piece: list[Any]) -> list[Any]:
    """Parts of a message; a text or a thought that goes on is one part."""
    whole = list(before)
    for part in piece:
        last = whole[-1] if whole else None
        goes_on = (isinstance(last, dict) and isinstance(part, dict) and last.get("type") == part.get("type")
                   and part.get("type") in ("text", "thinking"))
        if goes_on:
            whole[-1] = joined(last, part)
        else:
            whole.append(part)
    return whole
