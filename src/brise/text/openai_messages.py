"""Reads chat messages as OpenAI's clients send them, and gives them as chat templates want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from brise.errors import RequestError
from brise.text.fields import RequestFields
from brise.text.inputs import AudioInput, ImageInput
from brise.text.json_text import Json, parse_json

ROLES = ("system", "developer", "user", "assistant", "tool")
MAX_MESSAGES = 8192


@dataclass(frozen=True)
class EarlierCall:
    """A function call that the model made earlier in the conversation.

    Arguments that are no JSON object, such as those of a call that was cut, are the text that the model wrote.
    """

    id: str
    name: str
    arguments: Mapping[str, Json] | str


@dataclass(frozen=True)
class TextPart:
    """A part of a message that is text."""

    text: str

    def as_part(self) -> Mapping[str, object]:
        return {"type": "text", "text": self.text}


@dataclass(frozen=True)
class Thinking:
    """A part of a message that shows how to think, or holds reasoning. If it is open, the model continues it."""

    text: str
    closed: bool = True

    def as_part(self) -> Mapping[str, object]:
        return {"type": "thinking", "thinking": self.text, "closed": self.closed}


@dataclass(frozen=True)
class Image:
    """An image: its URL; once fetched, its bytes; once checked, the engine's input. `name` is the client's field.
    """

    name: str
    source: str | bytes | ImageInput
    detail: str = "auto"

    def as_part(self) -> Mapping[str, object]:
        assert isinstance(self.source, ImageInput), "images are prepared before the conversation is rendered"
        return {"type": "image", "image": self.source}


@dataclass(frozen=True)
class Audio:
    """An audio: a data: URL or base64; once checked, the engine's input. `name` is the client's field."""

    name: str
    source: str | AudioInput

    def as_part(self) -> Mapping[str, object]:
        assert isinstance(self.source, AudioInput), "audio is prepared before the conversation is rendered"
        return {"type": "input_audio", "audio": self.source}


Part = TextPart | Thinking | Image | Audio
_TEXT_PARTS: Mapping[str, tuple[str, ...]] = {
    role: ("text", "input_text", "output_text", "refusal") if role == "assistant" else ("text", "input_text")
    for role in ROLES}
# What clients and servers add to messages: it is no part of the conversation.
NOTES = ("parsed", "annotations", "cache_control", "reasoning_details", "thinking_blocks", "provider_specific_fields",
         "id", "created_at", "timestamp", "model", "metadata", "usage", "finish_reason", "logprobs")
CALL_NOTES = ("index", "parsed_arguments", "cache_control", "provider_specific_fields", "extra_content")
AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "aac", "m4a", "webm", "pcm16")  # wav is read
DETAILS = ("auto", "low", "high", "original")  # low is made smaller, all others are as large as the model allows


@dataclass(frozen=True)
class Message:
    """One message; `content` is None only where an assistant did nothing but call functions.

    Content with other parts than text keeps its parts. `is_open`: the answer continues this message.
    """

    role: str
    content: str | tuple[Part, ...] | None
    name: str | None = None
    calls: tuple[EarlierCall, ...] = ()
    call_id: str | None = None
    reasoning: str | None = None
    is_open: bool = False


def parse_messages(fields: RequestFields) -> tuple[Message, ...]:
    """All messages of a conversation, checked one by one and against each other."""
    items = fields.items("messages")
    if items is None:
        raise fields.missing("messages")
    if not 1 <= len(items) <= MAX_MESSAGES:
        raise fields.error("messages", f"has {len(items)} messages, allowed are 1 to {MAX_MESSAGES}")
    messages: list[Message] = []
    known_calls: set[str] = set()
    for message_fields in fields.objects("messages"):
        message = _message(message_fields)
        if message.call_id is not None and message.call_id not in known_calls:
            raise message_fields.error("tool_call_id", "answers no tool call of an earlier assistant message")
        known_calls.update(call.id for call in message.calls)
        if messages and messages[-1].is_open:
            raise fields.error("messages", "has a 'prefix' that is not in the last message")
        messages.append(message)
    return tuple(messages)


def template_message(message: Message) -> dict[str, object]:
    """What a chat template reads. Templates know no `developer`: it is OpenAI's newer word for `system`."""
    role = "system" if message.role == "developer" else message.role
    content = message.content or ""
    view: dict[str, object] = {
        "role": role, "content": content if isinstance(content, str) else [part.as_part() for part in content]}
    if message.reasoning is not None:
        view["reasoning_content"] = message.reasoning
    if message.name is not None:
        view["name"] = message.name
    if message.call_id is not None:
        view["tool_call_id"] = message.call_id
    if message.calls:
        view["tool_calls"] = [{"id": call.id, "type": "function",
                               "function": {"name": call.name, "arguments": _copied(call.arguments)}}
                              for call in message.calls]
    return view


def _copied(arguments: Mapping[str, Json] | str) -> dict[str, Json] | str:
    return arguments if isinstance(arguments, str) else dict(arguments)


def _message(fields: RequestFields) -> Message:
    if fields.raw("role") == "function":
        raise fields.unsupported("role", "'function' is OpenAI's older form; use 'tool'")
    role = fields.required_choice("role", ROLES)
    content = _content(fields, role)
    name = fields.text("name")
    for note in NOTES:
        fields.note(note)
    message = Message(role, content, name)
    if role == "assistant":
        message = _assistant(fields, content, name)
    else:
        fields.only("tool_calls", ([],), "only an assistant makes calls")
        fields.only("function_call", (), "only an assistant makes calls")
        if role == "tool":
            message = Message(role, content, name, call_id=fields.required_text("tool_call_id"))
        else:
            fields.only("tool_call_id", ("",), "only a message of the role 'tool' answers a call")
    if message.content is None and not message.calls:
        raise fields.missing("content")
    if message.is_open and (message.calls or not content):
        raise fields.error("prefix", "is only allowed with 'content' and without 'tool_calls'")
    fields.done()
    return message


def _assistant(fields: RequestFields, content: str | tuple[Part, ...] | None, name: str | None) -> Message:
    """An answer of this or another server, which may have all that servers and clients add to answers."""
    calls = tuple(_call(call) for call in fields.objects("tool_calls"))
    refusal, reasoning = fields.text("refusal"), _reasoning(fields, content)
    fields.only("audio", ({},), "audio is not read")
    fields.only("function_call", (), "it is OpenAI's older form; use 'tool_calls'")
    fields.only("tool_call_id", ("",), "only a message of the role 'tool' answers a call")
    has_other = reasoning is not None or refusal is not None or fields.raw("content") == []
    if content is None and not calls and has_other:
        content = refusal or ""  # an answer that was cut while the model thought has no content
    return Message("assistant", content, name, calls, reasoning=reasoning, is_open=fields.flag("prefix") or False)


def _reasoning(fields: RequestFields, content: str | tuple[Part, ...] | None) -> str | None:
    """The reasoning: `reasoning_content` in answers of this server, `reasoning` and `thinking` in those of others."""
    given = [name for name in ("reasoning_content", "reasoning", "thinking") if fields.raw(name)]
    name = given[0] if given else "reasoning_content"
    value = fields.raw(name)
    if name == "reasoning" and isinstance(value, dict):  # another server's own form
        fields.note(name)
        return None
    reasoning = fields.text(name)
    if reasoning and isinstance(content, tuple) and any(isinstance(part, Thinking) for part in content):
        raise fields.error(name, "cannot be combined with parts of type 'thinking'")
    return reasoning or None


def _content(fields: RequestFields, role: str) -> str | tuple[Part, ...] | None:
    """A string; text parts joined by newlines; or parts of several kinds, unchanged."""
    value = fields.raw("content")
    if value is None or isinstance(value, str):
        return value
    parts = [_part(part, role) for part in fields.objects("content")]
    if not parts and role == "assistant":
        return None
    if not parts:
        raise fields.error("content", "has no parts")
    return joined(parts)


def joined(parts: Sequence[Part]) -> str | tuple[Part, ...]:
    """The parts with neighbouring texts joined by newlines; a string if there is nothing else."""
    out: list[Part] = []
    for part in parts:
        last = out[-1] if out else None
        if isinstance(part, TextPart) and isinstance(last, TextPart):
            out[-1] = TextPart(f"{last.text}\n{part.text}")
        else:
            out.append(part)
    return out[0].text if len(out) == 1 and isinstance(out[0], TextPart) else tuple(out)


def _part(part: RequestFields, role: str) -> Part:
    kind = part.required_text("type")
    read: Part
    if kind in _TEXT_PARTS[role]:
        read = TextPart(part.required_text("refusal" if kind == "refusal" else "text"))
    elif kind == "thinking" and role in ("system", "developer", "assistant"):
        read = Thinking(part.required_text("thinking"), part.flag("closed") is not False)
    elif kind == "image_url" and role == "user":
        url = part.required_child("image_url")
        read = Image(url.path("url"), url.required_text("url"), url.choice("detail", DETAILS) or "auto")
        url.done()
    elif kind == "input_audio" and role == "user":
        read = input_audio(part)
    elif kind == "audio_url" and role == "user":
        read = _audio_url(part)
    else:
        raise part.unsupported("type", f"a part of type {kind[:32]!r} from {role!r}; read are 'text', and 'image_url', "
                                       "'input_audio' and 'audio_url' from 'user'")
    for note in ("cache_control", "prompt_cache_breakpoint", "annotations", "logprobs", "id"):
        part.note(note)
    part.done()
    return read


def input_audio(part: RequestFields) -> Audio:
    """An audio in base64: an object as OpenAI's clients send it, or the text alone, as Mistral's do."""
    if isinstance(part.raw("input_audio"), str):
        return Audio(part.path("input_audio"), part.required_text("input_audio"))
    audio = part.required_child("input_audio")
    format = audio.choice("format", AUDIO_FORMATS)
    if format not in (None, "wav"):
        raise audio.unsupported("format", f"{format!r}; read is 'wav'")
    read = Audio(audio.path("data"), audio.required_text("data"))
    audio.done()
    return read


def _audio_url(part: RequestFields) -> Audio:
    """An audio as a data: URL: an object as vLLM's clients send it, or the URL alone, as Mistral's do."""
    if isinstance(part.raw("audio_url"), str):
        name, url = part.path("audio_url"), part.required_text("audio_url")
    else:
        child = part.required_child("audio_url")
        name, url = child.path("url"), child.required_text("url")
        child.done()
    if not url.startswith("data:"):
        raise RequestError(f"{name!r} is {url[:64]!r}, and this server fetches no audio", param=name,
                           code="invalid_audio", hint="send the audio itself, as data:audio/wav;base64,...")
    return Audio(name, url)


def _call(fields: RequestFields) -> EarlierCall:
    if (fields.text("type") or "function") != "function":
        raise fields.unsupported("type", "only 'function' is")
    function = fields.required_child("function")
    call_id, name = fields.required_text("id"), function.required_text("name")
    for child, notes in ((function, ("parsed_arguments", "description", "strict")), (fields, CALL_NOTES)):
        for note in notes:
            child.note(note)
    arguments = _arguments(function)
    function.done()
    fields.done()
    return EarlierCall(call_id, name, arguments)


def _arguments(function: RequestFields) -> Mapping[str, Json] | str:
    """The object, or the text as it is: the arguments of a call that was cut are no JSON."""
    value = function.raw("arguments")
    if value is None or isinstance(value, dict):
        return value or {}
    text = function.required_text("arguments")
    try:
        value = parse_json(text.encode(errors="surrogatepass") or b"{}")
    except RequestError:
        return text
    return {} if value is None else value if isinstance(value, dict) else text
