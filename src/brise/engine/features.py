"""Encodes images and chunks of audio of running sequences between two steps, for a bounded time, and caches their
features. A thread of its own decodes them before.

Each is encoded when its sequence has reached it, one at a time, oldest sequence first. Features are kept as long as
there is room, because the same image or audio returns: with the next question about it, or after a preemption.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Sequence as Sequenced
from dataclasses import dataclass
from threading import Lock, Thread
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from brise.engine.audio import LoadedAudio
from brise.engine.request import Request
from brise.engine.sequence import Sequence, Span
from brise.engine.vision import LoadedVision
from brise.errors import DeviceLostError, RequestError
from brise.models.weights import Array
from brise.text.inputs import ChunkInput, ImageInput

# Of encoding between two steps; what is under way then ends: some ten milliseconds, of the largest images 0.2 s.
WORK_S = 0.03
Source = TypeVar("Source", ImageInput, ChunkInput)
# By kind: the field of a request, and what it counts.
PARAMS: Mapping[str, str] = MappingProxyType({"image": "images", "audio": "audio"})
UNITS: Mapping[str, str] = MappingProxyType({"image": "images", "audio": "chunks"})


@dataclass(frozen=True)
class EncodingFailure:
    """An image or chunk that could not be encoded, and the sequences that wait for it."""

    sequences: list[Sequence]
    error: Exception


class _Decoding:
    """The pixels or the spectrogram of a source, which a thread makes while it holds `lock`."""

    def __init__(self, lock: Lock, decode: Callable[[], Array]) -> None:
        self._lock, self._decode = lock, decode
        self._made: Array | Exception | None = None
        self._thread = Thread(target=self._run, name="brise-decode", daemon=True)
        self._thread.start()

    def is_done(self, wait_s: float) -> bool:
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def result(self) -> Array:
        """Once it is done; raises what went wrong."""
        if isinstance(self._made, Exception):
            raise self._made
        assert self._made is not None, "the thread has ended"
        return self._made

    def _run(self) -> None:
        try:
            with self._lock:
                self._made = self._decode()
        except Exception as error:  # `result` raises it
            self._made = error


@dataclass(frozen=True)
class _Encoding:
    """The image or chunk that is being encoded."""

    source: ImageInput | ChunkInput
    decoding: _Decoding
    steps: Iterator[Array | None]

    @property
    def digest(self) -> bytes:
        return self.source.digest


class Features:
    """Encodes images and audio for one engine, and keeps up to `capacity_bytes` of features."""

    def __init__(self, vision: LoadedVision | None, audio: LoadedAudio | None, capacity_bytes: int,
                 clock: Callable[[], float]) -> None:
        self._clock = clock
        self.num_images = self.num_audio_chunks = 0
        self._vision, self._audio, self._capacity = vision, audio, capacity_bytes
        self._kept: OrderedDict[bytes, Array] = OrderedDict()  # least recently used first
        self._kept_bytes = 0
        self._encoding: _Encoding | None = None

    def advance(self, running: Iterable[Sequence]) -> EncodingFailure | None:
        """Gives sequences the cached features that they wait for, and works on those that are missing, for WORK_S.

        It waits for a decoder only if no other sequence can go on.

        No encoding begins while a sequence holds features that it has not used yet, so that the features of at most one
        image or chunk are held besides the cached ones.
        """
        has_unused = can_go_on = False
        waiting: dict[bytes, list[Sequence]] = {}
        for sequence in running:
            if not sequence.spans:
                can_go_on = True
                continue
            span = sequence.awaited
            if span is not None and not self._give_cached(span):
                waiting.setdefault(span.source.digest, []).append(sequence)
            has_unused = has_unused or sequence.has_features
            can_go_on = can_go_on or sequence.limit > sequence.num_computed
        if self._encoding is not None and self._encoding.digest not in waiting:
            self._encoding = None  # its sequences were cancelled or preempted
        if self._encoding is None and (has_unused or not waiting):
            return None
        if self._encoding is None:
            self._encoding = self._begun(_awaited(next(iter(waiting.values()))[0]).source)
        if not self._encoding.decoding.is_done(0 if can_go_on else WORK_S):
            return None
        end_s = self._clock() + WORK_S
        failure = self._encode(waiting)
        while self._encoding is not None and self._clock() < end_s:
            failure = self._encode(waiting)
        return failure

    def _encode(self, waiting: dict[bytes, list[Sequence]]) -> EncodingFailure | None:
        """Does one piece of work."""
        assert self._encoding is not None
        try:
            features = next(self._encoding.steps)
        except DeviceLostError:  # the thread ends all requests
            self._encoding = None
            raise
        except Exception as error:  # it must not reach other requests
            failed = self._encoding.digest
            self._encoding = None
            return EncodingFailure(waiting[failed], error)
        if features is not None:
            for sequence in waiting[self._encoding.digest]:
                _awaited(sequence).features = features
            self._keep(self._encoding.digest, features)
            if isinstance(self._encoding.source, ImageInput):
                self.num_images += 1
            else:
                self.num_audio_chunks += 1
            self._encoding = None
        return None

    def _begun(self, source: ImageInput | ChunkInput) -> _Encoding:
        """Begins to decode it."""
        match source:
            case ImageInput():
                assert self._vision is not None, "`spans` refuses images without an encoder"
                decoding = _Decoding(self._vision.decoding, source.pixels)
                return _Encoding(source, decoding, _steps(decoding, self._vision.steps))
            case ChunkInput():
                assert self._audio is not None, "`spans` refuses audio without an encoder"
                decoding = _Decoding(self._audio.decoding, source.mels)
                return _Encoding(source, decoding, _steps(decoding, self._audio.steps))

    def _give_cached(self, span: Span) -> bool:
        features = self._kept.get(span.source.digest)
        if features is None:
            return False
        self._kept.move_to_end(span.source.digest)
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


def _steps(decoding: _Decoding, encode: Callable[[Array], Iterator[Array | None]]) -> Iterator[Array | None]:
    yield from encode(decoding.result())


def spans(request: Request, vision: LoadedVision | None, audio: LoadedAudio | None, model: str) -> tuple[Span, ...]:
    """Finds the request's images and audio in its prompt; RequestError if one is not there."""
    if not request.images and not request.audios:
        return ()
    if request.images and vision is None:
        raise RequestError(f"the request has an image, and {model} has no vision encoder", param="images",
                           code="no_vision")
    if request.audios and audio is None:
        raise RequestError(f"the request has audio, and {model} has no audio encoder", param="audio", code="no_audio")
    if vision is not None and vision.sees_itself and request.images and request.prompt_logprobs is not None:
        raise RequestError(f"log-probabilities of a prompt with images were requested; {model} has none",
                           param="prompt_logprobs", code="unsupported_parameter")
    result: list[Span] = []
    if vision is not None:
        for start, image in _placed(request, request.images, vision.config.image_token, "image"):
            result.append(Span(start, start + len(image.tokens), image, vision.rows(image.tokens),
                               sees_itself=vision.sees_itself))
    if audio is not None:
        chunks = [chunk for one in request.audios for chunk in one.chunks]
        for start, chunk in _placed(request, chunks, audio.config.audio_token, "audio"):
            rows = np.arange(len(chunk.tokens), dtype=np.int32)
            result.append(Span(start, start + len(chunk.tokens), chunk, rows))
    return tuple(sorted(result, key=lambda span: span.start))


def _placed(request: Request, sources: Sequenced[Source], token: int, kind: str) -> Iterator[tuple[int, Source]]:
    """Where each source begins in the prompt; it is found by `token`, which stands for features of its kind alone."""
    at = 0
    for number, source in enumerate(sources):
        lead = source.tokens.index(token) if token in source.tokens else 0  # tokens before the first feature
        start = max(_find(request, token, at) - lead, at)
        at = start + len(source.tokens)
        if not source.tokens or request.prompt[start:at] != source.tokens:
            raise RequestError(f"the tokens of {kind} {number} are not in the prompt", param=PARAMS[kind])
        yield start, source
    if _find(request, token, at) < len(request.prompt):
        raise RequestError(f"the prompt has more {kind} tokens than its {len(sources)} {UNITS[kind]}",
                           param=PARAMS[kind])


def _find(request: Request, token: int, start: int) -> int:
    """The position of the next such token, or the end of the prompt."""
    try:
        return request.prompt.index(token, start)
    except ValueError:
        return len(request.prompt)


def _awaited(sequence: Sequence) -> Span:
    assert sequence.awaited is not None, "the sequence waits for no features"
    return sequence.awaited
