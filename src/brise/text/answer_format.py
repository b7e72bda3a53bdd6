"""Describes a model's answers, and reads them: which special tokens mark reasoning and function calls."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from brise.text.answer_events import CallParser, Parsed, ParsedReasoning, ParsedText, changed, joined
from brise.text.mistral_calls import ListCallParser, NamedCallParser
from brise.text.protocols import Message, TextTokenizer
from brise.text.special_tokens import ARGS, CALL, CALL_ID, END_CALL, END_THINK, THINK
from brise.text.tool_calls import CLOSE, OPEN, ArrayCallParser, ToolCallParser

# How calls are written. tags: <tool_call> JSON </tool_call>; list: Mistral's v3 and v7; named: v11 and later; array: a
# JSON list behind a special token, as Granite 3 and Phi-4-mini write it.
CallStyle = Literal["tags", "list", "named", "array"]
ARRAY, END_ARRAY = "<|tool_call|>", "<|/tool_call|>"  # Granite 3 has no closing token

_THINK_TEXTS = (("[THINK]", "[/THINK]"), ("<think>", "</think>"))
_ID_LETTERS = string.ascii_letters + string.digits


@dataclass(frozen=True)
class AnswerFormat:
    """How a model writes answers. `tokens` are those of its sentinels."""

    calls: CallStyle
    tokens: Mapping[str, int]  # by sentinel
    texts: Mapping[int, str]  # the name of each sentinel's token, by the sentinel's code point
    strips_lines: bool = False  # <think> stands on lines of its own; [THINK] does not
    has_spaces: bool = False  # SentencePiece puts a space before the text behind a special token

    @classmethod
    def of(cls, tokenizer: TextTokenizer, calls: CallStyle) -> AnswerFormat:
        """The format of a model with this vocabulary."""
        think, end_think = next((pair for pair in _THINK_TEXTS if tokenizer.control.keys() >= {*pair}), ("", ""))
        names = {THINK: think, END_THINK: end_think}
        match calls:
            case "tags":
                names |= {CALL: OPEN, END_CALL: CLOSE} if tokenizer.control.keys() >= {OPEN, CLOSE} else {}
            case "list":
                names[CALL] = "[TOOL_CALLS]"
            case "array":
                names |= {CALL: ARRAY, END_CALL: END_ARRAY}
            case "named":
                names |= {CALL: "[TOOL_CALLS]", CALL_ID: "[CALL_ID]", ARGS: "[ARGS]"}
        known = {sentinel: name for sentinel, name in names.items() if name in tokenizer.control}
        return cls(calls, {sentinel: tokenizer.control[name] for sentinel, name in known.items()},
                   {ord(sentinel): "" if name == END_ARRAY else name for sentinel, name in known.items()},
                   strips_lines=think == "<think>",
                   has_spaces=tokenizer.drops_space_after(None))

    @property
    def sentinels(self) -> Mapping[int, str]:
        """By token, for the engine's request."""
        return {token: sentinel for sentinel, token in self.tokens.items()}

    @property
    def can_think(self) -> bool:
        """Whether answers, and so messages, may have a thinking part."""
        return THINK in self.tokens

    def thinks_at_end_of(self, tokens: Sequence[int]) -> bool:
        """Whether the prompt ends within a thinking part, so that the answer goes on with it."""
        if not self.can_think:
            return False
        opened, closed = self.tokens[THINK], self.tokens[END_THINK]
        return next((token == opened for token in reversed(tokens) if token in (opened, closed)), False)

    def parser(self, names: Collection[str] = (), *, is_thinking: bool = False,
               writes_tags: bool = False) -> AnswerParser:
        """Reads one answer; `names` are the functions that it may call. `writes_tags`: its thinking stands in <think>,
        which is text, as the first Magistral's."""
        return AnswerParser(self._call_parser(names), self, is_thinking=is_thinking, writes_tags=writes_tags)

    def new_call_id(self) -> str:
        """An id for a call. Mistral's templates insist on nine letters and digits."""
        if self.calls in ("tags", "array"):
            return f"call_{secrets.token_hex(16)}"
        return "".join(secrets.choice(_ID_LETTERS) for _ in range(9))

    def with_call_ids(self, message: Message) -> Message:
        """The message with ids that this model's template takes: others are mapped to nine letters, always the same."""
        if self.calls in ("tags", "array") or not {"tool_calls", "tool_call_id"} & message.keys():
            return message
        changed = dict(message)
        calls = message.get("tool_calls")
        if isinstance(calls, Sequence):
            changed["tool_calls"] = [{**call, "id": _short_id(str(call.get("id")))} for call in calls]
        if "tool_call_id" in message:
            changed["tool_call_id"] = _short_id(str(message["tool_call_id"]))
        return changed

    def _call_parser(self, names: Collection[str]) -> CallParser | None:
        match self.calls:
            case "tags" if names:
                return ToolCallParser(names, (CALL, END_CALL) if CALL in self.tokens else (OPEN, CLOSE))
            case "named" if names:
                return NamedCallParser(names)
            case "list" if names:
                return ListCallParser(names)
            case "array" if names:
                return ArrayCallParser(names)
            case _:
                return None


def _short_id(call_id: str) -> str:
    if len(call_id) == 9 and all(letter in _ID_LETTERS for letter in call_id):
        return call_id
    digest = hashlib.sha256(call_id.encode(errors="surrogatepass")).digest()
    return "".join(_ID_LETTERS[byte % len(_ID_LETTERS)] for byte in digest[:9])


class AnswerParser:
    """Separates reasoning, text and calls, however the text is cut; sentinels without a meaning become text."""

    def __init__(self, calls: CallParser | None, format: AnswerFormat, *, is_thinking: bool,
                 writes_tags: bool = False) -> None:
        self._calls, self._texts, self._strips = calls, format.texts, format.strips_lines or writes_tags
        self._tags = _ThinkTags() if writes_tags else None
        self._is_thinking = is_thinking
        self._at_start = self._strips  # of a part, where line breaks do not count
        self._held_lines = ""  # at the end of the reasoning, where they do not count either

    def push(self, text: str) -> list[Parsed]:
        """What the text makes certain."""
        text = text if self._tags is None else self._tags.push(text)
        return self._named([item for part in _PARTS.split(text) for item in self._read(part)])

    def finish(self, *, was_cut: bool = False) -> list[Parsed]:
        """The rest. `was_cut`: by a limit of length, so half a call is the beginning of one."""
        rest = [] if self._tags is None else [item for part in _PARTS.split(self._tags.rest())
                                              for item in self._read(part)]
        return self._named([*rest, *(self._calls.finish(was_cut=was_cut) if self._calls is not None else [])])

    def _read(self, part: str) -> list[Parsed]:
        if part == THINK and not self._is_thinking:
            self._is_thinking, self._at_start = True, self._strips
            return []
        if part == END_THINK and self._is_thinking:
            self._is_thinking, self._at_start, self._held_lines = False, self._strips, ""
            return []
        if part == CALL and self._is_thinking:  # the model left out the end of its thinking
            self._is_thinking, self._held_lines = False, ""
        if self._at_start:
            part = part.lstrip("\n")
            self._at_start = not part
        if self._is_thinking:
            return [ParsedReasoning(self._without_last_lines(part))]
        return [ParsedText(part)] if self._calls is None else self._calls.push(part)

    def _without_last_lines(self, part: str) -> str:
        if not self._strips:
            return part
        part = self._held_lines + part
        shown = part.rstrip("\n")
        self._held_lines = part[len(shown):]
        return shown

    def _named(self, items: Sequence[Parsed]) -> list[Parsed]:
        return joined(changed(item, lambda text: text.translate(self._texts)) for item in items)


class _ThinkTags:
    """Puts sentinels for <think>, which begins an answer, and for the </think> behind it."""

    def __init__(self) -> None:
        self._held, self._tag, self._sentinel = "", "<think>", THINK

    def push(self, text: str) -> str:
        text, self._held = self._held + text, ""
        if not self._sentinel:
            return text
        if self._sentinel == THINK:
            begun = text.lstrip()
            if not begun.startswith(self._tag):
                if self._tag.startswith(begun):
                    self._held = text
                    return ""
                self._sentinel = ""  # an answer without thinking
                return text
            self._tag, self._sentinel = "</think>", END_THINK
            return THINK + self.push(begun.removeprefix("<think>"))
        thought, tag, answer = text.partition(self._tag)
        if tag:
            self._sentinel = ""
            return thought + END_THINK + answer
        num_held = next((length for length in range(len(self._tag) - 1, 0, -1)
                         if text.endswith(self._tag[:length])), 0)
        self._held = text[len(text) - num_held:]
        return text[:len(text) - num_held]

    def rest(self) -> str:
        held, self._held = self._held, ""
        return held


_PARTS = re.compile(f"([{THINK}{END_THINK}{CALL}])")


def calls_of_template(source: str, tokenizer: TextTokenizer) -> tuple[CallStyle, bool]:
    """How a model with this chat template calls functions, and whether the template can be given tools."""
    tools = re.search(r"\btools\b", source) is not None
    if "[TOOL_CALLS]" in source and "[TOOL_CALLS]" in tokenizer.control:
        return ("named" if "[ARGS]" in source and "[ARGS]" in tokenizer.control else "list"), tools
    if ARRAY in tokenizer.control and OPEN not in source:
        return "array", tools
    return "tags", tools and OPEN in source
