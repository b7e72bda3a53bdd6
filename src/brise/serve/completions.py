"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Iterable, Mapping, Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.engine.request import Delta, TokenLogprob
from brise.engine.request import Request as EngineRequest
from brise.serve.body import read_json
from brise.serve.envelope import Answering, Entry, Envelope, collect, stream
from brise.serve.generation import GenerationTask
from brise.serve.in_flight import Ticket
from brise.serve.openai_completions import CompletionRequest, Prompt, parse_completion
from brise.serve.prompts import completion_requests
from brise.serve.serving import ModelHandle, ServerState
from brise.serve.sse import EventStream, unless_gone
from brise.text.protocols import TextTokenizer

NAMES: Mapping[str, str] = {"messages": "prompt"}


async def complete(serving: ServerState, request: Request) -> Response:
    """Prompts in, `n` answers to each out."""
    settings = serving.settings
    wanted = parse_completion(await read_json(request, settings.max_body_bytes, settings.body_timeout_s))
    answering = await prepare(serving.find(wanted.options.model), wanted, request.scope["brise.ticket"])
    if wanted.options.stream:
        return EventStream(stream(answering))
    return JSONResponse(await unless_gone(request.receive, collect(answering)))


async def prepare(served: ModelHandle, wanted: CompletionRequest, ticket: Ticket) -> Answering:
    """Everything up to the first token; the engine has not heard of it yet."""
    options = wanted.options
    model = served.worker.model
    ticket.model = options.model
    engine_requests = await asyncio.to_thread(completion_requests, wanted, model)
    job = GenerationTask(served, engine_requests, ticket, NAMES)
    envelope = Envelope("cmpl", "text_completion", "text_completion", options.model)
    return Answering(job, envelope, _choices(wanted, engine_requests, model.tokenizer), options.include_usage)


def _choices(wanted: CompletionRequest, requests: tuple[EngineRequest, ...], tokenizer: TextTokenizer,
             ) -> list[CompletionChoice]:
    count = wanted.options.n
    return [CompletionChoice(number * count + index, tokenizer, request.prompt,
                             _text(prompt, tokenizer) if wanted.echo else None,
                             logprobs=wanted.logprobs)
            for number, (prompt, request) in enumerate(zip(wanted.prompts, requests, strict=True))
            for index in range(count)]


def _text(prompt: Prompt, tokenizer: TextTokenizer) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


class CompletionChoice:
    """Turns the deltas of one answer into entries; `echo` is the prompt's text to begin with.

    `logprobs` is how many alternatives are shown (None: no log-probabilities), whatever the deltas bring.
    """

    def __init__(self, index: int, tokenizer: TextTokenizer, prompt: Sequence[int], echo: str | None, *,
                 logprobs: int | None) -> None:
        self._index, self._prompt, self._echo = index, prompt, echo
        self._logprobs = None if logprobs is None else _Logprobs(tokenizer, logprobs)
        self._has_begun = False
        self._texts: list[str] = []
        self._finish: str | None = None

    def push(self, delta: Delta) -> list[Entry]:
        text, logprobs = delta.text, None
        if self._logprobs is not None:
            if not self._has_begun and delta.prompt_logprobs is not None:
                self._logprobs.add_prompt(self._prompt, delta.prompt_logprobs)
            self._logprobs.add(delta.logprobs)
            logprobs = self._logprobs.take()
        if not self._has_begun and self._echo is not None:
            text = self._echo + text
        self._has_begun = True
        self._finish = delta.finish
        self._texts.append(text)
        if not text and logprobs is None and delta.finish is None:
            return []
        return [self._entry(text, logprobs)]

    def final(self) -> Entry:
        return self._entry("".join(self._texts), None if self._logprobs is None else self._logprobs.whole())

    def _entry(self, text: str, logprobs: Entry | None) -> Entry:
        return {"text": text, "index": self._index, "logprobs": logprobs, "finish_reason": self._finish}


class _Logprobs:
    """Parallel lists, as the old API has them: tokens, log-probabilities, best others, places in the text."""

    def __init__(self, tokenizer: TextTokenizer, num_top: int) -> None:
        self._tokenizer, self._num_top = tokenizer, num_top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        self._rows: list[tuple[str, float | None, dict[str, float] | None, int]] = []
        self._num_taken = 0

    def add_prompt(self, prompt: Sequence[int], logprobs: Iterable[TokenLogprob | None]) -> None:
        """The first token has no log-probability: nothing stands before it."""
        for token, logprob in zip(prompt, logprobs, strict=True):
            if logprob is None:
                self._append(token, self._tokenizer.token_bytes(token, show_control=True), None, None)
            else:
                self.add((logprob,))

    def add(self, logprobs: Iterable[TokenLogprob]) -> None:
        for item in logprobs:
            best = {_shown(text): value for _, text, value in item.top[:self._num_top]}
            best.setdefault(_shown(item.text), item.logprob)
            self._append(item.token, item.text, item.logprob, best)

    def take(self) -> Entry | None:
        """What came since the last time."""
        rows, self._num_taken = self._rows[self._num_taken:], len(self._rows)
        return _columns(rows) if rows else None

    def whole(self) -> Entry:
        return _columns(self._rows)

    def _append(self, token: int, text: bytes, logprob: float | None, best: dict[str, float] | None) -> None:
        self._rows.append((_shown(text), logprob, best, self._offset))
        if not self._tokenizer.is_control(token):
            self._offset += len(self._decoder.decode(text))


def _columns(rows: Sequence[tuple[str, float | None, dict[str, float] | None, int]]) -> Entry:
    return {"tokens": [row[0] for row in rows], "token_logprobs": [row[1] for row in rows],
            "top_logprobs": [row[2] for row in rows], "text_offset": [row[3] for row in rows]}


def _shown(text: bytes) -> str:
    """Half a character as OpenAI writes it: bytes:\\xe2\\x80."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)
