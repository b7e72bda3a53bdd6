"""Translates requests for chat completions into Anthropic's Messages API: each field is translated, or refused by name.

The API's version 2023-06-01, see platform.claude.com/docs/en/api/messages. RequestError names what it cannot express.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NoReturn

from brise.dialects.bodies import Body, Fields
from brise.errors import RequestError

MAX_TOKENS = 8192  # the API requires a limit: what its older models can still write in one answer
MAX_TEMPERATURE = 1.0
TRANSLATED = frozenset({
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "stream",
    "stream_options", "tools", "tool_choice", "parallel_tool_calls", "user", "safety_identifier", "response_format",
    "service_tier"})
# Values of other fields that ask for the default.
IMPLIED: Mapping[str, object] = {"n": 1, "logprobs": False, "store": False, "frequency_penalty": 0,
                                 "presence_penalty": 0, "logit_bias": {}, "metadata": {}, "modalities": ["text"]}
OF_A_STREAM: Mapping[str, tuple[object, ...]] = {"include_usage": (True, False), "include_obfuscation": (False,)}
SERVICE_TIERS: Mapping[object, str | None] = {None: None, "auto": None, "default": "standard_only"}
OF_A_MESSAGE: Mapping[object, frozenset[str]] = {
    "system": frozenset(), "developer": frozenset(), "user": frozenset(),
    "assistant": frozenset({"tool_calls", "refusal"}), "tool": frozenset({"tool_call_id"})}


def messages_request(request: Body) -> Fields:
    """The body of the request. The upstream itself checks values of fields that both APIs have."""
    for name, value in request.items():
        if name not in TRANSLATED and value is not None and value != IMPLIED.get(name, ...):
            _refuse(name, "Anthropic's Messages API has nothing for it")
    system, turns = _conversation(request.get("messages"))
    sent: Fields = {"model": request.get("model"), "max_tokens": _max_tokens(request), "messages": turns,
                    "system": system, "temperature": _temperature(request.get("temperature")),
                    "top_p": request.get("top_p"),
                    "stop_sequences": _stop(request.get("stop")), "stream": request.get("stream"),
                    "service_tier": _service_tier(request.get("service_tier")),
                    "output_config": _output_config(request.get("response_format")), **_tools(request)}
    _check_stream_options(request.get("stream_options"))
    user = request.get("user") or request.get("safety_identifier")
    sent["metadata"] = {"user_id": user} if user else None
    return {name: value for name, value in sent.items() if value is not None}


def _max_tokens(request: Body) -> object:
    limits = [request[name] for name in ("max_completion_tokens", "max_tokens") if request.get(name) is not None]
    if len(limits) == 2 and limits[0] != limits[1]:
        _refuse("max_tokens", f"it is {limits[1]!r}, max_completion_tokens is {limits[0]!r}, and they mean the same")
    return limits[0] if limits else MAX_TOKENS


def _temperature(value: object) -> object:
    if isinstance(value, int | float) and value > MAX_TEMPERATURE:
        _refuse("temperature", f"it is {value}, and Anthropic's Messages API allows 0 to {MAX_TEMPERATURE:g}")
    return value


def _stop(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _service_tier(value: object) -> str | None:
    if not isinstance(value, str | None) or value not in SERVICE_TIERS:
        _refuse("service_tier", f"it is {_shown(value)}, and Anthropic's Messages API knows auto and default")
    return SERVICE_TIERS[value]


def _check_stream_options(value: object) -> None:
    """Options of chunks, which are written here."""
    for name, option in (value if isinstance(value, dict) else {}).items():
        if option is not None and option not in OF_A_STREAM.get(name, ()):
            _refuse(f"stream_options.{name}", "an answer of Anthropic's Messages API has nothing for it")


def _output_config(value: object) -> Fields | None:
    match value:
        case None | {"type": "text"}:
            return None
        case {"type": "json_schema", "json_schema": {"schema": dict(schema), **about}}:
            described = {"description": about["description"]} if about.get("description") else {}
            return {"format": {"type": "json_schema", "schema": {**described, **schema}}}
        case _:
            _refuse("response_format", "Anthropic's Messages API knows text, and json_schema with its schema")


def _tools(request: Body) -> Fields:
    tools, parallel = request.get("tools"), request.get("parallel_tool_calls")
    if not isinstance(tools, list | None):
        _refuse("tools", "it is no list")
    choice = _tool_choice(request.get("tool_choice"))
    if not tools:  # then nothing is called, together or not
        return {"tool_choice": choice if choice is not None and choice["type"] in ("any", "tool") else None}
    if parallel is False and (choice is None or choice["type"] != "none"):
        choice = {**(choice or {"type": "auto"}), "disable_parallel_tool_use": True}
    return {"tools": [_tool(tool, f"tools[{place}]") for place, tool in enumerate(tools)], "tool_choice": choice}


def _tool_choice(value: object) -> Fields | None:
    match value:
        case None:
            return None
        case "auto" | "none":
            return {"type": value}
        case "required":
            return {"type": "any"}
        case {"type": "function", "function": {"name": str(name)}}:
            return {"type": "tool", "name": name}
        case _:
            _refuse("tool_choice", "Anthropic's Messages API knows auto, none, required and one function")


def _tool(tool: object, where: str) -> Fields:
    match tool:
        case {"type": "function", "function": {"name": str(name), **about}}:
            for other in about.keys() - {"description", "parameters", "strict"}:
                _refuse(f"{where}.function.{other}", "Anthropic's Messages API has nothing for it")
            converted: Fields = {"name": name, "input_schema": about.get("parameters") or {"type": "object",
                                                                                      "properties": {}}}
            kept = {key: about[key] for key in ("description", "strict") if about.get(key)}
            return converted | kept
        case _:
            _refuse(where, "it is no function with a name, and Anthropic's Messages API has no other tools")


def _conversation(messages: object) -> tuple[list[Fields] | None, list[Fields]]:
    """The system prompt, and the turns: consecutive messages of one side become one."""
    system, turns = list[Fields](), list[Fields]()
    for place, message in enumerate(messages if isinstance(messages, list) else [messages]):
        role, blocks = _message(message, f"messages[{place}]")
        if role == "system" and not turns:
            system += blocks
        elif turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if turns and turns[-1]["role"] == "assistant":
        _refuse("messages", "the last one is the assistant's, which Anthropic's Messages API would continue, "
                            "where OpenAI's begins another")
    return system or None, turns


def _message(message: object, where: str) -> tuple[str, list[Fields]]:
    """The role and the blocks of a message."""
    if not isinstance(message, dict):
        _refuse(where, "it is no message")
    role = message.get("role")
    if not isinstance(role, str) or role not in OF_A_MESSAGE:
        _refuse(f"{where}.role", f"it is {_shown(role)}, known are {', '.join(map(str, OF_A_MESSAGE))}")
    for name, value in message.items():
        if value and name not in OF_A_MESSAGE[role] | {"role", "content"}:
            _refuse(f"{where}.{name}", "Anthropic's Messages API has nothing for it")
    blocks = _parts(message.get("content"), f"{where}.content")
    match role:
        case "system" | "developer":
            return "system", blocks
        case "tool":
            result = {"type": "tool_result", "tool_use_id": message.get("tool_call_id"), "content": blocks}
            return "user", [result]
        case "assistant":
            blocks += _text(message.get("refusal") or "")
            calls = message.get("tool_calls") or []
            if not isinstance(calls, list):
                _refuse(f"{where}.tool_calls", "it is no list")
            return "assistant", blocks + [_call(call, f"{where}.tool_calls[{number}]")
                                          for number, call in enumerate(calls)]
        case _:
            return "user", blocks


def _parts(content: object, where: str) -> list[Fields]:
    match content:
        case None:
            return []
        case str():
            return _text(content)
        case list():
            return [block for place, part in enumerate(content) for block in _part(part, f"{where}[{place}]")]
        case _:
            _refuse(where, "it is neither text nor a list of parts")


def _part(part: object, where: str) -> list[Fields]:
    match part:
        case {"type": "text", "text": str(text), **rest} if not rest:
            return _text(text)
        case {"type": "refusal", "refusal": str(text)}:
            return _text(text)
        case {"type": "image_url", "image_url": {"url": str(url), **rest}}:
            if rest.get("detail") not in (None, "auto"):
                _refuse(f"{where}.image_url.detail", "Anthropic's Messages API has one level of detail")
            return [{"type": "image", "source": _image(url, f"{where}.image_url.url")}]
        case {"type": "text", **rest}:
            _refuse(where, f"a text part with {', '.join(sorted(map(str, rest)))}, allowed is text alone")
        case {"type": str(kind)}:
            _refuse(where, f"it is of type {_shown(kind)}, and known are text and image_url")
        case _:
            _refuse(where, "it is no part of a message")


def _text(text: str) -> list[Fields]:
    """Empty text makes no block."""
    return [{"type": "text", "text": text}] if text else []


def _image(url: str, where: str) -> Fields:
    head, comma, data = url.partition(",")
    if head.startswith("data:") and head.endswith(";base64") and comma:
        return {"type": "base64", "media_type": head.removeprefix("data:").partition(";")[0], "data": data}
    if not url.startswith(("https://", "http://")):
        _refuse(where, f"it is {_shown(url)}, allowed are data:image/...;base64, and http(s)")
    return {"type": "url", "url": url}


def _call(call: object, where: str) -> Fields:
    match call:
        case {"id": str(id), "function": {"name": str(name), "arguments": str(arguments)}}:
            try:
                values = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                values = None
            if not isinstance(values, dict):
                _refuse(f"{where}.function.arguments", "they are no JSON object, and Anthropic's Messages API takes "
                                                       "nothing else")
            return {"type": "tool_use", "id": id, "name": name, "input": values}
        case _:
            _refuse(where, "it is no call of a function, with id, name and arguments")


def _refuse(name: str, why: str) -> NoReturn:
    raise RequestError(f"{name}: {why}", param=name, code="unsupported_parameter")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
