"""SparseLog lets each message of a library through once a minute, with the number of those that it held back.

uvicorn has a line for each request that is no HTTP: whoever sends such requests would choose the size of the log.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

LINE_S = 60.0
MOST_MESSAGES = 64  # different ones that are counted
LOGGER = "uvicorn.error"


class SparseLog(logging.Filter):
    """A filter of one logger."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now, self._said = now, dict[str, tuple[float, int]]()

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        if record.levelno >= logging.ERROR or message not in self._said and len(self._said) >= MOST_MESSAGES:
            return True  # what fails here is said, always
        said_s, num_held = self._said.get(message, (-LINE_S, 0))
        if self._now() < said_s + LINE_S:
            self._said[message] = (said_s, num_held + 1)
            return False
        self._said[message] = (self._now(), 0)
        if num_held:
            record.msg = f"{message} ({num_held} more since the last such line)"
        return True


def install() -> None:
    """Puts the filter before uvicorn's log, once in a process."""
    logger = logging.getLogger(LOGGER)
    if not any(isinstance(each, SparseLog) for each in logger.filters):
        logger.addFilter(SparseLog())
