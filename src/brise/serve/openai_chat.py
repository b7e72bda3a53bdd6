"""OpenAI's chat request is read here: every field is honoured or refused by name.

Legacy completions and responses read the fields that they share with chat with the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from brise.engine.request import Sampling
from brise.errors import RequestError
from brise.text.fields import Ignored, RequestFields
from brise.text.inputs import Grammar
from brise.text.json_text import Json
from brise.text.openai_messages import Message, parse_messages
from brise.text.openai_tools import NAME, Tool, parse_tools

# OpenAI's limits, except for stops: OpenAI allows 4, and more cost nothing here.
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_TOKENS = 2**31 - 1
MAX_METADATA = 16


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to continue."""

    options: Options
    messages: tuple[Message, ...]
    max_tokens: int | None
    logprobs: int | None
    grammar: Grammar | None
    tooling: Tooling


@dataclass(frozen=True)
class Options:
    """The fields that chat and legacy completions share."""

    model: str
    stream: bool
    include_usage: bool
    n: int
    stop: tuple[str, ...]
    sampling: Sampling
    ignore_eos: bool


@dataclass(frozen=True)
class Tooling:
    """The tools of a request, and which of them the answer must or may call."""

    tools: tuple[Tool, ...] = ()
    mode: Literal["none", "auto", "required", "named"] = "none"
    name: str | None = None  # with "named"
    parallel: bool = True

    @property
    def active(self) -> bool:
        return self.mode != "none"


def parse_chat(body: Json, ignored: Ignored | None = None) -> ChatRequest:
    """The typed request, or a RequestError that names the field."""
    fields = RequestFields(body, ignored=ignored)
    tooling = parse_tooling(fields)
    grammar = parse_response_format(fields.child("response_format"))
    _refuse_both(grammar, tooling)
    request = ChatRequest(parse_options(fields), parse_messages(fields), _max_tokens(fields),
                          _logprobs(fields), grammar, tooling)
    check_service(fields)
    _refuse_unsupported(fields)
    fields.done()
    return request


def check_service(fields: RequestFields) -> None:
    """Reads fields about the service; a value is accepted if it asks for what the server does anyway."""
    fields.text("safety_identifier")
    fields.text("prompt_cache_key")  # equal prefixes are cached without a key
    fields.only("prompt_cache_retention", ("in_memory",), "the prefix cache is in memory")
    fields.refuse("prompt_cache_options", "equal prefixes are always cached")
    fields.only("store", (False,), "this server stores nothing")
    fields.only("service_tier", ("auto", "default"), "there is one tier")
    fields.refuse("moderation", "this server does not moderate")


def _max_tokens(fields: RequestFields) -> int | None:
    old = fields.whole("max_tokens", 1, MAX_TOKENS)
    new = fields.whole("max_completion_tokens", 1, MAX_TOKENS)
    if old is not None and new is not None and old != new:
        raise fields.error("max_tokens", f"is {old} and 'max_completion_tokens' is {new}; give one of them")
    return old if new is None else new


def _logprobs(fields: RequestFields) -> int | None:
    has_logprobs = fields.flag("logprobs") or False
    top = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not has_logprobs:
        raise fields.error("top_logprobs", "is only allowed with 'logprobs': true")
    return (top or 0) if has_logprobs else None


def _refuse_unsupported(fields: RequestFields) -> None:
    fields.only("modalities", (["text"],), "answers are text")
    fields.only("reasoning_effort", ("none",), "the models here have no adjustable reasoning")
    fields.only("verbosity", ("medium",), "the models here have no such setting")
    fields.refuse("audio", "answers are text")
    fields.refuse("prediction", "predicted outputs are not implemented")
    fields.refuse("functions", "OpenAI has deprecated it; use 'tools'")
    fields.refuse("function_call", "OpenAI has deprecated it; use 'tool_choice'")
    fields.refuse("web_search_options", "this server opens no connections")


def parse_options(fields: RequestFields) -> Options:
    """Reads the shared fields; `user` and `metadata` are accepted because they change nothing."""
    fields.text("user")
    check_metadata(fields)
    stream = fields.flag("stream") or False
    return Options(
        model=fields.required_text("model"), stream=stream, include_usage=_include_usage(fields, stream),
        n=fields.whole("n", 1, MAX_CHOICES) or 1, stop=_stop(fields), sampling=_sampling(fields),
        ignore_eos=fields.flag("ignore_eos") or False)


def check_metadata(fields: RequestFields) -> None:
    """Checks metadata against OpenAI's limits, so that mistakes show here too. Nothing is stored."""
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
    defaults = Sampling()
    return Sampling(
        temperature=_or(fields.number("temperature", 0, 2), defaults.temperature),
        top_p=_or(fields.number("top_p", 0, 1), defaults.top_p),
        top_k=fields.whole("top_k", 0, MAX_TOKENS) or 0,
        min_p=_or(fields.number("min_p", 0, 1), defaults.min_p),
        repetition_penalty=_or(fields.number("repetition_penalty", 0.01, 10), defaults.repetition_penalty),
        presence_penalty=_or(fields.number("presence_penalty", -2, 2), defaults.presence_penalty),
        frequency_penalty=_or(fields.number("frequency_penalty", -2, 2), defaults.frequency_penalty),
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


def parse_tooling(fields: RequestFields) -> Tooling:
    """Reads `tools`, `tool_choice` and `parallel_tool_calls`."""
    parallel = fields.flag("parallel_tool_calls")
    tools = parse_tools(fields)
    if not tools:
        if fields.raw("tool_choice") not in (None, "none", "auto"):
            raise fields.error("tool_choice", "is only allowed with 'tools'")
        return Tooling()
    return _choose(fields, tools, parallel is not False)


def parse_response_format(value: RequestFields | None) -> Grammar | None:
    """The grammar that `response_format` asks for."""
    if value is None:
        return None
    kind = value.required_text("type")
    grammar: Grammar | None = None
    if kind == "json_object":
        grammar = Grammar("json_object")
    elif kind == "json_schema":
        wrapper = value.required_child("json_schema")
        grammar = schema_grammar(wrapper)
        wrapper.done()
    elif kind != "text":
        raise value.unsupported("type", f"{kind[:32]!r}; there are 'text', 'json_object' and 'json_schema'")
    value.done()
    return grammar


def schema_grammar(fields: RequestFields) -> Grammar:
    """The grammar of a JSON schema. `strict` changes nothing: the schema is always enforced."""
    name = fields.required_text("name")
    if not NAME.fullmatch(name):
        raise fields.error("name", "must be 1 to 64 letters, digits, '_' or '-'")
    fields.text("description")
    fields.flag("strict")
    schema = fields.mapping("schema")
    if schema is None:
        raise fields.missing("schema")
    return Grammar("json_schema", json.dumps(schema))


def _choose(fields: RequestFields, tools: tuple[Tool, ...], parallel: bool) -> Tooling:
    value = fields.raw("tool_choice")
    if value is None or isinstance(value, str):
        mode = fields.choice("tool_choice", ("none", "auto", "required")) or "auto"
        return _tooling(tools, mode, parallel)
    choice = fields.required_child("tool_choice")
    kind = choice.required_text("type")
    if kind == "function":
        name = _function_name(choice, tools)
        choice.done()
        return Tooling(tools, "named", name, parallel)
    if kind != "allowed_tools":
        raise choice.unsupported("type", f"{kind[:32]!r}; there are 'function' and 'allowed_tools'")
    allowed = choice.required_child("allowed_tools")
    mode = allowed.required_choice("mode", ("auto", "required"))
    names = {_allowed_name(tool, tools) for tool in allowed.objects("tools")}
    if not names:
        raise allowed.error("tools", "names no tool")
    allowed.done()
    choice.done()
    return _tooling(tuple(tool for tool in tools if tool.name in names), mode, parallel)


def _tooling(tools: tuple[Tool, ...], mode: str, parallel: bool) -> Tooling:
    match mode:
        case "none":
            return Tooling(tools, "none")
        case "required":
            return Tooling(tools, "required", None, parallel)
        case _:
            return Tooling(tools, "auto", None, parallel)


def _allowed_name(fields: RequestFields, tools: tuple[Tool, ...]) -> str:
    if fields.required_text("type") != "function":
        raise fields.unsupported("type", "only tools of type 'function' are")
    name = _function_name(fields, tools)
    fields.done()
    return name


def _function_name(fields: RequestFields, tools: tuple[Tool, ...]) -> str:
    function = fields.required_child("function")
    name = function.required_text("name")
    function.done()
    if name not in {tool.name for tool in tools}:
        raise function.error("name", f"is {name[:64]!r}, which is not among the tools")
    return name


def _refuse_both(grammar: Grammar | None, tooling: Tooling) -> None:
    """An answer cannot follow two grammars."""
    if grammar is not None and tooling.active:
        raise RequestError("'response_format' cannot be combined with 'tools' unless 'tool_choice' is 'none'",
                           param="response_format", code="unsupported_parameter")
