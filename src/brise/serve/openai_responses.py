"""OpenAI's responses request is read here as a chat; what would change the answer is honoured or refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from brise.serve.openai_chat import (
    MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    ChatRequest,
    Options,
    SchemaNames,
    Tooling,
    check_metadata,
    schema_grammar,
)
from brise.serve.openai_items import read_items
from brise.serve.turns import MAX_TURNS
from brise.text.fields import Ignored, RequestFields
from brise.text.inputs import Grammar, PartialSampling
from brise.text.json_text import Json
from brise.text.openai_messages import Message
from brise.text.openai_tools import MAX_TOOLS, NAME, Tool
from brise.text.thinking import EFFORTS, TemplateWish

STATE = "this server stores answers for 'previous_response_id', and no other state"
UNSUPPORTED: Mapping[str, str] = {
    "background_options": STATE, "conversation": STATE, "context_management": STATE,
    "prompt": "there are no stored prompts", "image": "answers are text", "access_programs": "there are none",
    "moderation": "this server does not moderate"}
# They change no answer: equal prefixes are cached without being asked, and there are no built-in tools to limit.
NOTES: Mapping[str, tuple[object, ...]] = {  # with the values that ask for what is done anyway
    "user": (), "safety_identifier": (), "prompt_cache_key": (), "prompt_cache_retention": ("in_memory",),
    "prompt_cache_options": (), "max_tool_calls": (), "service_tier": ("auto", "default"), "include": ([],),
    "store": (False,)}
TEXT_LOGPROBS = "message.output_text.logprobs"
Find = Callable[[str], Sequence[Json]]  # the items up to an earlier response, by its id


@dataclass(frozen=True)
class ResponseRequest:
    """A responses request: a chat, the fields that the response repeats, and the conversation as items."""

    chat: ChatRequest
    echoed: Mapping[str, object]
    items: Sequence[Json]
    stores: bool


def parse_response(body: Json, ignored: Ignored | None = None, earlier: Find | None = None) -> ResponseRequest:
    """The typed request, or a RequestError that names the field. Without `earlier` nothing is stored."""
    fields = RequestFields(body, ignored=ignored)
    model, stream = fields.required_text("model"), fields.flag("stream") or False
    instructions = fields.text("instructions")
    items, messages = _conversation(fields, earlier)
    if instructions is not None:
        messages = (Message("system", instructions), *messages)
    max_tokens = fields.whole("max_output_tokens", 1, MAX_TOKENS)
    sampling = PartialSampling(fields.number("temperature", 0, 2), top_p=fields.number("top_p", 0, 1))
    grammar, tooling = _format(fields), _tooling(fields)
    stores = fields.flag("store") is not False and earlier is not None
    logprobs = _logprobs(fields)
    check_metadata(fields)
    names = frozenset[str]() if ignored is None else ignored.names
    wishes = _wishes(fields, names)
    _check_others(fields, names)
    fields.done()
    options = Options(model, stream, False, 1, (), sampling, False)
    echoed = {
        "instructions": instructions, "max_output_tokens": max_tokens,
        "metadata": fields.mapping("metadata") or {}, "store": stores,
        "text": fields.mapping("text") or {"format": {"type": "text"}}, "tools": fields.items("tools") or [],
        "tool_choice": fields.raw("tool_choice") or "auto", "parallel_tool_calls": tooling.parallel,
        "previous_response_id": fields.raw("previous_response_id"), "reasoning": fields.raw("reasoning"),
        "truncation": fields.raw("truncation") or "disabled", "top_logprobs": logprobs or 0}
    chat = ChatRequest(options, messages, max_tokens, logprobs, grammar, tooling, wishes,
                       SchemaNames("text.format", "tools[{}].parameters"))
    return ResponseRequest(chat, echoed, items, stores)


def _conversation(fields: RequestFields, earlier: Find | None) -> tuple[Sequence[Json], tuple[Message, ...]]:
    """The conversation as items, those of the earlier response first, and as messages."""
    value, previous = fields.raw("input"), fields.text("previous_response_id")
    if value is None:
        raise fields.missing("input")
    if previous is not None and earlier is None:
        raise fields.unsupported("previous_response_id", "the answer is stored elsewhere")
    before = list(earlier(previous)) if previous is not None and earlier is not None else []
    own: list[Json] = [{"role": "user", "content": value}] if isinstance(value, str) else fields.items("input") or []
    if not own and not before:
        raise fields.error("input", "is empty")
    if len(before) + len(own) > MAX_TURNS:
        raise fields.error("input", f"makes a conversation of {len(before) + len(own)} items, allowed are {MAX_TURNS}")
    old = [RequestFields(item, f"previous_response_id[{index}]") for index, item in enumerate(before)]
    new = ([RequestFields(own[0], "input")] if isinstance(value, str) else list(fields.objects("input")))
    return [*before, *own], read_items([*old, *new])


def _format(fields: RequestFields) -> Grammar | None:
    text = fields.child("text")
    format = None if text is None else text.child("format")
    grammar: Grammar | None = None
    if format is not None:
        kind = format.choice("type", ("text", "json_object", "json_schema"))
        if kind == "json_schema":
            grammar = schema_grammar(format)
        elif kind == "json_object":
            grammar = Grammar("json_object")
        format.done()
    if text is not None:
        text.only("verbosity", ("medium",), "the models here have no such setting")
        text.done()
    return grammar


def _tooling(fields: RequestFields) -> Tooling:
    """Reads `tools`, `tool_choice` and `parallel_tool_calls`, which this API has in a flatter form than chats."""
    parallel = fields.flag("parallel_tool_calls") is not False
    if len(fields.items("tools") or []) > MAX_TOOLS:
        raise fields.error("tools", f"has more tools than {MAX_TOOLS}")
    tools = tuple(_tool(tool) for tool in fields.objects("tools"))
    names = {tool.name for tool in tools}
    if len(names) < len(tools):
        raise fields.error("tools", "has two functions of one name")
    value = fields.raw("tool_choice")
    if not tools:
        if value not in (None, "none", "auto"):
            raise fields.error("tool_choice", "is only allowed with 'tools'")
        return Tooling(parallel=parallel)
    if value is None or isinstance(value, str):
        return _choice(fields.choice("tool_choice", ("none", "auto", "required")), tools, parallel)
    choice = fields.required_child("tool_choice")
    if choice.required_text("type") == "function":
        name = _chosen(choice, names)
        choice.done()
        return Tooling(tools, "named", name, parallel)
    if choice.raw("type") != "allowed_tools":
        raise choice.unsupported("type", "there are 'function' and 'allowed_tools'")
    mode = choice.required_choice("mode", ("auto", "required"))
    allowed = {_chosen(tool, names) for tool in choice.objects("tools")}
    if not allowed:
        raise choice.error("tools", "names no tool")
    choice.done()
    return _choice(mode, tuple(tool for tool in tools if tool.name in allowed), parallel)


def _choice(mode: str | None, tools: tuple[Tool, ...], parallel: bool) -> Tooling:
    match mode:
        case "none":
            return Tooling(tools, "none", None, parallel)
        case "required":
            return Tooling(tools, "required", None, parallel)
        case _:
            return Tooling(tools, "auto", None, parallel)


def _chosen(choice: RequestFields, names: set[str]) -> str:
    if choice.required_text("type") != "function":
        raise choice.unsupported("type", "only tools of type 'function' are")
    name = choice.required_text("name")
    if name not in names:
        raise choice.error("name", f"is {name[:64]!r}, which is not among the tools")
    return name


def _tool(tool: RequestFields) -> Tool:
    kind = tool.required_text("type")
    if kind != "function":
        raise tool.unsupported("type", f"this server has no tool {kind[:32]!r}; only tools of type 'function' are")
    name = tool.required_text("name")
    if not NAME.fullmatch(name):
        raise tool.error("name", "must be 1 to 64 letters, digits, '_' or '-'")
    strict = tool.flag("strict") is True
    for note in ("defer_loading", "allowed_callers", "output_schema"):
        tool.raw(note)
    read = Tool(name, tool.text("description"), tool.mapping("parameters") or {}, strict)
    tool.done()
    return read


def _logprobs(fields: RequestFields) -> int | None:
    """How many alternatives each token is shown with, if `include` asks for log-probabilities."""
    top = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    included = fields.items("include") or []
    # All other values ask for parts of built-in tools, or for encrypted reasoning, which is sent in plain text here.
    return (top or 0) if TEXT_LOGPROBS in included or top else None


def _check_others(fields: RequestFields, names: frozenset[str]) -> None:
    for name, silent in NOTES.items():
        if name in names:
            fields.only(name, silent, "it changes no answer, and nothing is done for it here")
        fields.raw(name)
    for name, reason in UNSUPPORTED.items():
        fields.refuse(name, reason)
    fields.only("background", (False,), STATE)
    fields.choice("truncation", ("auto", "disabled"))  # a prompt is never cut: one that is too long is an error
    options = fields.child("stream_options")
    if options is not None:
        options.raw("include_obfuscation")
        options.done()


def _wishes(fields: RequestFields, names: frozenset[str]) -> tuple[TemplateWish, ...]:
    """What `reasoning` asks of the chat template. Reasoning is always sent whole: a summary asks for nothing."""
    if "reasoning" in names:  # it is meant for another model
        fields.refuse("reasoning", "the models here have no adjustable reasoning")
        return ()
    reasoning = fields.child("reasoning")
    if reasoning is None:
        return ()
    effort = reasoning.choice("effort", EFFORTS)
    for note in ("summary", "generate_summary", "context", "mode"):
        reasoning.raw(note)
    reasoning.done()
    return () if effort is None else (TemplateWish(reasoning.path("effort"), "reasoning_effort", effort),)
