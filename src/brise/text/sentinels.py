"""Marks: how control tokens that mean something reach the text of an answer, as signs that no text can hold.

A request names the tokens ([TOOL_CALLS], [THINK], ...) and the mark each becomes. Marks are noncharacters of
Unicode; where one stands in ordinary text it is replaced, so text that looks like a control token is text.
"""

from __future__ import annotations

from collections.abc import Mapping

THINK, END_THINK, CALL, END_CALL, CALL_ID, ARGS = (chr(0xFDD0 + number) for number in range(6))

_REPLACED: Mapping[int, str] = {0xFDD0 + number: "\ufffd" for number in range(6)}


def without_marks(text: str) -> str:
    """Ordinary text, in which no mark may stand."""
    return text.translate(_REPLACED)
