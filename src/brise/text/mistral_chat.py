"""Encodes messages with mistral-common, for each version of Mistral's chat format (extra `mistral`).

Users' text is encoded as text, so no text becomes a control token. No system prompt is added. What
mistral-common refuses is refused in its words.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import numpy as np
from mistral_common.exceptions import (
    InvalidToolException,
    InvalidToolSchemaException,
    MistralCommonException,
)
from mistral_common.protocol.instruct.chunk import (
    AudioChunk,
    AudioURLChunk,
    ContentChunk,
    ImageChunk,
    ImageURLChunk,
    TextChunk,
    ThinkChunk,
)
from mistral_common.protocol.instruct.messages import (
    AssistantMessage,
    ChatMessage,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from mistral_common.protocol.instruct.normalize import get_normalizer
from mistral_common.protocol.instruct.request import ChatCompletionRequest, ReasoningEffort
from mistral_common.protocol.instruct.tool_calls import Function, FunctionCall, Tool, ToolCall
from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
from mistral_common.tokens.tokenizers.audio import AudioEncoder, AudioEncoding
from mistral_common.tokens.tokenizers.image import ImageEncoder, ImageEncoding

from brise.errors import RequestError
from brise.text.answer_format import AnswerFormat, CallStyle
from brise.text.inputs import AudioInput, ImageInput
from brise.text.mistral import CommonTokenizer, MistralTokenizer, check_unicode
from brise.text.protocols import Encoded, Message, TextTokenizer, kinds_of, parts_of, texts_of

_CALLS: Mapping[str, CallStyle] = MappingProxyType({"v1": "tags", "v2": "list", "v3": "list", "v7": "list"})


class MistralChat:
    """The chat format of a tekken.json or of a SentencePiece file, which mistral-common's object knows."""

    def __init__(self, tokenizer: TextTokenizer, common: CommonTokenizer) -> None:
        self.version = common.version.value
        self.knows_tools = self.version != "v1"  # where none are known they are described in the system message
        self.format = AnswerFormat.of(tokenizer, _CALLS.get(self.version, "named"))
        self.common = common
        self._tokenizer = tokenizer
        settings = common.instruct_tokenizer.tokenizer.model_settings_builder
        efforts = None if settings is None else settings.reasoning_effort
        self._efforts = () if efforts is None else tuple(map(str, efforts.values))
        self._shows_thinking = self.format.can_think and self.version in ("v13", "v15")

    @classmethod
    def of(cls, tokenizer: MistralTokenizer) -> MistralChat:
        """The chat format of a tekken.json."""
        return cls(tokenizer, tokenizer.common)

    def prompt(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, object]] | None = None,
               add_generation_prompt: bool = True, continue_final: bool = False,
               variables: Mapping[str, object] | None = None) -> Encoded:
        """See Chat.prompt."""
        effort = (variables or {}).get("reasoning_effort")
        for text in texts_of((list(messages), list(tools or []))):
            check_unicode(text)
        is_finished = bool(messages) and messages[-1].get("role") == "assistant" and not continue_final
        if continue_final and (not messages or messages[-1].get("role") != "assistant"):
            raise RequestError("only an assistant's message with text can be continued", param="messages")
        # A conversation that is complete is only checked as one that a model is trained on.
        mode = ValidationMode.finetuning if is_finished and not add_generation_prompt else ValidationMode.serving
        images, audios = _Images(), _Audios()
        messages = _with_cut_calls_as_text(messages)
        with _errors_named():
            converted = [self._message(self.format.with_call_ids(message), index,
                                       continue_final and index == len(messages) - 1, images, audios)
                         for index, message in enumerate(messages)]
            request: ChatCompletionRequest[ChatMessage] = ChatCompletionRequest(
                model="local", messages=converted, tools=[_tool(tool) for tool in tools] if tools else None,
                reasoning_effort=None if effort is None else ReasoningEffort(str(effort)))
            tokens = _encoder(self.common, mode, images, audios).encode_chat_completion(request).tokens
        return Encoded(tuple(tokens), tuple(images.placed), tuple(audios.placed))

    def reads(self, name: str) -> bool:
        """See Chat.reads: an effort of reasoning is the only one, where the tekken.json has a setting for it."""
        return name == "reasoning_effort" and bool(self._efforts)

    def values_of(self, name: str) -> Collection[str]:
        """See Chat.values_of."""
        return self._efforts

    def _message(self, message: Message, index: int, is_open: bool, images: _Images,
                 audios: _Audios) -> ChatMessage:
        content = message.get("content")
        match message.get("role"):
            case "system" | "developer":
                return SystemMessage(content=self._content(content, index, images, audios))
            case "user":
                return UserMessage(content=self._content(content, index, images, audios))
            case "tool":
                name = message.get("name")
                return ToolMessage(content=self._content(content, index, images, audios),
                                   name=str(name) if name else None, tool_call_id=str(message.get("tool_call_id")))
            case "assistant":
                reasoning = message.get("reasoning_content")
                if reasoning and "thinking" not in kinds_of(content):
                    content = [{"type": "thinking", "thinking": reasoning}, *parts_of(content)]
                return AssistantMessage(content=self._content(content, index, images, audios) or None, prefix=is_open,
                                        tool_calls=_calls(message.get("tool_calls")))
            case role:
                raise RequestError(f"messages[{index}].role is {role!r}; allowed are assistant, developer, system, "
                                   "tool, user", param=f"messages[{index}].role")

    def _content(self, content: object, index: int, images: _Images,
                 audios: _Audios) -> str | list[ContentChunk]:
        """Text stays text; a model that cannot think does not get another one's reasoning."""
        if isinstance(content, str):
            return content
        chunks: list[ContentChunk] = []
        for part in parts_of(content):
            match part:
                case {"type": "text", "text": str(text)}:
                    chunks.append(TextChunk(text=text))
                case {"type": "thinking", "thinking": str(thinking)}:
                    if self._shows_thinking:
                        chunks.append(ThinkChunk(thinking=thinking, closed=part.get("closed") is not False))
                case {"type": "image", "image": ImageInput() as image}:
                    chunks.append(images.chunk(image))
                case {"type": "input_audio", "audio": AudioInput() as audio}:
                    chunks.append(audios.chunk(audio))
                case _:
                    raise RequestError(f"messages[{index}].content has a part of type {part.get('type')!r}",
                                       param=f"messages[{index}].content", code="unsupported_parameter")
        if not all(isinstance(chunk, TextChunk) for chunk in chunks):
            return chunks
        return "".join(chunk.text for chunk in chunks if isinstance(chunk, TextChunk))


class _Images(ImageEncoder):
    """Replaces mistral-common's image encoder: the images are prepared already, their tokens known."""

    def __init__(self) -> None:
        self._images: list[ImageInput] = []
        self.placed: list[ImageInput] = []  # in the order of the prompt

    def chunk(self, image: ImageInput) -> ImageURLChunk:
        self._images.append(image)
        return ImageURLChunk(image_url=str(len(self._images) - 1))

    def __call__(self, content: ImageChunk | ImageURLChunk) -> ImageEncoding:
        assert isinstance(content, ImageURLChunk), "made by `chunk`"
        image = self._images[int(content.get_url())]
        self.placed.append(image)
        return ImageEncoding(tokens=list(image.tokens), image=np.empty(0, np.float32))


class _Audios(AudioEncoder):
    """Replaces mistral-common's audio encoder: the audio is prepared already, its tokens known."""

    def __init__(self) -> None:
        self._audios: list[AudioInput] = []
        self.placed: list[AudioInput] = []  # in the order of the prompt

    @property
    def is_empty(self) -> bool:
        return not self._audios

    def chunk(self, audio: AudioInput) -> AudioChunk:
        self._audios.append(audio)
        return AudioChunk(input_audio=str(len(self._audios) - 1))

    def __call__(self, content: AudioChunk | AudioURLChunk) -> AudioEncoding:
        assert isinstance(content, AudioChunk), "made by `chunk`"
        audio = self._audios[int(content.input_audio)]
        self.placed.append(audio)
        return AudioEncoding(tokens=list(audio.tokens), audio=None)


def _encoder(common: CommonTokenizer, mode: ValidationMode, images: _Images, audios: _Audios) -> CommonTokenizer:
    """mistral-common's encoder of the file's version, with checks of that mode, these images and this audio."""
    own = common.instruct_tokenizer
    version = own.tokenizer.version
    instruct = type(own)(own.tokenizer, None if version.value in ("v1", "v2") else images, None)
    instruct.audio_encoder = None if audios.is_empty else audios
    return CommonTokenizer(instruct, get_validator(version, mode),
                           get_normalizer(version, own.tokenizer.model_settings_builder))


def _tool(tool: Mapping[str, object]) -> Tool:
    function = tool["function"]
    assert isinstance(function, Mapping)
    return Tool(function=Function(name=function["name"], description=function.get("description") or "",
                                  parameters=dict(function.get("parameters") or {})))


def _with_cut_calls_as_text(messages: Sequence[Message]) -> list[Message]:
    """The messages, where a call that was cut and that nobody answered is text: each call must have a result."""
    answered = {message.get("tool_call_id") for message in messages if message.get("role") == "tool"}
    return [_cut_as_text(message, answered) if message.get("tool_calls") else message for message in messages]


def _cut_as_text(message: Message, answered: Collection[object]) -> Message:
    calls = message["tool_calls"]
    assert isinstance(calls, Sequence)
    cut = [call for call in calls if not _is_whole(call["function"]["arguments"]) and call["id"] not in answered]
    if not cut:
        return message
    written = "\n".join(call["function"]["name"] + (call["function"]["arguments"] or "") for call in cut)
    parts = [*parts_of(message.get("content")), {"type": "text", "text": written}]
    return {**message, "content": parts, "tool_calls": [call for call in calls if call not in cut]}


def _is_whole(arguments: object) -> bool:
    """Whether arguments are there, and are an object. A call that was cut behind its name has none."""
    return bool(arguments) and not isinstance(arguments, str)


def _calls(calls: object) -> list[ToolCall] | None:
    if not isinstance(calls, Sequence) or not calls:
        return None
    return [ToolCall(id=call["id"], function=FunctionCall(name=call["function"]["name"],
                                                          arguments=_arguments(call["function"]["arguments"])))
            for call in calls]


def _arguments(arguments: object) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


@contextmanager
def _errors_named() -> Iterator[None]:
    try:
        yield
    except RequestError:
        raise
    except (InvalidToolException, InvalidToolSchemaException) as error:
        raise RequestError(f"a tool cannot be used: {error.message}", param="tools") from error
    except MistralCommonException as error:
        raise RequestError(f"the model's chat format refuses these messages: {error.message}", param="messages",
                           code="chat_template_error") from error
    except (ValueError, TypeError, KeyError, AssertionError, RecursionError) as error:
        raise RequestError(f"the model's chat format refuses these messages: {str(error)[:300]}", param="messages",
                           code="chat_template_error") from error
