"""`--memory` and what decides about memory: options of every command that loads a model."""

from __future__ import annotations

import argparse

from brise.memory.sizes import parse_size
from brise.quant.recipe import MIXES

CACHES = ("f16", "q8", "q4")


def size(text: str) -> int:
    """Reads 4GB (4 * 10^9 bytes), 3.5GiB (3.5 * 2^30), 800MB, for argparse."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--memory`, `--cache`, `--weights`, `--experts`, `--image-size`."""
    parser.add_argument("--memory", metavar="SIZE", type=size,
                        help="stay within this much memory, or refuse before loading: 4GB, 3.5GiB")
    parser.add_argument("--cache", choices=CACHES, default="f16",
                        help="number format of keys and values; q8 needs half the memory, q4 a third (default: f16)")
    parser.add_argument("--weights", choices=tuple(MIXES), metavar="FORMAT",
                        help="quantise weights in plain formats or FP8 while loading: " + ", ".join(MIXES))
    parser.add_argument("--experts", metavar="SIZE", type=size,
                        help="keep so much of a mixture's experts in memory, and read the others from the file when a "
                             "token needs them (default: all are kept)")
    parser.add_argument("--image-size", metavar="N", type=_pixels,
                        help="longest side of an image in pixels; larger ones are made smaller "
                             "(default: what the model allows)")


def _pixels(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= 1 << 16:
        raise argparse.ArgumentTypeError(f"{text!r}: a number of pixels from 1 to {1 << 16} is allowed")
    return int(text)
