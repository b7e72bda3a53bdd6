"""Images of sequences that run: which wait for their features, and the encoding, one piece between two steps.

An image is encoded when its sequence has come to it, one image at a time, oldest sequence first. What was encoded is
kept as long as there is room, for the same image comes again: with the next question about it, after a preemption.
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
    """An image could not be encoded, and these sequences wait for it."""

    sequences: list[Sequence]
    error: Exception


@dataclass(frozen=True)
class _Work:
    """The encoding that has begun."""

    digest: bytes
    steps: Iterator[Array | None]


class Features:
    """Encodes for the sequences of one engine, and keeps up to `capacity_bytes` of what it encoded."""

    def __init__(self, vision: LoadedVision, capacity_bytes: int) -> None:
        self.num_encoded = 0
        self._vision, self._capacity = vision, capacity_bytes
        self._kept: OrderedDict[bytes, Array] = OrderedDict()  # longest unused first
        self._kept_bytes = 0
        self._work: _Work | None = None

    def advance(self, running: Iterable[Sequence]) -> EncodingFailure | None:
        """Hands out features that are there, and does one piece of work for those that are not.

        Features that a sequence has and has not used yet come first: no further encoding is begun beside them, so
        that not more than one image's lie about.
        """
        has_unused = False
        waiting: dict[bytes, list[Sequence]] = {}
        for sequence in running:
            if not sequence.spans:
                continue
            span = sequence.awaited
            if span is not None and not self._hand_out(span):
                waiting.setdefault(span.image.digest, []).append(sequence)
            has_unused = has_unused or sequence.has_features
        if self._work is not None and self._work.digest not in waiting:
            self._work = None  # its sequences were cancelled or preempted
        if self._work is None and (has_unused or not waiting):
            return None
        return self._encode(waiting)

    def _encode(self, waiting: dict[bytes, list[Sequence]]) -> EncodingFailure | None:
        try:
            if self._work is None:
                image = _awaited(next(iter(waiting.values()))[0]).image
                with self._vision.decoding:
                    pixels = image.pixels()
                self._work = _Work(image.digest, self._vision.steps(pixels))
            features = next(self._work.steps)
        except Exception as error:  # it must not reach other requests
            failed = next(iter(waiting)) if self._work is None else self._work.digest
            self._work = None
            return EncodingFailure(waiting[failed], error)
        if features is not None:
            for sequence in waiting[self._work.digest]:
                _awaited(sequence).features = features
            self._keep(self._work.digest, features)
            self._work = None
            self.num_encoded += 1
        return None

    def _hand_out(self, span: Span) -> bool:
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
    """Where the request's images stand in its prompt; RequestError if they do not."""
    if not request.images:
        return ()
    if vision is None:
        raise RequestError(f"the request has an image, and {model} sees none: it has no vision tower", param="images",
                           code="no_vision")
    found: list[Span] = []
    at = 0
    for number, image in enumerate(request.images):
        start = _find(request, vision, at)
        at = start + len(image.tokens)
        if not image.tokens or request.prompt[start:at] != image.tokens:
            raise RequestError(f"the tokens of image {number} are not in the prompt", param="images")
        found.append(Span(start, at, image, vision.rows(image.tokens)))
    if _find(request, vision, at) < len(request.prompt):
        raise RequestError(f"the prompt has more image tokens than its {len(request.images)} images", param="images")
    return tuple(found)


def _find(request: Request, vision: LoadedVision, start: int) -> int:
    """Where the next image token stands, or the prompt's end."""
    try:
        return request.prompt.index(vision.config.image_token, start)
    except ValueError:
        return len(request.prompt)


def _awaited(sequence: Sequence) -> Span:
    assert sequence.awaited is not None, "the sequence waits for no image"
    return sequence.awaited
