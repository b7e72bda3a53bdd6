"""The options of a call, and the request that they make: read by the same code that reads an HTTP request."""

from __future__ import annotations

import base64
import difflib
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict, TypeVar

from brise.api.schemas import json_schema
from brise.engine.model import LoadedModel
from brise.engine.request import STRUCTURED_SAMPLING, USUAL_MAX_TOKENS, USUAL_SAMPLING, Request
from brise.errors import RequestError
from brise.serve.openai_chat import ChatRequest, SchemaNames, parse_chat
from brise.serve.openai_completions import CompletionRequest, parse_completion
from brise.serve.prompts import ChatJob, chat_job, completion_requests
from brise.text import audio, images, json_text
from brise.text.json_text import Json
from brise.text.openai_tools import Tool
from brise.text.protocols import Message

Messages = str | Sequence[Message]
T = TypeVar("T")
Image = str | Path | bytes
Sound = str | Path | bytes


class SamplingOptions(TypedDict, total=False):
    """How an answer is written. None stands for the model's own setting, if its files have one, else for the default.

    Attributes:
        max_tokens: Longest answer in tokens, reasoning included. Default: 1024, or what the context has room for.
        temperature: How freely tokens are chosen, 0 to 2; 0 always takes the likeliest. Default: 0.2.
        top_p: Choose among the likeliest tokens that together have this probability. Default: 0.9.
        top_k: Choose among so many of the likeliest tokens; 0 means all. Default: 0.
        min_p: Leave out tokens less likely than this share of the likeliest. Default: 0.
        repetition_penalty: Over 1, tokens that occurred get rarer; 0.01 to 10. Default: 1.1 over the last 64 tokens of
            the answer; 1 with a schema, tools or temperature 0.
        repeat_last_n: The repetition penalty looks at so many of the last tokens; -1 means all. Default: -1.
        presence_penalty: Taken off the logits of tokens that the answer has, -2 to 2. Default: 0.
        frequency_penalty: The same, times how often the answer has them. Default: 0.
        seed: The same seed gives the same answer, whatever else runs. Default: another one each time.
        stop: Up to 16 strings that end the answer; they are not part of it.
        logprobs: Log-probabilities of every token, with so many of the likeliest others, 0 to 20.
        logit_bias: Added to the logits of tokens, by their ids; -100 to 100.
        adapter: The name of an adapter of the model, or the folder of one, as a Path.
    """

    max_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    repeat_last_n: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    stop: str | Sequence[str] | None
    logprobs: int | None
    logit_bias: Mapping[int, float] | None
    adapter: str | Path | None


class ChatOptions(SamplingOptions, total=False):
    """What a chat may be given, besides the options of an answer.

    Attributes:
        system: A system message, put before the others.
        images: Paths or bytes of images (PNG, JPEG, WebP, GIF), put before the text of the last message.
        audio: Paths or bytes of WAV files, put before the images.
        tools: Functions that the model may call, as `Tool` or as OpenAI's clients write them.
        tool_choice: "auto", "required", "none", or the name of the one to call. Default: "auto".
        parallel_tool_calls: Whether several calls may be made at one time. Default: True.
        prediction: What the answer may be, such as a text before a small change. Where it is right the answer comes
            sooner; it changes no answer.
    """

    system: str | None
    images: Sequence[Image] | None
    audio: Sequence[Sound] | None
    tools: Sequence[Tool | Mapping[str, object]] | None
    tool_choice: str | None
    parallel_tool_calls: bool | None
    prediction: str | None


# Fields of an HTTP request under the same name and with the same meaning.
_SAME = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "repeat_last_n", "presence_penalty",
         "frequency_penalty", "seed", "stop", "max_tokens", "parallel_tool_calls")
_PROBE: Sequence[Message] = ({"role": "user", "content": "?"},)


def check(options: Mapping[str, object], kind: type[object]) -> None:
    """TypeError for an option that does not exist, as for any function of Python."""
    known = kind.__annotations__
    for name in options:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            raise TypeError(f"there is no option {name!r}" + (f"; did you mean {close[0]!r}?" if close else
                                                              f"; there are {', '.join(known)}"))


def check_many(prompts: object, options: ChatOptions, schema: object) -> None:
    """RequestError for what no prompt could make right: for a batch, before its first one."""
    check(options, ChatOptions)
    if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable | AsyncIterable):
        raise RequestError(f"prompts is one {type(prompts).__name__}; a list of prompts is wanted, or an iterator",
                           param="prompts", code="invalid_type")
    read_chat(_PROBE, options, schema)


def chat(model: LoadedModel, messages: Messages, options: ChatOptions, schema: object, *, context: int) -> ChatJob:
    """A chat for the engine: rendered, tokenized, with its constraint. `context` is the engine's."""
    if model.chat is None:
        raise RequestError(f"the model {model.name!r} has no chat template, it only completes text",
                           param="model", code="no_chat_template",
                           hint="use complete(), or choose a model whose name says Instruct or Chat")
    read = read_chat(messages, options, schema)
    is_free = read.grammar is None and not read.tooling.active
    job = chat_job(read, model, USUAL_SAMPLING if is_free else STRUCTURED_SAMPLING)
    return replace(job, request=limited(job.request, options, context))


def completion(model: LoadedModel, prompt: str | Sequence[int], suffix: str | None, options: SamplingOptions, *,
               context: int) -> Request:
    """A completion for the engine; with `suffix` it fills in the middle."""
    (request,) = completion_requests(read_completion(prompt, options, suffix), model, USUAL_SAMPLING)
    return limited(request, options, context)


def limited(request: Request, options: SamplingOptions, context: int) -> Request:
    """Without max_tokens an answer ends where a model that repeats itself would go on for minutes."""
    if options.get("max_tokens") is not None:
        return request
    room = context - len(request.prompt)
    return replace(request, max_tokens=min(USUAL_MAX_TOKENS, room) if room > 0 else None)


def read_chat(messages: Messages, options: ChatOptions, schema: object) -> ChatRequest:
    """The typed request, or a RequestError that names the argument."""
    body = _body(options)
    sounds, pictures = _several(options.get("audio") or (), "audio"), _several(options.get("images") or (), "images")
    attached = [*(audio_part(sound, f"audio[{index}]") for index, sound in enumerate(sounds)),
                *(image_part(picture, f"images[{index}]") for index, picture in enumerate(pictures))]
    body["messages"] = _messages(messages, options.get("system"), attached, "images" if pictures else "audio")
    if options.get("logprobs") is not None:
        body |= {"logprobs": True, "top_logprobs": _json(options["logprobs"], "logprobs")}
    if (tools := options.get("tools")) is not None:
        body["tools"] = [_json(tool.as_json() if isinstance(tool, Tool) else tool, f"tools[{index}]")
                         for index, tool in enumerate(_several(tools, "tools"))]
    choice = options.get("tool_choice")
    if choice is not None:
        body["tool_choice"] = choice if choice in ("auto", "required", "none") else {
            "type": "function", "function": {"name": choice}}
    if (wanted := json_schema(schema)) is not None:
        body["response_format"] = {"type": "json_schema", "json_schema": {
            "name": "answer", "schema": _json(wanted, "schema")}}
    if (prediction := options.get("prediction")) is not None:
        body["prediction"] = {"type": "content", "content": _json(prediction, "prediction")}
    json_text.check(body, "the request")
    return replace(parse_chat(body), names=SchemaNames("schema", "tools[{}].parameters"))


def read_completion(prompt: str | Sequence[int], options: SamplingOptions,
                    suffix: str | None = None) -> CompletionRequest:
    """The typed request, or a RequestError that names the argument."""
    body = _body(options)
    body["suffix"] = _json(suffix, "suffix")
    body["prompt"] = prompt if isinstance(prompt, str) else list(prompt)
    if options.get("max_tokens") == 0:
        raise RequestError("'max_tokens' is 0, allowed is 1 or more", param="max_tokens")
    body["max_tokens"] = body.get("max_tokens", 1)
    body["logprobs"] = _json(options.get("logprobs"), "logprobs")
    json_text.check(body, "the request")
    return parse_completion(body)


def image_part(image: Image, name: str = "an image") -> dict[str, Json]:
    """An image as a part of a message's content; a path is read now."""
    data = image if isinstance(image, bytes) else images.from_path(Path(image).expanduser())
    if not data:
        raise RequestError(f"{name} is empty", param=name, code="invalid_image")
    # The type that the URL names is not looked at: the bytes say what they are.
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(data).decode()}}


def audio_part(sound: Sound, name: str = "audio") -> dict[str, Json]:
    """A WAV file as a part of a message's content; a path is read now."""
    data = sound if isinstance(sound, bytes) else audio.from_path(Path(sound).expanduser())
    if not data:
        raise RequestError(f"{name} is empty", param=name, code="invalid_audio")
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "wav"}}


def _body(options: SamplingOptions) -> dict[str, Json]:
    given = {name: value for name, value in options.items() if name in _SAME and value is not None}
    body: dict[str, Json] = {"model": "model", **{name: _json(value, name) for name, value in given.items()}}
    if (bias := options.get("logit_bias")) is not None:
        body["logit_bias"] = _json({str(token): value for token, value in bias.items()}, "logit_bias")
    return body


def _messages(messages: Messages, system: str | None, attached: Sequence[dict[str, Json]], name: str) -> list[Json]:
    if isinstance(messages, str):
        messages = ({"role": "user", "content": messages},)
    read = [_json(message, f"messages[{index}]") for index, message in enumerate(_several(messages, "messages"))]
    if system is not None:
        read.insert(0, {"role": "system", "content": _json(system, "system")})
    if attached:
        last = read[-1] if read else None
        if not isinstance(last, dict) or last.get("role") != "user":
            raise RequestError(f"{name} belong to a user's message, and the last message is none", param=name)
        content = last.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        read[-1] = {**last, "content": [*attached, *parts]}
    return read


def _several(values: Sequence[T], name: str) -> Sequence[T]:
    """A mistake that is easily made: one message, tool or image where several are wanted."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Sequence):
        raise RequestError(f"{name} is one {type(values).__name__}; a list is wanted", param=name, code="invalid_type")
    return values


def _json(value: object, name: str) -> Json:
    """A value of Python as JSON has it; RequestError names what is something else."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            return {_key(key, name): _json(item, f"{name}.{key}") for key, item in value.items()}
        case list() | tuple():
            return [_json(item, f"{name}[{index}]") for index, item in enumerate(value)]
        case _:
            raise RequestError(f"{name} is of type {type(value).__name__}; allowed are strings, numbers, booleans and "
                               "None, and lists and mappings of these", param=name, code="invalid_type")


def _key(key: object, name: str) -> str:
    if not isinstance(key, str):
        raise RequestError(f"{name} has the key {key!r}; keys are strings", param=name, code="invalid_type")
    return key
