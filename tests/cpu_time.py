"""How long code runs, whatever the machine does beside it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


def cpu_s(run: Callable[[], object]) -> float:
    """The CPU time of this thread in seconds."""
    with no_collection():
        begin_s = time.thread_time()
        run()
        return time.thread_time() - begin_s


@contextmanager
def no_collection() -> Iterator[None]:
    """Without the garbage collector, which would look at everything that other tests left."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
