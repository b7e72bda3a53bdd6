"""EngineModels runs requests on this server's own models as the HTTP routes do, but without HTTP."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
from brise.gateway.small_models import OTHER_VOCABULARY, SERVICE_FIELDS, Load, SmallAnswer, SmallStream
from brise.serve import chat, completions, messages, responses
from brise.serve.anthropic_messages import parse_message
from brise.serve.error_response import UnknownModelError
from brise.serve.generation import ChoicesResponder, GenerationTask
from brise.serve.in_flight import RequestStats
from brise.serve.messages import MessagesResponder
from brise.serve.openai_chat import parse_chat
from brise.serve.openai_completions import parse_completion
from brise.serve.openai_responses import parse_response
from brise.serve.responses import ResponsesResponder
from brise.serve.serving import find
from brise.text.fields import Ignored
from brise.text.json_text import Json
from brise.text.protocols import TextTokenizer


class EngineModels:
    """The engine's models and adapters as the gateway's `SmallModels`."""

    def __init__(self, models: Mapping[str, EngineThread], *, allow_image_urls: bool = False) -> None:
        self._models, self._allows_urls = models, allow_image_urls
        self._bases = {worker: base_of(worker) for worker in models.values()}

    def names(self) -> Sequence[str]:
        """The names of models and adapters."""
        return [name for model, worker in self._models.items()
                for name in (model, *(info.name for info in worker.adapters))]

    def fingerprint(self, model: str) -> str:
        """A digest of the model that answers; 32 hexadecimal digits."""
        served = find(self._models, model)
        found = fingerprint_of(served.worker, served.adapter, self._bases[served.worker])
        if found is None:  # it was unloaded a moment ago
            raise UnknownModelError(model, self._models)
        return found

    def load(self, model: str) -> Load:
        """The model's load; requests in the background do not count."""
        worker = find(self._models, model).worker
        stats = worker.stats()
        counts = (0, 0) if stats.background else (stats.running, stats.waiting)
        return Load(*counts, worker.max_sequences)

    async def answer(self, model: str, dialect: Dialect, body: Body, *, logprobs: int | None = None,
                     background: bool = False) -> SmallAnswer:
        """A whole answer; `stream` in the body does not matter."""
        unstreamed = {name: value for name, value in body.items() if name not in ("stream", "stream_options")}
        prepared = await self._prepare(model, dialect, unstreamed)
        tokens = list[TokenLogprob]()

        def watch(delta: Delta) -> None:
            tokens.extend(delta.logprobs)

        task = prepared.task
        has_tokens = logprobs is not None and len(task.requests) == task.requests[0].n == 1
        prepared = prepared.changed(partial(_with_settings, logprobs, background), watch if has_tokens else None)
        whole = await prepared.responder.collect()
        return SmallAnswer(whole, _usage(task.stats), tuple(tokens), task.stats.first_token_s,
                           time.monotonic() - task.stats.started_s, prepared.ignored)

    async def stream(self, model: str, dialect: Dialect, body: Body, *, prefix: str | None = None) -> SmallStream:
        """The answer as a stream; with `prefix` it continues that text."""
        if prefix is not None:
            body = _with_prefix(dialect, body, prefix)
        prepared = await self._prepare(model, dialect, {**body, "stream": True})
        if prefix is not None:
            prepared = prepared.changed(partial(_continued, prefix, prepared.task.served.worker.model.tokenizer))
        return SmallStream(prepared.responder.chunks(), prepared.ignored, partial(_usage, prepared.task.stats))

    async def _prepare(self, model: str, dialect: Dialect, body: Body) -> _PreparedRequest:
        """Reads a body that was written for a large model."""
        fields = cast(dict[str, Json], {**body, "model": model})
        ignored, stats, served = Ignored(SERVICE_FIELDS), RequestStats(), find(self._models, model)
        for name in ("logit_bias", "stop_token_ids"):
            if fields.pop(name, None):
                ignored.reasons[name] = OTHER_VOCABULARY
        responder: ChoicesResponder | ResponsesResponder | MessagesResponder
        match dialect.name:
            case "chat":
                responder = await chat.prepare(served, parse_chat(fields, ignored), stats,
                                               allows_urls=self._allows_urls)
            case "completion":
                responder = await completions.prepare(served, parse_completion(fields, ignored), stats)
            case "responses":
                responder = await responses.prepare(served, parse_response(fields, ignored), stats,
                                                    allows_urls=self._allows_urls)
            case "messages":
                responder = await messages.prepare(served, parse_message(fields, ignored), stats,
                                                   allows_urls=self._allows_urls, ignored=ignored)
            case _:
                raise RequestError(f"the small models do not answer requests of the kind {dialect.name!r}",
                                   code="unsupported_parameter")
        prepared = _PreparedRequest(responder, ignored.reasons)
        return prepared.changed(partial(_within_context, served.worker.max_context, ignored.reasons))


def fingerprint_of(worker: EngineThread, adapter: str | None, base: str) -> str | None:
    """A digest of what answers, from `base_of` its model: 32 hexadecimal digits; None if there is no such adapter."""
    parts = [base]
    if adapter is not None:
        digests = {info.name: info.digest for info in worker.adapters}
        if adapter not in digests:
            return None
        parts.append(digests[adapter])
    return blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def base_of(worker: EngineThread) -> str:
    """What the model's answers depend on: its files, and the formats of its weights and cache. Files that the store
    does not know are read for it."""
    model = worker.model
    digest = base_digest(Located(model.name, model.path, model.digest))
    return f"{digest} {model.requantized or 'as stored'} {worker.cache_format}"


@dataclass(frozen=True)
class _PreparedRequest:
    """A request that is ready for the engine, and the fields of it that were left out."""

    responder: ChoicesResponder | ResponsesResponder | MessagesResponder
    ignored: dict[str, str]

    @property
    def task(self) -> GenerationTask:
        return self.responder.task

    def changed(self, change: Callable[[EngineRequest], EngineRequest],
                watch: Callable[[Delta], None] | None = None) -> _PreparedRequest:
        task = replace(self.task, requests=tuple(map(change, self.task.requests)), watch=watch)
        return replace(self, responder=replace(self.responder, task=task))


def _with_prefix(dialect: Dialect, body: Body, prefix: str) -> Body:
    continued = dialect.with_prefix(body, prefix)
    if continued is None:
        raise RequestError(f"an answer to this request of the kind {dialect.name!r} cannot be continued",
                           code="unsupported_parameter")
    return continued


def _within_context(context: int, ignored: dict[str, str], request: EngineRequest) -> EngineRequest:
    """The request without its limit on the answer if that exceeds this model's context: a large model's is longer."""
    room = context - len(request.prompt)
    if request.max_tokens is None or request.max_tokens <= room or room < 1:
        return request
    ignored["max_tokens"] = f"it is {request.max_tokens}, the context of {context} has room for {room}"
    return replace(request, max_tokens=None)


def _with_settings(logprobs: int | None, background: bool, request: EngineRequest) -> EngineRequest:
    num_top = request.logprobs if logprobs is None else max(logprobs, request.logprobs or 0)
    return replace(request, logprobs=num_top, background=background)


def _continued(prefix: str, tokenizer: TextTokenizer, request: EngineRequest) -> EngineRequest:
    """The request for the rest of an answer: the prefix counts towards its length and must fit its grammar.

    Where only calls are allowed, they follow what the large model said before its own.
    """
    grammar, max_tokens = request.grammar, request.max_tokens
    if grammar is not None and grammar.takes_text:
        grammar = replace(grammar, begun=prefix)
    if max_tokens is not None:
        max_tokens = max(max_tokens - len(tokenizer.encode(prefix)), 1)
    return replace(request, grammar=grammar, max_tokens=max_tokens)


def _usage(stats: RequestStats) -> Usage:
    return Usage(stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens)
