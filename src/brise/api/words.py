"""Errors that name options of the command line, rewritten for Python: memory= for --memory."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

from brise.errors import BriseError

_COMMAND = re.compile(r"\bbrise [a-z]+ ")
_WITH_VALUE = re.compile(r"--([a-z][a-z-]*) (?=[A-Z]{2,}|[^\s,;()]*\d)")  # --context 2048, --adapter FOLDER
_ALONE = re.compile(r"--([a-z][a-z-]*)")
_OTHER_NAMES: Mapping[str, str] = MappingProxyType({
    "allow-insecure-bind": "any_host=True", "allow-image-urls": "image_urls=True", "to": "mix"})


def in_python(text: str) -> str:
    """The text with the options of the command line as arguments; a whole command is left as it is."""
    if _COMMAND.search(text):
        return text
    text = _WITH_VALUE.sub(lambda match: f"{_argument(match[1])}=", text)
    return _ALONE.sub(lambda match: _argument(match[1]), text)


def _argument(option: str) -> str:
    return _OTHER_NAMES.get(option, option.replace("-", "_"))


@contextmanager
def python_words() -> Iterator[None]:
    """Rewrites the errors for users that leave the block."""
    try:
        yield
    except BriseError as error:
        error.args = (in_python(str(error.args[0])), *error.args[1:])
        error.hint = None if error.hint is None else in_python(error.hint)
        raise
