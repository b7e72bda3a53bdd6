"""llama.cpp as a measured process, for compare.py; runs under the Python that has llama-cpp-python.

It drives llama_decode through ctypes, because the package's own generation loop samples in Python: a decode
time here is llama.cpp's alone, without sampling.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STARTED = time.perf_counter()
import llama_cpp  # noqa: E402  (its import is a part of the cold start: the clock starts before it)
import numpy as np  # noqa: E402

IMPORT_S = time.perf_counter() - STARTED
from worker import Times, answer, peak_bytes, prompt, serve, timed  # noqa: E402

BATCH = 512  # n_batch and n_ubatch


@dataclass(frozen=True)
class Options:
    """Flash attention and one cache for all sequences are llama.cpp's own switches."""

    threads: int
    flash: bool
    unified: bool
    context: int  # tokens a sequence


class Peer:
    """One model, and a context that is made anew for each measurement."""

    def __init__(self, path: str, options: Options) -> None:
        llama_cpp.llama_backend_init()
        self.model: Any = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.options = options
        self.vocab: Any = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = int(llama_cpp.llama_vocab_n_tokens(self.vocab))
        self.batch: Any = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.context: Any = None

    def prefill(self, length: int) -> Times:
        self.open(1, warm=True)
        tokens = prompt(0, length, self.vocab_size)
        return timed(length, lambda: self.prompt(0, tokens))

    def decode(self, sequences: int, depth: int, steps: int) -> Times:
        self.open(sequences, warm=True)
        for sequence in range(sequences):
            self.prompt(sequence, prompt(sequence, depth, self.vocab_size))

        def run() -> None:
            for position in range(depth, depth + steps):
                self.run([(sequence, position, (31337 * position + sequence) % self.vocab_size, True)
                          for sequence in range(sequences)])

        return timed(sequences * steps, run)

    def open(self, sequences: int, *, warm: bool) -> None:
        """A fresh context; `warm` runs it once, so that its memory is there before the clock starts."""
        if self.context is not None:
            llama_cpp.llama_free(self.context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self.options.context * sequences
        params.n_batch = params.n_ubatch = BATCH
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self.options.threads
        params.flash_attn_type = (llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED if self.options.flash
                                  else llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED)
        params.kv_unified = self.options.unified
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("llama.cpp cannot make a context")
        if warm:
            self.prompt(0, prompt(0, 64, self.vocab_size))
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)

    def prompt(self, sequence: int, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), BATCH):
            self.run([(sequence, start + index, token, start + index == len(tokens) - 1)
                      for index, token in enumerate(tokens[start:start + BATCH])])

    def run(self, tokens: Sequence[tuple[int, int, int, bool]]) -> None:
        """One llama_decode of (sequence, position, token, whether its logits are wanted), to its end."""
        batch = self.batch
        for index, (sequence, position, token, wanted) in enumerate(tokens):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = wanted
        batch.n_tokens = len(tokens)
        status = llama_cpp.llama_decode(self.context, batch)
        if status:
            raise SystemExit(f"llama_decode failed with {status}")
        llama_cpp.llama_synchronize(self.context)

    def first_token(self, text: str) -> str:
        """Tokenise, prefill, pick the best, give its text: what a chat does up to its first sign of life."""
        raw = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n".encode()
        tokens = (llama_cpp.llama_token * BATCH)()
        count = llama_cpp.llama_tokenize(self.vocab, raw, len(raw), tokens, BATCH, False, True)
        self.open(1, warm=False)
        self.prompt(0, tokens[:count])
        logits = llama_cpp.llama_get_logits_ith(self.context, -1)
        best = int(np.argmax(np.ctypeslib.as_array(logits, shape=(self.vocab_size,))))
        return str(llama_cpp.llama_vocab_get_text(self.vocab, best).decode(errors="replace"))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("path")
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--flash", type=int, choices=(0, 1), default=1)
    arguments.add_argument("--unified", type=int, choices=(0, 1), default=0)
    arguments.add_argument("--context", type=int, default=1024, help="tokens a sequence")
    arguments.add_argument("--first-token", metavar="PROMPT", help="write one token of the answer and end")
    given = arguments.parse_args()
    # llama.cpp writes a line for each tensor; the callback must outlive every call.
    silent = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
    llama_cpp.llama_log_set(silent, None)
    peer = Peer(given.path, Options(given.threads, bool(given.flash), bool(given.unified), given.context))
    if given.first_token is None:
        serve(peer, {"version": llama_cpp.__version__, "import_s": IMPORT_S})
        return 0
    sys.stdout.write(peer.first_token(given.first_token) + "\n")
    sys.stdout.flush()
    answer({"peak_bytes": peak_bytes(), "import_s": IMPORT_S})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
