"""Reads function calls in the format of Hermes, Qwen and Granite 4, and writes the prompt that asks for it.

    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

Several calls follow one another; text may stand around them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence

from brise.text.answer_events import Parsed, ParsedText, joined
from brise.text.json_pieces import WHITE, ObjectEnd, cut_call, whole_call
from brise.text.mistral_calls import ListCallParser
from brise.text.special_tokens import CALL

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_MIN_TAG = len("<tool_")  # of a tag that was cut; less may be text


class ToolCallParser:
    """Finds calls in text that comes in pieces, however it is cut.

    A call is held until it is complete, because only then it is certain to be one: a malformed one, or one of a
    function that is not in `names` (None: any), comes back as text. Where the tags are tokens, `tags` are their
    sentinels.
    """

    def __init__(self, names: Collection[str] | None = None, tags: tuple[str, str] = (OPEN, CLOSE)) -> None:
        self._names = names
        self._open, self._close = tags
        self._held = ""
        self._object: ObjectEnd | None = None  # set while _held begins with <tool_call>

    def push(self, text: str) -> list[Parsed]:
        self._held += text
        return joined(self._read(is_last=False))

    def finish(self, *, was_cut: bool = False) -> list[Parsed]:
        """What was held: a call without its closing tag counts; half a call is text, unless it was cut there."""
        if was_cut and self._object is not None and self._object.end is None:
            half = cut_call(self._held[len(self._open):], self._names)
            if half is not None:
                self._held = ""
                return joined(half)
        elif was_cut and self._object is None and len(self._held) >= _MIN_TAG and self._open.startswith(self._held):
            self._held = ""  # the beginning of a tag
        return joined(self._read(is_last=True))

    def _read(self, *, is_last: bool) -> Iterator[Parsed]:
        while self._held:
            if self._object is None:
                num_text = self._num_text(is_last)
                yield ParsedText(self._held[:num_text])
                self._held = self._held[num_text:]
                if not self._held.startswith(self._open):
                    return
                self._object = ObjectEnd(len(self._open))
            end = self._call_end(self._object.find(self._held), is_last)
            if end is None:
                return
            call = whole_call(self._held[len(self._open):self._object.end], self._names) if end else None
            if call is None:
                yield ParsedText(self._open)
                end = len(self._open)
            else:
                yield from call
            self._held, self._object = self._held[end:], None

    def _num_text(self, is_last: bool) -> int:
        start = self._held.find(self._open)
        if start >= 0:
            return start
        if is_last:
            return len(self._held)
        return len(self._held) - next((length for length in range(len(self._open) - 1, 0, -1)
                                       if self._held.endswith(self._open[:length])), 0)

    def _call_end(self, object_end: int | None, is_last: bool) -> int | None:
        """Where the closing tag ends; 0 if this is no call, None if that is not known yet."""
        if not object_end:
            return 0 if is_last else object_end
        rest = self._held[object_end:].lstrip(WHITE)
        if rest.startswith(self._close):
            return len(self._held) - len(rest) + len(self._close)
        if not self._close.startswith(rest):
            return 0
        return len(self._held) if is_last else None


class ArrayCallParser:
    """Finds the calls of Granite 3 and Phi-4-mini: a JSON list behind <|tool_call|>, which arrives as a sentinel.

    Granite 3.1 and later may write <tool_call> in letters in place of the token. A closing tag behind a list is left
    out.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self._list, self._held, self._is_behind = ListCallParser(names), "", False

    def push(self, text: str) -> list[Parsed]:
        """Holds back what may be the beginning of a tag."""
        return self._read(text, is_last=False)

    def finish(self, *, was_cut: bool = False) -> list[Parsed]:
        """See ListCallParser."""
        if was_cut and len(self._held) >= _MIN_TAG:
            self._held = ""
        return [*self._read("", is_last=True), *self._list.finish(was_cut=was_cut)]

    def _read(self, text: str, *, is_last: bool) -> list[Parsed]:
        text = self._held + text
        num_held = 0 if is_last else next((length for length in range(len(CLOSE) - 1, 0, -1) if text.endswith(
            (OPEN[:length], CLOSE[:length]))), 0)
        self._held = text[len(text) - num_held:]
        parts = text[:len(text) - num_held].split(OPEN)
        self._is_behind = self._is_behind or len(parts) > 1
        known = CALL.join(parts)
        return self._list.push(known.replace(CLOSE, "") if self._is_behind else known)


def tool_system_prompt(tools: Sequence[Mapping[str, object]]) -> str:
    """The prompt, in Qwen's words, that tells a model whose template knows no tools what to call and how."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return ("# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
            "You are provided with function signatures within <tools></tools> XML tags:\n"
            f"<tools>\n{listed}\n</tools>\n\n"
            "For each function call, return a json object with function name and arguments within "
            f"{OPEN}{CLOSE} XML tags:\n"
            f'{OPEN}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{CLOSE}')
