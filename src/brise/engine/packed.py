"""A model's packed weights: mapped from the folder where it has them, and written into it after a first load."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from functools import partial
from threading import Event, Thread, get_native_id
from typing import Any

from brise.backends import packing_of
from brise.checkpoint.open import Audio, Vision
from brise.engine.experts import Put
from brise.files.mapped import SourceFile
from brise.hub.packed import PackedFolder
from brise.models.ops import Backend
from brise.models.packing import PackedPart, Packing
from brise.models.weights import Placed, Weight, Weights, weights_with_paths


@dataclass(frozen=True)
class Trees:
    """All weights of a model: those of the decoder and, with their configs, those of its encoders."""

    decoder: Weights
    vision: Vision | None = None
    audio: Audio | None = None

    def named(self) -> Iterator[tuple[str, Weight]]:
        """Every weight with its path, those of encoders with `vision.` or `audio.` before it."""
        yield from weights_with_paths(self.decoder)
        for prefix, encoder in (("vision", self.vision), ("audio", self.audio)):
            if encoder is not None:
                yield from ((f"{prefix}.{path}", weight) for path, weight in weights_with_paths(encoder[1]))


def open_packed(folder: PackedFolder, backend: Backend, sources: Sequence[SourceFile], trees: Trees,
                mix: str | None) -> PackedModel | None:
    """What the folder has, or is to have, of a model. None where the backend keeps no packed weights."""
    packing = packing_of(backend)
    if packing is None:
        return None
    parts = [part for path, weight in trees.named() for part in packing.expected(path, weight)]
    # Quantizing is done by the processor's own instructions.
    identity = json.dumps({"layout": packing.version, "mix": mix, "facts": dict(backend.facts()) if mix else None,
                           "sources": [astuple(source) for source in sources],
                           "parts": [astuple(part) for part in parts]}, separators=(",", ":"))
    return PackedModel(folder, packing, identity, sources)


class PackedModel:
    """The packed weights of one model that is being loaded."""

    def __init__(self, folder: PackedFolder, packing: Packing, identity: str, sources: Sequence[SourceFile]) -> None:
        self._folder, self._packing = folder, packing
        self._identity, self._sources = identity, sources
        self._mapped = self._read()

    def put(self, place: Put) -> Put:
        """Gives a weight as the file has it; one that is not there goes to `place`."""
        def put_or_place(path: str, weight: Weight) -> Weight:
            if not self._mapped or isinstance(weight, Placed):
                return place(path, weight)
            parts = self._packing.expected(path, weight)
            if any(part not in self._mapped for part in parts):
                return place(path, weight)
            return self._packing.placed(weight, [self._mapped[part] for part in parts])

        return put_or_place

    def keeper(self, placed: Trees) -> PackedKeeper | None:
        """What writes the file once; None if it is there."""
        if self._mapped:
            return None
        parts = [part for path, weight in placed.named() for part in self._packing.parts(path, weight)]
        if sum(len(data) for _, data in parts) < self._folder.least_bytes:
            return None
        return PackedKeeper(partial(self._folder.write, self._identity, self._sources, parts, self._packing.checksum))

    def _read(self) -> Mapping[PackedPart, Any]:
        """The parts that the file has; none if there is no such file, or if it is not whole."""
        found = self._folder.open(self._identity)
        if found is None:
            return {}
        descriptor, header = found
        try:
            return self._packing.open(descriptor, header.spans)
        except (OSError, ValueError):  # the next writing replaces it
            return {}
        finally:
            os.close(descriptor)


class PackedKeeper:
    """Writes a model's packed weights, once, on a thread that gives way to all others."""

    def __init__(self, write: Callable[[Callable[[], bool]], str]) -> None:
        self._write, self._is_stopped = write, Event()
        self._thread: Thread | None = None
        self.reason = ""  # why nothing was written

    def start(self) -> None:
        """Begins; a second call does nothing."""
        if self._thread is None:
            self._thread = Thread(target=self._run, name="brise-packed", daemon=True)
            self._thread.start()

    def finish(self, timeout_s: float | None = None) -> bool:
        """Waits for the end; whether it came."""
        self.start()
        assert self._thread is not None
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Ends the writing before its time; nothing is left of it."""
        self._is_stopped.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with suppress(OSError, AttributeError):  # of this thread alone, on Linux
            os.setpriority(os.PRIO_PROCESS, get_native_id(), 19)
        self.reason = self._write(self._is_stopped.is_set)
