"""The system prompt that a model's makers suggest (SYSTEM_PROMPT.txt), filled in and cut into parts.

Reasoning models are shown how to think between [THINK] and [/THINK]. Those are control tokens, which no text
becomes, so what stands between them is sent as a part of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date, timedelta

_THINKING = re.compile(r"\[THINK\](.*?)\[/THINK\]", re.DOTALL)


def suggested(text: str, name: str, today: date, *, can_think: bool) -> str | list[Mapping[str, object]]:
    """A message's content. {name}, {today} and {yesterday} are the only words in braces that mean something."""
    filled = (text.replace("{name}", name).replace("{today}", today.isoformat())
              .replace("{yesterday}", (today - timedelta(days=1)).isoformat()))
    pieces = _THINKING.split(filled)
    if not can_think or len(pieces) == 1:
        return filled
    parts: list[Mapping[str, object]] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            parts.append({"type": "thinking", "thinking": piece, "closed": True})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts
