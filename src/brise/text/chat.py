"""Encodes messages with the model's own chat template; text in a message never becomes a control token.

The template gets the messages with every special token in them disguised: its first character is replaced by
a private-use character that occurs nowhere in the messages. So each special token in the rendered text is
the template's own; the text between them is restored and encoded as plain text.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cached_property

from brise.errors import RequestError
from brise.text.answer_format import ARRAY, END_ARRAY, AnswerFormat, calls_of_template
from brise.text.conversation import Chat
from brise.text.images import arranged
from brise.text.inputs import AudioInput, ImageInput
from brise.text.protocols import Before, Encoded, Message, TextTokenizer, kinds_of, parts_of, texts_of
from brise.text.sandbox import TemplateProgram
from brise.text.special_tokens import END_CALL, beginnings

# Templates write the role between control tokens, some into one ('<|' + role + '|>'): it may not be any text.
ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})

_CHATML = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
           "'<|im_end|>\\n' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


class ChatTemplate:
    """A model's chat format by its template. `knows_tools`: the template describes tools.

    With `adds_bos` a prompt begins with the tokenizer's bos where it says so, whether the template writes it or not.
    `program` is one of this source that starts already.
    """

    def __init__(self, source: str, tokenizer: TextTokenizer, *, adds_bos: bool = False,
                 program: TemplateProgram | None = None) -> None:
        self.source, self._tokenizer, self._begun = source, tokenizer, program
        self._bos = [tokenizer.bos_id] if adds_bos and tokenizer.add_bos and tokenizer.bos_id is not None else []
        # Models with another format for calls than those we parse get our own description of the tools.
        calls, self.knows_tools = calls_of_template(source, tokenizer)
        self.format = AnswerFormat.of(tokenizer, calls)
        self._shows_reasoning = "reasoning_content" in source
        self._knows_thinking_parts = re.search(r"""['"]thinking['"]""", source) is not None
        # Phi-4-mini's template has tools beside a system message; it and Granite 3's write no calls of an assistant.
        self._has_tools_in_messages = re.search(r"message(\[['\"]tools['\"]\]|\.tools\b)", source) is not None
        self._writes_calls = calls != "array" or "tool_calls" in source
        self._splits_reasoning = re.search(r"""split\(['"]</think>['"]\)""", source) is not None

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, object], tokenizer: TextTokenizer,
                  program: TemplateProgram | None = None) -> ChatTemplate | None:
        """The file's template, or what `or_chatml` finds. The file's flag asks for bos in chats as well: exporters take
        it out of the template. (A folder's flag does not, in transformers neither.)"""
        source = metadata.get("tokenizer.chat_template")
        return cls.or_chatml(source if isinstance(source, str) else None, tokenizer, adds_bos=True, program=program)

    @classmethod
    def or_chatml(cls, source: str | None, tokenizer: TextTokenizer, *, adds_bos: bool = False,
                  program: TemplateProgram | None = None) -> ChatTemplate | None:
        """This template; ChatML if there is none but ChatML's tokens; else None, as for base models."""
        if source is not None:
            return cls(source, tokenizer, adds_bos=adds_bos, program=program)
        is_chatml = {"<|im_start|>", "<|im_end|>"} <= tokenizer.control.keys()
        return cls(_CHATML, tokenizer, adds_bos=adds_bos) if is_chatml else None

    def prompt(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, object]] | None = None,
               add_generation_prompt: bool = True, continue_final: bool = False,
               variables: Mapping[str, object] | None = None) -> Encoded:
        """See Chat.prompt."""
        given = [source for message in messages for source in _sources(message)]
        tokens = self._encode(messages, given, tools=tools, add_generation_prompt=add_generation_prompt,
                              continue_final=continue_final, variables=variables or {})
        return Encoded(tuple(tokens), tuple(source for source in given if isinstance(source, ImageInput)),
                       tuple(source for source in given if isinstance(source, AudioInput)))

    def encode(self, messages: Sequence[Message], *, tools: Sequence[Mapping[str, object]] | None = None,
               add_generation_prompt: bool = True, continue_final: bool = False) -> list[int]:
        """Tokens of a conversation. With continue_final the last message, an assistant's, stays open."""
        return self._encode(messages, [], tools=tools, add_generation_prompt=add_generation_prompt,
                            continue_final=continue_final, variables={})

    def reads(self, name: str) -> bool:
        """See Chat.reads. A word in quotes or behind a dot is no variable."""
        return re.search(rf"(?<![\w.'\"]){re.escape(name)}(?![\w'\"])", self.source) is not None

    def values_of(self, name: str) -> None:
        """See Chat.values_of; a template says itself what it does not take."""

    def _encode(self, messages: Sequence[Message], sources: Sequence[ImageInput | AudioInput], *,
                tools: Sequence[Mapping[str, object]] | None, add_generation_prompt: bool,
                continue_final: bool, variables: Mapping[str, object]) -> list[int]:
        _check_roles(messages)
        if tools and not self.knows_tools:
            raise RequestError("the model's chat template knows no tools", param="tools", code="no_tools",
                               hint="describe them in a system message: tool_calls.tool_system_prompt")
        if self._splits_reasoning:
            messages = [_with_reasoning_apart(message, self._shows_reasoning) for message in messages]
        messages = [self.format.with_call_ids(self._with_known_parts(message)) for message in messages]
        if tools and self._has_tools_in_messages:
            messages = _with_tools(messages, tools)
        disguise = _Disguise(self._control, (messages, tools, variables), self.source)
        written = self._written(sources)
        shown = [disguise.hide_message(_with_image_parts(message) if written is not None
                                       else _with_placeholders(message, disguise.source_mark)) for message in messages]
        if not self._writes_calls:
            closing = END_ARRAY if END_CALL in self.format.tokens else ""
            shown = [_with_calls(message, closing) for message in shown]
        if continue_final:
            shown[-1] = _with_end_placeholder(shown[-1], disguise.end_placeholder)
        hidden = {name: disguise.hide(value) for name, value in variables.items()}
        text = self._program.render(hidden | {
            "messages": shown, "tools": [disguise.hide(tool) for tool in tools] if tools else None,
            "add_generation_prompt": add_generation_prompt and not continue_final, "documents": None,
            "bos_token": self._name(self._tokenizer.bos_id), "eos_token": self._name(self._tokenizer.eos_id)})
        if continue_final:
            text, mark, _ = text.rpartition(disguise.end_placeholder)
            if not mark:
                raise RequestError("the model's chat template leaves out the message that is to be continued",
                                   param="messages", code="chat_template_error")
        if written is not None:
            text = text.replace(written.written, f"{written.around}{disguise.source_mark}{written.around}")
        if text.count(disguise.source_mark) != len(sources):
            kind = "an image" if isinstance(sources[0], ImageInput) else "audio"
            raise RequestError(f"the model's chat template leaves out {kind}", param="messages",
                               code="chat_template_error")
        return self._tokens(text, disguise, sources)

    def _written(self, sources: Sequence[ImageInput | AudioInput]) -> ImageInput | None:
        """An image for which this template itself writes a special token, so that parts may stay apart, in order."""
        return next((source for source in sources if isinstance(source, ImageInput) and source.written
                     and source.written in self.source), None)

    def warm(self) -> None:
        """Starts the process of the template, so that the first conversation does not wait for it."""
        with suppress(RequestError):  # the first conversation says what is wrong
            _ = self._program

    def _with_known_parts(self, message: Message) -> Message:
        """Thinking in the form that the template knows; a template without one does not get it."""
        reasoning = message.get("reasoning_content")
        if reasoning and not self._shows_reasoning:
            message = {key: value for key, value in message.items() if key != "reasoning_content"}
            if self._knows_thinking_parts:
                thinking = {"type": "thinking", "thinking": reasoning}
                message = {**message, "content": [thinking, *parts_of(message.get("content"))]}
        if "thinking" not in kinds_of(message.get("content")) or self._knows_thinking_parts:
            return message
        parts = [part for part in parts_of(message["content"]) if part["type"] != "thinking"]
        return {**message, "content": "".join(str(part.get("text", "")) for part in parts)}

    @cached_property
    def _program(self) -> TemplateProgram:
        return self._begun or TemplateProgram(self.source)  # not needed before the first conversation

    @cached_property
    def _control(self) -> _SpecialTokens:
        return _SpecialTokens(self._tokenizer.control.keys())

    def _name(self, token: int | None) -> str:
        return "" if token is None else self._tokenizer.token_text(token)

    def _tokens(self, text: str, disguise: _Disguise, sources: Sequence[ImageInput | AudioInput]) -> list[int]:
        ids: list[int] = []
        rest = iter(sources)
        before: Before = "start"
        for index, piece in enumerate(self._tokenizer.splitter.split(text)):
            if index % 2:
                ids.append(self._tokenizer.control[piece])
                before = "special"
                continue
            for number, words in enumerate(piece.split(disguise.source_mark)):
                if number:
                    ids.extend(next(rest).tokens)
                    before = "special"
                ids.extend(self._tokenizer.encode(disguise.reveal(words), before=before))
        return ids if ids[:1] == self._bos else [*self._bos, *ids]


def require(chat: Chat | None) -> Chat:
    """The chat format; raises RequestError for a model without one."""
    if chat is None:
        raise RequestError("this model has no chat template", param="model", code="no_chat_template",
                           hint="it continues text: use /v1/completions, or take an instruct model")
    return chat


class _SpecialTokens:
    """What the disguise needs to know about the vocabulary's special tokens; the same for all conversations."""

    def __init__(self, control: Collection[str]) -> None:
        self.firsts = sorted({text[0] for text in control})
        self.beginnings = beginnings(control)
        self._sorted = sorted(control)
        self.longest = max(map(len, control), default=1) - 1  # of what begins a special token and is none yet

    def may_become_one(self, end: str) -> bool:
        """Whether a special token begins with this text and goes on."""
        at = bisect_right(self._sorted, end)
        return at < len(self._sorted) and self._sorted[at].startswith(end)


class _Disguise:
    """Hides the special tokens in a client's text, and restores them."""

    def __init__(self, control: _SpecialTokens, written: object, source: str) -> None:
        free = _unused_characters({*source}.union(*texts_of(written)), len(control.firsts) + 2)
        self.end_placeholder, self.source_mark = free.pop(), free.pop()
        self._control = control
        self._standin = dict(zip(control.firsts, free, strict=True))
        self._original = {ord(standin): first for first, standin in self._standin.items()}

    def hide_message(self, message: Mapping[str, object]) -> dict[str, object]:
        return {key: value if key == "role" else self.hide(value) for key, value in message.items()}

    def hide(self, value: object) -> object:
        """The value with its strings disguised, the keys of mappings too."""
        match value:
            case str():
                return self._hide_open_end(self._hide_whole(value))
            case Mapping():
                return {self._hide_whole(str(key)): self.hide(item) for key, item in value.items()}
            case list() | tuple():
                return [self.hide(item) for item in value]
            case _:
                return value

    def reveal(self, text: str) -> str:
        return text.translate(self._original)

    def _hide_whole(self, text: str) -> str:
        return self._control.beginnings.sub(lambda match: self._standin[match[0]], text)

    def _hide_open_end(self, text: str) -> str:
        """An end that could begin a special token must not find its rest in the string that follows."""
        if text in _TYPES:
            return text
        start = max(len(text) - self._control.longest, 0)
        end = list(text[start:])
        for at, char in enumerate(text[start:]):
            if char in self._standin and self._control.may_become_one("".join(end[at:])):
                end[at] = self._standin[char]
        return text[:start] + "".join(end)


SOURCES = ("image", "input_audio")  # types of parts that hold an engine's input
# Words of the protocol that templates compare with; control tokens that begin with their last letters exist.
_TYPES = frozenset({"text", "thinking", "image", "image_url", "function", "object", "string", "number", "integer",
                    "boolean", "array", "null"})


def _unused_characters(used: set[str], count: int) -> list[str]:
    free: list[str] = []
    for first, last in ((0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD)):  # Unicode's private use
        for code in range(first, last + 1):
            if len(free) == count:
                return free
            if chr(code) not in used:
                free.append(chr(code))
    raise RequestError("the messages use up Unicode's private-use characters", param="messages")


def _check_roles(messages: Sequence[Mapping[str, object]]) -> None:
    for index, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES:
            raise RequestError(f"messages[{index}].role is {role!r}; allowed are {', '.join(sorted(ROLES))}",
                               param=f"messages[{index}].role")


def _with_reasoning_apart(message: Mapping[str, object], shows_reasoning: bool) -> Mapping[str, object]:
    """Does what the template would do if it could see a disguised </think> in an assistant's answer.

    Templates that can show the reasoning (Qwen 3) strip what follows it, those that drop it (R1) do not.
    """
    content = message.get("content")
    if message["role"] != "assistant" or not isinstance(content, str) or "</think>" not in content:
        return message
    parts = content.split("</think>")
    reasoning = parts[0].split("<think>")[-1].strip("\n")
    answer = parts[-1].lstrip("\n") if shows_reasoning else parts[-1]
    return {"reasoning_content": reasoning, **message, "content": answer}


def _sources(message: Message) -> list[ImageInput | AudioInput]:
    """The images and audio of a message, in the order in which its text has them."""
    parts = arranged(parts_of(message.get("content")))
    found = [part.get("image", part.get("audio")) for part in parts if part["type"] in SOURCES]
    sources = [source for source in found if isinstance(source, ImageInput | AudioInput)]
    assert len(sources) == len(found), "a part holds the engine's input"
    return sources


def _with_placeholders(message: Message, mark: str) -> Message:
    """A message with a placeholder in the text for each image and audio, so that templates for text alone can write
    it."""
    if not _sources(message):
        return message
    parts = arranged(parts_of(message["content"]))
    return {**message, "content": "".join(mark if part["type"] in SOURCES else str(part["text"]) for part in parts)}


def _with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, object]]) -> list[Message]:
    """The tools as JSON beside the first system message, which there is one of (the words are Phi-4-mini's card's)."""
    listed = json.dumps([tool.get("function", tool) for tool in tools], ensure_ascii=False)
    if not messages or messages[0]["role"] != "system":
        messages = [{"role": "system", "content": "You are a helpful assistant with some tools."}, *messages]
    return [{**messages[0], "tools": listed}, *messages[1:]]


def _with_calls(message: dict[str, object], closing: str) -> dict[str, object]:
    """An assistant's calls in its text, in the model's own format; `message` is disguised already."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list) or not calls:
        return message
    functions = [{"name": call["function"]["name"], "arguments": _object(call["function"].get("arguments"))}
                 for call in calls]
    written = f"{ARRAY}{json.dumps(functions, ensure_ascii=False)}{closing}"
    return {**message, "content": f"{message.get('content') or ''}{written}"}


def _object(arguments: object) -> object:
    """Arguments that came as JSON text, as an object; others as they are."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _with_image_parts(message: Message) -> Message:
    """A message with images as parts that say no more than that they are images."""
    if not _sources(message):
        return message
    parts = [{"type": "image"} if part["type"] == "image" else part for part in parts_of(message["content"])]
    return {**message, "content": parts}


def _with_end_placeholder(message: dict[str, object], mark: str) -> dict[str, object]:
    content = message.get("content")
    if message["role"] != "assistant" or content == [] or not isinstance(content, str | list):
        raise RequestError("only an assistant's message with text can be continued", param="messages")
    if isinstance(content, str):
        return {**message, "content": content + mark}
    *before, last = content
    if last["type"] != "text":
        raise RequestError("only an assistant's message that ends with text can be continued", param="messages")
    return {**message, "content": [*before, {**last, "text": last["text"] + mark}]}
