"""`POST /api/chat`, `/api/generate`, `/api/embed` and `/api/embeddings` answer in the shape of Ollama's API."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.dialects import ollama
from brise.engine.answer_collector import AnswerCollector
from brise.engine.request import Delta
from brise.errors import RequestError
from brise.serve.body import read_parsed
from brise.serve.call_guard import CallGuard, read_state
from brise.serve.embeddings import EmbeddingRequest, embedded, with_list
from brise.serve.error_response import UnknownModelError
from brise.serve.generation import Entry, GenerationTask, deltas, logprob_entries
from brise.serve.ignored import ignored_header, report
from brise.serve.images import fetch_images
from brise.serve.in_flight import RequestStats
from brise.serve.ollama_requests import OllamaRequest, parse_chat, parse_embed, parse_generate, usual_sampling
from brise.serve.prompts import ChatJob, chat_job, raw_job, within_context
from brise.serve.serving import ModelHandle, ServerState
from brise.serve.sse import EventStream, unless_gone
from brise.serve.unenforced import AnswerPlaces, invalid_places
from brise.text.answer_events import ParsedCallArguments, ParsedCallStart, ParsedReasoning, ParsedText
from brise.text.fields import Ignored
from brise.text.json_text import Json
from brise.text.protocols import TextTokenizer

NAMES: Mapping[str, str] = {"prompt": "messages", "grammar": "format", "stop": "options.stop"}
HEADERS: Mapping[str, str] = {"content-type": ollama.MEDIA_TYPE}
NS = 1_000_000_000
T = TypeVar("T")


async def chat(serving: ServerState, request: Request) -> Response:
    """The response: the next message of a conversation, as lines or as one body."""
    ignored, guard = None if serving.settings.strict else Ignored(), serving.guard(request)
    asked = await read(serving, request, lambda body: parse_chat(read_state(guard, body), ignored))
    return await _respond(serving, request, asked, ignored, guard)


async def generate(serving: ServerState, request: Request) -> Response:
    """The response: an answer to a prompt."""
    ignored = None if serving.settings.strict else Ignored()
    asked = await read(serving, request, lambda body: parse_generate(body, ignored))
    return await _respond(serving, request, asked, ignored)


async def embed(serving: ServerState, request: Request, *, is_older: bool = False) -> Response:
    """The response: one vector for each text; `is_older`: /api/embeddings, with one text and one vector."""
    ignored = None if serving.settings.strict else Ignored()
    stats: RequestStats = request.scope["brise.stats"]
    field = "prompt" if is_older else "input"
    asked = await read(serving, request, lambda body: parse_embed(body, ignored, field=field))
    served, stats.model = find(serving, asked.model), serving.known_name(asked.model)
    wanted = EmbeddingRequest(asked.model, asked.texts, asked.is_list, "float", asked.dimensions, asked.field)
    vectors = await embedded(served, wanted, request) if asked.texts else []
    headers = ignored_header(ignored)
    if is_older:
        return JSONResponse({"embedding": vectors[0].tolist() if vectors else []}, headers=headers)
    head = {"model": asked.model, "total_duration": _ns(time.monotonic() - stats.started_s), "load_duration": 0,
            "prompt_eval_count": stats.prompt_tokens, **_said(report(ignored))}
    return await with_list(head, "embeddings", (vector.tolist() for vector in vectors), headers)


async def read(serving: ServerState, request: Request, parse: Callable[[Json], T]) -> T:
    """What `parse` makes of the body. Ollama's documentation has it sent without a content type; web pages cannot do
    that unnoticed."""
    settings = serving.settings
    is_page = any(name in request.headers for name in ("origin", "referer", "sec-fetch-site"))
    return await read_parsed(request, settings.max_body_bytes, settings.body_timeout_s, parse, is_declared=is_page)


def find(serving: ServerState, name: str) -> ModelHandle:
    """The model of this name; UnknownModelError says where those of upstreams are."""
    if serving.gateway is not None and not serving.is_taken(name):
        raise UnknownModelError(name, serving.models, "models of upstreams answer below /v1, and not below /api")
    return serving.find(name)


async def _respond(serving: ServerState, request: Request, asked: OllamaRequest, ignored: Ignored | None,
                   guard: CallGuard | None = None) -> Response:
    options, settings = asked.chat.options, serving.settings
    served, stats = find(serving, options.model), request.scope["brise.stats"]
    stats.model = serving.known_name(options.model)
    if asked.only_loads:
        empty = _Answer(asked, stats).part()
        return JSONResponse({**empty, "done": True, "done_reason": "load", **_said(report(ignored))},
                            headers=ignored_header(ignored))
    job = (await _job(served, asked, allows_urls=settings.allow_image_urls)).guarded(guard, asked.chat)
    engine_request = within_context(job.request, served.worker.max_context, ignored, "options.num_predict")
    answer = _Answer(asked, stats, replace(job, request=engine_request), served.worker.model.tokenizer, ignored)
    names = {**NAMES, **({"grammar": "tools"} if asked.chat.tooling.tools else {}),
             **({} if asked.prompt is None else {"prompt": "prompt"})}
    task = GenerationTask(served, (engine_request,), stats, names, asks=job.asks)
    headers = ignored_header(ignored, job.unenforced)
    if options.stream:
        return EventStream(answer.lines(task), {**headers, **HEADERS}, encode_error=_error_line)
    return JSONResponse(await unless_gone(request.receive, answer.collect(task)), headers=headers)


async def _job(served: ModelHandle, asked: OllamaRequest, *, allows_urls: bool) -> ChatJob:
    model, chat, usual = served.worker.model, asked.chat, usual_sampling(asked.chat)
    is_plain = model.chat is None and len(chat.messages) == 1 and isinstance(chat.messages[0].content, str)
    if asked.prompt is not None and (asked.is_raw or is_plain or asked.suffix):
        return await asyncio.to_thread(partial(raw_job, chat, asked.prompt, model, usual, suffix=asked.suffix,
                                               parse_control=asked.is_raw and not asked.suffix))
    messages = await fetch_images(chat.messages, allows_urls=allows_urls)
    return await asyncio.to_thread(chat_job, replace(chat, messages=messages), model, usual)


@dataclass
class _Answer:
    """An answer as it grows: lines of a stream, or one body."""

    asked: OllamaRequest
    stats: RequestStats
    job: ChatJob | None = None
    tokenizer: TextTokenizer | None = None
    ignored: Ignored | None = None
    begun_s: float = field(default_factory=time.monotonic)  # the prompt is read, and goes to the engine
    first_s: float | None = None  # when the first token was there
    num_calls: int = 0  # that were sent

    def part(self, text: str = "", thinking: str = "", calls: list[Entry] | None = None) -> Entry:
        """What begins every line and every body."""
        said: Entry = {"thinking": thinking} if thinking else {}
        head: Entry = {"model": self.asked.chat.options.model, "created_at": ollama.timestamp()}
        if self.asked.prompt is not None:
            return {**head, "response": text, **said}
        return {**head, "message": {"role": "assistant", "content": text, **said,
                                    **({"tool_calls": calls} if calls else {})}}

    async def lines(self, task: GenerationTask) -> AsyncGenerator[bytes, None]:
        """The lines of a stream; the last one says how the answer ended."""
        collector = self._collector()
        async with aclosing(deltas(task)) as numbered:
            async for _, delta in numbered:
                for entry in self._push(collector, delta):
                    yield ollama.line({**entry, "done": False})
        yield ollama.line({**self.part(), **self._end(collector)})

    async def collect(self, task: GenerationTask) -> Entry:
        """The body, once the answer is complete."""
        collector, logprobs = self._collector(), list[object]()
        async with aclosing(deltas(task)) as numbered:
            async for _, delta in numbered:
                for entry in self._push(collector, delta):
                    items = entry.get("logprobs")
                    logprobs += items if isinstance(items, list) else []
        calls = [entry for call in range(len(collector.calls)) for entry in _calls(collector, call, call + 1)]
        return {**self.part(collector.text, collector.reasoning, calls),
                **({} if self.asked.chat.logprobs is None else {"logprobs": logprobs}), **self._end(collector)}

    def _collector(self) -> AnswerCollector:
        assert self.job is not None, "there is something to answer"
        return self.job.collector()

    def _push(self, collector: AnswerCollector, delta: Delta) -> list[Entry]:
        """The lines for this delta. A call goes out in one piece, as soon as it is whole."""
        if self.first_s is None and delta.tokens:
            self.first_s = time.monotonic()
        entries = list[Entry]()
        for piece in collector.push(delta):
            match piece:
                case ParsedText(text):
                    entries.append(self.part(text))
                case ParsedReasoning(text):
                    entries.append(self.part(thinking=text))
                case ParsedCallStart():
                    entries += self._new_calls(collector, len(collector.calls) - 1)
                case ParsedCallArguments():
                    pass
        if delta.finish is not None:
            entries += self._new_calls(collector, len(collector.calls))
        num_top = self.asked.chat.logprobs
        if num_top is not None and delta.logprobs:
            assert self.tokenizer is not None, "there is something to answer"
            entries = entries or [self.part()]
            entries[-1]["logprobs"] = logprob_entries(self.tokenizer, delta.logprobs, num_top)
        return entries

    def _new_calls(self, collector: AnswerCollector, end: int) -> list[Entry]:
        calls, self.num_calls = _calls(collector, self.num_calls, end), end
        return [self.part(calls=calls)] if calls else []

    def _end(self, collector: AnswerCollector) -> Entry:
        """How the answer ended, and how long it took: reading the request, the prompt until the first token, the rest.
        """
        now_s, stats = time.monotonic(), self.stats
        first_s = now_s if self.first_s is None else self.first_s
        assert self.job is not None, "there is something to answer"
        said = report(self.ignored, self.job.unenforced,
                      invalid_places(collector, self.job.unenforced, self._places(collector)), (collector,))
        cut = [{"name": call.name, "arguments": call.arguments} for call in collector.calls if not call.is_whole]
        return {"done": True, "done_reason": "length" if collector.finish == "length" else "stop",
                "total_duration": _ns(now_s - stats.started_s), "load_duration": _ns(self.begun_s - stats.started_s),
                "prompt_eval_count": stats.prompt_tokens, "prompt_eval_duration": _ns(first_s - self.begun_s),
                "eval_count": stats.completion_tokens, "eval_duration": _ns(now_s - first_s),
                **_said({**said, "cut_calls": cut} if cut else said)}

    def _places(self, collector: AnswerCollector) -> AnswerPlaces:
        """Where this body has what. Calls that were cut stand in no such place."""
        text = "message.content" if self.asked.prompt is None else "response"
        whole = itertools.accumulate((call.is_whole for call in collector.calls), initial=0)
        return AnswerPlaces(text, [f"message.tool_calls[{place}].function.arguments" for place, _ in
                                   zip(whole, collector.calls, strict=False)])


def _calls(collector: AnswerCollector, begin: int, end: int) -> list[Entry]:
    """Calls whose arguments are a whole object; half a call has no form in this API."""
    return [{"function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in collector.calls[begin:end] if call.is_whole]


def _said(said: Entry) -> Entry:
    return {"brise": said} if said else {}


def _error_line(error: RequestError) -> bytes:
    return ollama.line(ollama.error_body(str(error)))


def _ns(seconds: float) -> int:
    return max(int(seconds * NS), 1)
