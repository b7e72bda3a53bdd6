"""Writes the tokenizer of a GGUF file as the files that transformers reads; gguf/write_tokenizer.py is the reverse."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from tokenizers import Tokenizer as BpeTokenizer

from brise.checkpoint.generation import gguf_generation, hf_keys
from brise.checkpoint.gguf.read_header import StringArray
from brise.checkpoint.gguf.write_tokenizer import NORMAL, UNUSED, USER_DEFINED
from brise.checkpoint.safetensors.write_hf_pieces import piece_document
from brise.errors import CheckpointError, UnsupportedError
from brise.text import pretokenizers, read_sentencepiece
from brise.text.gguf_vocabulary import MODELS

Files = dict[str, str]  # name -> text


def token_ids(metadata: Mapping[str, object]) -> dict[str, int | None]:
    """The ids of bos, eos, padding and unknown."""
    ids = {name: metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos", "padding", "unknown")}
    return {name: value if isinstance(value, int) else None for name, value in ids.items()}


def tokenizer_files(metadata: Mapping[str, object], max_context: int) -> Files:
    """tokenizer.json, tokenizer_config.json and generation_config.json, chat_template.jinja where there is one."""
    ids, tokens = token_ids(metadata), _strings(metadata, "tokens")
    if metadata.get("tokenizer.ggml.model") in ("llama", "t5"):
        tokenizer = read_sentencepiece.from_gguf(metadata)
        add_bos, document = tokenizer.add_bos, piece_document(tokenizer)
        if add_bos and tokenizer.bos_id is not None:
            document["post_processor"] = _bos_template(tokens[tokenizer.bos_id], tokenizer.bos_id)
    else:
        add_bos, document = _byte_level(metadata, tokens, ids["bos"])
    files = {
        "tokenizer.json": _dump(document),
        "tokenizer_config.json": _dump(_settings(tokens, ids, max_context, add_bos=add_bos)),
        "generation_config.json": _dump(_generation(metadata, ids))}
    template = metadata.get("tokenizer.chat_template")
    return files | {"chat_template.jinja": template} if isinstance(template, str) else files


def _byte_level(metadata: Mapping[str, object], tokens: Sequence[str],
                bos: int | None) -> tuple[bool, dict[str, object]]:
    """Whether a text begins with bos, and the tokenizer.json of a byte-level BPE."""
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise UnsupportedError(f"tokenizer.ggml.model is {metadata.get('tokenizer.ggml.model')!r}; brise writes "
                               f"{', '.join(map(repr, MODELS))}")
    pretokenizer = pretokenizers.named(str(metadata.get("tokenizer.ggml.pre")))
    add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", pretokenizer.add_bos)) and bos is not None
    return add_bos, _document(tokens, _types(metadata, len(tokens)), _strings(metadata, "merges"), pretokenizer,
                              bos if add_bos else None)


def _document(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str],
              pretokenizer: pretokenizers.Pretokenization, bos: int | None) -> dict[str, object]:
    """Unused tokens, which fill up a vocabulary, are left out: no text becomes one.

    Control tokens are in the vocabulary too: the library would renumber those that are in added_tokens alone.
    """
    steps = BpeTokenizer.from_str('{"version":"1.0","model":{"type":"BPE","vocab":{},"merges":[]}}')
    steps.pre_tokenizer, steps.normalizer = pretokenizer.pre_tokenizer(), pretokenizer.normalizer()
    document: dict[str, object] = json.loads(steps.to_str())
    added = [index for index, kind in enumerate(types) if kind not in (NORMAL, UNUSED)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    document |= {
        "added_tokens": [{"id": index, "content": tokens[index], "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": types[index] != USER_DEFINED} for index in added],
        "decoder": byte_level,
        "post_processor": {**byte_level, "trim_offsets": False} if bos is None else _bos_template(tokens[bos], bos),
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "ignore_merges": pretokenizer.whole_words,
                  "vocab": {token: index for index, token in enumerate(tokens) if types[index] != UNUSED},
                  "merges": [merge.split(" ") for merge in merges]}}
    return document


def _bos_template(text: str, bos: int) -> dict[str, object]:
    first, second = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    specials = [{"SpecialToken": {"id": text, "type_id": kind}} for kind in (0, 1)]
    return {"type": "TemplateProcessing", "single": [specials[0], first],
            "pair": [specials[0], first, specials[1], second],
            "special_tokens": {text: {"id": text, "ids": [bos], "tokens": [text]}}}


def _settings(tokens: Sequence[str], ids: Mapping[str, int | None], max_context: int, *,
              add_bos: bool) -> dict[str, object]:
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    texts = {name: tokens[index] for name, key in names.items() if (index := ids[key]) is not None}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": add_bos, "add_eos_token": False,
            "clean_up_tokenization_spaces": False, "model_max_length": max_context} | texts


def _generation(metadata: Mapping[str, object], ids: Mapping[str, int | None]) -> dict[str, object]:
    """With every token that ends an answer, and the sampling that the file suggests."""
    others = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eot", "eom")]
    ends = [index for index in dict.fromkeys([ids["eos"], *others]) if isinstance(index, int)]
    keys = {"bos_token_id": ids["bos"], "eos_token_id": ends if len(ends) > 1 else ids["eos"],
            "pad_token_id": ids["padding"]}
    sampling = hf_keys(gguf_generation(metadata).sampling)
    return {name: value for name, value in keys.items() if value is not None} | sampling


def _strings(metadata: Mapping[str, object], name: str) -> Sequence[str]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if isinstance(value, StringArray):
        return value.decode()
    if isinstance(value, list):
        return value
    raise CheckpointError(f"tokenizer.ggml.{name} is missing", field=f"tokenizer.ggml.{name}")


def _types(metadata: Mapping[str, object], count: int) -> list[int]:
    value = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(value, np.ndarray) or len(value) != count:
        raise CheckpointError(f"tokenizer.ggml.token_type has no entry for each of the {count} tokens",
                              field="tokenizer.ggml.token_type")
    return [int(kind) for kind in value]


def _dump(document: Mapping[str, object]) -> str:
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"
