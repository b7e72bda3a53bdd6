"""One remote small model over HTTP: whole answers, streams, and the places that say what it is.

It is asked as the large model is (`gateway/large_model.py`): the same connections, the same circuit breaker, the same
rules for what is an answer. Nothing is sent again, because the large model can answer instead.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urldefrag

from starlette.types import Message, Send

from brise.dialects import sse, streams, table
from brise.dialects.bodies import Body, Usage, text
from brise.dialects.dialect import Dialect
from brise.errors import RequestError, UnsupportedError
from brise.gateway.breaker import Breaker, BreakerSettings
from brise.gateway.exchange import outcome_of
from brise.gateway.failure import Delivery, UpstreamError, UpstreamFailure
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.large_model import LargeModel
from brise.gateway.remote.engines import EngineName
from brise.gateway.request import ClientRequest, with_model
from brise.gateway.retry import Retries, RetrySettings
from brise.gateway.small_models import SmallModelDownError
from brise.gateway.upstream import Limits, Upstream, UpstreamSettings
from brise.traffic.records import new_id

JSON_HEADERS = ((b"content-type", b"application/json"),)
MOST_BYTES = 8 << 20  # of a list of models
QUEUED_PIECES = 16  # of a stream, before its reader takes them
MISSING_PLACES = (400, 401, 403, 404, 405, 422, 501)  # statuses of a place that a server does not have, or not for us
# A small model that takes longer is no help: the large one can answer instead.
SMALL_LIMITS = Limits(connect_s=2.0, first_byte_s=60.0, answer_s=60.0, between_s=30.0, total_s=600.0)


@dataclass(frozen=True)
class RemoteModel:
    """A small model behind any server with OpenAI's API: vLLM, llama.cpp, Ollama, SGLang, brise, and others.

    Attributes:
        url: The base URL of its server, http(s)://HOST/v1. `URL#MODEL` names the model, too.
        model: The model's name there. Default: the only one that the server lists.
        key: The key for it. Default: none is sent; clients' keys never are.
        engine: What the server is: "vllm", "llama.cpp", "ollama", "sglang", "brise", "llama-cpp-python" or "other".
            Default: it is detected.
        limits: How long an answer may take.
        probe_every_s: Seconds between two probes of whether it is still the same model.
    """

    url: str
    model: str | None = None
    key: str | None = field(default=None, repr=False)
    engine: EngineName | None = None
    limits: Limits = SMALL_LIMITS
    probe_every_s: float = 300.0
    proxy: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        url, named = urldefrag(self.url)
        if named and self.model not in (None, named):
            raise UnsupportedError(f"the small model is {named!r} by its URL and {self.model!r} by its name")
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "model", self.model or named or None)
        if not self.probe_every_s > 0:
            raise UnsupportedError(f"probe_every_s is {self.probe_every_s!r}, allowed is a number over 0")
        try:
            self.settings()
        except UnsupportedError as error:
            raise UnsupportedError(error.args[0].replace("the upstream", "the small model's server"),
                                   hint="such as http://127.0.0.1:8000/v1") from None

    def settings(self) -> UpstreamSettings:
        """As a connection needs them; UnsupportedError for a URL that is none."""
        return UpstreamSettings(self.url, self.key, forwards_keys=False, limits=self.limits, proxy=self.proxy)


class RefusedError(RequestError):
    """The server of the small model refuses a request: it cannot answer it."""


@dataclass
class RemoteStream:
    """The events of a stream, as objects; `usage` is known at its end."""

    events: AsyncGenerator[Body, None]
    delivery: Delivery
    dialect: Dialect

    def usage(self) -> Usage:
        """The tokens that the server has counted."""
        body = streams.assemble(self.dialect, bytes(self.delivery.body)).body or {}
        return self.delivery.usage or self.dialect.usage(body) or Usage()


class RemoteServer:
    """It belongs to the event loop's thread. `on_loss` is called when its connections fail."""

    def __init__(self, name: str, remote: RemoteModel, on_loss: Callable[[str], None]) -> None:
        self.name, self.remote, self._on_loss = name, remote, on_loss
        self._upstream = Upstream(remote.settings())
        self._large = LargeModel(self._upstream, retries=Retries(RetrySettings(retries=0)))

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no record may hold."""
        return self.remote.settings().secrets

    async def fetch(self, path: str, body: Body | None) -> Any:
        """The JSON of a place of the server, None if it has no such place; SmallModelDownError if it does not answer.

        The circuit breaker has no part in it: so it is known at once when the server is back.
        """
        method, dialect = ("GET" if body is None else "POST"), table.of_request("GET", path)
        request = _request(method, path, dialect, body)
        try:
            async with asyncio.timeout(self.remote.limits.answer_s):
                reply = await self._upstream.open(request)
                try:
                    async with aclosing(reply.chunks()) as pieces:
                        data = bytearray()
                        async for piece in pieces:
                            data += piece
                            if len(data) > MOST_BYTES:
                                raise self._down(UpstreamFailure("malformed", f"{path}: over {MOST_BYTES} bytes"))
                finally:
                    reply.close()
        except (UpstreamError, TimeoutError) as error:
            failure = error.failure if isinstance(error, UpstreamError) else UpstreamFailure("stalled", path)
            raise self._down(failure) from None
        if reply.status in MISSING_PLACES:
            if path == "/v1/models" and reply.status in (401, 403):
                raise self._down(UpstreamFailure("status", f"status {reply.status}: is its key right?"))
            return None
        if reply.status >= 300:
            raise self._down(UpstreamFailure("status", f"{path}: status {reply.status}"))
        try:
            return json.loads(data)
        except (ValueError, RecursionError):
            return None

    async def ask(self, dialect: Dialect, body: Body) -> RequestOutcome:
        """A whole answer. SmallModelDownError if it gives none, RefusedError if it says that the request is wrong."""
        request = _request("POST", dialect.path, dialect, body)
        try:
            outcome = await self._large.ask(request)
        except UpstreamError as error:
            raise self._failed(error.failure) from None
        if outcome.status >= 300 or outcome.error is not None or outcome.response is None:
            raise self._refused(outcome)
        return outcome

    def stream(self, dialect: Dialect, body: Body) -> RemoteStream:
        """The events of an answer. What `ask` raises is raised by the first event, or by a later one."""
        request = _request("POST", dialect.path, dialect, body)
        found = RemoteStream(_nothing(), Delivery(), dialect)

        def ended(delivery: Delivery) -> None:
            found.delivery = delivery

        found.events = self._events(request, ended)
        return found

    async def pass_on(self, request: ClientRequest, model: str, send: Send) -> RequestOutcome:
        """A client's request for this model by its name, and the answer as it comes.

        SmallModelDownError if there is none, and nothing was sent; what breaks off later ends with an error event, or
        with the connection.
        """
        routed = with_model(request, model)
        try:
            delivery = await self._large.answer(routed, send, ())
        except UpstreamError as error:
            broken = error.delivery or Delivery()
            down = self._failed(error.failure)
            if not broken.has_begun:
                raise down from None
            if broken.takes_event:
                event = sse.encode(request.dialect.error_event(str(down.args[0]), down.code), "error")
                await send({"type": "http.response.body", "body": event, "more_body": False})
            return outcome_of(broken, routed, "failed", str(error.failure))
        return outcome_of(delivery, routed, "small")

    def is_back(self) -> None:
        """It answers again: requests need not wait for the breaker's next attempt."""
        self._large.breaker = Breaker(BreakerSettings())

    def close(self) -> None:
        """Ends idle connections."""
        self._upstream.close()

    async def _events(self, request: ClientRequest, ended: Callable[[Delivery], None]) -> AsyncGenerator[Body, None]:
        """What the relay would send to a client, taken apart again: it passes whole events only."""
        queue = asyncio.Queue[bytes | None](QUEUED_PIECES)
        answering = asyncio.create_task(self._relay(request, queue))
        splitter = sse.Splitter()
        try:
            while (piece := await queue.get()) is not None:
                for block in splitter.push(piece):
                    event = block.event
                    if event is not None and event.fields is not None and event.error is None:
                        yield event.fields
            ended(await answering)
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)

    async def _relay(self, request: ClientRequest, queue: asyncio.Queue[bytes | None]) -> Delivery:
        """Puts the stream into the queue, and None behind it, unless its reader is gone."""
        try:
            delivery = await self._relayed(request, queue)
        except asyncio.CancelledError:
            raise
        except Exception:
            await queue.put(None)
            raise
        await queue.put(None)
        return delivery

    async def _relayed(self, request: ClientRequest, queue: asyncio.Queue[bytes | None]) -> Delivery:
        is_stream = False

        async def send(message: Message) -> None:
            nonlocal is_stream
            if message["type"] == "http.response.start":
                types = [value for name, value in message["headers"] if name == b"content-type"]
                is_stream = message["status"] < 300 and any(each.startswith(sse.MEDIA_TYPE) for each in types)
            elif is_stream and message.get("body"):
                await queue.put(message["body"])

        try:
            delivery = await self._large.answer(request, send, (), stops_at_faults=True)
        except UpstreamError as error:
            raise self._failed(error.failure) from None
        if not delivery.is_stream:
            raise self._refused(outcome_of(delivery, request, "failed"))
        if delivery.followed.error is not None:
            raise RefusedError(f"the small model {self.name!r}: {delivery.followed.error.message}",
                               code="small_model_refused")
        return delivery

    def _failed(self, failure: UpstreamFailure) -> SmallModelDownError:
        """A lost connection may mean that another model comes back; slowness and refusals do not."""
        if failure.kind in ("refused", "connect_timeout", "cut", "open") and not failure.is_stale:
            self._on_loss(str(failure))
        return self._down(failure)

    def _down(self, failure: UpstreamFailure) -> SmallModelDownError:
        return SmallModelDownError(self.name, f"its server does not answer ({failure})")

    def _refused(self, outcome: RequestOutcome) -> RequestError:
        error = (outcome.response or {}).get("error")
        about = error if isinstance(error, dict) else {}
        code = text(about.get("code")) or "small_model_refused"
        why = text(about.get("message")) or outcome.error or f"status {outcome.status}"
        if outcome.status in (401, 403):
            return SmallModelDownError(self.name, f"its server refuses the key: {why[:200]}")
        if outcome.status == 404:
            code, why = "small_model_refused", f"its server does not have this: {why}"
        return RefusedError(f"the small model {self.name!r}: {why[:300]}", code=code)


def _request(method: str, path: str, dialect: Dialect, body: Body | None) -> ClientRequest:
    data = b"" if body is None else json.dumps(body).encode("utf-8", "replace")
    headers: Sequence[tuple[bytes, bytes]] = JSON_HEADERS if data else ()
    model = str((body or {}).get("model") or "")
    return ClientRequest(new_id(), method, path, path.encode(), headers, data, body, dialect, model, "")


async def _nothing() -> AsyncGenerator[Body, None]:
    return
    yield
