"""Streams whose chunks hold choices, as those of chats and of completions: read, put together, and continued.

Fields around the choices that we do not know (other servers have some) are taken over as the last chunk has them;
pieces of a delta that we do not know are joined as text, lists and objects are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from brise.dialects.bodies import Body, Fields, objects, text
from brise.dialects.dialect import Progress

PADDING = "obfuscation"  # random letters with which OpenAI hides the length of a chunk
SAME = frozenset({"id", "type", "role", "index", "expires_at"})  # repeated in every piece, not split into pieces


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
    for choice in objects(chunk.get("choices")):
        _advance_choice(progress, choice)


def _advance_choice(progress: Progress, choice: Body) -> None:
    index = choice.get("index")
    progress.num_choices = max(progress.num_choices, index + 1 if isinstance(index, int) else 1)
    delta = choice.get("delta")
    piece: Body = delta if isinstance(delta, dict) else {"content": choice.get("text")}
    content = piece.get("content") or piece.get("refusal")
    if isinstance(content, str) and not index:
        progress.text += content
    progress.has_calls |= bool(piece.get("tool_calls") or piece.get("function_call"))
    progress.has_content |= progress.has_calls or bool(
        content or piece.get("reasoning_content") or piece.get("reasoning"))
    if finish := text(choice.get("finish_reason")):
        progress.finish = progress.finish or finish
        progress.finished.add(index if isinstance(index, int) else 0)


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


def joined(before: Any, piece: Any) -> Any:
    """What there was and the piece that follows it: text, parts of a message, objects whose fields grow."""
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
            return _joined_parts(before, piece)
        case dict(), dict():
            return {**before, **{name: value if name in SAME else joined(before.get(name), value)
                                 for name, value in piece.items() if value is not None}}
        case _:
            return piece


def _joined_parts(before: list[Any], piece: list[Any]) -> list[Any]:
    """Parts of a message; a text or a thought that goes on is one part."""
    whole = list(before)
    for part in piece:
        last = whole[-1] if whole else None
        is_same = (isinstance(last, dict) and isinstance(part, dict) and last.get("type") == part.get("type")
                   and part.get("type") in ("text", "thinking"))
        if is_same:
            whole[-1] = joined(last, part)
        else:
            whole.append(part)
    return whole
