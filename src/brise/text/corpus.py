"""Reads texts for calibration and evaluation: a plain text file, or JSON Lines.

A line of JSON has one of these: `text`; `messages` (a conversation, through the model's chat template); `prompt`
and `completion`, one after the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from brise.errors import EvidenceError

Encode = Callable[[str], list[int]]
EncodeMessages = Callable[[Sequence[Mapping[str, object]]], list[int]]

MAX_BYTES = 1 << 28  # far above what calibration needs; a wrong file must not fill the memory


def read(path: Path, encode: Encode, encode_messages: EncodeMessages | None) -> list[list[int]]:
    """The tokens of every text, without bos; EvidenceError names a line that has no text."""
    data = _read(path)
    try:
        content = data.decode()
    except UnicodeDecodeError as error:
        raise EvidenceError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    if path.suffix not in (".jsonl", ".ndjson"):
        texts = [encode(content)]
    else:
        texts = [_line(path, number, line, encode, encode_messages)
                 for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    if sum(map(len, texts)) < 2:
        raise EvidenceError(f"{path} holds no text", hint="plain text, or JSON Lines with text, messages or prompt")
    return texts


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise EvidenceError(f"cannot read {str(path)!r}: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise EvidenceError(f"{path} has over {MAX_BYTES} bytes", hint="a few hundred kB of typical text are enough")
    return data


def _line(path: Path, number: int, line: str, encode: Encode, encode_messages: EncodeMessages | None) -> list[int]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EvidenceError(f"{path}, line {number} is no JSON: {error}") from None
    match value:
        case {"text": str(text)}:
            return encode(text)
        case {"messages": [_, *_] as messages} if all(isinstance(message, dict) for message in messages):
            if encode_messages is None:
                raise EvidenceError(f"{path}, line {number} is a conversation, and the model has no chat template",
                                    hint="give lines with text")
            return encode_messages(messages)
        case {"prompt": str(prompt), "completion": str(completion)}:
            return encode(prompt + completion)
        case _:
            raise EvidenceError(f"{path}, line {number} has neither text, nor messages, nor prompt and completion")
