"""Memory of a process: what this one takes now, and what any takes before it holds a weight.

Peak memory is the kernel's VmHWM: the most bytes that were resident at one time, anonymous (what we allocated) and
file-backed (libraries and mapped files, as far as their pages were touched). docs/guides/memory.md says how it is
planned.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

# Measured on Linux x86-64 with CPython 3.11 and rounded up: interpreter, NumPy, kernels, HTTP server and llguidance
# (58 MB), and the stacks, sockets and free lists that they accumulate.
LIBRARIES_BYTES, SLACK_BYTES = 70_000_000, 30_000_000
CHAT_BYTES = 50_000_000  # without HTTP server and llguidance
# A tokenizer holds its strings twice (ours and the library's) and a table of merges: 78 MB for Tekken. While it is
# built, lists of Python strings take 90 MB more.
TOKEN_BYTES, MERGE_BYTES, TEXT_FACTOR = 150, 120, 4
BUILD_FACTOR = 1.25
# The first grammar builds a trie of all tokens (51 MB for Tekken); 64 compiled schemas of eight fields take 15 MB.
TRIE_TOKEN_BYTES, GRAMMARS_BYTES = 420, 24_000_000
# mistral-common with its copy of Tekken, Pillow and OpenCV.
MISTRAL_BYTES = 170_000_000

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -3, -1, -8  # glibc's malloc.h
_LARGE_BLOCK = 1 << 20
_MAX_ARENAS = 2


@dataclass(frozen=True)
class Vocabulary:
    """The size of a tokenizer: tokens, merge rules, bytes of all their text; and what its library takes besides."""

    num_tokens: int
    num_merges: int
    text_bytes: int
    library_bytes: int = 0

    @property
    def tokenizer_bytes(self) -> int:
        return (TOKEN_BYTES * self.num_tokens + MERGE_BYTES * self.num_merges + TEXT_FACTOR * self.text_bytes
                + self.library_bytes)

    @property
    def building_bytes(self) -> int:
        """What building the tokenizer takes for a moment, beyond what stays."""
        return int(BUILD_FACTOR * self.tokenizer_bytes)

    @property
    def grammar_bytes(self) -> int:
        return TRIE_TOKEN_BYTES * self.num_tokens + GRAMMARS_BYTES


def process_bytes(vocabulary: Vocabulary, *, serves: bool) -> int:
    """What a process takes besides weights, cache and work space. A chat has no HTTP server and no grammars."""
    libraries = LIBRARIES_BYTES + vocabulary.grammar_bytes if serves else CHAT_BYTES
    return libraries + SLACK_BYTES + vocabulary.tokenizer_bytes


def resident_bytes() -> int:
    """The memory of this process now."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory that this process has taken. On Linux, ru_maxrss would include the parent's before exec."""
    if Path("/proc/self/status").is_file():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def keep_small() -> None:
    """Makes malloc return large blocks at once and threads share two arenas, for a process with a memory limit.

    By default, glibc keeps freed blocks of up to 32 MB in each of eight arenas per core. Other C libraries have no such
    call, and do not need it.
    """
    libc = ctypes.CDLL(None)
    try:
        set_option, trim = libc.mallopt, libc.malloc_trim
    except AttributeError:
        return
    set_option(_M_ARENA_MAX, _MAX_ARENAS)
    set_option(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
    set_option(_M_TRIM_THRESHOLD, _LARGE_BLOCK)
    trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
