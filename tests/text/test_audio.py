"""Audio is read, resampled and transformed as the libraries do that models were trained with."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Mapping

import numpy as np
import pytest

from brise.errors import RequestError
from brise.models.weights import Array
from brise.text import audio
from brise.text.audio import AudioSettings
from brise.text.log_mel import mel_filters
from brise.text.resample import Resampler
from brise.text.wav import read_wav
from tests.checkpoint.make_audio_model import speech, wav

WHISPER = AudioSettings(num_mels=128, chunk_frames=3000, chunk_tokens=375, audio_token=24, begin_token=25)
SHORT = AudioSettings(num_mels=16, chunk_frames=32, chunk_tokens=4, audio_token=24, begin_token=25)
# The reference computes in float64, as we do; both round to float32 at the end, to numbers of up to 4.
MELS = 1e-6
# torch's spectrogram is float32: a power 8 decades below the loudest has an error of 2^-24 of that in its amplitude,
# 2^-24 * 1e4 of itself, and its logarithm, divided by 4, twice that over ln(10): 1e-4 at the very worst.
TORCH_MELS = 1e-4


def samples(count: int, channels: int = 1) -> Array:
    return np.random.default_rng(count).uniform(-0.9, 0.9, (count, channels))


def encoded(values: Array, bits: int) -> bytes:
    """Little-endian PCM, 8 bits unsigned."""
    top = 2 ** (bits - 1)
    whole = np.clip(np.rint(values * top), -top, top - 1).astype(np.int64)
    if bits == 8:
        return (whole + 128).astype(np.uint8).tobytes()
    return whole.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :bits // 8].tobytes()


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_whole_numbers_of_every_width(bits: int, channels: int) -> None:
    values = samples(100, channels)
    file = read_wav(wav(encoded(values, bits), 1, bits, 16000, channels), "a.wav")
    assert (file.num_frames, file.rate) == (100, 16000)
    expected = np.rint(values * 2 ** (bits - 1)) / 2 ** (bits - 1)
    found = file.mono(-3, 104)
    assert (found[:3] == 0).all() and (found[-4:] == 0).all()
    assert np.abs(found[3:-4] - expected.mean(axis=1)).max() < 1e-6
    assert np.array_equal(file.mono(10, 20), found[13:23])


@pytest.mark.parametrize("kind", ["<f4", "<f8"])
def test_floats(kind: str) -> None:
    values = samples(50, 2).astype(kind)
    file = read_wav(wav(values.tobytes(), 3, 8 * values.itemsize, 48000, 2), "a.wav")
    assert np.abs(file.mono(0, 50) - values.mean(axis=1)).max() < 1e-6


def test_python_s_own_files_and_extensible_ones() -> None:
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(b"\x00\x40" * 7)
    assert (read_wav(out.getvalue(), "a").mono(0, 7) == 0.5).all()
    plain = wav(b"\x00\x40" * 7, 0xFFFE, 16, 8000, 1)
    more = struct.pack("<HHIH14s", 22, 16, 4, 1, b"")
    extended = plain[:16] + struct.pack("<I", 40) + plain[20:36] + more + plain[36:]
    assert (read_wav(extended, "a").mono(0, 7) == 0.5).all()


def test_a_stream_of_unknown_size_and_chunks_before_it() -> None:
    plain = wav(b"\x00\x40" * 7, 1, 16, 8000, 1)
    streamed = plain[:36] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + b"data" + b"\xff" * 4 + plain[44:]
    assert (read_wav(streamed, "a").mono(0, 7) == 0.5).all()


@pytest.mark.parametrize(("data", "message"), [
    (wav(b"\0" * 8, 1, 16, 8000, 1)[:30], "inside the file"), (wav(b"\0" * 8, 1, 12, 8000, 1), "12 bits in PCM"),
    (wav(b"\0" * 8, 0x55, 16, 8000, 1), "in MP3"), (wav(b"\0" * 8, 1, 16, 200_000, 1), "allowed are 8000 to 192000"),
    (wav(b"\0" * 8, 1, 16, 8000, 0), "0 channels"), (wav(b"\0", 1, 16, 8000, 1), "no samples"),
    (b"RIFF\0\0\0\0WAVEdata\x02\0\0\0\0\0", "samples before their format"), (b"\xff\xfb\x90\0", "is MP3"),
    (b"\xff\xf1\x50\x80", "is AAC"), (b"\x1a\x45\xdf\xa3", "is WebM"), (b"hello", "is no audio that is known"),
    (wav(struct.pack("<3f", 0, np.nan, 0), 3, 32, 16000, 1), "no finite numbers")])
def test_what_is_not_read_is_named(data: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        audio.prepare(data, SHORT, "a.wav")


@pytest.mark.parametrize("rate", [8000, 11025, 12347, 16000, 22050, 24000, 44056, 44100, 48000, 96000, 192_000])
def test_every_rate_is_resampled_as_scipy_does(rate: int) -> None:
    signal = pytest.importorskip("scipy.signal")
    values = samples(rate // 20)[:, 0].astype(np.float32)
    file = read_wav(wav(values.astype("<f4").tobytes(), 3, 32, rate, 1), "a.wav")
    resampler = Resampler(rate, 16000)
    expected = signal.resample_poly(values.astype(np.float64), 16000, rate)
    found = resampler.samples(file.mono, 0, resampler.count(len(values)))
    assert found.shape == expected.shape and np.abs(found - expected).max() < 1e-6
    assert np.array_equal(resampler.samples(file.mono, 100, 200), found[100:200])


def test_mel_filters_are_mistral_common_s() -> None:
    theirs = pytest.importorskip("mistral_common.audio").mel_filter_bank(201, 128, 0.0, 8000.0, 16000)
    assert np.abs(mel_filters(128) - theirs).max() < 1e-12


@pytest.mark.parametrize("seconds", [0.0001, 1.3, 30, 31.7])
def test_spectrograms_are_those_of_transformers(seconds: float) -> None:
    data = speech(seconds or 1, rate=16000) if seconds > 0.001 else wav(b"\0\x20", 1, 16, 16000, 1)
    made = audio.prepare(data, WHISPER, "a.wav")
    found = np.concatenate([chunk.mels() for chunk in made.chunks])
    heard = read_wav(data, "a.wav")
    padded = np.pad(heard.mono(0, heard.num_frames), (0, len(made.chunks) * 480_000 - heard.num_frames))
    extractor = extractor_of(len(padded))
    exact = extractor._np_extract_fbank_features(padded[None], "cpu")[0].T
    assert found.shape == exact.shape and found.dtype == np.float32
    assert np.abs(found - exact).max() < MELS
    usual = extractor(padded, sampling_rate=16000, padding=False, truncation=False, return_tensors="np")
    assert np.abs(found - usual["input_features"][0].T).max() < TORCH_MELS


def test_a_chunk_does_not_depend_on_how_much_is_read_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    data = speech(1.0, rate=44100)
    whole = [chunk.mels() for chunk in audio.prepare(data, SHORT, "a").chunks]
    monkeypatch.setattr("brise.text.log_mel.BLOCK_FRAMES", 7)
    monkeypatch.setattr("brise.text.resample.BLOCK", 100)
    pieces = [chunk.mels() for chunk in audio.prepare(data, SHORT, "a").chunks]
    assert len(whole) == 4 and all(np.allclose(a, b, atol=1e-6) for a, b in zip(whole, pieces, strict=True))


def test_chunks_have_tokens_and_digests_of_their_own() -> None:
    one, other = (audio.prepare(speech(1.0, seed), SHORT, "a") for seed in (0, 1))
    assert one.tokens == (25, *(24,) * 16) and one.seconds == 1.0
    digests = [chunk.digest for made in (one, other) for chunk in made.chunks]
    assert len(set(digests)) == 8
    assert audio.prepare(speech(1.0), SHORT, "b").chunks[2].digest == digests[2]
    assert WHISPER.tokens_per_second == 12.5


@pytest.mark.parametrize(("change", "message"), [
    ({"MAX_BYTES": 100}, "has 3244 bytes, allowed are 100"), ({"MAX_SECONDS": 0.05}, "seconds long, allowed are 0.05")])
def test_length_is_bounded(monkeypatch: pytest.MonkeyPatch, change: Mapping[str, float], message: str) -> None:
    for name, value in change.items():
        monkeypatch.setattr(audio, name, value)
    with pytest.raises(RequestError, match=message):
        audio.prepare(speech(0.1), SHORT, "a.wav")


def extractor_of(num_samples: int):  # type: ignore[no-untyped-def]
    extractor = pytest.importorskip("transformers").WhisperFeatureExtractor(feature_size=128)
    extractor.n_samples = num_samples
    return extractor
