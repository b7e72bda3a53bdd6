"""llama.cpp's logits of a GGUF file, for comparison; runs as a script under a Python that has llama-cpp-python.

    python llama_logits.py FILE.gguf OUT.npy 1,2,3        all logits (T, V) of the tokens 1, 2, 3 as float32
    python llama_logits.py FILE.gguf OUT.npy 1,2,3 ADAPTER.gguf  the same through an adapter
    python llama_logits.py FILE.gguf OUT.npy --text TEXT  the tokens of a text, as llama.cpp cuts it
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import llama_cpp
import numpy as np


def main() -> int:
    path, out, what = sys.argv[1:4]
    silent = llama_cpp.llama_log_callback(lambda level, text, user_data: None)
    llama_cpp.llama_log_set(silent, None)
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = what == "--text"
    model: Any = llama_cpp.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {path}")
    vocab: Any = llama_cpp.llama_model_get_vocab(model)
    if what == "--text":
        np.save(out, tokens_of(vocab, sys.argv[4]))
    else:
        tokens = [int(id) for id in what.split(",")]
        np.save(out, logits_of(model, llama_cpp.llama_vocab_n_tokens(vocab), tokens, sys.argv[4:]))
    return 0


def tokens_of(vocab: Any, text: str) -> np.ndarray:
    raw = text.encode()
    tokens = (llama_cpp.llama_token * (len(raw) + 8))()
    count = llama_cpp.llama_tokenize(vocab, raw, len(raw), tokens, len(tokens), False, False)
    return np.array(tokens[:count], np.int32)


def logits_of(model: Any, vocab_size: int, tokens: list[int], adapters: list[str]) -> np.ndarray:
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads = 512, 512, 512, 2
    params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.type_k = params.type_v = 0  # F32: what differs is then the weights' arithmetic alone
    context: Any = llama_cpp.llama_init_from_model(model, params)
    for path in adapters:
        adapter: Any = llama_cpp.llama_adapter_lora_init(model, path.encode())
        if not adapter:
            raise SystemExit(f"llama.cpp cannot load {path}")
        if llama_cpp.llama_set_adapters_lora(context, (type(adapter) * 1)(adapter), 1, (ctypes.c_float * 1)(1.0)):
            raise SystemExit(f"llama.cpp cannot use {path}")
    batch: Any = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    for index, token in enumerate(tokens):
        batch.token[index], batch.pos[index] = token, index
        batch.n_seq_id[index], batch.seq_id[index][0], batch.logits[index] = 1, 0, True
    batch.n_tokens = len(tokens)
    if llama_cpp.llama_decode(context, batch):
        raise SystemExit("llama_decode failed")
    rows = [np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, index), shape=(vocab_size,)).copy()
            for index in range(len(tokens))]
    return np.stack(rows)


if __name__ == "__main__":
    raise SystemExit(main())
