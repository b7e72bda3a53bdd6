"""`POST /v1/completions`, OpenAI's legacy API, continues raw prompts."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.engine.request import Delta, TokenLogprob
from brise.engine.request import Request as EngineRequest
from brise.serve.body import read_parsed
from brise.serve.generation import ChoicesResponder, Entry, Envelope, GenerationTask
from brise.serve.ignored import ignored_header, report
from brise.serve.in_flight import RequestStats
from brise.serve.openai_completions import CompletionRequest, Prompt, parse_completion
from brise.serve.prompts import completion_requests
from brise.serve.serving import ModelHandle, ServerState
from brise.serve.sse import EventStream, unless_gone
from brise.text.fields import Ignored
from brise.text.protocols import TextTokenizer

NAMES: Mapping[str, str] = {"messages": "prompt"}


async def complete(serving: ServerState, request: Request) -> Response:
    """The response: `n` answers to each prompt."""
    settings = serving.settings
    ignored = None if settings.strict else Ignored()
    completion = await read_parsed(request, settings.max_body_bytes, settings.body_timeout_s,
                                   lambda body: parse_completion(body, ignored))
    responder = await prepare(serving.find(completion.options.model), completion, request.scope["brise.stats"])
    responder = replace(responder, report=partial(report, ignored))
    headers = ignored_header(ignored)
    if completion.options.stream:
        return EventStream(responder.stream(), headers)
    return JSONResponse(await unless_gone(request.receive, responder.collect()), headers=headers)


async def prepare(served: ModelHandle, completion: CompletionRequest, stats: RequestStats) -> ChoicesResponder:
    """The prompts are encoded; the engine gets the requests when the responder is read."""
    options = completion.options
    model = served.worker.model
    stats.model = options.model
    requests = await asyncio.to_thread(completion_requests, completion, model)
    task = GenerationTask(served, requests, stats, NAMES)
    envelope = Envelope("cmpl", "text_completion", "text_completion", options.model)
    return ChoicesResponder(task, envelope, _choices(completion, requests, model.tokenizer), options.include_usage)


def _choices(completion: CompletionRequest, requests: tuple[EngineRequest, ...], tokenizer: TextTokenizer,
             ) -> list[CompletionChoice]:
    num_answers = completion.options.n
    return [CompletionChoice(number * num_answers + index, tokenizer, request.prompt,
                             _text(prompt, tokenizer) if completion.echo else None,
                             logprobs=completion.logprobs,
                             num_unwritten=_num_unwritten(prompt, request.prompt, tokenizer, completion.parse_control))
            for number, (prompt, request) in enumerate(zip(completion.prompts, requests, strict=True))
            for index in range(num_answers)]


def _num_unwritten(prompt: Prompt, tokens: Sequence[int], tokenizer: TextTokenizer, parse_control: bool) -> int | None:
    """How many tokens before a prompt its text does not have (an added bos), if it shows special tokens; else None."""
    if not isinstance(prompt, str) or not parse_control:
        return None
    return len(tokens) - len(tokenizer.encode(prompt, parse_control=True))


def _text(prompt: Prompt, tokenizer: TextTokenizer) -> str:
    return prompt if isinstance(prompt, str) else tokenizer.decode(prompt)


class CompletionChoice:
    """One answer to a prompt: turns deltas into entries; `echo` is the prompt's text, which comes first.

    `logprobs` is the number of alternatives to show (None: no log-probabilities); deltas may have more.
    """

    def __init__(self, index: int, tokenizer: TextTokenizer, prompt: Sequence[int], echo: str | None, *,
                 logprobs: int | None, num_unwritten: int | None = None) -> None:
        self._num_unwritten = num_unwritten
        self._index, self._prompt, self._echo = index, prompt, echo
        self._logprobs = None if logprobs is None else _Logprobs(tokenizer, logprobs)
        self._has_begun = False
        self._texts: list[str] = []
        self._finish: str | None = None

    def push(self, delta: Delta) -> list[Entry]:
        text, logprobs = delta.text, None
        if self._logprobs is not None:
            if not self._has_begun and delta.prompt_logprobs is not None:
                self._logprobs.add_prompt(self._prompt, delta.prompt_logprobs, self._num_unwritten)
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
    """Log-probabilities as the legacy API has them: lists of tokens, values, alternatives and text offsets."""

    def __init__(self, tokenizer: TextTokenizer, num_top: int) -> None:
        self._tokenizer, self._num_top = tokenizer, num_top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0
        self._rows: list[tuple[str, float | None, dict[str, float] | None, int]] = []
        self._num_taken = 0

    def add_prompt(self, prompt: Sequence[int], logprobs: Iterable[TokenLogprob | None],
                   num_unwritten: int | None) -> None:
        """The first token has no log-probability, because nothing precedes it.

        The text shows the special tokens after the first `num_unwritten` tokens; None: it shows none.
        """
        for index, (token, logprob) in enumerate(zip(prompt, logprobs, strict=True)):
            shows = num_unwritten is not None and index >= num_unwritten
            if logprob is None:
                text = self._tokenizer.token_bytes(token, show_control=True)
                self._append(token, text, None, None, shows_control=shows)
            else:
                self._add(logprob, shows_control=shows)

    def add(self, logprobs: Iterable[TokenLogprob]) -> None:
        for item in logprobs:
            self._add(item)

    def take(self) -> Entry | None:
        """The columns of the tokens since the last call; None if there are none."""
        rows, self._num_taken = self._rows[self._num_taken:], len(self._rows)
        return _columns(rows) if rows else None

    def whole(self) -> Entry:
        return _columns(self._rows)

    def _add(self, item: TokenLogprob, *, shows_control: bool = False) -> None:
        best = {_shown(text): value for _, text, value in item.top[:self._num_top]}
        best.setdefault(_shown(item.text), item.logprob)
        self._append(item.token, item.text, item.logprob, best, shows_control=shows_control)

    def _append(self, token: int, text: bytes, logprob: float | None, best: dict[str, float] | None, *,
                shows_control: bool) -> None:
        self._rows.append((_shown(text), logprob, best, self._offset))
        if shows_control or not self._tokenizer.is_control(token):
            self._offset += len(self._decoder.decode(text))


def _columns(rows: Sequence[tuple[str, float | None, dict[str, float] | None, int]]) -> Entry:
    return {"tokens": [row[0] for row in rows], "token_logprobs": [row[1] for row in rows],
            "top_logprobs": [row[2] for row in rows], "text_offset": [row[3] for row in rows]}


def _shown(text: bytes) -> str:
    """The token's text; an incomplete character is written as OpenAI does: bytes:\\xe2\\x80."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)
