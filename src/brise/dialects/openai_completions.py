"""OpenAI's completions: /v1/completions, a prompt and the text that follows it."""

from __future__ import annotations

from collections.abc import Sequence

from brise.dialects import bodies, chat_form, choices, failures, sse, token_counts
from brise.dialects.bodies import Body, Fields, Kind, Usage, first_choice
from brise.dialects.chat_form import Message
from brise.dialects.choices import joined_logprobs
from brise.dialects.dialect import Progress
from brise.dialects.items import ConversationItem
from brise.text import finish_reasons
from brise.text.finish_reasons import FinishReason


class OpenAICompletions:
    """Implements `Dialect`. Its requests are no conversations: nothing in them could be continued by another."""

    name: Kind = "completion"
    path = "/v1/completions"
    operation, provider = "text_completion", "openai"
    is_read = is_served = has_small_models = continues = True
    is_switched = names_events = False
    counts_on_request = is_deployed = True

    def key_header(self, key: bytes) -> tuple[bytes, bytes]:
        return b"authorization", b"Bearer " + key

    def conversation(self, request: Body) -> list[ConversationItem]:
        return []

    def continued_id(self, request: Body) -> None:
        return None

    def context_digest(self, request: Body) -> str | None:
        return bodies.context_digest(request)

    def with_prefix(self, request: Body, prefix: str) -> Body | None:
        prompt = request.get("prompt")
        if not isinstance(prompt, str) or request.get("echo"):
            return None
        return {**request, "prompt": prompt + prefix}

    def answers(self, response: Body) -> list[list[ConversationItem]]:
        return []

    def answer_id(self, response: Body) -> None:
        return None

    def failure(self, response: object) -> str | None:
        return failures.of_choices(response, "text", str)

    def finish_reason(self, response: Body) -> FinishReason | None:
        return finish_reasons.common((first_choice(response) or {}).get("finish_reason"))

    def usage(self, response: Body) -> Usage | None:
        return token_counts.of_openai(response)

    def error_body(self, message: str, code: str) -> Body:
        return bodies.openai_error(message, code)

    def error_event(self, message: str, code: str) -> Body:
        return bodies.openai_error(message, code)

    def advance(self, progress: Progress, event_type: str, event: Body) -> None:
        choices.advance(progress, event)

    def assemble(self, events: Sequence[Fields]) -> tuple[Body | None, bool]:
        return choices.assemble(events, "text_completion", _GrowingText)

    def encode(self, event: Body) -> bytes:
        return sse.encode(event)

    def stream_end(self) -> bytes:
        return sse.END

    def is_last(self, event: Body) -> bool:
        return choices.is_last(event)

    def continuation(self, event: Body, progress: Progress) -> Body | None:
        return choices.continuation(event, progress)

    def chat_messages(self, request: Body) -> list[Message]:
        prompt = request.get("prompt")
        if not isinstance(prompt, str):
            raise ValueError("its prompt is no single text")
        return [{"role": "user", "content": prompt}]

    def chat_answer(self, response: Body) -> Message:
        choice = first_choice(response)
        if choice is None:
            raise ValueError("its answer has no choices")
        return chat_form.answered({"role": "assistant", "content": choice.get("text")})

    def chat_tools(self, request: Body) -> list[Message]:
        return chat_form.functions(request, lambda tool: None)


class _GrowingText:
    """One answer as it grows."""

    def __init__(self, index: int) -> None:
        self._index, self._finish = index, None  # type: int, object
        self._texts: list[str] = []
        self._logprobs: Fields | None = None
        self._others: Fields = {}

    def push(self, piece: Fields) -> None:
        for name, value in piece.items():
            if value is None or name == "index":
                continue
            if name == "text" and isinstance(value, str):
                self._texts.append(value)
            elif name == "finish_reason":
                self._finish = value
            elif name == "logprobs":
                self._logprobs = joined_logprobs(self._logprobs, value)
            else:
                self._others[name] = value

    def whole(self) -> Fields:
        return {"text": "".join(self._texts), "index": self._index, "logprobs": self._logprobs,
                "finish_reason": self._finish, **self._others}
