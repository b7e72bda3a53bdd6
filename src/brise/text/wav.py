"""Reads WAV files: the header, checked before anything is decoded, and stretches of samples as one channel.

    "RIFF" size "WAVE", then chunks: name (4 bytes), size (4 bytes), data, padded to an even size.
    "fmt ": tag, channels (2 bytes each), rate, bytes a second (4 each), bytes a frame, bits a sample (2 each); where
            the tag is 0xFFFE: size, valid bits (2 each), speakers (4), and the tag in the first 2 bytes of 16.
    "data": frames of one sample for each channel, little-endian; 8 bits are unsigned.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from brise.errors import RequestError
from brise.models.weights import Array

LEAST_RATE, MOST_RATE = 8000, 192_000  # of telephones and of studios
MAX_CHANNELS = 8
MAX_CHUNKS = 4096
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
# By tag and bits: the type of a sample, and what it is divided by.
SAMPLES: Mapping[tuple[int, int], tuple[str, float]] = MappingProxyType({
    (PCM, 8): ("u1", 2.0**7), (PCM, 16): ("<i2", 2.0**15), (PCM, 24): ("u1", 2.0**23), (PCM, 32): ("<i4", 2.0**31),
    (FLOAT, 32): ("<f4", 1.0), (FLOAT, 64): ("<f8", 1.0)})
TAGS: Mapping[int, str] = MappingProxyType({
    PCM: "PCM", 2: "ADPCM", FLOAT: "float", 6: "A-law", 7: "mu-law", 0x11: "ADPCM", 0x50: "MPEG", 0x55: "MP3"})
# Of other files: where a mark stands, the mark, and what the file is.
OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"ID3", "MP3"), (0, b"fLaC", "FLAC"), (0, b"OggS", "Ogg (Vorbis or Opus)"), (4, b"ftyp", "MP4 (M4A, AAC)"),
    (0, b"\x1a\x45\xdf\xa3", "WebM or Matroska"), (0, b"FORM", "AIFF"), (0, b"caff", "CAF"), (0, b"#!AMR", "AMR"),
    (0, b"RF64", "RF64"), (0, b"RIFX", "big-endian WAV"))
READ = "WAV of PCM (8, 16, 24 or 32 bits) or float (32 or 64 bits)"
HINT = "ffmpeg -i AUDIO -ar 16000 -ac 1 AUDIO.wav makes one"


@dataclass(frozen=True)
class WavFile:
    """A WAV file whose header has been checked; its samples begin at byte `start` of `data`."""

    data: bytes
    rate: int  # frames a second
    channels: int
    tag: int
    bits: int
    start: int
    num_frames: int

    def mono(self, first: int, last: int) -> Array:
        """Frames first to last, float32 from -1 to 1, as the mean of all channels; zeros before and after the file."""
        begin, end = max(first, 0), min(last, self.num_frames)
        out = np.zeros(last - first, np.float32)
        if begin < end:
            samples = self._samples(begin, end)
            out[begin - first:end - first] = samples[:, 0] if self.channels == 1 else samples.mean(axis=1)
        return out

    def _samples(self, first: int, last: int) -> Array:
        """(last - first, channels) float32."""
        kind, scale = SAMPLES[self.tag, self.bits]
        size = self.channels * self.bits // 8
        count = (last - first) * size // np.dtype(kind).itemsize
        raw = np.frombuffer(self.data, kind, count, self.start + first * size)
        if self.bits == 24:
            wide = np.zeros((len(raw) // 3, 4), np.uint8)
            wide[:, 1:] = raw.reshape(-1, 3)
            raw = wide.view("<i4")[:, 0] >> 8
        elif self.bits == 8:
            raw = raw.astype(np.int16) - 128
        with np.errstate(over="ignore", invalid="ignore"):  # of floats that a file should not hold; see text/audio.py
            return (raw / scale).astype(np.float32).reshape(-1, self.channels)


def read_wav(data: bytes, name: str) -> WavFile:
    """The file in these bytes; RequestError says what is wrong with `name`."""
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise _wrong(name, f"is {_kind(data)}; read is {READ}", HINT)
    format: tuple[int, int, int, int] | None = None
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            break
        kind, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if kind == b"fmt ":
            format = _format(data, at, size, name)
        elif kind == b"data":
            if format is None:
                raise _wrong(name, "has its samples before their format")
            return _file(data, at, min(size, len(data) - at), format, name)  # a stream's size is unknown
        at += size + size % 2
    raise _wrong(name, "has no samples: no chunk 'data'")


def _format(data: bytes, at: int, size: int, name: str) -> tuple[int, int, int, int]:
    """Tag, channels, rate and bits of the chunk at `at`."""
    if size < 16 or at + size > len(data):
        raise _wrong(name, f"has a chunk 'fmt ' of {size} bytes, allowed are 16 and more, inside the file")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack_from("<HHIIHH", data, at)
    if tag == EXTENSIBLE:
        if size < 26:
            raise _wrong(name, f"has a chunk 'fmt ' of {size} bytes, allowed are 40 with the tag 0xFFFE")
        valid, _, tag = struct.unpack_from("<HIH", data, at + 18)
        if valid != bits:
            raise _wrong(name, f"has {valid} valid bits in samples of {bits}, allowed are as many")
    if (tag, bits) not in SAMPLES:
        raise _wrong(name, f"has samples of {bits} bits in {TAGS.get(tag, f'format {tag}')}; read is {READ}", HINT)
    if not 1 <= channels <= MAX_CHANNELS:
        raise _wrong(name, f"has {channels} channels, allowed are 1 to {MAX_CHANNELS}")
    if not LEAST_RATE <= rate <= MOST_RATE:
        raise _wrong(name, f"has {rate} samples a second, allowed are {LEAST_RATE} to {MOST_RATE}")
    if frame_bytes != channels * bits // 8:
        raise _wrong(name, f"says {frame_bytes} bytes a frame, wanted {channels * bits // 8}")
    return tag, channels, rate, bits


def _file(data: bytes, at: int, size: int, format: tuple[int, int, int, int], name: str) -> WavFile:
    tag, channels, rate, bits = format
    num_frames = size // (channels * bits // 8)
    if not num_frames:
        raise _wrong(name, "has no samples, wanted at least one")
    return WavFile(data, rate, channels, tag, bits, at, num_frames)


def _kind(data: bytes) -> str:
    """What a file is that is no WAV."""
    for at, mark, kind in OTHERS:
        if data[at:at + len(mark)] == mark:
            return kind
    if len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0:
        return "AAC" if data[1] & 0x06 == 0 else "MP3"
    return "no audio that is known" if data else "empty"


def _wrong(name: str, what: str, hint: str | None = None) -> RequestError:
    return RequestError(f"{name} {what}", param=name, code="invalid_audio", hint=hint)
