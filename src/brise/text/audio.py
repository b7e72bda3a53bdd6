"""Prepares the audio of a message: checks it, and makes the spectrogram that Whisper's encoder reads.

In a message of `Chat.encode` an audio is a part {"type": "input_audio", "audio": AudioInput}, between parts
{"type": "text", "text": ...}. The samples of all channels become one at 16 kHz, followed by silence up to a multiple of
a chunk (30 seconds). Each chunk is encoded alone and keyed alone, so that of a long audio only one chunk's spectrogram
and features are in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np

from brise.errors import RequestError
from brise.models.weights import Array
from brise.text import media
from brise.text.inputs import AudioInput, ChunkInput
from brise.text.log_mel import BLOCK_FRAMES, HOP, RATE, WINDOW, log_mels, loudest, mel_filters
from brise.text.resample import BLOCK, CROSSINGS, Resampler
from brise.text.wav import MAX_CHANNELS, MOST_RATE, WavFile, read_wav

MAX_BYTES = 64 << 20  # half an hour of 16-bit samples at 16 kHz
MAX_SECONDS = 3600


@dataclass(frozen=True)
class AudioSettings:
    """What a model's audio encoder takes: bands and frames of a chunk, the tokens that stand for one, and their ids."""

    num_mels: int
    chunk_frames: int
    chunk_tokens: int
    audio_token: int
    begin_token: int

    @property
    def chunk_samples(self) -> int:
        return self.chunk_frames * HOP

    def num_chunks(self, num_samples: int) -> int:
        return -(-num_samples // self.chunk_samples)

    @property
    def tokens_per_second(self) -> float:
        return self.chunk_tokens * RATE / self.chunk_samples


def prepare(data: bytes, settings: AudioSettings, name: str) -> AudioInput:
    """The audio in a file's bytes, for a request; RequestError says what is wrong with `name`.

    All of it is read once for the loudest number, on which every chunk depends; the spectrograms are made when the
    encoder is about to run.
    """
    if len(data) > MAX_BYTES:
        raise _wrong(name, f"has {len(data)} bytes, allowed are {MAX_BYTES}")
    wav = read_wav(data, name)
    seconds = wav.num_frames / wav.rate
    if seconds > MAX_SECONDS:
        raise _wrong(name, f"is {seconds:.0f} seconds long, allowed are {MAX_SECONDS}")
    audio = _Audio(wav, settings, name)
    digest = blake2b(data, digest_size=16)
    top = loudest(audio.samples, mel_filters(settings.num_mels), audio.num_sounding_frames)
    chunks = []
    for index in range(audio.num_chunks):
        own = digest.copy()
        own.update(index.to_bytes(4, "little"))
        tokens = (settings.audio_token,) * settings.chunk_tokens
        chunks.append(ChunkInput(own.digest(), tokens, partial(audio.mels, index, top)))
    return AudioInput(settings.begin_token, tuple(chunks), seconds)


def work_bytes(settings: AudioSettings) -> int:
    """The most memory that a chunk's spectrogram takes while it is made: taps and windows of the filter, a block of
    samples of all channels, a block of frames as complex numbers, and the spectrogram twice."""
    ratio = MOST_RATE / RATE
    taps = int(2 * CROSSINGS * ratio) + 1
    resampling = 4 * taps * (RATE + 2 * BLOCK) + int(BLOCK * ratio) * MAX_CHANNELS * 16
    transforming = BLOCK_FRAMES * WINDOW * 40
    return resampling + transforming + 2 * 8 * settings.chunk_frames * settings.num_mels


def from_data_url(url: str, name: str) -> bytes:
    """The bytes in data:audio/...;base64,..."""
    return media.from_data_url("audio", url, name, "audio/wav")


def from_base64(text: str, name: str) -> bytes:
    """The bytes of base64, which may have lines as in mails."""
    return media.from_base64("audio", text, name)


def from_path(path: Path) -> bytes:
    """The bytes of an audio file."""
    return media.from_path("audio", path, MAX_BYTES)


class _Audio:
    """A file as 16 kHz samples with silence up to whole chunks, mirrored at both ends."""

    def __init__(self, wav: WavFile, settings: AudioSettings, name: str) -> None:
        self._wav, self._settings, self._name = wav, settings, name
        self._resampler = Resampler(wav.rate, RATE)
        self.num_samples = self._resampler.count(wav.num_frames)
        self.num_chunks = settings.num_chunks(self.num_samples)
        self._end = self.num_chunks * settings.chunk_samples

    @property
    def num_sounding_frames(self) -> int:
        """Frames before those of silence alone."""
        return min(-(-(self.num_samples + WINDOW // 2) // HOP), self.num_chunks * self._settings.chunk_frames)

    def samples(self, first: int, last: int) -> Array:
        """Samples first to last, float32."""
        begin, end = max(first, 0), min(last, self._end)
        sounding = min(end, self.num_samples)
        parts = [self._resampler.samples(self._read, begin, sounding)] if begin < sounding else []
        parts.append(np.zeros(end - max(begin, sounding), np.float32))
        if first < 0:
            parts.insert(0, self.samples(1, 1 - first)[::-1])
        if last > self._end:
            parts.append(self.samples(self._end - 1 - (last - self._end), self._end - 1)[::-1])
        return np.concatenate(parts)

    def _read(self, first: int, last: int) -> Array:
        """Samples of the file."""
        out = self._wav.mono(first, last)
        if not np.isfinite(out).all():
            raise _wrong(self._name, "has samples that are no finite numbers")
        return out

    def mels(self, index: int, top: float) -> Array:
        """The spectrogram (frames, bands) of a chunk."""
        frames = self._settings.chunk_frames
        return log_mels(self.samples, mel_filters(self._settings.num_mels), index * frames, (index + 1) * frames, top)


def _wrong(name: str, what: str) -> RequestError:
    return media.wrong("audio", name, what)
