"""A Model that says what a test wants it to say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from brise.api.model import Model
from brise.engine.engine import Engine, EngineSettings
from brise.engine.engine_thread import EngineThread
from brise.engine.model import Pooling
from brise.models.batch import Batch
from tests.engine.stub import stub_model


@contextmanager
def saying(reply: str | None, *, on_step: Callable[[Batch], None] | None = None, pooling: Pooling | None = None,
           **settings: int) -> Iterator[Model]:
    """Whatever it is asked, it answers `reply`; None: text that means nothing and depends on all that was said."""
    sizes = {"page_size": 16, "num_pages": 512, **settings}
    worker = EngineThread(Engine(stub_model(reply, on_step=on_step, pooling=pooling), EngineSettings(**sizes)))
    worker.start()
    with Model(worker, "stub") as model:
        yield model


def slow(batch: Batch) -> None:
    """A step that takes long enough for others to do something meanwhile."""
    time.sleep(0.01)
