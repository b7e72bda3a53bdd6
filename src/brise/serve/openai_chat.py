"""OpenAI's chat request is read here: what would change the answer is honoured or refused by name.

Legacy completions and responses read the fields that they share with chat with the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from brise.serve.request_fields import CHAT_ACTS, NOTES, Act, read_classes
from brise.text.fields import Ignored, RequestFields
from brise.text.inputs import Grammar, PartialSampling
from brise.text.json_text import Json
from brise.text.openai_messages import Message, parse_messages
from brise.text.openai_tools import Tool, parse_tools
from brise.text.thinking import TemplateWish, parse_wishes

# OpenAI's limits, except for stops: OpenAI allows 4, and more cost nothing here.
MAX_CHOICES = 128
MAX_STOPS = 16
MAX_STOP_TOKENS = 1024
MAX_TOP_LOGPROBS = 20
MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class SchemaNames:
    """What a dialect calls the schema of an answer's text, and that of a tool's arguments."""

    answer: str = "response_format"
    tool: str = "tools[{}].function.parameters"


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to continue."""

    options: Options
    messages: tuple[Message, ...]
    max_tokens: int | None
    logprobs: int | None
    grammar: Grammar | None
    tooling: Tooling
    wishes: tuple[TemplateWish, ...] = ()  # of the chat template
    names: SchemaNames = SchemaNames()
    asks_for_reasoning: bool = False  # by the makers' system prompt (Mistral's `prompt_mode`)
    prediction: str = ""  # what the answer may be; where it is, the answer comes sooner


@dataclass(frozen=True)
class Options:
    """The fields that chat and legacy completions share."""

    model: str
    stream: bool
    include_usage: bool
    n: int
    stop: tuple[str, ...]
    sampling: PartialSampling
    ignore_eos: bool
    min_tokens: int = 0
    stop_tokens: frozenset[int] = frozenset()
    keeps_stop: bool = False


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
    request = ChatRequest(parse_options(fields), parse_messages(fields), _max_tokens(fields),
                          parse_logprobs(fields), grammar, tooling, parse_wishes(fields),
                          asks_for_reasoning=_asks_for_reasoning(fields), prediction=_prediction(fields))
    check_service(fields)
    read_classes(fields, CHAT_ACTS, NOTES - {"prediction"})
    fields.done()
    return request


def _prediction(fields: RequestFields) -> str:
    """OpenAI's `prediction`. Since it changes no answer, another form of it is a note."""
    match fields.raw("prediction"):
        case {"type": "content", "content": str(text)}:
            return text
        case {"type": "content", "content": list(parts)}:
            texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
            return "".join(text for text in texts if isinstance(text, str))
    fields.note("prediction")
    return ""


def _asks_for_reasoning(fields: RequestFields) -> bool:
    """Mistral's `prompt_mode`: "reasoning", or nothing."""
    return fields.raw("prompt_mode") != "" and fields.choice("prompt_mode", ("reasoning",)) is not None


def check_service(fields: RequestFields) -> None:
    """Reads the fields about the service, which change no answer."""
    read_classes(fields, {"moderation": Act("this server does not moderate", ({},))})


def _max_tokens(fields: RequestFields) -> int | None:
    names = ("max_tokens", "max_completion_tokens", "n_predict")
    given = {name: value for name in names if (value := read_limit(fields, name, 1)) is not None}
    (first, least), *others = given.items() if given else [("", None)]
    for name, value in others:
        if value != least:
            raise fields.error(first, f"is {least} and {name!r} is {value}; give one of them")
    return least


def read_limit(fields: RequestFields, name: str, low: int) -> int | None:
    """A limit on the answer; -1 and -2 ask for none, as in llama-server."""
    if fields.raw(name) in (-1, -2):
        return None
    return fields.whole(name, low, MAX_TOKENS)


def parse_logprobs(fields: RequestFields) -> int | None:
    """Reads `logprobs` and `top_logprobs`: the number of alternatives, None without log-probabilities."""
    has_logprobs = fields.flag("logprobs") or False
    top = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not has_logprobs:
        raise fields.error("top_logprobs", "is only allowed with 'logprobs': true")
    return (top or 0) if has_logprobs else None


def parse_options(fields: RequestFields) -> Options:
    """Reads the fields that chat and legacy completions share."""
    stream = fields.flag("stream") or False
    return Options(
        model=fields.required_text("model"), stream=stream, include_usage=_include_usage(fields, stream),
        n=fields.whole("n", 1, MAX_CHOICES) or 1, stop=parse_stops(fields), sampling=_sampling(fields),
        ignore_eos=fields.flag("ignore_eos") or False, min_tokens=fields.whole("min_tokens", 0, MAX_TOKENS) or 0,
        stop_tokens=_stop_tokens(fields), keeps_stop=fields.flag("include_stop_str_in_output") or False)


def _stop_tokens(fields: RequestFields) -> frozenset[int]:
    tokens = fields.items("stop_token_ids") or []
    ids = frozenset(token for token in tokens if isinstance(token, int) and not isinstance(token, bool))
    if len(ids) < len({*map(str, tokens)}) or len(ids) > MAX_STOP_TOKENS:
        raise fields.error("stop_token_ids", f"must be an array of at most {MAX_STOP_TOKENS} token ids")
    return ids


def check_metadata(fields: RequestFields) -> None:
    """Accepts metadata, of which nothing is stored."""
    fields.raw("metadata")


def _include_usage(fields: RequestFields, stream: bool) -> bool:
    options = fields.child("stream_options")
    if options is None:
        return False
    include = options.flag("include_usage") or False
    for name in ("include_obfuscation", "continuous_usage_stats"):
        options.note(name, (False,))
    options.done()
    return stream and include


def parse_stops(fields: RequestFields) -> tuple[str, ...]:
    """Reads `stop`, one string or several."""
    value = fields.raw("stop")
    stops = value if isinstance(value, list) else [] if value is None else [value]
    if len(stops) > MAX_STOPS:
        raise fields.error("stop", f"has {len(stops)} strings, allowed are {MAX_STOPS}")
    texts = tuple(stop for stop in stops if isinstance(stop, str) and len(stop) <= 1024)
    if len(texts) < len(stops):
        raise fields.error("stop", "must be a string or an array of strings of at most 1024 characters")
    return tuple(filter(None, texts))  # an empty one stops nothing


def _sampling(fields: RequestFields) -> PartialSampling:
    top_k, seed = fields.whole("top_k", -1, MAX_TOKENS), fields.whole("seed", -(2**63), 2**63 - 1)
    same_seed = fields.whole("random_seed", 0, 2**63 - 1)  # Mistral's name for it
    seed = same_seed if seed is None else seed
    return PartialSampling(
        temperature=fields.number("temperature", 0, 2), top_p=fields.number("top_p", 0, 1),
        top_k=None if top_k is None else max(top_k, 0),  # vLLM's -1 is off, too
        min_p=fields.number("min_p", 0, 1), repetition_penalty=_repetition_penalty(fields),
        repeat_last_n=fields.whole("repeat_last_n", -1, MAX_TOKENS),
        presence_penalty=fields.number("presence_penalty", -2, 2),
        frequency_penalty=fields.number("frequency_penalty", -2, 2), logit_bias=_logit_bias(fields),
        seed=None if seed == -1 else seed)  # llama-server's, vLLM's and Ollama's word for any


def _repetition_penalty(fields: RequestFields) -> float | None:
    """Under vLLM's name or llama-server's."""
    penalty = fields.number("repetition_penalty", 0.01, 10)
    same = fields.number("repeat_penalty", 0.01, 10)
    if penalty is None or same is None:
        return same if penalty is None else penalty
    if penalty != same:
        raise fields.error("repeat_penalty", f"is {same:g} and 'repetition_penalty' is {penalty:g}; give one of them")
    return penalty


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
    """The grammar that `response_format` asks for; `schema` beside the type is llama-server's form."""
    if value is None:
        return None
    kind = value.required_text("type")
    wrapper, schema = value.raw("json_schema"), value.mapping("schema")
    grammar: Grammar | None = None
    if kind == "json_schema" and schema is None:
        inner = value.required_child("json_schema")
        grammar = schema_grammar(inner)
        inner.done()
    elif kind in ("json_object", "json_schema"):
        if kind == "json_object" and wrapper is not None:
            raise value.error("json_schema", "is only allowed with the type 'json_schema'")
        grammar = Grammar("json_object") if schema is None else Grammar("json_schema", json.dumps(schema))
    elif kind != "text":
        raise value.unsupported("type", f"{kind[:32]!r}; there are 'text', 'json_object' and 'json_schema'")
    elif wrapper is not None or schema is not None:
        raise value.error("schema" if wrapper is None else "json_schema",
                          "is only allowed with the type 'json_schema'")
    value.done()
    return grammar


def schema_grammar(fields: RequestFields) -> Grammar:
    """The grammar of a JSON schema; its name changes nothing."""
    fields.text("name")
    fields.text("description")
    strict = fields.flag("strict") is True
    schema = fields.mapping("schema")
    if schema is None:
        raise fields.missing("schema")
    return Grammar("json_schema", json.dumps(schema), strict=strict)


def _choose(fields: RequestFields, tools: tuple[Tool, ...], parallel: bool) -> Tooling:
    value = fields.raw("tool_choice")
    if value is None or isinstance(value, str):
        mode = fields.choice("tool_choice", ("none", "auto", "required", "any")) or "auto"  # Mistral's "any": required
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
        case "required" | "any":
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
