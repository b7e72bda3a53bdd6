"""`POST /v1/chat/completions`: the request, every field of OpenAI's API honoured or refused by name."""

from __future__ import annotations

from dataclasses import dataclass

from brise.serve.openai_options import MAX_TOKENS, MAX_TOP_LOGPROBS, Options, parse_options
from brise.serve.openai_tools import Tooling, parse_response_format, parse_tooling, refuse_both
from brise.text.fields import Ignored, RequestFields
from brise.text.inputs import Grammar
from brise.text.json_text import Json
from brise.text.openai_messages import Message, parse_messages


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to be continued."""

    options: Options
    messages: tuple[Message, ...]
    max_tokens: int | None
    logprobs: int | None
    grammar: Grammar | None
    tooling: Tooling


def parse_chat(body: Json, ignored: Ignored | None = None) -> ChatRequest:
    """The typed request, or a RequestError that names the field."""
    fields = RequestFields(body, ignored=ignored)
    tooling = parse_tooling(fields)
    grammar = parse_response_format(fields.child("response_format"))
    refuse_both(grammar, tooling)
    request = ChatRequest(parse_options(fields), parse_messages(fields), _max_tokens(fields),
                          _logprobs(fields), grammar, tooling)
    check_service(fields)
    _refuse_foreign(fields)
    fields.done()
    return request


def check_service(fields: RequestFields) -> None:
    """Fields about the service, not the answer: accepted where they ask for what happens anyway."""
    fields.text("safety_identifier")
    fields.text("prompt_cache_key")  # equal beginnings are found without a key
    fields.only("prompt_cache_retention", ("in_memory",), "the prefix cache lies in memory")
    fields.refuse("prompt_cache_options", "equal beginnings are always cached")
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
    wanted = fields.flag("logprobs") or False
    top = fields.whole("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if top and not wanted:
        raise fields.error("top_logprobs", "is only allowed with 'logprobs': true")
    return (top or 0) if wanted else None


def _refuse_foreign(fields: RequestFields) -> None:
    fields.only("modalities", (["text"],), "answers are text")
    fields.only("reasoning_effort", ("none",), "the models here have no adjustable reasoning")
    fields.only("verbosity", ("medium",), "the models here have no such dial")
    fields.refuse("audio", "answers are text")
    fields.refuse("prediction", "predicted outputs are not implemented")
    fields.refuse("functions", "it is OpenAI's old way; use 'tools'")
    fields.refuse("function_call", "it is OpenAI's old way; use 'tool_choice'")
    fields.refuse("web_search_options", "this server opens no connections")
