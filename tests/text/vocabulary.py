"""A tiny byte-level vocabulary as GGUF metadata, with any control tokens: for tests of the text package."""

from __future__ import annotations

from collections.abc import Sequence

from brise.text.tokenizer import Tokenizer

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "i n", "th e", "Ġ the", "l l", "e r", "u s", "us er", "o o", "Ġ a")
CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
          "'<|im_end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
          "{% endif %}")


def byte_letters() -> list[str]:
    """GPT-2's 256 letters, in the order of the bytes, built the way its own code does."""
    printable = [byte for first, last in ("!~", "¡¬", "®ÿ") for byte in range(ord(first), ord(last) + 1)]
    letters, others = {byte: chr(byte) for byte in printable}, 0
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + others)
            others += 1
    return [letters[byte] for byte in range(256)]


def metadata(pre: object = "smollm", *, control: Sequence[str] = CONTROL, user_defined: Sequence[str] = (),
             words: Sequence[str] = (), **more: object) -> dict[str, object]:
    """Control tokens, bytes, merged tokens and whole `words`; `more` are further keys of tokenizer.ggml."""
    texts = [*byte_letters(), *(merge.replace(" ", "") for merge in MERGES), *words]
    tokens = [*control, *user_defined, *texts]
    types = [3] * len(control) + [4] * len(user_defined) + [1] * len(texts)
    keys = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": list(MERGES),
            "bos_token_id": 0, "eos_token_id": min(2, len(control) - 1), **more}
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def tokenizer(pre: str = "smollm", *, control: Sequence[str] = CONTROL, user_defined: Sequence[str] = (),
              words: Sequence[str] = (), **more: object) -> Tokenizer:
    """The tokenizer of that metadata."""
    return Tokenizer.from_gguf(metadata(pre, control=control, user_defined=user_defined, words=words, **more))
