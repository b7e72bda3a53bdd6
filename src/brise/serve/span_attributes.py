"""What spans and metrics say of an exchange, under the names of OpenTelemetry's conventions for generative AI.

The names are those of semantic-conventions-genai as of 2026-07; what they have no name for is `brise.*`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from brise.dialects.bodies import Body, Usage
from brise.dialects.table import named
from brise.gateway.trace import Attribute
from brise.traffic import virtual_keys
from brise.traffic.records import Exchange

PROVIDERS: Sequence[tuple[str, str]] = (  # the end of an upstream's host, and how the conventions call it
    ("openai.azure.com", "azure.ai.openai"), ("services.ai.azure.com", "azure.ai.inference"),
    ("openai.com", "openai"), ("anthropic.com", "anthropic"), ("mistral.ai", "mistral_ai"), ("groq.com", "groq"),
    ("deepseek.com", "deepseek"), ("perplexity.ai", "perplexity"), ("x.ai", "x_ai"), ("cohere.com", "cohere"),
    ("cohere.ai", "cohere"), ("moonshot.ai", "moonshot_ai"), ("moonshot.cn", "moonshot_ai"),
    ("generativelanguage.googleapis.com", "gcp.gemini"), ("aiplatform.googleapis.com", "gcp.vertex_ai"),
    ("amazonaws.com", "aws.bedrock"))
OWN = "brise"  # the provider of a small model
NUMBERS: Mapping[str, str] = {  # fields of requests, and their attributes
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty"}
COUNTS: Mapping[str, str] = {"max_tokens": "max_tokens", "max_completion_tokens": "max_tokens",
                             "max_output_tokens": "max_tokens", "seed": "seed"}
FIELDS = (*NUMBERS, *COUNTS, "n")  # all that a span without content says of what was asked


def place(url: str) -> dict[str, Attribute]:
    """Address and port of an upstream."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return {"server.address": parts.hostname or "", "server.port": port}


def provider(exchange: Exchange, host: str) -> str:
    """Who answers, as the conventions call it."""
    if exchange.mode in ("small", "degraded"):
        return OWN
    known = next((name for end, name in PROVIDERS if host == end or host.endswith(f".{end}")), None)
    return known or named(exchange.kind).provider


def common(exchange: Exchange, url: str) -> dict[str, Attribute]:
    """What metrics are told apart by; spans have it too."""
    found: dict[str, Attribute] = {
        "gen_ai.operation.name": named(exchange.kind).operation,
        "gen_ai.provider.name": provider(exchange, urlsplit(url).hostname or ""),
        **({} if exchange.mode in ("small", "degraded") else place(url))}
    if exchange.model:
        found["gen_ai.request.model"] = exchange.model
    if exchange.served_by:
        found["gen_ai.response.model"] = exchange.served_by
    return found


def error_type(exchange: Exchange) -> str | None:
    """A class of errors: a kind of failure, or a status; None for an answer."""
    if exchange.mode == "failed" and exchange.error:
        kind = exchange.error.partition(":")[0]
        return str(exchange.status) if kind == "status" or not kind.replace("_", "").isalnum() else kind
    return str(exchange.status) if exchange.status >= 400 else None


def of_span(exchange: Exchange, url: str, *, with_content: bool) -> dict[str, Attribute]:
    """All that a request's span says. Without content it holds nothing of what was asked or answered."""
    found = common(exchange, url) | _request(exchange) | _response(exchange) | usage(exchange.usage) | {
        "brise.exchange.id": exchange.id, "brise.mode": exchange.mode, "brise.task": exchange.task,
        "http.response.status_code": exchange.status, "url.path": exchange.path}
    named_parts: Mapping[str, Attribute | None] = {
        "error.type": error_type(exchange), "gen_ai.conversation.id": exchange.conversation or None,
        "brise.cost_usd": exchange.cost_usd, "brise.key": exchange.labels.get(virtual_keys.LABEL)}
    found |= {name: value for name, value in named_parts.items() if value is not None}
    found |= {f"brise.signal.{name}": value for name, value in exchange.signals.items()}
    return found | (content(exchange) if with_content else {})


def usage(used: Usage | None) -> dict[str, Attribute]:
    """Tokens, as far as they are known."""
    if used is None:
        return {}
    parts = {"input_tokens": used.prompt_tokens, "output_tokens": used.completion_tokens,
             "cache_read.input_tokens": used.cached_tokens or None,
             "cache_creation.input_tokens": used.cache_write_tokens or None,
             "reasoning.output_tokens": used.reasoning_tokens}
    return {f"gen_ai.usage.{name}": number for name, number in parts.items() if number is not None}


def content(exchange: Exchange) -> dict[str, Attribute]:
    """The messages, as JSON text; nothing where a request has no form of a chat."""
    dialect = named(exchange.kind)
    try:
        asked = [_message(each) for each in dialect.chat_messages(exchange.request or {})]
        tools = dialect.chat_tools(exchange.request or {})
        answers = [] if exchange.response is None or exchange.error is not None else [
            _message(dialect.chat_answer(exchange.response)) | {
                "finish_reason": dialect.finish_reason(exchange.response) or "stop"}]
    except (ValueError, KeyError, TypeError):
        return {}
    system = [part for each in asked if each["role"] in ("system", "developer") for part in each["parts"]]
    parts: Mapping[str, list[Any]] = {
        "gen_ai.system_instructions": system, "gen_ai.output.messages": answers, "gen_ai.tool.definitions": list(tools),
        "gen_ai.input.messages": [each for each in asked if each["role"] not in ("system", "developer")]}
    return {name: json.dumps(value, ensure_ascii=True) for name, value in parts.items() if value}


def _request(exchange: Exchange) -> dict[str, Attribute]:
    fields: Body = exchange.request or {}
    found: dict[str, Attribute] = {"gen_ai.request.stream": True} if exchange.streamed else {}
    for name, known in NUMBERS.items():
        if _is_number(fields.get(name)):
            found[f"gen_ai.request.{known}"] = float(fields[name])
    for name, known in COUNTS.items():
        if _is_number(fields.get(name)):
            found[f"gen_ai.request.{known}"] = int(fields[name])
    if _is_number(fields.get("n")) and fields["n"] != 1:
        found["gen_ai.request.choice.count"] = int(fields["n"])
    return found


def _response(exchange: Exchange) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    if exchange.streamed and exchange.first_token_s is not None:
        found["gen_ai.response.time_to_first_chunk"] = exchange.first_token_s
    if exchange.response is None:
        return found
    finish = named(exchange.kind).finish_reason(exchange.response)
    if finish is not None:
        found["gen_ai.response.finish_reasons"] = [finish]
    if isinstance(id := exchange.response.get("id"), str):
        found["gen_ai.response.id"] = id
    if exchange.fingerprint is not None:
        found["openai.response.system_fingerprint"] = exchange.fingerprint
    return found


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of a chat in the form of the conventions."""
    said, parts = message.get("content"), list[dict[str, Any]]()
    if message.get("role") == "tool":
        return {"role": "tool", "parts": [{"type": "tool_call_response", "id": message.get("tool_call_id"),
                                           "response": said}]}
    if isinstance(said, str) and said:
        parts.append({"type": "text", "content": said})
    elif isinstance(said, list):
        parts += [{"type": "text", "content": part["text"]} for part in said
                  if isinstance(part, dict) and isinstance(part.get("text"), str)]
    for call in message.get("tool_calls") or ():
        function = call["function"]
        parts.append({"type": "tool_call", "id": call.get("id"), "name": function["name"],
                      "arguments": _parsed(function.get("arguments"))})
    return {"role": message.get("role", "assistant"), "parts": parts}


def _parsed(arguments: object) -> object:
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**53
