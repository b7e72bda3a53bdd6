"""Reads how the makers of a model want it sampled: generation_config.json, or general.sampling.* of a GGUF file.

They are suggestions: what is not done here, or has a value that is not allowed, is a note, and the model runs without.
Sources: transformers' GenerationConfig, llama.cpp's keys, and Ollama's for two penalties that llama.cpp has no key for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from types import MappingProxyType

from brise.errors import CheckpointError
from brise.files.fields import IgnoredKey
from brise.files.json_file import read_json
from brise.text.inputs import PartialSampling

GENERATION_CONFIG = "generation_config.json"
GGUF_PREFIX = "general.sampling."
LLAMA_LAST_N = 64  # the tokens that llama.cpp's repetition penalty looks at, where a file does not say it
_FLOAT32_DIGITS = 6  # 0.7 is 0.699999988 in a GGUF file


@dataclass(frozen=True)
class Generation:
    """A model's own sampling, the file or the keys that say it, and what they say in vain."""

    sampling: PartialSampling = PartialSampling()
    source: str = ""
    notes: tuple[IgnoredKey, ...] = ()

    def __str__(self) -> str:
        values = ", ".join(f"{name} {value}" for name, value in self.sampling.given.items())
        return f"{values} ({self.source})" if values else ""


@dataclass(frozen=True)
class _Key:
    """The field of PartialSampling that a key means, and its limits."""

    field: str
    low: float
    high: float
    is_whole: bool = False


_MANY = 2**31 - 1
_HF: Mapping[str, _Key] = MappingProxyType({
    "temperature": _Key("temperature", 0, 2), "top_k": _Key("top_k", -1, _MANY, True), "top_p": _Key("top_p", 0, 1),
    "min_p": _Key("min_p", 0, 1), "repetition_penalty": _Key("repetition_penalty", 0.01, 10)})
_GGUF: Mapping[str, _Key] = MappingProxyType({
    "temp": _HF["temperature"], **{name: _HF[name] for name in ("top_k", "top_p", "min_p")},
    "penalty_repeat": _HF["repetition_penalty"], "penalty_last_n": _Key("repeat_last_n", -1, _MANY, True),
    "penalty_present": _Key("presence_penalty", -2, 2), "penalty_freq": _Key("frequency_penalty", -2, 2)})
# What would act and is not done, with the values that ask for nothing.
_HF_NOT_DONE: Mapping[str, tuple[object, ...]] = MappingProxyType({
    **dict.fromkeys(("typical_p", "length_penalty", "encoder_repetition_penalty", "num_beams", "num_beam_groups",
                     "num_return_sequences"), (1,)),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
                     "penalty_alpha", "diversity_penalty", "min_new_tokens", "min_length", "top_h"), (0,)),
    **dict.fromkeys(("guidance_scale",), (1,)),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
                     "forced_bos_token_id", "forced_eos_token_id", "stop_strings", "constraints", "max_new_tokens",
                     "exponential_decay_length_penalty", "watermarking_config", "max_time"), ([], {}))})
_GGUF_NOT_DONE: Mapping[str, tuple[object, ...]] = MappingProxyType({
    "sequence": ("",), "xtc_probability": (0,), "mirostat": (0,), "typ_p": (1,), "dynatemp_range": (0,),
    "top_n_sigma": (0, -1), "dry_multiplier": (0,)})


def gguf_generation(metadata: Mapping[str, object]) -> Generation:
    """What the keys of a GGUF file say."""
    own = {key.removeprefix(GGUF_PREFIX): value for key, value in metadata.items() if key.startswith(GGUF_PREFIX)}
    values, notes = _read(own, _GGUF, _GGUF_NOT_DONE, GGUF_PREFIX)
    if "repetition_penalty" in values:
        values.setdefault("repeat_last_n", LLAMA_LAST_N)
    return Generation(_suggested(values), f"{GGUF_PREFIX}*", notes)


def folder_generation(folder: Path) -> Generation:
    """What generation_config.json in a folder says. `do_sample: false` is temperature 0."""
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return Generation()
    try:
        own = read_json(path)
    except CheckpointError as error:
        return Generation(notes=(IgnoredKey(GENERATION_CONFIG, str(error), True),))
    values, notes = _read(own, _HF, _HF_NOT_DONE, f"{GENERATION_CONFIG}: ")
    if own.get("do_sample") is False:
        values["temperature"] = 0.0
    return Generation(_suggested(values), GENERATION_CONFIG, notes)


def gguf_keys(sampling: PartialSampling) -> dict[str, object]:
    """The keys of a GGUF file that say the same; whole numbers are int32 there, others float32."""
    values = sampling.given
    if "repetition_penalty" in values:
        values.setdefault("repeat_last_n", -1)  # llama.cpp would look at its own number of tokens
    return {GGUF_PREFIX + name: values[key.field] for name, key in _GGUF.items() if key.field in values}


def hf_keys(sampling: PartialSampling) -> dict[str, object]:
    """The keys of a generation_config.json that say the same, as far as it has them."""
    values = sampling.given
    if not values:
        return {}
    if values.get("temperature") == 0:
        return {"do_sample": False}
    return {"do_sample": True, **{name: values[key.field] for name, key in _HF.items() if key.field in values}}


def _read(own: Mapping[str, object], keys: Mapping[str, _Key], not_done: Mapping[str, tuple[object, ...]],
          prefix: str) -> tuple[dict[str, float], tuple[IgnoredKey, ...]]:
    """The settings by their fields, and a note for each that is not done or not allowed."""
    values: dict[str, float] = {}
    notes = [IgnoredKey(prefix + name, own[name], True) for name, neutral in not_done.items()
             if own.get(name) is not None and own[name] not in neutral]
    for name, key in keys.items():
        value = own.get(name)
        if value is None:
            continue
        number = _number(value, key)
        if number is None:
            notes.append(IgnoredKey(f"{prefix}{name} ({key.low:g} to {key.high:g} is allowed)", value, True))
        else:
            values[key.field] = max(number, 0) if key.field == "top_k" else number
    return values, tuple(notes)


def _number(value: object, key: _Key) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not key.low <= value <= key.high:
        return None
    if key.is_whole:
        return int(value) if float(value).is_integer() else None
    return round(float(value), _FLOAT32_DIGITS) if isfinite(value) else None


def _suggested(values: Mapping[str, float]) -> PartialSampling:
    whole = {key.field for key in _GGUF.values() if key.is_whole}
    return PartialSampling(**{name: int(value) if name in whole else value  # type: ignore[arg-type]
                                for name, value in values.items()})
