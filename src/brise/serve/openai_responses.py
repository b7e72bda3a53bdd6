"""OpenAI's responses request is read here as a chat; every field is honoured or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from brise.engine.request import Sampling
from brise.serve.openai_chat import (
    MAX_TOKENS,
    ChatRequest,
    Options,
    Tooling,
    check_metadata,
    check_service,
    schema_grammar,
)
from brise.text.fields import Ignored, RequestFields
from brise.text.inputs import Grammar
from brise.text.json_text import Json
from brise.text.openai_messages import DETAILS, Image, Message, Part, TextPart, joined

STATE = "this server keeps no state between requests; send the conversation in 'input'"
UNSUPPORTED: Mapping[str, str] = {
    "background_options": STATE, "conversation": STATE, "previous_response_id": STATE,
    "context_management": STATE, "prompt": "there are no stored prompts",
    "reasoning": "the models here have no adjustable reasoning", "max_tool_calls": "there are no built-in tools",
    "image": "answers are text", "access_programs": "there are none"}


@dataclass(frozen=True)
class ResponseRequest:
    """A responses request: a chat, and the fields that the response repeats."""

    chat: ChatRequest
    echoed: Mapping[str, object]


def parse_response(body: Json, ignored: Ignored | None = None) -> ResponseRequest:
    """The typed request, or a RequestError that names the field."""
    fields = RequestFields(body, ignored=ignored)
    model, stream = fields.required_text("model"), fields.flag("stream") or False
    instructions = fields.text("instructions")
    messages = _input(fields)
    if instructions is not None:
        messages = (Message("system", instructions), *messages)
    max_tokens = fields.whole("max_output_tokens", 1, MAX_TOKENS)
    temperature, top_p = fields.number("temperature", 0, 2), fields.number("top_p", 0, 1)
    sampling = Sampling(1.0 if temperature is None else temperature, top_p=1.0 if top_p is None else top_p)
    grammar = _format(fields)
    check_metadata(fields)
    _refuse_unsupported(fields, stream)
    fields.done()
    options = Options(model, stream, False, 1, (), sampling, False)
    echoed = {
        "instructions": instructions, "max_output_tokens": max_tokens, "temperature": sampling.temperature,
        "top_p": sampling.top_p, "metadata": fields.mapping("metadata") or {},
        "text": fields.mapping("text") or {"format": {"type": "text"}}}
    return ResponseRequest(ChatRequest(options, messages, max_tokens, None, grammar, Tooling()), echoed)


def _input(fields: RequestFields) -> tuple[Message, ...]:
    value = fields.raw("input")
    if value is None:
        raise fields.missing("input")
    if isinstance(value, str):
        return (Message("user", value),)
    messages = tuple(_message(item) for item in fields.objects("input"))
    if not messages:
        raise fields.error("input", "is empty")
    return messages


def _message(fields: RequestFields) -> Message:
    kind = fields.text("type")
    if kind not in (None, "message"):
        raise fields.unsupported("type", f"{kind[:32]!r}; only messages are")
    role = fields.required_choice("role", ("user", "assistant", "system", "developer"))
    fields.text("id")  # an earlier answer has an id and a status
    fields.text("status")
    fields.text("phase")
    content = fields.raw("content")
    if not isinstance(content, str):
        parts = [_part(part, role) for part in fields.objects("content")]
        if not parts:
            raise fields.missing("content")
        fields.done()
        return Message(role, joined(parts))
    fields.done()
    return Message(role, content)


def _part(part: RequestFields, role: str) -> Part:
    kind = part.required_text("type")
    read: Part
    if kind in ("input_text", "output_text"):
        read = TextPart(part.required_text("text"))
        part.only("annotations", ([],), "this server makes none")
        part.only("logprobs", ([],), "this server gives none here")
    elif kind == "input_image" and role == "user":
        part.refuse("file_id", "this server stores no files; send 'image_url'")
        read = Image(part.path("image_url"), part.required_text("image_url"), part.choice("detail", DETAILS) or "auto")
    else:
        raise part.unsupported("type", f"a part of type {kind[:32]!r} from {role!r}; this server reads text, and "
                                       "'input_image' from 'user'")
    part.refuse("prompt_cache_breakpoint", "equal prefixes are always cached")
    part.done()
    return read


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


def _refuse_unsupported(fields: RequestFields, stream: bool) -> None:
    for name, reason in UNSUPPORTED.items():
        fields.refuse(name, reason)
    fields.only("background", (False,), STATE)
    fields.text("user")
    check_service(fields)
    fields.flag("parallel_tool_calls")  # it changes nothing without tools
    fields.only("tools", ([],), "use /v1/chat/completions for tools")
    fields.only("tool_choice", ("auto", "none"), "use /v1/chat/completions for tools")
    fields.only("include", ([],), "there is nothing more to include")
    fields.only("top_logprobs", (0,), "use /v1/chat/completions for log-probabilities")
    fields.only("truncation", ("disabled",), "a prompt is never cut")
    options = fields.child("stream_options")
    if options is not None:
        if not stream:
            raise fields.error("stream_options", "is only allowed with 'stream': true")
        options.only("include_obfuscation", (False,), "events are not padded")
        options.done()
