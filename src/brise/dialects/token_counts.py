"""Tokens as servers count them: every API's spelling, read as one `Usage`.

A count that is missing, or is none (text, a fraction, less than nothing, a part that is larger than the whole), is
unknown, None; it is never taken for zero. A part that a server does not name at all, such as what its cache had, is
zero: that server bills none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace

from brise.dialects.bodies import Body, Fields, Usage, first_choice

MOST_REASONING = 1_000_000  # tokens that Gemini and xAI leave out of the completion: no model thinks longer
MOST = 2**53  # a server may claim any number; JSON's readers hold 53 bits
Names = tuple[str, ...]
# OpenAI's names, those of its Responses API, and Gemini's own.
PROMPT: Names = ("prompt_tokens", "input_tokens", "promptTokenCount")
COMPLETION: Names = ("completion_tokens", "output_tokens", "candidatesTokenCount")
TOTAL: Names = ("total_tokens", "totalTokenCount")
PROMPT_DETAILS: Names = ("prompt_tokens_details", "input_tokens_details")
COMPLETION_DETAILS: Names = ("completion_tokens_details", "output_tokens_details")
# What the cache had, and what was written into it: in the details (OpenAI, OpenRouter, DashScope, LiteLLM) or beside
# the counts (DeepSeek, Mistral, Moonshot, Gemini, and proxies that pass Anthropic's names on).
CACHED: Names = ("cached_tokens", "prompt_cache_hit_tokens", "num_cached_tokens", "cache_read_input_tokens",
                 "cachedContentTokenCount")
WRITTEN: Names = ("cache_write_tokens", "cache_creation_tokens", "cache_creation_input_tokens")
ANTHROPIC_CACHE: Names = ("cache_read_input_tokens", "cache_creation_input_tokens")
BY_LIFETIME: Names = ("cache_creation", "cache_creation_token_details")
SHORT, LONG = "ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens"
REASONING: Names = ("reasoning_tokens", "thoughtsTokenCount")
AUDIO: Names = ("audio_tokens",)
PARTS_OF_PROMPT: Names = ("cached_tokens", "cache_write_tokens", "audio_prompt_tokens")  # fields of `Usage`
ALWAYS: Names = ("prompt_tokens", "completion_tokens", "cached_tokens")


def of_openai(body: Body) -> Usage | None:
    """What a body of OpenAI's APIs, or of a server that speaks them, counts. None if it counts nothing."""
    usage = _usage_of(body)
    if usage is None:
        return None
    if not _is_said(usage, ("prompt_tokens",)) and _is_said(usage, ANTHROPIC_CACHE):
        return _of_anthropic(usage)
    prompt_places = [usage, *_objects(usage, PROMPT_DETAILS)]
    details = _objects(usage, COMPLETION_DETAILS)
    written, written_1h = _written(prompt_places)
    found = Usage(_count(usage, PROMPT), _count(usage, COMPLETION), _part(prompt_places, CACHED), written, written_1h,
                  _part([usage, *details], REASONING, missing=None), _part(prompt_places[1:], AUDIO),
                  _part(details, AUDIO))
    total = _count(usage, TOTAL)
    return checked(found if not total else _with_total(found, total, is_said=_is_said(usage, COMPLETION)))


def of_messages(body: Body) -> Usage | None:
    """What a body of Anthropic's Messages API counts: its input tokens are without those from and for the cache."""
    usage = body.get("usage")
    if not isinstance(usage, dict) or not _is_said(usage, ("input_tokens", "output_tokens")):
        return of_openai(body)
    return _of_anthropic(usage)


def messages_so_far(before: object, more: object) -> Fields:
    """The `usage` of a Messages stream after one more event: each count is of the whole answer so far. One that is
    missing keeps its value, and so does one of the prompt that some servers send as 0 when they know it no longer."""
    known: Fields = dict(before) if isinstance(before, dict) else {}
    for name, value in (more if isinstance(more, dict) else {}).items():
        if value is not None and (value != 0 or name == "output_tokens" or known.get(name) is None):
            known[name] = value
    return known


def as_openai(usage: Usage | None) -> Fields | None:
    """The `usage` of a chat completion; None if prompt or completion is unknown."""
    if usage is None or usage.total_tokens is None:
        return None
    return {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens, "prompt_tokens_details": {"cached_tokens": usage.cached_tokens or 0}}


def checked(usage: Usage) -> Usage | None:
    """Parts that are larger than their whole are unknown. None if nothing is left."""
    if not usage.prompt_tokens and not usage.completion_tokens:  # no request has nothing: 0 and 0 count nothing
        return None
    fitting, said = usage, (_within(usage.reasoning_tokens, usage.completion_tokens),
                            _within(usage.audio_completion_tokens, usage.completion_tokens))
    if said != (usage.reasoning_tokens, usage.audio_completion_tokens):
        fitting = replace(usage, reasoning_tokens=said[0], audio_completion_tokens=said[1])
    parts = {name: getattr(usage, name) or 0 for name in PARTS_OF_PROMPT}
    if usage.prompt_tokens is None or sum(parts.values()) <= usage.prompt_tokens:
        return fitting
    unknown = {name: None for name, count in parts.items() if count}  # nobody knows which of them is wrong
    return replace(fitting, **unknown, cache_write_1h_tokens=fitting.cache_write_1h_tokens and None)


def shown(usage: Usage | None) -> Fields | None:
    """The counts as JSON has them: the first three, and of the others those that say something."""
    if usage is None:
        return None
    return {each.name: getattr(usage, each.name) for each in fields(usage)
            if each.name in ALWAYS or getattr(usage, each.name) != each.default}


def _of_anthropic(usage: Body) -> Usage | None:
    rest, cached = _count(usage, ("input_tokens",)), _part([usage], ("cache_read_input_tokens",))
    written, written_1h = _written([usage])
    prompt = None if rest is None or cached is None or written is None else rest + cached + written
    return checked(Usage(prompt, _count(usage, ("output_tokens",)), cached, written, written_1h))


def _usage_of(body: Body) -> Body | None:
    """Most servers have it beside the choices; Groq and Moonshot have it elsewhere in a stream, Gemini by its name."""
    groq, choice = body.get("x_groq"), first_choice(body)
    places = (body.get("usage"), body.get("usageMetadata"), groq.get("usage") if isinstance(groq, dict) else None,
              choice.get("usage") if choice is not None else None)
    return next((place for place in places if isinstance(place, dict) and place), None)


def _with_total(usage: Usage, total: int, *, is_said: bool) -> Usage:
    """What the sum of all says of counts that do not add up to it."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is None or prompt > total:
        return replace(usage, prompt_tokens=None)
    if completion is None:  # embeddings have none
        return usage if is_said else replace(usage, completion_tokens=total - prompt)
    aside = (usage.cached_tokens or 0) + (usage.cache_write_tokens or 0)
    if prompt + completion < total == prompt + completion + aside:  # the prompt without its cache, as Anthropic counts
        return replace(usage, prompt_tokens=prompt + aside)
    if prompt + completion < total <= prompt + completion + MOST_REASONING:  # left out of the completion, and billed
        return replace(usage, completion_tokens=total - prompt)
    return usage if prompt + completion == total else replace(usage, prompt_tokens=None, completion_tokens=None)


def _within(part: int | None, whole: int | None) -> int | None:
    return part if part is None or whole is None or part <= whole else None


def _written(places: Iterable[Body]) -> tuple[int | None, int | None]:
    """What was written into the cache, and how much of it for an hour."""
    places = list(places)
    by_lifetime = [found for place in places for found in _objects(place, BY_LIFETIME)]
    written, for_hour = _part(places, WRITTEN), _part(by_lifetime, (LONG,))
    short = _part(by_lifetime, (SHORT,))
    if written == 0 and short is not None and for_hour is not None:
        written = short + for_hour
    return written, None if written is None else _within(for_hour, written)


def _count(usage: Body, names: Names) -> int | None:
    """The first of the names that is said; None if none is, or if it is no count."""
    return _whole(next((usage[name] for name in names if usage.get(name) is not None), None))


def _part(places: Iterable[Body], names: Names, *, missing: int | None = 0) -> int | None:
    """A part that may have several names, which say the same, or 0; None if all that is said is no count."""
    said = [place[name] for place in places for name in names if place.get(name) is not None]
    counts = [count for count in map(_whole, said) if count is not None]
    return max(counts, default=None if said else missing)


def _is_said(usage: Body, names: Names) -> bool:
    return any(usage.get(name) is not None for name in names)


def _objects(usage: Body, names: Names) -> list[Mapping[str, object]]:
    return [value for name in names if isinstance(value := usage.get(name), dict)]


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST else None
