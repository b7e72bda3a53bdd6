"""An audio encoder ready to run: it turns the spectrogram of a chunk into rows for the text model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from threading import Lock

import numpy as np

from brise.models import whisper
from brise.models.batch import Batch
from brise.models.ops import Backend, Encoder
from brise.models.weights import Array, Weight, place
from brise.models.whisper import AudioChunk, AudioConfig, AudioWeights
from brise.text.audio import AudioSettings
from brise.text.audio import work_bytes as preparing_bytes


@dataclass(frozen=True)
class LoadedAudio:
    """An audio encoder with weights placed in a backend, which runs it."""

    config: AudioConfig
    weights: AudioWeights
    encoder: Encoder
    # Held while a spectrogram is computed: the memory plan counts one at a time.
    decoding: Lock = field(default_factory=Lock, compare=False)

    @property
    def settings(self) -> AudioSettings:
        """How audio is prepared for it."""
        return audio_settings(self.config)

    def steps(self, mels: Array) -> Iterator[Array | None]:
        """Encodes the spectrogram (frames, bands) of a chunk in steps; the last one yields its features (M, D)."""
        return self.encoder.steps(pack(self.config, mels))

    def encode(self, mels: Array) -> Array:
        """The features (M, D) of a chunk's spectrogram (frames, bands)."""
        return next(features for features in self.steps(mels) if features is not None)


def audio_settings(config: AudioConfig) -> AudioSettings:
    """How audio is prepared for an encoder."""
    return AudioSettings(config.num_mels, config.chunk_frames, config.chunk_tokens, config.audio_token,
                         config.begin_token)


def open_audio(config: AudioConfig, weights: AudioWeights, backend: Backend,
               put: Callable[[str, Weight], Weight] | None = None) -> LoadedAudio:
    """Places an audio encoder in a backend, which refuses weights that it cannot run; `put` does it in place of the
    backend's own `place`."""
    def named(name: str, weight: Weight) -> Weight:
        return (put or backend.place)(f"audio.{name}", weight)

    placed = place(weights, named)
    return LoadedAudio(config, placed, backend.encoder(whisper.steps, config, placed))


def planned_bytes(config: AudioConfig, *, serves: bool = True) -> int:
    """The peak memory of a chunk that is prepared and encoded. A server may prepare that of one request while the
    engine encodes that of another."""
    encoding, preparing = whisper.work_bytes(config), preparing_bytes(audio_settings(config))
    return encoding + preparing if serves else max(encoding, preparing)


def feature_bytes(config: AudioConfig) -> int:
    """The features of a chunk, which the text model reads."""
    return 4 * config.chunk_tokens * config.text_width


def pack(config: AudioConfig, mels: Array) -> AudioChunk:
    """The chunk of a spectrogram (frames, bands)."""
    count = config.num_positions
    places = np.arange(count, dtype=np.int32)
    batch = Batch(tokens=places, positions=np.full(count, count - 1, np.int32),
                  query_starts=np.array([0, count], np.int32), rows=np.zeros(0, np.int32))
    return AudioChunk(np.asarray(mels, np.float32), batch)
