"""Remote small models as the gateway's `SmallModels`, and together with those of this process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import TextIO

from starlette.types import Send

from brise.dialects.bodies import Body, Fields, Usage, objects, text
from brise.dialects.dialect import Dialect
from brise.errors import PreemptedError, RequestError
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.remote import bodies
from brise.gateway.remote.server import RefusedError, RemoteModel, RemoteServer
from brise.gateway.remote.watch import RemoteWatch, Wait
from brise.gateway.request import ClientRequest
from brise.gateway.small_models import Load, SmallAnswer, SmallModelDownError, SmallModels, SmallStream
from brise.traffic.store import TrafficStore

SLOTS = 1  # answers that a server writes at one time, as far as anybody here knows
CHATS = ("chat", "completion")


@dataclass
class _Remote:
    """One remote model, and who waits for it."""

    server: RemoteServer
    watch: RemoteWatch
    num_running: int = 0
    background: set[asyncio.Task[RequestOutcome]] = field(default_factory=set)


class RemoteModels:
    """Implements `SmallModels` over HTTP, and `Background`: it watches which models the servers have.

    A request that a client waits for ends those in the background, as in this process. `counts` are failures by model
    and error code.
    """

    def __init__(self, remotes: Mapping[str, RemoteModel], store: TrafficStore, *, log: TextIO | None = None,
                 wait: Wait | None = None) -> None:
        self._each = {name: self._opened(name, remote, store, log, wait) for name, remote in remotes.items()}
        self.counts = Counter[tuple[str, str]]()

    def names(self) -> Sequence[str]:
        """The names under which they are served here."""
        return list(self._each)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no record may hold: their keys."""
        return tuple(secret for each in self._each.values() for secret in each.server.secrets)

    def fingerprint(self, model: str) -> str:
        """The digest of what its server has shown; SmallModelDownError if that is not known now."""
        return self._find(model).watch.current().seen.fingerprint

    def load(self, model: str) -> Load:
        """The requests from here that a client waits for; those of others the server does not tell. A server that has
        not been looked at yet counts as busy, so that the background waits for its fingerprint."""
        remote = self._find(model)
        return Load(remote.num_running, int(not remote.watch.has_looked), SLOTS)

    def card(self, model: str) -> Body:
        """The model's entry in a list of models."""
        watch, remote = self._find(model).watch, self._find(model).server.remote
        known = watch.last
        about = {"engine": remote.engine} if known is None else {
            "parent": known.identity.model, "engine": known.identity.kind.name, "missing": list(known.missing)}
        why = watch.why
        return {"id": model, "object": "model", "created": 0, "owned_by": "brise", **about,
                **({"fingerprint": watch.current().seen.fingerprint} if why is None else {"unavailable": why})}

    def is_available(self, model: str) -> bool:
        """Whether it is known which model answers under this name."""
        return self._find(model).watch.why is None

    def num_changes(self, model: str) -> int:
        """How often another model answered under this name than before."""
        return self._find(model).watch.num_changes

    async def answer(self, model: str, dialect: Dialect, body: Body, *, logprobs: int | None = None,
                     background: bool = False) -> SmallAnswer:
        """A whole answer. SmallModelDownError if the server gives none, or answers as another model."""
        remote, started_s = self._find(model), asyncio.get_running_loop().time()
        fields, ignored = bodies.sent(dialect, body, self._name_there(remote))
        is_asked = logprobs is not None and fields.get("n") in (None, 1) and (
            remote.watch.last is None or remote.watch.last.gives_logprobs)
        if is_asked:
            fields = bodies.with_logprobs(dialect, fields, logprobs or 0)
        with self._counted(model):
            outcome = await (self._behind(remote, dialect, fields) if background
                             else self._first(remote, dialect, fields))
            response = outcome.response or {}
            remote.watch.check_names(response)
            _check_choices(model, dialect, body, response)
        total_s = asyncio.get_running_loop().time() - started_s
        return SmallAnswer(bodies.shown(dialect, response, body, model), outcome.usage or Usage(),
                           bodies.tokens_of(response) if is_asked else (), None, total_s, ignored)

    async def stream(self, model: str, dialect: Dialect, body: Body, *, prefix: str | None = None) -> SmallStream:
        """The same piece by piece; with `prefix` it continues that text, as far as the engine can."""
        remote = self._find(model)
        fields, ignored = bodies.sent(dialect, body, self._name_there(remote))
        options = body.get("stream_options")
        fields |= {"stream": True} | ({"stream_options": options} if options is not None else {})
        if prefix is not None:
            fields = await self._continued(remote, dialect, fields, prefix)
        stream = remote.server.stream(dialect, fields)
        echo = bodies.WithoutEcho(prefix) if prefix is not None and self._echoes(remote) else None
        return SmallStream(self._chunks(model, remote, stream.events, echo), ignored, stream.usage)

    async def pass_on(self, request: ClientRequest, send: Send) -> RequestOutcome:
        """A client's request that names one of these models, and the answer as it comes."""
        remote = self._find(request.model)
        with self._running(remote), self._counted(request.model):
            return await remote.server.pass_on(request, self._name_there(remote), send)

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            for remote in self._each.values():
                group.create_task(remote.watch.run())

    async def look(self) -> None:
        """Looks at all servers once, at the same time."""
        await asyncio.gather(*(remote.watch.look() for remote in self._each.values()))

    def close(self) -> None:
        """Ends idle connections."""
        for remote in self._each.values():
            remote.server.close()

    def _opened(self, name: str, remote: RemoteModel, store: TrafficStore, log: TextIO | None,
                wait: Wait | None) -> _Remote:
        server = RemoteServer(name, remote, lambda why: self._each[name].watch.doubt(why))
        return _Remote(server, RemoteWatch(server, store, log=log, wait=wait))

    def _find(self, model: str) -> _Remote:
        if model not in self._each:
            raise RequestError(f"there is no remote small model {model!r}", param="model", code="model_not_found")
        return self._each[model]

    def _name_there(self, remote: _Remote) -> str:
        if remote.server.remote.model is not None:
            return remote.server.remote.model
        if remote.watch.last is None:  # its server says what it is called
            raise SmallModelDownError(remote.server.name, remote.watch.why or "it is not known")
        return remote.watch.last.identity.model

    def _echoes(self, remote: _Remote) -> bool:
        return remote.watch.last is not None and remote.watch.last.identity.continues == "open"

    async def _first(self, remote: _Remote, dialect: Dialect, fields: Body) -> RequestOutcome:
        with self._running(remote):
            return await remote.server.ask(dialect, fields)

    async def _behind(self, remote: _Remote, dialect: Dialect, fields: Body) -> RequestOutcome:
        """In the background: ended as soon as a client's request comes."""
        if remote.num_running:
            raise PreemptedError
        task = asyncio.create_task(remote.server.ask(dialect, fields))
        remote.background.add(task)
        try:
            await asyncio.wait((task,))
        finally:
            remote.background.discard(task)
            task.cancel()
        if task.cancelled():
            raise PreemptedError
        return task.result()

    @contextmanager
    def _running(self, remote: _Remote) -> Iterator[None]:
        for task in remote.background:
            task.cancel()
        remote.num_running += 1
        try:
            yield
        finally:
            remote.num_running -= 1

    @contextmanager
    def _counted(self, model: str) -> Iterator[None]:
        try:
            yield
        except PreemptedError:
            raise
        except RequestError as error:  # codes of the server's own are as many as it likes
            self.counts[model, "small_model_refused" if isinstance(error, RefusedError) else error.code] += 1
            raise

    async def _continued(self, remote: _Remote, dialect: Dialect, fields: Fields, prefix: str) -> Fields:
        known = remote.watch.last
        if known is None:
            raise SmallModelDownError(remote.server.name, "it is not known yet what its server can do")
        number = await self._count(remote, prefix) if bodies.limits_length(fields) else 0
        return bodies.continued(dialect, fields, prefix, known.identity, number)

    async def _count(self, remote: _Remote, said: str) -> int:
        """The tokens of a text, by the server's own tokenizer where it has a place for that."""
        known = remote.watch.last
        assert known is not None, "looked at before"
        name = known.identity.kind.tokenize
        if name is None:
            return bodies.usual_count(said)
        found = await remote.server.fetch("/tokenize", {"model": known.identity.model, name: said,
                                                        "add_special_tokens": False} if name == "prompt" else {
                                                            "model": known.identity.model, name: said})
        tokens = found.get("tokens") if isinstance(found, dict) else None
        return len(tokens) if isinstance(tokens, list) else bodies.usual_count(said)

    async def _chunks(self, model: str, remote: _Remote, events: AsyncGenerator[Body, None],
                      echo: bodies.WithoutEcho | None) -> AsyncGenerator[Body, None]:
        with self._running(remote), self._counted(model):
            async with aclosing(events):
                async for event in events:
                    remote.watch.check_names(event)
                    chunk = {**event, "model": model} if "model" in event else event
                    yield chunk if echo is None else _new_part(chunk, echo)


def _new_part(chunk: Body, echo: bodies.WithoutEcho) -> Body:
    """A chunk of a chat without what repeats the beginning."""
    choices = list[Body]()
    for choice in objects(chunk.get("choices")):
        delta = choice.get("delta")
        if isinstance(delta, dict):
            said = echo.push(text(delta.get("content")) or "")
            said += echo.rest() if choice.get("finish_reason") is not None else ""
            choice = {**choice, "delta": {**delta, "content": said}} if said or "content" in delta else choice
        choices.append(choice)
    return {**chunk, "choices": choices}


def _check_choices(model: str, dialect: Dialect, body: Body, response: Body) -> None:
    """Some servers give one answer where several were asked for, and say nothing of it."""
    asked = body.get("n")
    given = len(objects(response.get("choices")))
    if dialect.name in CHATS and isinstance(asked, int) and given != asked and given < asked:
        raise RefusedError(f"the small model {model!r} gave {given} of {asked} answers", param="n",
                           code="unsupported_parameter")


class JoinedModels:
    """Small models of this process and remote ones, as one `SmallModels`. Their names differ."""

    def __init__(self, local: SmallModels, remote: RemoteModels) -> None:
        self._local, self._remote = local, remote

    def names(self) -> Sequence[str]:
        """All names, those of this process first."""
        return [*self._local.names(), *self._remote.names()]

    def fingerprint(self, model: str) -> str:
        """As the one that has the model."""
        return self._of(model).fingerprint(model)

    def load(self, model: str) -> Load:
        """As the one that has the model."""
        return self._of(model).load(model)

    async def answer(self, model: str, dialect: Dialect, body: Body, *, logprobs: int | None = None,
                     background: bool = False) -> SmallAnswer:
        """As the one that has the model."""
        return await self._of(model).answer(model, dialect, body, logprobs=logprobs, background=background)

    async def stream(self, model: str, dialect: Dialect, body: Body, *, prefix: str | None = None) -> SmallStream:
        """As the one that has the model."""
        return await self._of(model).stream(model, dialect, body, prefix=prefix)

    def _of(self, model: str) -> SmallModels:
        return self._remote if model in self._remote.names() else self._local


