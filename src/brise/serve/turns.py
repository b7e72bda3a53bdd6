"""Turns builds the messages of a chat from what other APIs send: items, or blocks of content.

Those APIs say apart what a chat has in one message: reasoning, text and calls of one answer become one message of the
assistant. Results of calls may hold images, which chats have from users only, so they follow in a message of the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from brise.errors import RequestError
from brise.text.fields import RequestFields
from brise.text.json_text import Json, parse_json
from brise.text.openai_messages import MAX_MESSAGES, EarlierCall, Image, Message, Part, TextPart, joined

MAX_TURNS = MAX_MESSAGES


class Turns:
    """A conversation that grows by messages, calls and results."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._images: list[Part] = []  # of results that were just read
        self._calls = set[str]()

    def add(self, message: Message) -> None:
        """A message, or the next part of the assistant's last one."""
        self._flush()
        last = self._messages[-1] if self._messages else None
        self._calls.update(call.id for call in message.calls)
        if last is None or last.role != "assistant" or message.role != "assistant" or not _goes_on(last, message):
            self._messages.append(message)
            return
        reasoning = "\n".join(text for text in (last.reasoning, message.reasoning) if text)
        self._messages[-1] = replace(
            last, content=last.content if message.content is None else message.content, reasoning=reasoning or None,
            calls=(*last.calls, *message.calls))

    def add_result(self, fields: RequestFields, id_field: str, parts: Sequence[Part]) -> None:
        """The result of a call; `id_field` names the field with the call's id."""
        call_id = fields.required_text(id_field)
        if call_id not in self._calls:
            raise fields.error(id_field, "answers no call of an earlier message")
        texts = [part for part in parts if isinstance(part, TextPart)]
        images = [part for part in parts if isinstance(part, Image)]
        content = joined(texts) if texts else "(an image)" if images else ""
        self._messages.append(Message("tool", content, call_id=call_id))
        self._images += images

    def messages(self) -> tuple[Message, ...]:
        """All messages; one that holds only reasoning has an empty text."""
        self._flush()
        return tuple(replace(message, content="") if message.content is None and not message.calls else message
                     for message in self._messages)

    def _flush(self) -> None:
        if self._images:
            self._messages.append(Message("user", joined(self._images)))
            self._images = []


def _goes_on(last: Message, message: Message) -> bool:
    """Whether a message of the assistant belongs to the one before it: text follows reasoning, calls follow text."""
    is_reasoning = last.content is None and not last.calls
    return is_reasoning or (message.content is None and message.reasoning is None)


def earlier_call(id: str, name: str, arguments: Json) -> EarlierCall:
    """A call that the model made. Arguments that are no JSON object, as those of a call that was cut, stay text."""
    if isinstance(arguments, dict):
        return EarlierCall(id, name, arguments)
    text = arguments if isinstance(arguments, str) else ""
    try:
        value = parse_json(text.encode(errors="surrogatepass") or b"{}")
    except RequestError:
        value = text
    return EarlierCall(id, name, value if isinstance(value, dict) else text)
