"""A conversation with a model: the messages so far, and answers that stream.

All messages are encoded again for every answer. That is cheap: the engine's prefix cache holds the keys and values of
the earlier ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from brise.cli.chat_options import ChatSettings
from brise.engine.answer_collector import AnswerCollector
from brise.engine.engine import Engine
from brise.engine.model import LoadedModel
from brise.engine.request import USUAL_MAX_TOKENS, FinishReason, Request
from brise.errors import BriseError, ContextLengthError, RequestError, UnsupportedError
from brise.text import audio, images
from brise.text.answer_events import Parsed
from brise.text.conversation import suggested_system
from brise.text.protocols import parts_of

Message = Mapping[str, object]
SUGGESTED = "@model"  # as a system prompt: the one that comes with the model


@dataclass(frozen=True)
class PrintedAnswer:
    """Text and reasoning of an answer, why it ended, and its speed."""

    text: str
    reasoning: str
    finish: FinishReason
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    first_token_s: float
    rest_s: float  # from the first token to the last

    @property
    def stats(self) -> str:
        rate = (self.completion_tokens - 1) / self.rest_s if self.completion_tokens > 1 else 0.0
        return (f"[{self.completion_tokens} tokens, {rate:.1f} tokens/s; "
                f"first token after {self.first_token_s:.2f} s; "
                f"prompt {self.prompt_tokens} tokens, {self.cached_tokens} cached]")


class Conversation:
    """Messages and the engine that answers them. The engine runs in the caller's thread."""

    def __init__(self, model: LoadedModel, engine: Engine, system: str | None, adapter: str | None = None) -> None:
        if model.chat is None:
            raise UnsupportedError(f"the model {model.name!r} has no chat template, it only completes text",
                                   hint="choose a model whose name says Instruct or Chat")
        self.model, self.generation = model.name, model.generation
        self.chat = model.chat
        self.engine, self.adapter = engine, adapter
        self.max_context = model.config.max_context
        self._suggested = model.system_prompt
        self.system: str | None = None
        self.set_system(system)
        self.turns: list[Message] = []  # user and assistant in turn
        self.vision, self.audio = model.vision, model.audio
        self.attached: list[Message] = []  # images and audio for the next question, as parts of its content

    def attach(self, path: str) -> None:
        """Adds an image to the next question."""
        if self.vision is None:
            raise RequestError(f"the model {self.model!r} takes no images: it has no vision encoder", code="no_vision",
                               hint="the vision encoder of a GGUF model is a second file in its folder, mmproj*.gguf")
        image = images.prepare(images.from_path(Path(os.path.expanduser(path))), self.vision.settings, path)
        self.attached.append({"type": "image", "image": image, "path": path})

    def attach_audio(self, path: str) -> None:
        """Adds audio to the next question."""
        if self.audio is None:
            raise RequestError(f"the model {self.model!r} takes no audio: it has no audio encoder", code="no_audio",
                               hint="the audio encoder of a GGUF model is a second file in its folder, mmproj*.gguf")
        heard = audio.prepare(audio.from_path(Path(os.path.expanduser(path))), self.audio.settings, path)
        self.attached.append({"type": "input_audio", "audio": heard, "path": path})

    def clear(self) -> None:
        """Forgets all messages, images and audio."""
        self.turns.clear()
        self.attached.clear()

    @property
    def saved(self) -> list[Message]:
        """The messages as they are saved, with the paths of images and audio."""
        return [{**message, "content": [{key: value for key, value in part.items() if key not in ("image", "audio")}
                                        for part in parts_of(message["content"])]}
                if isinstance(message["content"], list) else message for message in self.messages]

    def set_system(self, text: str | None) -> None:
        """Sets the system prompt; `@model` is the one that the makers of the model suggest."""
        if text == SUGGESTED and self._suggested is None:
            raise RequestError(f"the model {self.model!r} comes without a SYSTEM_PROMPT.txt", param="system",
                               hint="write one: --system TEXT")
        self.system = text

    @property
    def messages(self) -> list[Message]:
        if not self.system:
            return [*self.turns]
        content: object = self.system
        if self.system == SUGGESTED and self._suggested is not None:
            content = suggested_system(self._suggested, self.model, date.today(), can_think=self.chat.format.can_think)
        return [{"role": "system", "content": content}, *self.turns]

    def ask(self, text: str, options: ChatSettings, write: Callable[[Parsed], None],
            is_stopped: Callable[[], bool]) -> PrintedAnswer:
        """Answers `text`; calls `write` with each piece of the answer until it ends or `is_stopped` is true.

        A refused question is not kept; an answer that was stopped is, as far as it came.
        """
        content = [*self.attached, {"type": "text", "text": text}] if self.attached else text
        question: Message = {"role": "user", "content": content}
        encoded = self.chat.prompt([*self.messages, question])
        tokens = encoded.tokens
        parser = self.chat.format.parser(is_thinking=self.chat.format.thinks_at_end_of(tokens))
        collector = AnswerCollector(parser, self.chat.format.new_call_id, may_call=False)
        room = self.engine.max_context - len(tokens)
        max_tokens = options.max_tokens or (min(USUAL_MAX_TOKENS, room) if room > 0 else None)
        request = Request(prompt=tokens, max_tokens=max_tokens, sampling=options.sampling(self.generation.sampling),
                          sentinels=self.chat.format.sentinels, images=encoded.images, audios=encoded.audios,
                          begins_text=True, adapter=self.adapter)
        try:
            request_id = self.engine.submit(request)
        except ContextLengthError as error:
            error.hint = self._how_to_fit(room)
            raise
        answer = self._stream(request_id, len(tokens), collector, write, is_stopped)
        if answer.text:
            self.attached = []
            reasoning = {"reasoning_content": answer.reasoning} if answer.reasoning else {}
            self.turns += [question, {"role": "assistant", "content": answer.text, **reasoning}]
        return answer

    def _how_to_fit(self, room: int) -> str:
        """What helps if the answer does not fit into the context, which has `room` tokens left after the prompt."""
        hints = ["/clear forgets the conversation so far"] if self.turns else []
        if room > 0:
            hints.append(f"--max-tokens N with N up to {room} fits")
        if not hints:
            hints.append("ask something shorter")
        if self.engine.max_context < self.max_context:
            hints.append(f"a longer context takes --context N (this model: up to {self.max_context})")
        return "; ".join(hints)

    def ask_again(self, options: ChatSettings, write: Callable[[Parsed], None],
                  is_stopped: Callable[[], bool]) -> PrintedAnswer:
        """Asks the last question again; the old answer stays if there is no new one."""
        turns, attached = [*self.turns], self.attached
        *self.attached, question = parts_of(turns[-2]["content"])
        del self.turns[-2:]
        try:
            return self.ask(str(question["text"]), options, write, is_stopped)
        finally:
            self.attached = attached
            if len(self.turns) < len(turns):
                self.turns = turns

    def _stream(self, request_id: str, prompt_tokens: int, collector: AnswerCollector,
                write: Callable[[Parsed], None], is_stopped: Callable[[], bool]) -> PrintedAnswer:
        start_s = first_s = last_s = time.perf_counter()
        cached = completion = 0
        finish: FinishReason | None = None
        while self.engine.has_work:
            if is_stopped():
                self.engine.cancel(request_id)
            for delta in self.engine.step():
                last_s = time.perf_counter()
                first_s = first_s if completion else last_s
                cached = max(cached, delta.cached_tokens)
                completion = max(completion, delta.completion_tokens)
                for piece in collector.push(delta):
                    write(piece)
                finish = delta.finish or finish
                if delta.finish == "error":
                    raise BriseError(f"the answer broke off: {delta.error}")
        return PrintedAnswer(collector.text, collector.reasoning, finish or "cancelled", prompt_tokens, cached,
                             completion, first_s - start_s, last_s - first_s)
