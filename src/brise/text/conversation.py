"""Encodes a conversation, in training as in serving, also for templates that know no tools."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, timedelta
from functools import partial
from typing import Protocol

from brise.errors import RequestError
from brise.text.answer_format import AnswerFormat
from brise.text.protocols import Encoded, Message, parts_of
from brise.text.tool_calls import CLOSE, OPEN, tool_system_prompt

_THINKING = re.compile(r"\[THINK\](.*?)\[/THINK\]", re.DOTALL)


class Chat(Protocol):
    """A model's chat format: messages to tokens, and what its answers look like."""

    knows_tools: bool
    format: AnswerFormat

    def prompt(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, object]] | None = None,
               add_generation_prompt: bool = True, continue_final: bool = False,
               variables: Mapping[str, object] | None = None) -> Encoded:
        """A conversation. With continue_final the last message, an assistant's, stays open; `variables` are for the
        template, which reads them."""

    def reads(self, name: str) -> bool:
        """Whether the chat format looks at a variable of this name."""

    def values_of(self, name: str) -> Collection[str] | None:
        """The values that a variable may have; None: any."""


def encoded(chat: Chat, messages: Sequence[Message], tools: Sequence[Mapping[str, object]] = (), *,
            add_generation_prompt: bool = True, continue_final: bool = False,
            variables: Mapping[str, object] | None = None) -> Encoded:
    """Tokens of the conversation; `tools` are described in the system message where the template knows none.

    A template that takes no system message gets them in the first message of the user.
    """
    render = partial(chat.prompt, add_generation_prompt=add_generation_prompt, continue_final=continue_final,
                     variables=variables)
    if chat.knows_tools:
        return _with_calls(render, messages, tools)
    messages = [written_out(message) for message in messages]
    if not tools:
        return render(messages, tools=None)
    described = tool_system_prompt(tools)
    try:
        return render(with_system(messages, described), tools=None)
    except RequestError as error:
        if error.code != "chat_template_error" or messages[:1] and messages[0]["role"] == "system":
            raise
        return render(_with_user(messages, described), tools=None)


def _with_calls(render: Callable[..., Encoded], messages: Sequence[Message],
                tools: Sequence[Mapping[str, object]]) -> Encoded:
    """The conversation; a call that was cut has no arguments where the template cannot write text as arguments."""
    try:
        return render(messages, tools=tools or None)
    except RequestError as error:
        whole = [_without_cut_arguments(message) for message in messages]
        if error.code != "chat_template_error" or whole == list(messages):
            raise
    return render(whole, tools=tools or None)


def _without_cut_arguments(message: Message) -> Message:
    calls = message.get("tool_calls")
    if not isinstance(calls, Sequence):
        return message
    return {**message, "tool_calls": [
        {**call, "function": {**call["function"], "arguments": {}}} if isinstance(call["function"]["arguments"], str)
        else call for call in calls]}


def written_out(message: Message) -> Message:
    """The message for a template that knows no tools: calls and results as text, in the hermes format."""
    content, calls = message.get("content"), message.get("tool_calls")
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{plain_text(content)}\n</tool_response>"}
    if not isinstance(calls, Sequence) or not calls:
        return message
    functions = [call["function"] for call in calls]
    written = "\n".join(f"{OPEN}\n{_call(function)}\n{CLOSE}" for function in functions)
    view = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**view, "content": f"{plain_text(content)}\n{written}" if content else written}


def with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """The messages with `text` after the first system message, or as one: most templates take only one."""
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        added = [*parts_of(first["content"]), {"type": "text", "text": f"\n\n{text}"}]
        is_plain = isinstance(first["content"], str)
        return [{**first, "content": f"{first['content']}\n\n{text}" if is_plain else added}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _with_user(messages: Sequence[Message], text: str) -> list[Message]:
    """The messages with `text` before the user's first one, or as one."""
    index = next((index for index, message in enumerate(messages) if message["role"] == "user"), None)
    if index is None:
        return [{"role": "user", "content": text}, *messages]
    message = messages[index]
    content = message["content"]
    added: object = (f"{text}\n\n{content}" if isinstance(content, str) else
                     [{"type": "text", "text": f"{text}\n\n"}, *parts_of(content)])
    return [*messages[:index], {**message, "content": added}, *messages[index + 1:]]


def suggested_system(text: str, name: str, today: date, *, can_think: bool) -> str | list[Mapping[str, object]]:
    """The system prompt that a model's makers suggest (SYSTEM_PROMPT.txt), filled in, as a message's content.

    {name}, {today} and {yesterday} are the only words in braces that mean something. Reasoning models are shown how to
    think between [THINK] and [/THINK]; those are special tokens, which no text becomes, so what stands between them is
    a part of its own.
    """
    filled = (text.replace("{name}", name).replace("{today}", today.isoformat())
              .replace("{yesterday}", (today - timedelta(days=1)).isoformat()))
    pieces = _THINKING.split(filled)
    if not can_think or len(pieces) == 1:
        return filled
    parts: list[Mapping[str, object]] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            parts.append({"type": "thinking", "thinking": piece, "closed": True})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def writes_think_tags(suggested: str | None, format: AnswerFormat) -> bool:
    """Whether the makers' system prompt asks for thinking between <think> and </think>, which are text here."""
    return suggested is not None and "<think>" in suggested and not format.can_think


def with_reasoning_prompt(messages: Sequence[Message], chat: Chat, suggested: str | None, name: str,
                          today: date) -> list[Message]:
    """The messages behind the system prompt with which the makers ask for reasoning; RequestError where they have none.
    """
    asks = suggested is not None and ("[THINK]" in suggested or "<think>" in suggested)
    has_system = bool(messages) and messages[0]["role"] == "system"
    if suggested is None or not asks:
        if chat.format.can_think and chat.reads("default_system_message") and not has_system:
            return list(messages)  # the template writes it
        raise RequestError("'prompt_mode' 'reasoning' is not supported: the model has no system prompt for reasoning",
                           param="prompt_mode", code="unsupported_parameter",
                           hint="send 'reasoning_effort'" if chat.reads("reasoning_effort") else None)
    content = suggested_system(suggested, name, today, can_think=chat.format.can_think)
    if not has_system:
        return [{"role": "system", "content": content}, *messages]
    *before, last = parts_of(content)
    own = plain_text(messages[0]["content"])
    end = ([{"type": "text", "text": f"{last['text']}\n\n{own}"}] if last["type"] == "text" else
           [last, {"type": "text", "text": own}])  # one part: some formats put lines between two
    return [{**messages[0], "content": [*before, *end]}, *messages[1:]]


def plain_text(content: object) -> str:
    """The text of a message's content, without reasoning."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(str(part["text"]) for part in parts_of(content) if part["type"] == "text")


def _call(function: Mapping[str, object]) -> str:
    arguments = function["arguments"]
    if isinstance(arguments, str):  # of a call that was cut
        return f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {arguments}'
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
