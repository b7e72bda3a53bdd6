"""The small models of this server, asked from inside: as by an HTTP request, but without HTTP."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from typing import cast

from brise.checkpoint.adapters.lineage import base_digest
from brise.dialects.bodies import Body, Usage
from brise.dialects.dialect import Dialect
from brise.engine.engine_thread import EngineThread
from brise.engine.request import Delta, TokenLogprob
from brise.engine.request import Request as EngineRequest
from brise.errors import RequestError
from brise.files.digests import Located
from brise.gateway.small_models import Load, SmallAnswer, SmallStream
from brise.serve import chat, completions, envelope, responses
from brise.serve.envelope import Answering, Entry
from brise.serve.error_response import UnknownModelError
from brise.serve.generation import GenerationTask
from brise.serve.in_flight import Ticket
from brise.serve.openai_chat import parse_chat
from brise.serve.openai_completions import parse_completion
from brise.serve.openai_responses import parse_response
from brise.serve.responses import Responding
from brise.serve.serving import find
from brise.text.fields import Ignored
from brise.text.json_text import Json
from brise.text.protocols import TextTokenizer

# Fields about how a hosted service works, which do not change what a right answer is.
IGNORABLE = frozenset({
    "service_tier", "store", "moderation", "prediction", "verbosity", "reasoning", "reasoning_effort", "include",
    "prompt_cache_options", "prompt_cache_retention", "prompt_cache_breakpoint", "include_obfuscation", "annotations"})


class EngineModels:
    """Implements `SmallModels` over the engine."""

    def __init__(self, models: Mapping[str, EngineThread], *, allow_image_urls: bool = False) -> None:
        self._models, self._allows_urls = models, allow_image_urls
        self._bases = {worker: _base(worker) for worker in models.values()}

    def names(self) -> Sequence[str]:
        """Models and adapters that can be asked."""
        return [name for model, worker in self._models.items()
                for name in (model, *(info.name for info in worker.adapters))]

    def fingerprint(self, model: str) -> str:
        """A digest of the model that answers; 32 hexadecimal digits."""
        served = find(self._models, model)
        parts = [self._bases[served.worker]]
        if served.adapter is not None:
            digests = {info.name: info.digest for info in served.worker.adapters}
            if served.adapter not in digests:  # it was unloaded in this moment
                raise UnknownModelError(model, self._models)
            parts.append(digests[served.adapter])
        return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()

    def load(self, model: str) -> Load:
        """How busy the model is with requests that a client waits for."""
        worker = find(self._models, model).worker
        stats = worker.stats()
        others = (0, 0) if stats.background else (stats.running, stats.waiting)
        return Load(*others, worker.max_sequences)

    async def answer(self, model: str, dialect: Dialect, body: Body, *, logprobs: int | None = None,
                     background: bool = False) -> SmallAnswer:
        """A whole answer, whatever `stream` in the body says."""
        plain = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
        asked = await self._ask(model, dialect, plain)
        tokens = list[TokenLogprob]()

        def watch(delta: Delta) -> None:
            tokens.extend(delta.logprobs)

        has_tokens = logprobs is not None and len(asked.job.requests) == asked.job.requests[0].n == 1
        asked = asked.changed(partial(_told, logprobs, background), watch if has_tokens else None)
        whole = await asked.collect()
        ticket = asked.job.ticket
        return SmallAnswer(whole, _usage(ticket), tuple(tokens), ticket.first_token_s,
                           time.monotonic() - ticket.started_s, asked.ignored)

    async def stream(self, model: str, dialect: Dialect, body: Body, *, prefix: str | None = None) -> SmallStream:
        """The answer piece by piece; with `prefix` it continues that text."""
        begun = body if prefix is None else _with_prefix(dialect, body, prefix)
        asked = await self._ask(model, dialect, {**begun, "stream": True})
        if prefix is not None:
            asked = asked.changed(partial(_begun, prefix, asked.job.served.worker.model.tokenizer))
        return SmallStream(asked.chunks(), asked.ignored, partial(_usage, asked.job.ticket))

    async def _ask(self, model: str, dialect: Dialect, body: Body) -> _Asked:
        """Reads a body that was written for a large model."""
        fields = cast(dict[str, Json], {**body, "model": model})
        ignored, ticket, served = Ignored(IGNORABLE), Ticket(), find(self._models, model)
        if fields.pop("logit_bias", None):
            ignored.reasons["logit_bias"] = "its token ids are of another model's vocabulary"
        answering: Answering | Responding
        match dialect.name:
            case "chat":
                answering = await chat.prepare(served, parse_chat(fields, ignored), ticket,
                                               allows_urls=self._allows_urls)
            case "completion":
                answering = await completions.prepare(served, parse_completion(fields, ignored), ticket)
            case "responses":
                answering = await responses.prepare(served, parse_response(fields, ignored), ticket,
                                                    allows_urls=self._allows_urls)
            case _:
                raise RequestError(f"the small models do not answer requests of the kind {dialect.name!r}",
                                   code="unsupported_parameter")
        asked = _Asked(answering, ignored.reasons)
        return asked.changed(partial(_fitting, served.worker.max_context, ignored.reasons))


def _base(worker: EngineThread) -> str:
    """What the model's answers depend on: its files, and the forms in which weights and cache are kept."""
    model = worker.model
    digest = base_digest(Located(model.name, model.path, model.digest))
    return f"{digest} {model.requantized or 'as stored'} {worker.cache_format}"


@dataclass(frozen=True)
class _Asked:
    """A request that was read, and what of it was left out."""

    answering: Answering | Responding
    ignored: dict[str, str]

    @property
    def job(self) -> GenerationTask:
        return self.answering.job

    def changed(self, change: Callable[[EngineRequest], EngineRequest],
                watch: Callable[[Delta], None] | None = None) -> _Asked:
        job = replace(self.job, requests=tuple(map(change, self.job.requests)), watch=watch)
        return replace(self, answering=replace(self.answering, job=job))

    def collect(self) -> Coroutine[None, None, Entry]:
        match self.answering:
            case Answering():
                return envelope.collect(self.answering)
            case Responding():
                return responses.collect(self.answering)

    def chunks(self) -> AsyncGenerator[Entry, None]:
        match self.answering:
            case Answering():
                return envelope.chunks(self.answering)
            case Responding():
                return responses.chunks(self.answering)


def _with_prefix(dialect: Dialect, body: Body, prefix: str) -> Body:
    begun = dialect.with_prefix(body, prefix)
    if begun is None:
        raise RequestError(f"an answer to this request of the kind {dialect.name!r} cannot be continued",
                           code="unsupported_parameter")
    return begun


def _fitting(context: int, ignored: dict[str, str], request: EngineRequest) -> EngineRequest:
    """A large model's context is longer: a limit on the answer that exceeds this one's is left out."""
    room = context - len(request.prompt)
    if request.max_tokens is None or request.max_tokens <= room or room < 1:
        return request
    ignored["max_tokens"] = f"it is {request.max_tokens}, the context of {context} has room for {room}"
    return replace(request, max_tokens=None)


def _told(logprobs: int | None, background: bool, request: EngineRequest) -> EngineRequest:
    wanted = request.logprobs if logprobs is None else max(logprobs, request.logprobs or 0)
    return replace(request, logprobs=wanted, background=background)


def _begun(prefix: str, tokenizer: TextTokenizer, request: EngineRequest) -> EngineRequest:
    """The part of the answer that exists already counts towards its length, and must fit its grammar."""
    grammar, max_tokens = request.grammar, request.max_tokens
    if grammar is not None and grammar.kind != "lark":  # those of tools allow text before a call
        grammar = replace(grammar, begun=prefix)
    if max_tokens is not None:
        max_tokens = max(max_tokens - len(tokenizer.encode(prefix)), 1)
    return replace(request, grammar=grammar, max_tokens=max_tokens)


def _usage(ticket: Ticket) -> Usage:
    return Usage(ticket.prompt_tokens, ticket.completion_tokens, ticket.cached_tokens)
