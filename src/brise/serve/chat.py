"""`POST /v1/chat/completions` continues a conversation."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.engine.answer_collector import CollectedCall
from brise.engine.request import Delta
from brise.serve.body import read_parsed
from brise.serve.call_guard import CallGuard, read_state
from brise.serve.generation import ChoicesResponder, Entry, Envelope, GenerationTask, logprob_entries
from brise.serve.ignored import ignored_header, report
from brise.serve.images import fetch_images
from brise.serve.in_flight import RequestStats
from brise.serve.openai_chat import ChatRequest, parse_chat
from brise.serve.prompts import ChatJob, chat_job
from brise.serve.serving import ModelHandle, ServerState
from brise.serve.sse import EventStream, unless_gone
from brise.serve.unenforced import AnswerPlaces, Unenforced, invalid_places
from brise.text.answer_events import Parsed, ParsedCallArguments, ParsedCallStart, ParsedReasoning, ParsedText
from brise.text.fields import Ignored
from brise.text.protocols import TextTokenizer

NAMES: Mapping[str, str] = {"prompt": "messages", "grammar": "response_format"}
TOOL_NAMES: Mapping[str, str] = {"prompt": "messages", "grammar": "tools"}


async def complete(serving: ServerState, request: Request) -> Response:
    """The response: `n` next messages for a conversation."""
    settings, guard = serving.settings, serving.guard(request)
    ignored = None if settings.strict else Ignored()
    chat = await read_parsed(request, settings.max_body_bytes, settings.body_timeout_s,
                             lambda body: parse_chat(read_state(guard, body), ignored))
    responder, unenforced = await prepare_checked(serving.find(chat.options.model), chat, request.scope["brise.stats"],
                                                  allows_urls=settings.allow_image_urls, ignored=ignored, guard=guard)
    headers = ignored_header(ignored, unenforced)
    if chat.options.stream:
        return EventStream(responder.stream(), headers)
    return JSONResponse(await unless_gone(request.receive, responder.collect()), headers=headers)


async def prepare(served: ModelHandle, chat: ChatRequest, stats: RequestStats, *,
                  allows_urls: bool) -> ChoicesResponder:
    """The responder alone, whose answer reports nothing."""
    responder, _ = await prepare_checked(served, chat, stats, allows_urls=allows_urls, ignored=None)
    return replace(responder, report=None)


async def prepare_checked(served: ModelHandle, chat: ChatRequest, stats: RequestStats, *, allows_urls: bool,
                          ignored: Ignored | None, guard: CallGuard | None = None,
                          ) -> tuple[ChoicesResponder, tuple[Unenforced, ...]]:
    """The responder, and the schemas that are not enforced whole.

    Images are fetched and the prompt is rendered; the engine gets the request when the responder is read.
    """
    options = chat.options
    model = served.worker.model
    stats.model = options.model
    messages = await fetch_images(chat.messages, allows_urls=allows_urls)
    job = (await asyncio.to_thread(chat_job, replace(chat, messages=messages), model)).guarded(guard, chat)
    task = GenerationTask(served, (job.request,), stats, TOOL_NAMES if chat.tooling.tools else NAMES, asks=job.asks)
    choices = [ChatChoice(index, model.tokenizer, job, logprobs=chat.logprobs) for index in range(options.n)]
    envelope = Envelope("chatcmpl", "chat.completion", "chat.completion.chunk", options.model)
    said = partial(_report, ignored, job.unenforced, choices)
    return ChoicesResponder(task, envelope, choices, options.include_usage, said), job.unenforced


def _report(ignored: Ignored | None, unenforced: Sequence[Unenforced], choices: Sequence[ChatChoice]) -> Entry:
    return report(ignored, unenforced, (
        place for choice in choices for place in invalid_places(choice.answer, unenforced, choice.places())),
        [choice.answer for choice in choices])


class ChatChoice:
    """One answer of a chat: turns deltas into entries of OpenAI's chunks, and keeps the whole.

    `logprobs` is the number of alternatives to show (None: no log-probabilities); deltas may have more.
    """

    def __init__(self, index: int, tokenizer: TextTokenizer, job: ChatJob, *, logprobs: int | None) -> None:
        self._index, self._tokenizer, self._num_top = index, tokenizer, logprobs
        self.answer = job.collector()
        self._logprobs: list[Entry] = []
        self._has_begun = False

    def push(self, delta: Delta) -> list[Entry]:
        entries = [self._entry(self._shown(piece)) for piece in self.answer.push(delta)]
        if self._num_top is not None and delta.logprobs:
            self._add_logprobs(entries, delta, self._num_top)
        if delta.finish is not None:
            entries.append(self._entry({}) | {"finish_reason": self.answer.finish})
        if entries and not self._has_begun:
            self._has_begun = True
            entries.insert(0, self._entry({"role": "assistant", "content": ""}))
        return entries

    def final(self) -> Entry:
        answer = self.answer
        content = answer.text if answer.text or not answer.calls else None
        message: Entry = {"role": "assistant", "content": content, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message["tool_calls"] = [_call(call, call.arguments) for call in answer.calls]
        return {"index": self._index, "message": message, "finish_reason": answer.finish,
                "logprobs": {"content": self._logprobs, "refusal": None} if self._num_top is not None else None}

    def places(self) -> AnswerPlaces:
        """Where the parts of the answer stand in the body."""
        message = f"choices[{self._index}].message"
        return AnswerPlaces(f"{message}.content", [
            f"{message}.tool_calls[{number}].function.arguments" for number in range(len(self.answer.calls))])

    def _entry(self, delta: Entry) -> Entry:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _add_logprobs(self, entries: list[Entry], delta: Delta, num_top: int) -> None:
        """The last entry gets them; tokens whose text is still held back get an entry of their own."""
        items = logprob_entries(self._tokenizer, delta.logprobs, num_top)
        self._logprobs += items
        if not entries:
            entries.append(self._entry({"content": ""}))
        entries[-1]["logprobs"] = {"content": items, "refusal": None}

    def _shown(self, piece: Parsed) -> Entry:
        """The piece in OpenAI's form; a piece of a call belongs to the call that began last."""
        number = len(self.answer.calls) - 1
        match piece:
            case ParsedText(text):
                return {"content": text}
            case ParsedReasoning(text):
                return {"reasoning_content": text}
            case ParsedCallStart():
                return {"tool_calls": [{"index": number, **_call(self.answer.calls[-1], "")}]}
            case ParsedCallArguments(text):
                return {"tool_calls": [{"index": number, "function": {"arguments": text}}]}


def _call(call: CollectedCall, arguments: str) -> Entry:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}
