"""One call for the engine: its request, and what puts its answer together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, cast

from brise.api import options as reading
from brise.api.answers import Growing, Score
from brise.api.options import ChatOptions, Messages, SamplingOptions
from brise.api.schemas import no_value, reader
from brise.engine.answer_collector import AnswerCollector
from brise.engine.embedding import shortened
from brise.engine.embedding import vector_size as vector_size
from brise.engine.engine_thread import EngineThread
from brise.engine.model import LoadedModel
from brise.engine.request import Delta, Request
from brise.errors import AnswerError, ClosedError, RequestError
from brise.robots.action_chunk import ActionChunk, ActionOptions, acting, actions_of, read_chunk
from brise.serve.prompts import prompt_tokens, text_to_embed
from brise.text.answer_events import Parsed, ParsedText

if TYPE_CHECKING:  # an import of tens of milliseconds that most calls do not need
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")
Call = tuple[Request, Growing[T]]
MAX_TOP = 20  # as for answers


def chat(worker: EngineThread, messages: Messages, options: ChatOptions, schema: object,
         adapter: str | None) -> Call[T]:
    """A chat. The type of its value is known to who gave the schema."""
    job = reading.chat(worker.model, messages, options, schema, context=worker.max_context)
    read = cast(Callable[[str], T], reader(schema))
    return replace(job.request, adapter=adapter), Growing(worker.model.name, job.collector(), read, job.unenforced)


def completion(worker: EngineThread, prompt: str | Sequence[int], suffix: str | None, options: SamplingOptions,
               adapter: str | None) -> Call[None]:
    """A completion: all of its text is the answer."""
    request = reading.completion(worker.model, prompt, suffix, options, context=worker.max_context)
    collector = AnswerCollector(_PlainText(), str, may_call=False)
    return replace(request, adapter=adapter), Growing(worker.model.name, collector, no_value)


def score(worker: EngineThread, text: str, given: str, top: int, adapter: str | None) -> tuple[Request, int]:
    """A pass over the text that writes nothing, and the number of tokens before it."""
    for name, value in (("text", text), ("given", given)):
        if not isinstance(value, str):
            raise RequestError(f"{name} is of type {type(value).__name__}; a string is wanted", param=name,
                               code="invalid_type")
    if not isinstance(top, int) or not 0 <= top <= MAX_TOP:
        raise RequestError(f"top is {top!r}, allowed is 0 to {MAX_TOP}", param="top")
    tokenizer = worker.model.tokenizer
    before = prompt_tokens(given, tokenizer)
    tokens = (*before, *tokenizer.encode(text, before="text" if given else "start"))
    if len(tokens) == len(before):
        raise RequestError("the text has no tokens", param="text")
    return Request(prompt=tokens, max_tokens=0, prompt_logprobs=top, adapter=adapter), len(before)


def act(worker: EngineThread, messages: Messages, adapter: str | None, options: ActionOptions,
        ) -> ActionChunk:
    """One chunk of actions."""
    space = actions_of(worker, adapter)
    job = reading.chat(worker.model, messages, {"temperature": 0.0}, None, context=worker.max_context)
    tokens: list[int] = []
    finish = None
    with worker.generate(replace(acting(job.request, space, options), adapter=adapter)) as deltas:
        for delta in deltas:
            if delta.finish == "error":
                raise AnswerError(f"no action was decided: {delta.error}")
            if delta.finish == "cancelled":
                raise ClosedError(f"the model {worker.model.name!r}")
            tokens += delta.tokens
            finish = delta.finish
    return read_chunk(space, tokens, options, is_late=finish == "late")


def read_score(name: str, deltas: Iterable[Delta], start: int) -> Score:
    """The scores of the tokens from `start` on."""
    score = None
    for delta in deltas:
        if delta.finish == "error":
            raise AnswerError(f"the text could not be scored: {delta.error}")
        if delta.finish == "cancelled":
            raise ClosedError(f"the model {name!r}")
        if delta.prompt_logprobs is not None:
            score = Score(tuple(token for token in delta.prompt_logprobs[start:] if token is not None))
    if score is None:
        raise AnswerError("the engine gave no log-probabilities")
    return score


def texts_to_embed(model: LoadedModel, texts: str | Sequence[str]) -> list[list[int]]:
    """The tokens of each text."""
    listed = [texts] if isinstance(texts, str) else list(texts)
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise RequestError(f"texts[{index}] is of type {type(text).__name__}; a string is wanted", param="texts",
                               code="invalid_type")
    return [text_to_embed(text, model.tokenizer) for text in listed]


def stacked(vectors: Sequence[NDArray[np.float32]], texts: str | Sequence[str], size: int) -> NDArray[np.float32]:
    """The vectors, cut to `size`, as rows, or the only one by itself."""
    import numpy as np  # noqa: PLC0415 - see above

    vectors = shortened(vectors, size)
    if isinstance(texts, str):
        return np.asarray(vectors[0], np.float32)
    return np.asarray(vectors, np.float32).reshape(len(vectors), size)


class _PlainText:
    """Reads a text that has neither reasoning nor calls."""

    def push(self, text: str) -> list[Parsed]:
        return [ParsedText(text)] if text else []

    def finish(self, *, was_cut: bool = False) -> list[Parsed]:
        return []
