"""Streams whose chunks hold choices, as those of chats and of completions: read, put together, and continued.

Fields around the choices that we do not know (other servers have some) are taken over as the last chunk has them;
pieces of a delta that we do not know are joined as text, lists and objects are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from brise.dialects.bodies import Body, Fields, objects, text
from brise.dialects.dialect import Progress
from brise.dialects.items import REASONING

PADDING = "obfuscation"  # random letters with which OpenAI hides the length of a chunk
SAME = frozenset({"id", "type", "role", "index", "expires_at"})  # repeated in every piece, not split into pieces


REASONING_FIELDS = ("reasoning_content", "reasoning", "reasoning_details", "thinking_blocks")  # as servers call it
NOT_TEXT = ("audio", "images")  # fields of a delta that no text can go on from


class StreamedChoice(Protocol):
    """One answer as it grows."""

    def push(self, piece: Fields) -> None:
        """Takes the next piece."""

    def whole(self) -> Fields:
        """The choice as a body has it."""


def assemble(chunks: Sequence[Fields], name: str, make: Callable[[int], StreamedChoice]) -> tuple[Body | None, bool]:
    """The body, whose `object` is `name`, and whether every choice has come to its end."""
    choices: dict[int, StreamedChoice] = {}
    body: Fields = {}
    for chunk in chunks:
        for field, value in chunk.items():
            if field not in ("choices", PADDING) and (value is not None or field not in body):
                body[field] = value
        pieces = chunk.get("choices")
        for place, piece in enumerate(pieces if isinstance(pieces, list) else ()):
            if isinstance(piece, dict):
                index = piece.get("index")
                index = index if isinstance(index, int) else place
                choices.setdefault(index, make(index)).push(piece)
    if not choices and not body:
        return None, False
    body = {field: value for field, value in body.items() if field != "usage" or value is not None}
    if choices or "object" in body:
        body["object"] = name
    whole = [choices[index].whole() for index in sorted(choices)]
    usage = {"usage": body.pop("usage")} if "usage" in body else {}
    return {**body, "choices": whole, **usage}, bool(whole) and all(each["finish_reason"] for each in whole)


def advance(progress: Progress, chunk: Body) -> None:
    """Takes one chunk into account."""
    progress.id = progress.id or text(chunk.get("id"))
    progress.model = progress.model or text(chunk.get("model"))
    progress.fingerprint = progress.fingerprint or text(chunk.get("system_fingerprint"))
    created = chunk.get("created")
    if progress.created is None and isinstance(created, int):
        progress.created = created
    for place, choice in enumerate(objects(chunk.get("choices"))):
        index = choice.get("index")
        _advance_choice(progress, choice, index if isinstance(index, int) else place)


def _advance_choice(progress: Progress, choice: Body, index: int) -> None:
    if index >= progress.num_choices:
        progress.num_choices = index + 1
    piece = piece_of(choice)
    content = piece.get("content")
    if content:
        _advance_content(progress, content, index)
    if len(piece) > ("content" in piece):  # most pieces are a few letters of text, and no more
        _advance_others(progress, piece)
    if finish := text(choice.get("finish_reason")):
        progress.finish = progress.finish or finish
        progress.finished.add(index)


def _advance_others(progress: Progress, piece: Body) -> None:
    progress.has_refusal |= bool(piece.get("refusal"))
    progress.has_calls |= bool(piece.get("tool_calls") or piece.get("function_call"))
    progress.unreadable = progress.unreadable or next((name for name in NOT_TEXT if piece.get(name)), None)
    progress.has_content |= progress.has_calls or progress.has_refusal or progress.unreadable is not None or any(
        piece.get(name) for name in REASONING_FIELDS)


def piece_of(choice: Body) -> Body:
    """What a chunk adds to a choice: some servers put it under the name of whole answers."""
    delta, message = choice.get("delta"), choice.get("message")
    if isinstance(delta, dict):
        return delta
    return message if isinstance(message, dict) else {"content": choice.get("text")}


def _advance_content(progress: Progress, content: object, index: int) -> None:
    """Text, or parts: Mistral's models send thoughts and text so."""
    for part in content if isinstance(content, list) else [content]:
        match part:
            case str(said) | {"type": "text" | "output_text", "text": str(said)}:
                progress.has_content |= bool(said)
                if index == 0:
                    progress.texts.append(said)
            case {"type": "refusal"}:
                progress.has_content = progress.has_refusal = True
            case {"type": str(kind)} if kind in REASONING:
                progress.has_content = True
            case _:
                name = str(part.get("type") if isinstance(part, dict) else type(part).__name__)
                progress.has_content = True
                progress.unreadable = progress.unreadable or f"a part of type {name[:32]!r}"


def is_last(chunk: Body) -> bool:
    """Whether it ends a choice, or comes after all of them."""
    return not chunk["choices"] or any(choice.get("finish_reason") is not None for choice in chunk["choices"])


def continuation(chunk: Body, progress: Progress) -> Body | None:
    """A small model's chunk under the id that the client has seen; None if it says nothing."""
    same = {name: value for name, value in (("id", progress.id), ("created", progress.created)) if value is not None}
    choices = [_without_role(choice) for choice in chunk["choices"]] if progress.id else chunk["choices"]
    return {**chunk, **same, "choices": choices} if not choices or any(map(_says_something, choices)) else None


def _without_role(choice: Body) -> Body:
    delta = choice.get("delta")
    if not isinstance(delta, dict) or "role" not in delta:
        return choice
    return {**choice, "delta": {name: value for name, value in delta.items() if name != "role"}}


def _says_something(choice: Body) -> bool:
    delta = choice["delta"] if "delta" in choice else {"text": choice.get("text")}
    return choice.get("finish_reason") is not None or choice.get("logprobs") is not None or any(delta.values())


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


class GrowingValue:
    """A value of a delta as it grows: text, parts of a message, objects whose fields grow. Anything else is replaced.

    It takes time in proportion to what is pushed: text is joined when it is asked for.
    """

    def __init__(self, *pieces: object) -> None:
        self._grown: _Texts | _Parts | dict[str, GrowingValue] | None = None
        self._value: object = None
        for piece in pieces:
            self.push(piece)

    def push(self, piece: object) -> None:
        """Takes the next piece. Text behind parts is a part, and so is text before them."""
        match self._grown, piece:
            case _Parts() as parts, str():
                parts.push({"type": "text", "text": piece})
            case _Parts() as parts, list():
                parts.extend_by(piece)
            case _Texts() as texts, list():
                text = "".join(texts)
                self._grown = _Parts()
                self._grown.extend_by([*([{"type": "text", "text": text}] if text else []), *piece])
            case _Texts() as texts, str():
                texts.append(piece)
            case dict() as fields, dict():
                _grow(fields, piece)
            case _:
                self._begin(piece)

    def value(self) -> Any:
        """All of it."""
        match self._grown:
            case _Texts() as texts:
                return "".join(texts)
            case _Parts() as parts:
                return [part.value() for _, part in parts]
            case dict() as fields:
                return {name: field.value() for name, field in fields.items()}
            case _:
                return self._value

    def _begin(self, piece: object) -> None:
        self._value = piece
        match piece:
            case str():
                self._grown = _Texts([piece])
            case list():
                self._grown = _Parts()
                self._grown.extend_by(piece)
            case dict():
                self._grown = {}
                _grow(self._grown, piece)
            case _:
                self._grown = None


class _Texts(list[str]):
    """Text in pieces."""


class _Parts(list[tuple[object, GrowingValue]]):
    """Parts of a message, each with its type; a text or a thought that goes on is one part."""

    def extend_by(self, parts: list[object]) -> None:
        for part in parts:
            self.push(part)

    def push(self, part: object) -> None:
        kind = part.get("type") if isinstance(part, dict) else None
        if self and kind in ("text", "thinking") and self[-1][0] == kind:
            self[-1][1].push(part)
        else:
            self.append((kind, GrowingValue(part)))


def _grow(fields: dict[str, GrowingValue], piece: Fields) -> None:
    for name, value in piece.items():
        if name in SAME or name not in fields:
            fields[name] = GrowingValue(value)
        elif value is not None:
            fields[name].push(value)
