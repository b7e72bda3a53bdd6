"""Vocabularies for synthetic files: one that is made up, and Mistral's Tekken from inside mistral-common.

The made-up one has the size of the real one and byte-level BPE, which is what loading it takes time for; the Tekken
is the real thing (131072 tokens, 269443 merges), so texts have the lengths that they have on the real model.
"""

from __future__ import annotations

import base64
import itertools
import json
import string
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from gguf import GGUFWriter, TokenType

CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
          "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
          "{% endif %}")
NUM_CONTROL = 1000  # of Tekken: ids below are control tokens
CONTROL_NAMES: Mapping[int, str] = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]", 24: "[AUDIO]", 25: "[BEGIN_AUDIO]", 32: "[ARGS]", 33: "[CALL_ID]", 34: "[THINK]",
    35: "[/THINK]"}


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF says of its tokenizer."""

    pre: str
    tokens: list[str]
    types: list[TokenType]
    merges: list[str]
    bos: int
    eos: int
    pad: int
    add_bos: bool
    template: str

    def write(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        writer.add_bos_token_id(self.bos)
        writer.add_eos_token_id(self.eos)
        writer.add_pad_token_id(self.pad)
        writer.add_add_bos_token(self.add_bos)
        writer.add_chat_template(self.template)


def made_up(pre: str, size: int, num_merges: int, first_control: int) -> Vocabulary:
    """A byte-level BPE of the real size: control tokens in their place, bytes, one token for each merge."""
    merges = list(itertools.islice(_merges(), num_merges))
    ordinary = [*byte_symbols(), *("".join(pair) for pair in merges)]
    num_control = size - len(ordinary)
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    control += [f"<|control_{i}|>" for i in range(num_control - len(control))]
    at = first_control
    types = [TokenType.NORMAL] * at + [TokenType.CONTROL] * num_control
    types += [TokenType.NORMAL] * (len(ordinary) - at)
    return Vocabulary(pre, [*ordinary[:at], *control, *ordinary[at:]], types, [" ".join(pair) for pair in merges],
                      bos=at, eos=at + 2, pad=at, add_bos=False, template=CHATML)


def tekken(size: int) -> Vocabulary:
    """Tekken as converters write it into a GGUF, with the chat template of its version 13."""
    document = tekken_document(size)
    words = [base64.b64decode(entry["token_bytes"]) for entry in document["vocab"]]
    symbols = byte_symbols()
    control = [token["token_str"] for token in document["special_tokens"]]
    texts = {word: "".join(symbols[byte] for byte in word) for word in words}
    types = [TokenType.CONTROL] * len(control) + [TokenType.NORMAL] * len(words)
    return Vocabulary("tekken", control + list(texts.values()), types,
                      [f"{texts[left]} {texts[right]}" for left, right in _splits(words)],
                      bos=1, eos=2, pad=11, add_bos=True, template=_template(document))


def tekken_document(size: int) -> dict[str, object]:
    """A tekken.json of version 13 with images: the vocabulary that lies in mistral-common, and control tokens."""
    import mistral_common  # noqa: PLC0415 - only this vocabulary needs it

    source = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    document = json.loads(source.read_text(encoding="utf-8"))
    document["vocab"] = document["vocab"][:size - NUM_CONTROL]
    document["config"] |= {"version": "v13", "default_vocab_size": size}
    document["special_tokens"] = [
        {"rank": rank, "token_str": CONTROL_NAMES.get(rank, f"<SPECIAL_{rank}>"), "is_control": True}
        for rank in range(NUM_CONTROL)]
    document["image"] = {"image_patch_size": 14, "max_image_size": 1540, "spatial_merge_size": 2}
    return document


def byte_symbols() -> list[str]:
    """GPT-2's printable stand-in for each of the 256 bytes, in byte order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + rest.index(byte)) for byte in range(256)]


def _splits(words: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Every way to put a word together from two others, as transformers turns a tiktoken file into merges."""
    ranks = {word: rank for rank, word in enumerate(words)}
    for word in words:
        pairs = [(word[:cut], word[cut:]) for cut in range(1, len(word))]
        yield from sorted((pair for pair in pairs if pair[0] in ranks and pair[1] in ranks),
                          key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _template(document: dict[str, object]) -> str:
    from mistral_common.integrations.chat_templates.chat_templates import (  # noqa: PLC0415
        convert_tokenizer_to_chat_template,
    )

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tekken.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return str(convert_tokenizer_to_chat_template(str(path)))


def _merges() -> Iterator[tuple[str, str]]:
    """Pairs of letters, then triples, then fours, each made of tokens that stand before it."""
    letters = string.ascii_lowercase
    pairs = ["".join(pair) for pair in itertools.product(letters, repeat=2)]
    yield from itertools.product(letters, repeat=2)
    yield from itertools.product(pairs, letters)
    yield from itertools.product(pairs, repeat=2)
