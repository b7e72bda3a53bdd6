"""Encodes the images of running sequences, one piece of work between two steps, and caches their features.

An image is encoded when its sequence has reached it, one image at a time, oldest sequence first. Features are kept as
long as there is room, because the same image returns: with the next question about it, or after a preemption.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from brise.engine.request import Request
from brise.engine.sequence import Sequence, Span
from brise.engine.vision import LoadedVision
from brise.errors import RequestError
from brise.models.weights import Array


@dataclass(frozen=True)
class EncodingFailure:
    """An image that could not be encoded, and the sequences that wait for it."""

    sequences: list[Sequence]
    error: Exception


@dataclass(frozen=True)
class _Encoding:
    """The image that is being encoded."""

    digest: bytes
    steps: Iterator[Array | None]


class Features:
    """Encodes images for one engine, and keeps up to `capacity_bytes` of features."""

    def __init__(self, vision: LoadedVision, capacity_bytes: int) -> None:
        self.num_encoded = 0
        self._vision, self._capacity = vision, capacity_bytes
        self._kept: OrderedDict[bytes, Array] = OrderedDict()  # least recently used first
        self._kept_bytes = 0
        self._encoding: _Encoding | None = None

    def advance(self, running: Iterable[Sequence]) -> EncodingFailure | None:
        """Gives sequences the cached features that they wait for, and does one piece of work on those that are missing.

        No encoding begins while a sequence holds features that it has not used yet, so that at most one image's
        features are held besides the cached ones.
        """
        has_unused = False
        waiting: dict[bytes, list[Sequence]] = {}
        for sequence in running:
            if not sequence.spans:
                continue
            span = sequence.awaited
            if span is not None and not self._give_cached(span):
                waiting.setdefault(span.image.digest, []).append(sequence)
            has_unused = has_unused or sequence.has_features
        if self._encoding is not None and self._encoding.digest not in waiting:
            self._encoding = None  # its sequences were cancelled or preempted
        if self._encoding is None and (has_unused or not waiting):
            return None
        return self._encode(waiting)

    def _encode(self, waiting: dict[bytes, list[Sequence]]) -> EncodingFailure | None:
        try:
            if self._encoding is None:
                image = _awaited(next(iter(waiting.values()))[0]).image
                with self._vision.decoding:
                    pixels = image.pixels()
                self._encoding = _Encoding(image.digest, self._vision.steps(pixels))
            features = next(self._encoding.steps)
        except Exception as error:  # it must not reach other requests
            failed = next(iter(waiting)) if self._encoding is None else self._encoding.digest
            self._encoding = None
            return EncodingFailure(waiting[failed], error)
        if features is not None:
            for sequence in waiting[self._encoding.digest]:
                _awaited(sequence).features = features
            self._keep(self._encoding.digest, features)
            self._encoding = None
            self.num_encoded += 1
        return None

    def _give_cached(self, span: Span) -> bool:
        features = self._kept.get(span.image.digest)
        if features is None:
            return False
        self._kept.move_to_end(span.image.digest)
        span.features = features
        return True

    def _keep(self, digest: bytes, features: Array) -> None:
        if features.nbytes > self._capacity:
            return
        self._kept[digest] = features
        self._kept_bytes += features.nbytes
        while self._kept_bytes > self._capacity:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.nbytes


def spans(request: Request, vision: LoadedVision | None, model: str) -> tuple[Span, ...]:
    """Finds the request's images in its prompt; RequestError if one is not there."""
    if not request.images:
        return ()
    if vision is None:
        raise RequestError(f"the request has an image, and {model} has no vision encoder", param="images",
                           code="no_vision")
    result: list[Span] = []
    at = 0
    for number, image in enumerate(request.images):
        start = _find(request, vision, at)
        at = start + len(image.tokens)
        if not image.tokens or request.prompt[start:at] != image.tokens:
            raise RequestError(f"the tokens of image {number} are not in the prompt", param="images")
        result.append(Span(start, at, image, vision.rows(image.tokens)))
    if _find(request, vision, at) < len(request.prompt):
        raise RequestError(f"the prompt has more image tokens than its {len(request.images)} images", param="images")
    return tuple(result)


def _find(request: Request, vision: LoadedVision, start: int) -> int:
    """The position of the next image token, or the end of the prompt."""
    try:
        return request.prompt.index(vision.config.image_token, start)
    except ValueError:
        return len(request.prompt)


def _awaited(sequence: Sequence) -> Span:
    assert sequence.awaited is not None, "the sequence waits for no image"
    return sequence.awaited
