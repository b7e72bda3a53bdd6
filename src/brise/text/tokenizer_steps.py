"""Says which steps of a tokenizer.json may run: those of the families' own files, in bounded number and size.

The file is a program for the tokenizer library: a Replace makes a text longer at will, a regular expression takes time
that grows with a power of the text, and some values make the library panic. So each step is on this list, and a pattern
is one of those that models use, or plain text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType

from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.text import pretokenizers

MAX_STEPS, MAX_DEPTH, MAX_TEXT = 16, 4, 64

# The keys of each step beside `type`, and what the value of each may be.
_FLAG: Collection[object] = (True, False)
_BEHAVIOURS = ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")
_Allowed = Mapping[str, Collection[object]]
NORMALIZERS: Mapping[str, _Allowed] = MappingProxyType({"NFC": {}, "NFD": {}, "NFKC": {}, "NFKD": {}})
PRE_TOKENIZERS: Mapping[str, _Allowed] = MappingProxyType({
    "ByteLevel": {"add_prefix_space": _FLAG, "trim_offsets": _FLAG, "use_regex": _FLAG},
    "Digits": {"individual_digits": _FLAG}, "Punctuation": {"behavior": _BEHAVIOURS},
    "Split": {"behavior": _BEHAVIOURS, "invert": _FLAG},
    "Whitespace": {}, "WhitespaceSplit": {}})
# Steps of the library (tokenizers 0.23) that are not run.
_OTHERS = frozenset("""
    BertNormalizer Strip StripAccents Lowercase Nmt Precompiled Replace Prepend BertPreTokenizer Metaspace
    CharDelimiterSplit UnicodeScripts FixedLength
    """.split()) | {*NORMALIZERS, *PRE_TOKENIZERS}
_LISTS = MappingProxyType({"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"})


def check(steps: object, part: str, file: str) -> None:
    """Raises UnsupportedError for a step that is not on the list, CheckpointError for one that is no step.

    `part` is "normalizer" or "pre_tokenizer".
    """
    for step in flat(steps, part, file):
        _check_step(step, part, file)


def flat(steps: object, part: str, file: str) -> Iterator[Mapping[str, object]]:
    """The steps in order, those of sequences one by one, at most MAX_STEPS; `part` may be "decoder", too."""
    for count, step in enumerate(_flat(steps, part, file, depth=0)):
        if count == MAX_STEPS:
            raise bad_value(f"number of steps of the {part} of {file}", "more", f"at most {MAX_STEPS}")
        yield step


def _flat(steps: object, part: str, file: str, depth: int) -> Iterator[Mapping[str, object]]:
    """The steps in order, those of sequences one by one."""
    if steps is None:
        return
    if not isinstance(steps, Mapping) or not isinstance(steps.get("type"), str):
        raise CheckpointError(f"the {part} of {file} has a step without a type", field=part, value=str(steps)[:80])
    if steps["type"] != "Sequence":
        yield steps
        return
    if depth == MAX_DEPTH:
        raise bad_value(f"depth of the {part} of {file}", "more", f"at most {MAX_DEPTH}")
    inner = steps.get(_LISTS[part])
    if not isinstance(inner, list):
        raise CheckpointError(f"the {part} of {file} has a Sequence without {_LISTS[part]}", field=part)
    for step in inner:
        yield from _flat(step, part, file, depth + 1)


def _check_step(step: Mapping[str, object], part: str, file: str) -> None:
    allowed, kind = NORMALIZERS if part == "normalizer" else PRE_TOKENIZERS, str(step["type"])
    if kind not in allowed and kind not in _OTHERS:
        raise CheckpointError(f"{file} cannot be used: its {part} has the step {kind[:100]!r}, which no tokenizer has",
                              field=part, value=kind[:100])
    if kind not in allowed:
        raise UnsupportedError(f"the {part} of {file} has the step {kind[:100]!r}, which brise does not run; allowed "
                               f"are {', '.join(allowed)} and Sequence")
    for key, value in step.items():
        if key == "type" or (kind == "Split" and key == "pattern"):
            continue
        values = allowed[kind].get(key, ())
        if not isinstance(value, bool | str) or value not in values:
            limit = " or ".join(map(repr, values)) or "no such key"
            raise UnsupportedError(f"the {part} of {file} has {kind}.{key[:100]} = {str(value)[:100]}; allowed is "
                                   f"{limit}")
    if kind == "Split":
        _check_pattern(step.get("pattern"), part, file)


def _check_pattern(pattern: object, part: str, file: str) -> None:
    match pattern:
        case {"String": str(text), **rest} if not rest and 0 < len(text) <= MAX_TEXT:
            return
        case {"Regex": str(text), **rest} if not rest:
            if text in pretokenizers.PATTERNS:
                return
            if text.count("(") != text.count(")") and "\\" not in text:
                raise CheckpointError(f"{file} cannot be used: its pattern {text[:200]!r} lacks a parenthesis",
                                      field=part, value=text[:80])
            raise UnsupportedError(f"the {part} of {file} splits by a pattern that brise does not know: "
                                   f"{text[:200]!r}", hint="a regular expression of a file may take time without end, "
                                                           "so only those of known models are run")
    raise CheckpointError(f"the {part} of {file} has a Split without a pattern: one Regex, or one String of 1 to "
                          f"{MAX_TEXT} characters", field=part, value=str(pattern)[:80])
