"""Writes a tokenizer.json for the tiny models: Tekken's control tokens where images need them, then single bytes."""

from __future__ import annotations

import json
from pathlib import Path

from brise.checkpoint.gguf.write_tokenizer import byte_symbols
from brise.text import pretokenizers

CONTROL = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]", 13: "[IMG_END]"}
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def write_tokenizer(folder: Path, vocab_size: int, pre: str = "tekken") -> Path:
    """As many bytes as the vocabulary has room for; those of printable ASCII come first."""
    folder.mkdir(exist_ok=True)
    letters = iter(byte_symbols()[33:127] + byte_symbols()[:33] + byte_symbols()[127:])
    tokens = [CONTROL.get(index) or next(letters, f"<unused{index}>") for index in range(vocab_size)]
    splitting = pretokenizers.named(pre)
    normalizer = splitting.normalizer()
    document = {
        "version": "1.0", "truncation": None, "padding": None,
        "normalizer": None if normalizer is None else {"type": "NFC"},
        "added_tokens": [{"id": index, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for index, text in CONTROL.items()],
        "pre_tokenizer": json.loads(splitting.pre_tokenizer().__getstate__()),
        "post_processor": None, "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "ignore_merges": splitting.whole_words, "merges": [],
                  "vocab": {token: index for index, token in enumerate(tokens)}}}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "add_bos_token": True,
         "chat_template": TEMPLATE}))
    return folder
