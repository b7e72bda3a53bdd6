"""Small tekken.json files of every version, cut from the vocabulary that mistral-common brings along."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import mistral_common
from gguf import TokenType

from tests.text.vocabulary import byte_letters

BUNDLED = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
NUM_CONTROL, NUM_TEXT = 40, 2000
NAMES: Mapping[int, str] = {
    0: "<unk>", 1: "<s>", 2: "</s>", 3: "[INST]", 4: "[/INST]", 5: "[AVAILABLE_TOOLS]", 6: "[/AVAILABLE_TOOLS]",
    7: "[TOOL_RESULTS]", 8: "[/TOOL_RESULTS]", 9: "[TOOL_CALLS]", 10: "[IMG]", 11: "<pad>", 12: "[IMG_BREAK]",
    13: "[IMG_END]", 14: "[PREFIX]", 15: "[MIDDLE]", 16: "[SUFFIX]", 17: "[SYSTEM_PROMPT]", 18: "[/SYSTEM_PROMPT]",
    19: "[TOOL_CONTENT]"}
LATER: Mapping[int, str] = {32: "[ARGS]", 33: "[CALL_ID]", 34: "[THINK]", 35: "[/THINK]",
                            36: "[MODEL_SETTINGS]", 37: "[/MODEL_SETTINGS]"}


@cache
def bundled() -> str:
    """The file's text; parsed anew by each caller, who may change it."""
    document = json.loads(BUNDLED.read_text(encoding="utf-8"))
    return json.dumps({"vocab": document["vocab"][:NUM_TEXT], "pattern": document["config"]["pattern"]})


def control_names(version: str, *, can_think: bool = True) -> list[str]:
    """Control tokens of a version, fillers between them."""
    names = {**NAMES, **(LATER if version in ("v11", "v13", "v15") else {})}
    names = {index: name for index, name in names.items() if can_think or "THINK" not in name}
    return [names.get(index, f"<SPECIAL_{index}>") for index in range(NUM_CONTROL)]


def document(version: str, *, control: Sequence[str] | None = None) -> dict[str, object]:
    """The content of a tekken.json."""
    known, names = json.loads(bundled()), control or control_names(version)
    effort = {"type": "enum", "values": ["none", "high"], "accepts_none": True, "default": "none"}
    return {
        **({"model_settings_builder": {"reasoning_effort": effort}} if version == "v15" else {}),
        "config": {"pattern": known["pattern"], "num_vocab_tokens": NUM_TEXT, "version": version,
                   "default_vocab_size": NUM_TEXT + len(names), "default_num_special_tokens": len(names)},
        "vocab": known["vocab"],
        "special_tokens": [{"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)]}


def write(folder: Path, version: str = "v13", **more: Sequence[str]) -> Path:
    """A tekken.json in this folder."""
    path = folder / "tekken.json"
    path.write_text(json.dumps(document(version, **more)), encoding="utf-8")
    return path


def gguf_metadata(version: str = "v13") -> dict[str, object]:
    """The same vocabulary as the metadata of a GGUF file, as llama.cpp's converter writes it."""
    texts = [base64.b64decode(entry["token_bytes"]) for entry in json.loads(bundled())["vocab"]]
    ranks, letters, names = {text: rank for rank, text in enumerate(texts)}, byte_letters(), control_names(version)
    merges = []
    for text in texts[256:]:
        left, right = _halves(text, ranks)
        merges.append(f"{_spelled(left, letters)} {_spelled(right, letters)}")
    keys = {"model": "gpt2", "pre": "tekken", "tokens": [*names, *(_spelled(text, letters) for text in texts)],
            "token_type": [TokenType.CONTROL.value] * len(names) + [TokenType.NORMAL.value] * len(texts),
            "merges": merges, "bos_token_id": 1, "eos_token_id": 2}
    return {f"tokenizer.ggml.{name}": value for name, value in keys.items()}


def _halves(text: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that are left when all better merges are done."""
    parts = [bytes([byte]) for byte in text]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda at: ranks.get(parts[at] + parts[at + 1], len(ranks)))
        parts[best:best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _spelled(text: bytes, letters: Sequence[str]) -> str:
    return "".join(letters[byte] for byte in text)
