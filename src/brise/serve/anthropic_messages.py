"""Anthropic's Messages request is read here as a chat; what would change the answer is honoured or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace

from brise.serve.openai_chat import MAX_TOKENS, ChatRequest, Options, SchemaNames, Tooling
from brise.serve.request_fields import Act, read_classes
from brise.serve.turns import MAX_TURNS, Turns, earlier_call
from brise.text.fields import Ignored, RequestFields
from brise.text.inputs import Grammar, PartialSampling
from brise.text.json_text import Json
from brise.text.openai_messages import Image, Message, Part, TextPart, joined
from brise.text.openai_tools import MAX_TOOLS, NAME, Tool
from brise.text.thinking import EFFORTS, TemplateWish

ACTS: Mapping[str, Act] = {
    "mcp_servers": Act("this server opens no connections", ([],)), "container": Act("no code runs here", ({},)),
    "prefill": Act("end 'messages' with the assistant's text"), "thread": Act("this server keeps no conversations")}
NOTES = ("metadata", "service_tier", "cache_control", "inference_geo", "speed", "betas", "context_management",
         "diagnostics", "fallbacks", "fallback_credit_token", "compaction", "billing_policy", "user_profile_id",
         "workspace_id", "anthropic_version", "anthropic_beta", "user")
SILENT: Mapping[str, tuple[object, ...]] = {"service_tier": ("auto", "standard_only"), "speed": ("standard",)}
BLOCK_NOTES = ("cache_control", "citations", "signature", "caller", "toolset_name", "title", "context")


def parse_message(body: Json, ignored: Ignored | None = None, *, counts: bool = False) -> ChatRequest:
    """The typed request, or a RequestError that names the field. With `counts` only its prompt matters."""
    fields = RequestFields(body, ignored=ignored)
    max_tokens = fields.whole("max_tokens", 1, MAX_TOKENS)
    if max_tokens is None and not counts:
        raise fields.missing("max_tokens")
    tooling = _tooling(fields)
    grammar, effort, format_name = _output(fields)
    top_k = fields.whole("top_k", -1, MAX_TOKENS)
    sampling = PartialSampling(fields.number("temperature", 0, 1), None if top_k is None else max(top_k, 0),
                               fields.number("top_p", 0, 1))
    options = Options(fields.required_text("model"), fields.flag("stream") or False, False, 1, _stops(fields), sampling,
                      False)
    messages = _messages(fields)
    wishes = (*_thinking(fields), *effort)
    read_classes(fields, ACTS, ())
    for name in NOTES:
        fields.note(name, SILENT.get(name, ()))
    fields.done()
    return ChatRequest(options, messages, max_tokens, None, grammar, tooling, wishes,
                       SchemaNames(format_name, "tools[{}].input_schema"))


def _stops(fields: RequestFields) -> tuple[str, ...]:
    stops = fields.items("stop_sequences") or []
    texts = tuple(stop for stop in stops if isinstance(stop, str) and len(stop) <= 1024)
    if len(texts) < len(stops) or len(texts) > 64:
        raise fields.error("stop_sequences", "must be at most 64 strings of at most 1024 characters")
    return tuple(filter(None, texts))


def _thinking(fields: RequestFields) -> tuple[TemplateWish, ...]:
    """Thinking may be switched off. Switched on it is allowed, not demanded: a model that cannot think answers."""
    thinking = fields.child("thinking")
    if thinking is None:
        return ()
    kind = thinking.required_choice("type", ("enabled", "disabled", "adaptive"))
    for note in ("budget_tokens", "display"):
        thinking.raw(note)
    thinking.done()
    return () if kind != "disabled" else (TemplateWish(thinking.path("type"), "enable_thinking", False),)


def _output(fields: RequestFields) -> tuple[Grammar | None, tuple[TemplateWish, ...], str]:
    """Reads `output_config`, and `output_format`, its older form for a schema, whose name comes last."""
    wishes: tuple[TemplateWish, ...] = ()
    config = fields.child("output_config")
    format = fields.child("output_format")
    if config is not None:
        if (effort := config.choice("effort", EFFORTS)) is not None and effort != "high":  # the API's default
            wishes = (TemplateWish(config.path("effort"), "reasoning_effort", effort, is_hint=True),)
        format = config.child("format") or format
        config.note("task_budget")
        config.done()
    if format is None:
        return None, wishes, ""
    format.required_choice("type", ("json_schema",))
    schema = format.mapping("schema")
    if schema is None:
        raise format.missing("schema")
    format.raw("name")
    format.done()
    return Grammar("json_schema", json.dumps(schema)), wishes, format.path("schema").removesuffix(".schema")


def _tooling(fields: RequestFields) -> Tooling:
    if len(fields.items("tools") or []) > MAX_TOOLS:
        raise fields.error("tools", f"has more tools than {MAX_TOOLS}")
    tools = tuple(_tool(tool) for tool in fields.objects("tools"))
    names = {tool.name for tool in tools}
    if len(names) < len(tools):
        raise fields.error("tools", "has two tools of one name")
    choice = fields.child("tool_choice")
    if choice is None:
        return Tooling(tools, "auto") if tools else Tooling()
    kind = choice.required_choice("type", ("auto", "any", "tool", "none"))
    parallel, name = choice.flag("disable_parallel_tool_use") is not True, choice.text("name")
    choice.done()
    if not tools:
        if kind in ("any", "tool"):
            raise fields.error("tool_choice", "is only allowed with 'tools'")
        return Tooling()
    match kind:
        case "none":
            return Tooling(tools, "none")
        case "any":
            return Tooling(tools, "required", None, parallel)
        case "tool":
            if name not in names:
                raise choice.error("name", f"is {name!r:.64}, which is not among the tools")
            return Tooling(tools, "named", name, parallel)
        case _:
            return Tooling(tools, "auto", None, parallel)


def _tool(tool: RequestFields) -> Tool:
    kind = tool.text("type") or "custom"
    if kind != "custom":
        raise tool.unsupported("type", f"this server has no tool {kind[:32]!r}; only tools with an 'input_schema' are")
    name = tool.required_text("name")
    if not NAME.fullmatch(name):
        raise tool.error("name", "must be 1 to 64 letters, digits, '_' or '-'")
    for note in ("cache_control", "eager_input_streaming", "input_examples", "defer_loading", "allowed_callers"):
        tool.note(note, (False,))
    schema = tool.mapping("input_schema")
    if schema is None:
        raise tool.missing("input_schema")
    read = Tool(name, tool.text("description"), schema, tool.flag("strict") is True)
    tool.done()
    return read


def _messages(fields: RequestFields) -> tuple[Message, ...]:
    """The system prompt and the turns. The text of an assistant at the end is the beginning of the answer."""
    items = fields.items("messages")
    if items is None:
        raise fields.missing("messages")
    if not 1 <= len(items) <= MAX_TURNS:
        raise fields.error("messages", f"has {len(items)} messages, allowed are 1 to {MAX_TURNS}")
    turns = Turns()
    if fields.raw("system") not in (None, "", []):
        turns.add(Message("system", _content(fields, "system")))
    for message in fields.objects("messages"):
        role = message.required_choice("role", ("user", "assistant", "system"))
        if role == "assistant":
            turns.add(_assistant(message))
        else:
            _add_turn(turns, message, role)
        message.raw("id")
        message.done()
    messages = turns.messages()
    last = messages[-1]
    if last.role != "assistant":
        return messages
    if last.calls:
        raise fields.error("messages", "ends with calls that have no results")
    return (*messages[:-1], replace(last, is_open=True)) if last.content else messages[:-1]


def _add_turn(turns: Turns, message: RequestFields, role: str) -> None:
    """A user's message; results of tools in it become messages of their own, in the order of the blocks."""
    if isinstance(text := message.raw("content"), str):
        turns.add(Message(role, text))
        return
    parts: list[Part] = []
    for block in message.objects("content"):
        if block.text("type") != "tool_result":
            parts += _parts(block)
            continue
        if parts:
            turns.add(Message(role, joined(parts)))
            parts = []
        result = _result(block)
        turns.add_result(block, "tool_use_id", result)
        block.raw("type")
        _end(block)
    if parts:
        turns.add(Message(role, joined(parts)))
    elif not message.items("content"):
        raise message.missing("content")


def _result(block: RequestFields) -> Sequence[Part]:
    content = block.raw("content")
    parts: list[Part] = ([TextPart(content)] if isinstance(content, str) else
                         [part for inner in block.objects("content") for part in _parts(inner)])
    return [TextPart("Error:"), *parts] if block.flag("is_error") else parts


def _assistant(message: RequestFields) -> Message:
    """An answer: thinking, text and calls."""
    if isinstance(text := message.raw("content"), str):
        return Message("assistant", text)
    turn = Turns()
    texts, thoughts, calls = list[Part](), list[str](), list[Message]()
    for block in message.objects("content"):
        kind = block.required_text("type")
        if kind == "thinking":
            thoughts.append(block.required_text("thinking"))
        elif kind == "redacted_thinking":
            block.raw("data")
        elif kind == "tool_use":
            call = earlier_call(block.required_text("id"), block.required_text("name"), block.raw("input"))
            calls.append(Message("assistant", None, calls=(call,)))
        else:
            texts += _parts(block)
            continue
        _end(block)
    turn.add(Message("assistant", joined(texts) if texts else None, reasoning="\n".join(thoughts) or None))
    for each in calls:
        turn.add(each)
    return turn.messages()[0]


def _content(fields: RequestFields, name: str) -> str | tuple[Part, ...]:
    value = fields.raw(name)
    if isinstance(value, str):
        return value
    return joined([part for block in fields.objects(name) for part in _parts(block)])


def _parts(block: RequestFields) -> list[Part]:
    """A block of text, or an image, or a document that is text."""
    kind = block.required_text("type")
    parts: list[Part]
    if kind == "text":
        parts = [TextPart(block.required_text("text"))]
    elif kind == "image":
        source = block.required_child("source")
        parts = [_image(source)]
        source.done()
    elif kind == "document":
        source = block.required_child("source")
        if source.required_text("type") != "text":
            raise source.unsupported("type", "only documents of plain text are read")
        source.raw("media_type")
        parts = [TextPart(source.required_text("data"))]
        source.done()
    else:
        raise block.unsupported("type", f"a block of type {kind[:32]!r}; read are 'text', 'image', 'thinking', "
                                        "'tool_use', 'tool_result' and documents of plain text")
    _end(block)
    return parts


def _image(source: RequestFields) -> Image:
    kind = source.required_choice("type", ("base64", "url"))
    if kind == "url":
        return Image(source.path("url"), source.required_text("url"))
    media_type = source.required_text("media_type")
    return Image(source.path("data"), f"data:{media_type};base64,{source.required_text('data')}")


def _end(block: RequestFields) -> None:
    for note in BLOCK_NOTES:
        block.raw(note)
    block.done()
