"""The fields that chat and legacy completions share: sampling, stops, streaming, and who asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from brise.engine.request import Sampling
from brise.text.fields import RequestFields

# OpenAI's own limits, except for stops (OpenAI: 4; more cost us nothing).
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_TOKENS = 2**31 - 1
MAX_METADATA = 16


@dataclass(frozen=True)
class Options:
    """What every text request may carry."""

    model: str
    stream: bool
    include_usage: bool
    n: int
    stop: tuple[str, ...]
    sampling: Sampling
    ignore_eos: bool


def parse_options(fields: RequestFields) -> Options:
    """Reads the shared fields; `user` and `metadata` are accepted because they ask for nothing."""
    fields.text("user")
    check_metadata(fields)
    stream = fields.flag("stream") or False
    return Options(
        model=fields.required_text("model"), stream=stream, include_usage=_include_usage(fields, stream),
        n=fields.whole("n", 1, MAX_CHOICES) or 1, stop=_stop(fields), sampling=_sampling(fields),
        ignore_eos=fields.flag("ignore_eos") or False)


def check_metadata(fields: RequestFields) -> None:
    """OpenAI's shape, so that a client's mistake shows here too; nothing is stored."""
    metadata = fields.mapping("metadata") or {}
    if len(metadata) > MAX_METADATA:
        raise fields.error("metadata", f"has {len(metadata)} entries, allowed are {MAX_METADATA}")
    for name, value in metadata.items():
        if not isinstance(value, str) or len(value) > 512 or len(name) > 64:
            raise fields.error("metadata", f"entry {name[:64]!r} must be a string of at most 512 characters, "
                                           "under a name of at most 64")


def _include_usage(fields: RequestFields, stream: bool) -> bool:
    options = fields.child("stream_options")
    if options is None:
        return False
    if not stream:
        raise fields.error("stream_options", "is only allowed with 'stream': true")
    include = options.flag("include_usage") or False
    options.only("include_obfuscation", (False,), "chunks are not padded")
    options.done()
    return include


def _stop(fields: RequestFields) -> tuple[str, ...]:
    value = fields.raw("stop")
    stops = value if isinstance(value, list) else [] if value is None else [value]
    if len(stops) > MAX_STOPS:
        raise fields.error("stop", f"has {len(stops)} strings, allowed are {MAX_STOPS}")
    texts = tuple(stop for stop in stops if isinstance(stop, str) and 0 < len(stop) <= 1024)
    if len(texts) < len(stops):
        raise fields.error("stop", "must be a string or an array of strings of 1 to 1024 characters")
    return texts


def _sampling(fields: RequestFields) -> Sampling:
    plain = Sampling()
    return Sampling(
        temperature=_or(fields.number("temperature", 0, 2), plain.temperature),
        top_p=_or(fields.number("top_p", 0, 1), plain.top_p),
        top_k=fields.whole("top_k", 0, MAX_TOKENS) or 0,
        min_p=_or(fields.number("min_p", 0, 1), plain.min_p),
        repetition_penalty=_or(fields.number("repetition_penalty", 0.01, 10), plain.repetition_penalty),
        presence_penalty=_or(fields.number("presence_penalty", -2, 2), plain.presence_penalty),
        frequency_penalty=_or(fields.number("frequency_penalty", -2, 2), plain.frequency_penalty),
        logit_bias=_logit_bias(fields),
        seed=fields.whole("seed", -(2**63), 2**63 - 1))


def _logit_bias(fields: RequestFields) -> Mapping[int, float]:
    bias: dict[int, float] = {}
    for name, value in (fields.mapping("logit_bias") or {}).items():
        if not (name.isascii() and name.isdecimal() and len(name) < 10):
            raise fields.error("logit_bias", f"has the name {name[:32]!r}; names are token ids")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -100 <= value <= 100:
            raise fields.error("logit_bias", f"of token {name} must be a number of -100 to 100")
        if int(name) in bias:
            raise fields.error("logit_bias", f"names the token {int(name)} twice")
        bias[int(name)] = float(value)
    return bias


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
