"""How fast is Voxtral's audio encoder of full size, and does it keep the memory that is planned for it? Random weights.

    python bench/audio.py [--format Q8_0] [--threads 2] [--layers 32] [--runs 3]

It encodes chunks of 30 seconds (Whisper large-v3's encoder: 32 layers, 1280 wide; a text model 3072 wide). The
real-time factor is seconds of work for a second of audio: under 1 it keeps up. Peaks are VmHWM over what was resident
before.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from bench import random_blocks  # noqa: E402 - found from here
from tests.checkpoint.make_audio_model import speech  # noqa: E402

from brise.backends.native.backend import NativeBackend  # noqa: E402
from brise.checkpoint.read_audio import sinusoids  # noqa: E402
from brise.engine.audio import audio_settings, open_audio  # noqa: E402
from brise.memory.process import keep_small, peak_bytes, resident_bytes  # noqa: E402
from brise.models import whisper  # noqa: E402
from brise.models.weights import Array, Dense, Stored, Weight  # noqa: E402
from brise.models.whisper import AudioConfig, AudioLayer, AudioWeights  # noqa: E402
from brise.text import audio  # noqa: E402

SECONDS = 30


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--format", default="Q8_0", choices=("Q8_0", "BF16", "F32"))
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--layers", type=int, default=32)
    arguments.add_argument("--runs", type=int, default=3)
    options = arguments.parse_args()
    keep_small()
    config = AudioConfig(1280, options.layers, 20, 5120, 128, 1500, 4, whisper.NORM_EPS, 3072, 24, 25)
    backend = NativeBackend(options.threads)
    encoder = open_audio(config, weights(config, options.format), backend)
    data = speech(SECONDS)
    peak, mels_s = measured(lambda: audio.prepare(data, audio_settings(config), "speech").chunks[0].mels())
    print(f"spectrogram of {SECONDS} s: {mels_s:.2f} s, {peak / 1e6:.0f} MB over what was there, "
          f"planned {audio.work_bytes(audio_settings(config)) / 1e6:.0f} MB at most")
    chunk = audio.prepare(data, audio_settings(config), "speech").chunks[0].mels()
    encoder.encode(chunk)  # threads, pages
    planned, seconds, peaks = whisper.work_bytes(config), [], []
    begin_s = time.process_time()
    for _ in range(options.runs):
        peak, taken_s = measured(lambda: encoder.encode(chunk))
        seconds.append(taken_s)
        peaks.append(peak + chunk.nbytes)  # the plan counts the spectrogram
    processor_s = (time.process_time() - begin_s) / options.runs
    median, worst = statistics.median(seconds), max(peaks)
    print(f"| {options.format} | {backend.isa} | {options.threads} threads | {options.layers} layers | {median:.2f} s "
          f"for {SECONDS} s | real-time factor {median / SECONDS:.3f} | {processor_s:.2f} s of processors | "
          f"peak {worst / 1e6:.1f} MB | planned {planned / 1e6:.1f} MB | {worst / planned - 1:+.1%} |")
    return 0


def measured(work) -> tuple[int, float]:  # type: ignore[no-untyped-def]
    """The peak over what was resident before, and the time."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
    before, start = resident_bytes(), time.perf_counter()
    work()
    return peak_bytes() - before, time.perf_counter() - start


def weights(config: AudioConfig, format: str) -> AudioWeights:
    """Random ones, each matrix made when it is placed."""
    random = np.random.default_rng(1)

    def vector(size: int, mean: float = 0.0) -> Weight:
        return Dense("F32", (size,), random.normal(mean, 0.02, size).astype(np.float32))

    def matrix(rows: int, cols: int) -> Weight:
        return Stored(format, (rows, cols), lambda first, last: drawn(random, format, last - first, cols))

    width, wide = config.width, config.ffn_width
    layers = tuple(AudioLayer(
        vector(width, 1), vector(width), matrix(width, width), vector(width), matrix(width, width),
        matrix(width, width), vector(width), matrix(width, width), vector(width), vector(width, 1), vector(width),
        matrix(wide, width), vector(wide), matrix(width, wide), vector(width)) for _ in range(config.num_layers))
    return AudioWeights(
        matrix(width, 3 * config.num_mels), vector(width), matrix(width, 3 * width), vector(width),
        sinusoids(config.num_positions, width), layers, vector(width, 1), vector(width),
        matrix(config.text_width, width * config.stack), matrix(config.text_width, config.text_width))


def drawn(random: np.random.Generator, format: str, rows: int, cols: int) -> Array:
    if format == "Q8_0":
        return random_blocks.fill(random, format, rows, cols)
    values = random.normal(0, 0.02, (rows, cols)).astype(np.float32)
    return values if format == "F32" else (values.view(np.uint32) >> 16).astype(np.uint16)


if __name__ == "__main__":
    raise SystemExit(main())
