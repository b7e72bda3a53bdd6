"""`--memory` and the other options that decide about memory, for every command that loads a model."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from brise.backends import check_device
from brise.cli.fill import fill
from brise.errors import UnsupportedError
from brise.files.sizes import TwoLimits, parse_memory, parse_size
from brise.memory.opening import Speculate
from brise.models.ops import CacheFormat
from brise.quant.recipe import MIXES

CACHES: tuple[CacheFormat, ...] = ("f16", "q8", "q4")
SPECULATE: tuple[Speculate, ...] = ("auto", "off")


@dataclass(frozen=True)
class MemoryOptions:
    """What the options say; sizes are bytes, and None means what the model's file says."""

    memory: int | TwoLimits | None
    cache: CacheFormat
    weights: str | None
    experts: int | None
    image_size: int | None
    speculate: Speculate
    device: str


def size(text: str) -> int:
    """Reads a size such as 4GB (4 * 10^9 bytes), 3.5GiB (3.5 * 2^30) or 800MB, for argparse."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def memory(text: str) -> int | TwoLimits:
    """Reads a limit such as 4GB, or two such as vram=4GB,ram=8GB, for argparse."""
    try:
        return parse_memory(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`, `--memory`, `--cache`, `--weights`, `--experts`, `--image-size` and `--speculate`."""
    add_device(parser)
    parser.add_argument("--memory", metavar="SIZE", type=memory,
                        help="memory limit, such as 4GB or 3.5GiB, of the GPU if it has its own memory; a model "
                             "that does not fit is refused before loading; vram=4GB,ram=8GB limits a GPU and the host, "
                             "and a model that does not fit into the GPU is split; docs/guides/memory.md says how")
    parser.add_argument("--cache", choices=CACHES, default="f16",
                        help="number format of the cache: f16, q8 or q4; q8 takes half the memory of f16, q4 a third "
                             "(default: f16)")
    parser.add_argument("--weights", choices=tuple(MIXES), metavar="FORMAT",
                        help="quantize weights in plain formats or FP8 while loading: " + ", ".join(MIXES)
                        + "; a vision encoder always gets Q8_0")
    parser.add_argument("--experts", metavar="SIZE", type=size,
                        help="keep at most this much of a mixture's experts in memory, and read the others from the "
                             "file when a token needs them (default: keep all)")
    parser.add_argument("--image-size", metavar="N", type=_pixels,
                        help="longest side of an image in pixels; larger images are scaled down "
                             "(default: what the model allows)")
    parser.add_argument("--speculate", choices=SPECULATE, default="auto",
                        help="auto: draft the next tokens from grammar, prompt and earlier answers, and check several "
                             "in one step, where that is faster; answers stay the same. off: one token a step "
                             "(default: auto)")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds `--device`."""
    parser.add_argument("--device", metavar="NAME", type=_device, default="cpu",
                        help="where the model runs: cpu, vulkan (the best GPU), vulkan:N (by its number, or a part of "
                             "its name), or auto (a GPU that holds the model, else the CPU) (default: cpu)")


def from_arguments(args: argparse.Namespace) -> MemoryOptions:
    """The options of a command line."""
    return fill(MemoryOptions, args)


def _device(text: str) -> str:
    try:
        check_device(text)
    except UnsupportedError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _pixels(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of pixels from 1 to {1 << 16} is allowed")
    return int(text)
