"""Slices of traffic that a proof looks at one by one: by label, or by what can be told of a request without a model."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from brise.dialects import answers
from brise.dialects.bodies import Body

DERIVED = ("length", "writing")
# Characters of the request's last message: fixed, so that a slice is the same in every interim analysis.
LENGTHS: Mapping[str, int] = MappingProxyType({"to 200": 200, "to 1000": 1000, "to 5000": 5000})
LONGEST = "over 5000"


def value_of(labels: Mapping[str, str], last_text: str, dimension: str) -> str:
    """The value of a label (headers x-brise-label-NAME), or of what is derived from the request's last message."""
    if dimension in labels or dimension not in DERIVED:
        return labels.get(dimension, "")
    return length_of(last_text) if dimension == "length" else writing_of(last_text)


def last_text(fields: Body) -> str:
    """The text of a request's last message."""
    messages = fields.get("messages")
    last = messages[-1] if isinstance(messages, list) and messages else None
    return answers.text_of(last.get("content")) if isinstance(last, dict) else ""


def length_of(text: str) -> str:
    """The class of a text's length."""
    return next((name for name, most in LENGTHS.items() if len(text) <= most), LONGEST)


def writing_of(text: str) -> str:
    """The script of most letters, such as Latin, Cyrillic or CJK: all that can be told about the language."""
    scripts = Counter(unicodedata.name(letter, "").partition(" ")[0] for letter in text[:2000] if letter.isalpha())
    return scripts.most_common(1)[0][0].capitalize() if scripts else "none"
