"""Writes a model in a plain format: as a Hugging Face folder, or as GGUF (which is quantising to F16, BF16 or F32)."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from brise.checkpoint.adapters.lineage import FILE as LINEAGE_FILE
from brise.checkpoint.adapters.merge import LINEAGE_KEY
from brise.checkpoint.gguf.write_file import Outgoing
from brise.checkpoint.read_original import Named, Original
from brise.checkpoint.safetensors.write_file import write_safetensors
from brise.checkpoint.safetensors.write_hf_config import description
from brise.checkpoint.safetensors.write_hf_tokenizer import token_ids, tokenizer_files
from brise.checkpoint.safetensors.write_hf_weights import audio_tensors, text_tensors, vision_tensors
from brise.checkpoint.write_gguf import outgoing
from brise.files.atomic import staged_folder
from brise.models.weights import Weight
from brise.quant.formats import PLAIN
from brise.quant.rows import format_of, matrix_shape
from brise.text.load import versioned

# Copied where the source is a Hugging Face folder.
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json")
# Copied from folders of any kind.
OTHER_FILES = (
    "tekken.json", "SYSTEM_PROMPT.txt", "processor_config.json", "preprocessor_config.json", "LICENSE", LINEAGE_FILE)


def plain_format(original: Original) -> str:
    """The format of an export where none is asked for: that of most weights, F16 if those are blocks.

    F16 has 11 bits for a number, more than the blocks' codes; FP8 counts as BF16, in which its products are rounded.
    """
    counts: Counter[str] = Counter()
    for tensor in original.tensors:
        if len(tensor.weight.shape) > 1:
            rows, cols = matrix_shape(tensor.weight.shape)
            counts[format_of(tensor.weight)] += rows * cols
    format = counts.most_common(1)[0][0]
    return format if format in PLAIN else "F16"


def write_hf(original: Original, path: Path, dtype: str, wrote: Callable[[int], None] | None = None) -> int:
    """Writes a folder that transformers loads; returns the bytes of all tensors."""
    tensors = list(_outgoing(original, dtype))
    with staged_folder(path, sum(tensor.nbytes for tensor in tensors)) as folder:
        total = write_safetensors(folder, tensors, wrote)
        vision = None if original.vision is None else original.vision[0]
        audio = None if original.audio is None else original.audio[0]
        config = description(original.config, vision, audio, dtype, token_ids(original.metadata), tied=original.is_tied)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _write_tokenizer(original, folder)
        if LINEAGE_KEY in original.metadata:  # after the source's own file
            (folder / LINEAGE_FILE).write_text(str(original.metadata[LINEAGE_KEY]), encoding="utf-8")
    return total


def exported_bytes(original: Original, dtype: str) -> int:
    """Bytes of all tensors of a Hugging Face folder."""
    return sum(tensor.nbytes for tensor in _outgoing(original, dtype))


def _outgoing(original: Original, dtype: str) -> Iterator[Outgoing]:
    for name, weight, shape in _tensors(original):
        yield replace(outgoing(Named(name, weight), dtype, original.forget), shape=shape)


def _tensors(original: Original) -> Iterator[tuple[str, Weight, tuple[int, ...]]]:
    is_wrapped = original.vision is not None or original.audio is not None
    yield from text_tensors(original.weights, original.config, is_wrapped=is_wrapped)
    if original.vision is not None:
        yield from vision_tensors(original.vision[1], original.vision[0])
    if original.audio is not None:
        yield from audio_tensors(original.audio[1], original.audio[0])


def _write_tokenizer(original: Original, folder: Path) -> None:
    """The source's own files where it is a Hugging Face folder, made from the GGUF keys otherwise."""
    names: tuple[str, ...] = OTHER_FILES
    if original.kind == "hf" and (original.folder / "tokenizer.json").is_file():
        names += TOKENIZER_FILES
    elif "tokenizer.ggml.tokens" in original.metadata:
        for name, text in tokenizer_files(original.metadata, original.config.max_context).items():
            (folder / name).write_text(text, encoding="utf-8")
    pieces = versioned(original.folder)  # Mistral's, which mistral-common reads
    for name in (*names, *([] if pieces is None else [pieces.name])):
        if (original.folder / name).is_file():
            shutil.copyfile(original.folder / name, folder / name)
