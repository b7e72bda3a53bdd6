"""Writes a tokenizer.json, tekken.json or tokenizer.model as the keys of a GGUF file, as llama.cpp's converter does."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as BpeTokenizer

from brise.checkpoint.gguf.write_pieces import piece_keys
from brise.errors import CheckpointError, UnsupportedError, bad_value
from brise.text import hf_tokenizer, load, pretokenizers, read_sentencepiece
from brise.text.hf_tokenizer import read_json

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
MAX_WORD_BYTES = 512  # every cut of a word is looked up; the longest word in use has 128

# One name for each pre-tokenizer that tokenizer.ggml.pre can mean. Of two that cut alike, the first is taken.
PRE_NAMES: Sequence[str] = ("smollm", "gpt-2", "llama-bpe", "qwen2", "deepseek-r1-qwen", "tekken", "gpt-4o", "default")
# Cut differently by each of them: contractions in both cases, digits, signs, white space, a decomposed letter.
PROBE = ("Hello World's iPhone's HELLO'S we'LL 1234567 ٣٤٥٦ x²\n\n \n /path//x?!\n/ \t tab  e\u0301té 你好，世界 "
         "_a_b $+<=>^~| 3.14 'tis\r\n  end ")

# What a tekken.json of versions before special_tokens means by its first ids.
OLD_CONTROL: Sequence[str] = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
    "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")


def vocabulary(folder: Path, vocab_size: int) -> dict[str, object]:
    """The keys for the tokenizer in this folder, its `vocab_size` tokens, and its chat template if there is one."""
    settings = _optional(folder / "tokenizer_config.json")
    pieces = [path for path in (folder / "tokenizer.model", load.versioned(folder)) if path and path.is_file()]
    if (folder / "tokenizer.json").is_file():
        keys = _from_tokenizer_json(folder / "tokenizer.json", settings, vocab_size)
    elif (folder / "tekken.json").is_file():
        keys = _from_tekken(folder / "tekken.json", vocab_size)
    elif pieces:
        tokenizer = read_sentencepiece.from_file(pieces[-1], settings)
        keys = piece_keys(tokenizer, vocab_size, _id(tokenizer.pieces.texts, settings.get("pad_token")))
    else:
        raise CheckpointError(f"{folder} has neither tokenizer.json nor tekken.json nor tokenizer.model",
                              field="tokenizer.json", limit="a file", hint="copy it from the model's repository")
    template = _template(folder, settings)
    if template is None and pieces and not any((folder / name).is_file() for name in ("tokenizer.json", "tekken.json")):
        template = _mistral_template(folder, pieces[-1])
    return keys if template is None else keys | {"tokenizer.chat_template": template}


def byte_symbols() -> Sequence[str]:
    """GPT-2's printable stand-in for each of the 256 bytes, in byte order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + rest.index(byte)) for byte in range(256)]


def _from_tokenizer_json(path: Path, settings: Mapping[str, object], vocab_size: int) -> dict[str, object]:
    document = read_json(path)
    read = hf_tokenizer.read(path, settings, document)
    if hf_tokenizer.is_sentencepiece(document):
        pieces = read_sentencepiece.from_hf(read, document, path.name)
        return piece_keys(pieces, vocab_size, _id(read.tokens, settings.get("pad_token")))
    gaps = frozenset(read.gaps)
    tokens, types = list(read.tokens), [NORMAL] * len(read.tokens)
    for index in gaps:
        tokens[index], types[index] = f"[PAD{index}]", UNUSED
    for index, is_control in read.added.items():
        types[index] = CONTROL if is_control else USER_DEFINED
    model = document["model"]
    merges = model.get("merges", []) if isinstance(model, dict) else []
    ids = {"bos": read.bos_id, "eos": read.eos_id} | {
        name: _id(tokens, settings.get(f"{key}_token")) for name, key in (("unknown", "unk"), ("padding", "pad"))}
    keys = _keys(_pre_name(document, path), tokens, types,
                 [merge if isinstance(merge, str) else " ".join(merge) for merge in merges], ids,
                 add_bos=read.add_bos, vocab_size=vocab_size)
    if read.text_end_id is None:
        return keys
    # A GGUF file has no other key for the token behind a text that is embedded: Qwen3 Embedding's is no end of chats.
    return keys | {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eos_token_id": read.text_end_id}


def _from_tekken(path: Path, vocab_size: int) -> dict[str, object]:
    document = read_json(path)
    config = document.get("config")
    num_control = config.get("default_num_special_tokens") if isinstance(config, dict) else None
    if not isinstance(num_control, int) or not 0 < num_control < vocab_size:
        raise CheckpointError(f"{path.name} has config.default_num_special_tokens {num_control!r}",
                              field="config.default_num_special_tokens", value=num_control,
                              limit=f"1 to {vocab_size - 1}")
    control = _tekken_control(document, num_control, path)
    words = _tekken_words(document, vocab_size - num_control, path)
    symbols = byte_symbols()
    texts = ["".join(symbols[byte] for byte in word) for word in words]
    merges = [f"{texts[left]} {texts[right]}" for left, right in _pairs(words)]
    ids = {"bos": _id(control, "<s>"), "eos": _id(control, "</s>"), "unknown": _id(control, "<unk>"),
           "padding": _id(control, "<pad>")}
    return _keys("tekken", control + texts, [CONTROL] * num_control + [NORMAL] * len(texts), merges, ids,
                 add_bos=True, vocab_size=vocab_size)


def _tekken_control(document: Mapping[str, object], count: int, path: Path) -> list[str]:
    tokens = [OLD_CONTROL[rank] if rank < len(OLD_CONTROL) else f"<SPECIAL_{rank}>" for rank in range(count)]
    special = document.get("special_tokens")
    for entry in special if isinstance(special, list) else []:
        match entry:
            case {"rank": int(rank), "token_str": str(text)} if 0 <= rank < count:
                tokens[rank] = text
            case _:
                raise CheckpointError(f"special_tokens of {path.name} has an entry without rank and token_str",
                                      field="special_tokens", value=str(entry)[:80])
    return tokens


def _tekken_words(document: Mapping[str, object], count: int, path: Path) -> list[bytes]:
    """The first `count` byte strings; a file has more than the model."""
    vocab = document.get("vocab")
    if not isinstance(vocab, list) or len(vocab) < count:
        num_words = len(vocab) if isinstance(vocab, list) else 0
        raise CheckpointError(f"{path.name} has {num_words} words, the model {count}", field="vocab", value=num_words,
                              limit=count)
    try:
        words = [base64.b64decode(entry["token_bytes"], validate=True) for entry in vocab[:count]]
    except (TypeError, KeyError, binascii.Error) as error:
        raise CheckpointError(f"vocab of {path.name} has an entry without token_bytes in base64: {error}",
                              field="vocab") from None
    longest = max(map(len, words), default=0)
    if longest > MAX_WORD_BYTES:
        raise bad_value(f"length of a word of {path.name}", longest, f"at most {MAX_WORD_BYTES} bytes")
    return words


def _pairs(words: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Every pair of words that makes another word: how a list of words becomes merges, best word first."""
    ranks = {word: rank for rank, word in enumerate(words)}
    for word in words:
        pairs = ((ranks.get(word[:cut]), ranks.get(word[cut:])) for cut in range(1, len(word)))
        yield from sorted((left, right) for left, right in pairs if left is not None and right is not None)


def _keys(pre: str, tokens: list[str], types: list[int], merges: list[str], ids: Mapping[str, int | None], *,
          add_bos: bool, vocab_size: int) -> dict[str, object]:
    if len(tokens) > vocab_size:
        raise CheckpointError(f"the tokenizer has {len(tokens)} tokens, the model {vocab_size} embeddings",
                              field="tokens", value=len(tokens), limit=vocab_size)
    padding = range(len(tokens), vocab_size)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens + [f"[PAD{index}]" for index in padding],
        "tokenizer.ggml.token_type": np.array(types + [UNUSED] * len(padding), np.int32),
        "tokenizer.ggml.merges": merges,
        **{f"tokenizer.ggml.{name}_token_id": index for name, index in ids.items() if index is not None},
        "tokenizer.ggml.add_bos_token": add_bos}


def _pre_name(document: Mapping[str, object], path: Path) -> str:
    """The name of the file's pre-tokenizer: the one that cuts PROBE the same."""
    pieces = _cut(hf_tokenizer.read_steps(document, path))
    for name in PRE_NAMES:
        if _cut(_splitter(pretokenizers.named(name))) == pieces:
            return name
    raise UnsupportedError(f"{path.name} has a pre-tokenizer for which brise knows no tokenizer.ggml.pre; known are "
                           f"{', '.join(PRE_NAMES)}")


def _splitter(pretokenizer: pretokenizers.Pretokenization) -> BpeTokenizer:
    tokenizer = BpeTokenizer.from_str('{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}')
    tokenizer.pre_tokenizer, tokenizer.normalizer = pretokenizer.pre_tokenizer(), pretokenizer.normalizer()
    return tokenizer


def _cut(tokenizer: BpeTokenizer) -> list[str]:
    text = PROBE if tokenizer.normalizer is None else tokenizer.normalizer.normalize_str(PROBE)
    if tokenizer.pre_tokenizer is None:
        return [text]
    return [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def _id(tokens: Sequence[str], token: object) -> int | None:
    text = token.get("content") if isinstance(token, dict) else token
    return tokens.index(text) if isinstance(text, str) and text in tokens else None


def _template(folder: Path, settings: Mapping[str, object]) -> str | None:
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    value = _optional(folder / "chat_template.json").get("chat_template") or settings.get("chat_template")
    if isinstance(value, list):
        named = [entry.get("template") for entry in value if isinstance(entry, dict) and entry.get("name") == "default"]
        value = named[0] if named else None
    return value if isinstance(value, str) else None


def _mistral_template(folder: Path, pieces: Path) -> str | None:
    """The chat template of Mistral's own layout, or of a file with a version in its name; None without the extra."""
    if not (folder / "params.json").is_file() and pieces.name == "tokenizer.model":
        return None
    try:
        from brise.text import mistral_pieces  # noqa: PLC0415 - see text/load.py
    except ImportError:
        return None
    return mistral_pieces.chat_template(pieces)


def _optional(path: Path) -> dict[str, object]:
    return read_json(path) if path.is_file() else {}
