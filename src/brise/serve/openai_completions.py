"""OpenAI's legacy completion request is read here: raw prompts; what acts is honoured or refused by name."""

from __future__ import annotations

from dataclasses import dataclass

from brise.serve.openai_chat import MAX_CHOICES, MAX_TOP_LOGPROBS, Options, parse_options, read_limit
from brise.serve.request_fields import COMPLETION_ACTS, read_classes
from brise.text.fields import Ignored, RequestFields
from brise.text.json_text import Json

DEFAULT_MAX_TOKENS = 16  # OpenAI's default, which clients rely on
Prompt = str | tuple[int, ...]


@dataclass(frozen=True)
class CompletionRequest:
    """One or several prompts, each with `options.n` answers."""

    options: Options
    prompts: tuple[Prompt, ...]
    max_tokens: int | None
    echo: bool
    logprobs: int | None
    parse_control: bool  # special tokens written in a text prompt become tokens
    suffix: str | None = None  # what stands behind the answer, which fills in the middle


def parse_completion(body: Json, ignored: Ignored | None = None) -> CompletionRequest:
    """The typed request, or a RequestError that names the field."""
    fields = RequestFields(body, ignored=ignored)
    options = parse_options(fields)
    max_tokens, is_unlimited = read_limit(fields, "max_tokens", 0), fields.raw("max_tokens") in (-1, -2)
    request = CompletionRequest(
        options, parse_prompts(fields, "prompt", MAX_CHOICES // options.n),
        DEFAULT_MAX_TOKENS if max_tokens is None and not is_unlimited else max_tokens, fields.flag("echo") or False,
        fields.whole("logprobs", 0, MAX_TOP_LOGPROBS), fields.flag("parse_control") or False,
        fields.text("suffix") or None)
    best_of = fields.whole("best_of", 0, MAX_CHOICES)
    if best_of is not None and best_of not in (options.n, 0):
        raise fields.unsupported("best_of", f"it is {best_of}, accepted is the value of 'n' ({options.n})")
    if request.max_tokens == 0 and not request.echo:
        raise fields.error("max_tokens", "is 0, which is only allowed with 'echo': true")
    if request.suffix is not None:
        _check_infill(fields, request)
    read_classes(fields, COMPLETION_ACTS)
    fields.done()
    return request


def _check_infill(fields: RequestFields, request: CompletionRequest) -> None:
    """A middle is filled in between two texts, and the prompt is not all that stands before it."""
    if not all(isinstance(prompt, str) for prompt in request.prompts):
        raise fields.error("prompt", "has tokens; with 'suffix' it must be text")
    for name, is_given in (("echo", request.echo), ("parse_control", request.parse_control)):
        if is_given:
            raise fields.unsupported(name, "with 'suffix' the prompt is written with the model's own tokens around it")


def parse_prompts(fields: RequestFields, name: str, limit: int) -> tuple[Prompt, ...]:
    """A string, a list of strings, a list of tokens, or a list of lists of tokens."""
    value = fields.raw(name)
    if isinstance(value, str):
        return (value,)
    if value is None:
        raise fields.missing(name)
    items = fields.items(name) or []
    if not items:
        raise fields.error(name, "is empty")
    if isinstance(items[0], int):
        return (_tokens(fields, name, items),)
    if len(items) > limit:
        raise fields.error(name, f"has {len(items)} prompts; prompts times 'n' may be {MAX_CHOICES}"
                           if name == "prompt" else f"has {len(items)} texts, allowed are {limit}")
    return tuple(item if isinstance(item, str) else _tokens(fields, f"{name}[{index}]", item)
                 for index, item in enumerate(items))


def _tokens(fields: RequestFields, name: str, items: Json) -> tuple[int, ...]:
    if not isinstance(items, list):
        raise fields.error(name, "must be a string or an array of token ids")
    tokens = tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool)
                   and 0 <= item < 2**31)
    if len(tokens) < len(items):
        raise fields.error(name, "mixes token ids with something else, or has a token id below 0")
    return tokens
