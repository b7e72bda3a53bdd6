"""Requests of Ollama's API are read here; what would change the answer is honoured or refused by name."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace

from brise.engine.request import STRUCTURED_SAMPLING, USUAL_SAMPLING, Sampling
from brise.serve.openai_chat import (
    MAX_TOKENS,
    ChatRequest,
    Options,
    SchemaNames,
    Tooling,
    parse_logprobs,
    parse_stops,
    parse_tooling,
)
from brise.serve.request_fields import Act, read_classes
from brise.serve.turns import MAX_TURNS, earlier_call
from brise.text.fields import Ignored, RequestFields
from brise.text.inputs import Grammar, PartialSampling
from brise.text.json_text import Json
from brise.text.openai_messages import CALL_NOTES, ROLES, EarlierCall, Image, Message, Part, TextPart, joined
from brise.text.thinking import parse_think

MOST = 100  # of a temperature or a penalty; Ollama has no limit
LAST_N = 64  # tokens that a repetition penalty is for, where the request gives only the penalty

NAMES = SchemaNames("format")
_NO_SAMPLER = "there is no such sampler"
_TEMPLATE = Act("the model's own chat template is used", ("",))
_TEXT = Act("answers are text", (0,))
ACTS: Mapping[str, Act] = {"template": _TEMPLATE, "width": _TEXT, "height": _TEXT, "steps": _TEXT}
CHAT_ACTS: Mapping[str, Act] = {**ACTS, "suffix": Act("send it to /api/generate", ("",))}
GENERATE_ACTS: Mapping[str, Act] = {
    **ACTS, "context": Act("no answer gives one here: send the conversation to /api/chat", ([],)),
    "messages": Act("send them to /api/chat", ([],)), "tools": Act("send them to /api/chat", ([],))}
OPTION_ACTS: Mapping[str, Act] = {
    "mirostat": Act(_NO_SAMPLER, (0,)), "tfs_z": Act(_NO_SAMPLER, (1,)), "typical_p": Act(_NO_SAMPLER, (1, 0)),
    "penalize_newline": Act("the repetition penalty is for all tokens", (True,)),
    "rope_frequency_base": Act("the model's file says it", (0,)),
    "rope_frequency_scale": Act("the model's file says it", (0, 1))}
OPTION_NOTES = (
    "mirostat_tau", "mirostat_eta", "num_keep", "num_batch", "num_gqa", "num_gpu", "main_gpu", "low_vram", "f16_kv",
    "use_mmap", "use_mlock", "num_thread", "numa", "logits_all", "vocab_only", "embedding_only")
STAYS = "models stay loaded until the server ends"
IS_CUT = "nothing is cut: what is too long is an error"
CONTEXT = "the server's start decides how long the context is"


@dataclass(frozen=True)
class OllamaRequest:
    """A conversation, or with `prompt` a single text; if `is_raw`, that is the whole prompt.

    `only_loads`: there is nothing to answer. Clients load a model so, or ask that it be unloaded.
    """

    chat: ChatRequest
    prompt: str | None = None
    is_raw: bool = False
    only_loads: bool = False
    suffix: str = ""  # what stands behind the answer, which fills in the middle


@dataclass(frozen=True)
class EmbedRequest:
    """Texts to embed; `field` is what the request calls them."""

    model: str
    texts: tuple[str, ...]
    field: str
    is_list: bool
    dimensions: int | None


def parse_chat(body: Json, ignored: Ignored | None = None) -> OllamaRequest:
    """A request of /api/chat, or a RequestError that names the field."""
    fields = RequestFields(body, ignored=ignored)
    messages = _messages(fields)
    chat = _chat(fields, messages, parse_tooling(fields))
    read_classes(fields, CHAT_ACTS, ())
    fields.done()
    return OllamaRequest(chat, only_loads=not messages)


def parse_generate(body: Json, ignored: Ignored | None = None) -> OllamaRequest:
    """A request of /api/generate, or a RequestError that names the field."""
    fields = RequestFields(body, ignored=ignored)
    prompt, is_raw = fields.text("prompt") or "", fields.flag("raw") or False
    images = _images(fields)
    system, suffix = fields.text("system"), fields.text("suffix") or ""
    if is_raw or suffix:
        for name, value in (("system", system), ("images", images), ("think", fields.raw("think"))):
            if value:
                raise fields.unsupported(name, f"with {'suffix' if suffix else 'raw'!r} the prompt is taken as it is")
    messages = (*([Message("system", system)] if system else ()), Message("user", joined([*images, TextPart(prompt)])))
    chat = _chat(fields, messages, Tooling())
    read_classes(fields, GENERATE_ACTS, ())
    fields.done()
    return OllamaRequest(chat, prompt, is_raw, only_loads=not prompt and not images and not suffix, suffix=suffix)


def parse_embed(body: Json, ignored: Ignored | None = None, *, field: str = "input") -> EmbedRequest:
    """A request of /api/embed, or with the field `prompt` of the older /api/embeddings."""
    fields = RequestFields(body, ignored=ignored)
    value = fields.raw(field)
    texts = value if isinstance(value, list) and field == "input" else [value] if value else []
    given = tuple(text for text in texts if isinstance(text, str))
    if len(given) < len(texts):
        raise fields.error(field, "must be a string" + (" or an array of strings" if field == "input" else ""))
    request = EmbedRequest(fields.required_text("model"), given, field, isinstance(value, list),
                           fields.whole("dimensions", 1, 2**20))
    _service(fields)
    options = fields.child("options")
    if options is not None:
        _options(options)
    fields.done()
    return request


def usual_sampling(chat: ChatRequest) -> Sampling:
    """Ollama's own values, where neither the request nor the model's files say anything. Against loops there is what
    chats have here, because Ollama's penalty also punishes the words of the question."""
    usual = USUAL_SAMPLING if chat.grammar is None and not chat.tooling.active else STRUCTURED_SAMPLING
    return replace(usual, temperature=0.8, top_k=40, top_p=0.9)


def _chat(fields: RequestFields, messages: tuple[Message, ...], tooling: Tooling) -> ChatRequest:
    """What chats and prompts share. A request streams unless it says otherwise."""
    options = fields.child("options") or RequestFields({})
    sampling, stops, max_tokens = _options(options)
    _service(fields)
    return ChatRequest(
        Options(fields.required_text("model"), fields.flag("stream") is not False, False, 1, stops, sampling, False),
        messages, max_tokens, parse_logprobs(fields), _format(fields), tooling, parse_think(fields),
        NAMES)


def _options(options: RequestFields) -> tuple[PartialSampling, tuple[str, ...], int | None]:
    """Reads `options`: how to sample, where to stop, and after how many tokens (0 and below: at no number)."""
    max_tokens, top_k = options.whole("num_predict", -(2**31), MAX_TOKENS), options.whole("top_k", -1, MAX_TOKENS)
    seed, window = options.whole("seed", -(2**63), 2**63 - 1), options.whole("repeat_last_n", -1, MAX_TOKENS)
    penalty = options.number("repeat_penalty", 0.01, 10)
    sampling = PartialSampling(
        temperature=options.number("temperature", 0, MOST), top_k=None if top_k is None else max(top_k, 0),
        top_p=options.number("top_p", 0, 1), min_p=options.number("min_p", 0, 1), repetition_penalty=penalty,
        repeat_last_n=LAST_N if window is None and penalty is not None else window,
        presence_penalty=options.number("presence_penalty", -MOST, MOST),
        frequency_penalty=options.number("frequency_penalty", -MOST, MOST),
        seed=seed if seed is None or seed >= 0 else None)  # below 0 Ollama takes a random one
    stops = parse_stops(options)
    options.note("num_ctx", why=CONTEXT)
    read_classes(options, OPTION_ACTS, OPTION_NOTES)
    options.done()
    return sampling, stops, max_tokens if max_tokens is not None and max_tokens > 0 else None


def _service(fields: RequestFields) -> None:
    """Reads what changes no answer."""
    keep_alive = fields.raw("keep_alive")
    is_unload, is_endless = str(keep_alive).rstrip("smh") == "0", str(keep_alive).startswith("-")
    fields.note("keep_alive", (keep_alive,) if is_endless else (), f"{STAYS}: this unloads nothing" if is_unload else
                STAYS)
    for name in ("truncate", "shift"):
        fields.note(name, (False,), IS_CUT)


def _format(fields: RequestFields) -> Grammar | None:
    value = fields.raw("format")
    if value is None or value == "":
        return None
    if isinstance(value, dict):
        return Grammar("json_schema", json.dumps(value))
    if value != "json":
        raise fields.error("format", f"is {json.dumps(value)[:40]}, allowed are \"json\" and a JSON schema")
    return Grammar("json_object")


def _messages(fields: RequestFields) -> tuple[Message, ...]:
    """The conversation. The text of an assistant at the end is the beginning of the answer."""
    items = fields.items("messages") or []
    if len(items) > MAX_TURNS:
        raise fields.error("messages", f"has {len(items)} messages, allowed are up to {MAX_TURNS}")
    messages, calls = list[Message](), _OpenCalls()
    for each in fields.objects("messages"):
        messages.append(_message(each, calls))
    last = messages[-1] if messages else None
    if last is None or last.role != "assistant":
        return tuple(messages)
    if last.calls:
        raise fields.error("messages", "ends with calls that have no results")
    return (*messages[:-1], replace(last, is_open=True)) if last.content else tuple(messages[:-1])


def _message(fields: RequestFields, calls: _OpenCalls) -> Message:
    role = fields.required_choice("role", ROLES)
    text, name = fields.text("content") or "", fields.text("tool_name") or fields.text("name")
    call_id, reasoning = fields.text("tool_call_id"), fields.text("thinking")
    images = _images(fields)
    if images and role != "user":
        raise fields.unsupported("images", "images are read from 'user' only")
    made = tuple(calls.add(call) for call in fields.objects("tool_calls"))
    if made and role != "assistant":
        raise fields.unsupported("tool_calls", "only an assistant makes calls")
    fields.done()
    if role == "tool":
        return Message(role, text, call_id=calls.answered(fields, name, call_id))
    if role == "assistant":
        return Message(role, text, calls=made, reasoning=reasoning or None)
    return Message(role, joined([*images, TextPart(text)]) if images else text)


def _images(fields: RequestFields) -> list[Part]:
    """Images are base64 without a type; their content says what they are."""
    images = list[Part]()
    for index, value in enumerate(fields.items("images") or []):
        place = f"images[{index}]"
        if not isinstance(value, str):
            raise fields.error(place, "must be a string: an image in base64")
        images.append(Image(fields.path(place), value if value[:5] == "data:" else f"data:image/any;base64,{value}"))
    return images


class _OpenCalls:
    """The calls of a conversation that have no result yet.

    Calls have no ids in Ollama's API: a result belongs to the first open call of its `tool_name`, or to the first.
    """

    def __init__(self) -> None:
        self._number, self._open = 0, dict[str, EarlierCall]()  # by id
        self._ids, self._ids_of = deque[str](), defaultdict[str, deque[str]](deque)  # in order: of all, of each name

    def add(self, fields: RequestFields) -> EarlierCall:
        """A call of an assistant; some clients give it an id all the same."""
        self._number += 1
        function = fields.required_child("function")
        call = earlier_call(fields.text("id") or f"call_{self._number}", function.required_text("name"),
                            function.raw("arguments"))
        for note in ("index", "description"):
            function.note(note)
        for note in ("type", *CALL_NOTES):
            fields.note(note, ("function", 0))
        function.done()
        fields.done()
        self._open[call.id] = call
        self._ids.append(call.id)
        self._ids_of[call.name].append(call.id)
        return call

    def answered(self, fields: RequestFields, name: str | None, call_id: str | None) -> str:
        """The id of the call that a result belongs to."""
        ids = self._ids if name is None else self._ids_of[name]
        while ids and call_id not in self._open:
            call_id = ids.popleft()
        if call_id not in self._open:
            raise fields.error("tool_name", f"is {(name or '')[:64]!r}, which answers no call of an earlier message")
        return self._open.pop(call_id).id
