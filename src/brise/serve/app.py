"""The HTTP server: its routes, how it starts, and how it stops."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TextIO, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from brise.dialects import ollama as dialect
from brise.engine.engine_thread import EngineThread
from brise.errors import BriseError, RequestError
from brise.gateway.gateway import Gateway
from brise.serve import (
    actions,
    adapters,
    chat,
    completions,
    embeddings,
    local_server,
    messages,
    models_and_metrics,
    ollama,
    ollama_models,
    readiness,
    responses,
    sparse_log,
    tokenize,
    transcriptions,
)
from brise.serve.access import AcceptedKeys, check_bind
from brise.serve.access_middleware import AccessMiddleware
from brise.serve.error_response import MethodError, NotFoundError, respond
from brise.serve.gateway_middleware import GatewayMiddleware
from brise.serve.key_middleware import KeyMiddleware
from brise.serve.serving import PAGE, RequestWatch, ServerState, ServeSettings, prepare
from brise.serve.uvicorn_protocol import GuardedProtocol

T = TypeVar("T")
# Time for the last events ("shutting down") to reach the clients after the engines have stopped.
FLUSH_S = 5
BACKLOG = 256  # connections waiting to be accepted; asyncio tries as many at once, also when it has no descriptor left
ACCEPT_LINE_S = 60.0  # between two lines of the log that say so
# The server keeps idle connections longer than clients do, so that the client is the one that closes. When uvicorn
# closes a connection, a request that is just arriving is lost, and most clients do not repeat a POST. OpenAI's client
# keeps idle connections for 5 s, load balancers for 60 s (the default of nginx and AWS).
KEEP_ALIVE_S = 75


def run_server(models: Mapping[str, EngineThread], settings: ServeSettings, log: TextIO | None = None,
               bound: socket.socket | None = None, gateway: Gateway | None = None,
               keys: AcceptedKeys | None = None, watch: RequestWatch | None = None) -> int:
    """Serves until SIGINT or SIGTERM, finishes running requests and shuts the engines down. Returns the exit status.

    After a second signal or `drain_timeout_s`, requests that still run end with an error that their clients see.
    `bound` is the socket from an earlier `bind`; `keys` apply if the settings name no file of keys.
    """
    serving = prepare(models, settings, log or sys.stderr, gateway, keys, watch or RequestWatch())
    check_bind(settings.host, serving.has_keys, settings.allow_insecure_bind)
    with bound or bind(settings) as listener:
        with _port_errors(settings):
            listener.listen(BACKLOG)
        try:
            asyncio.run(_serve(serving, listener))
        finally:
            gc.unfreeze()  # else the models would be left at the end, and their library would list each weight as lost
    for worker in models.values():
        worker.shutdown(drain=False)
    return 0


def create_app(serving: ServerState) -> Starlette:
    """The ASGI application; it neither starts nor stops engines."""
    for worker in serving.models.values():
        worker.hold_background(lambda: serving.traffic.num_running > 0)
    middleware = [Middleware(AccessMiddleware, serving=serving)]
    if serving.gateway is not None:
        middleware.append(Middleware(GatewayMiddleware, serving=serving, gateway=serving.gateway))
    elif serving.admission is not None:
        middleware.append(Middleware(KeyMiddleware, serving=serving, admission=serving.admission))
    if serving.settings.cors_origins:  # the outermost: browsers send no key with what they ask before a request
        middleware.insert(0, Middleware(
            CORSMiddleware, allow_origins=serving.settings.cors_origins, allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"], expose_headers=["x-request-id", "x-brise-mode", "x-brise-ignored"]))
    app = Starlette(
        routes=[
            *(() if serving.settings.page is None else serving.settings.page(serving)),
            Route("/v1/chat/completions", partial(chat.complete, serving), methods=["POST"]),
            Route("/v1/completions", partial(completions.complete, serving), methods=["POST"]),
            Route(transcriptions.PATH, partial(transcriptions.transcribe, serving), methods=["POST"]),
            Route("/v1/actions", partial(actions.act, serving), methods=["POST"]),
            Route("/v1/embeddings", partial(embeddings.embed, serving), methods=["POST"]),
            Route("/v1/responses", partial(responses.create, serving), methods=["POST"]),
            Route("/v1/messages", partial(messages.create, serving), methods=["POST"]),
            Route("/v1/messages/count_tokens", partial(messages.count, serving), methods=["POST"]),
            Route("/v1/responses/{id}", partial(responses.stored, serving), methods=["GET", "DELETE"]),
            Route("/tokenize", partial(tokenize.tokenize, serving), methods=["POST"]),
            Route("/detokenize", partial(tokenize.detokenize, serving), methods=["POST"]),
            Route("/tokenizer_info", partial(tokenize.tokenizer_info, serving), methods=["GET"]),
            Route("/v1/models", partial(models_and_metrics.models, serving), methods=["GET"]),
            Route("/v1/models/", partial(models_and_metrics.models, serving), methods=["GET"]),
            Route("/v1/models/{name:path}", partial(models_and_metrics.model, serving), methods=["GET"]),
            Route("/v1/adapters", partial(adapters.adapters, serving), methods=["GET", "POST"]),
            Route("/v1/adapters/{name}", partial(adapters.remove, serving), methods=["DELETE"]),
            *_ollama_routes(serving),
            Route("/health", partial(readiness.health, serving), methods=["GET"]),
            Route("/livez", partial(readiness.livez, serving), methods=["GET"]),
            Route("/readyz", partial(readiness.readyz, serving), methods=["GET"]),
            Route("/metrics", partial(models_and_metrics.metrics, serving), methods=["GET"]),
        ],
        middleware=middleware,
        exception_handlers={RequestError: _request_error, HTTPException: _http_error})
    app.router.redirect_slashes = False
    return app


def _ollama_routes(serving: ServerState) -> list[Route]:
    """Ollama's API, and the path at which its clients look whether a server is there."""
    return [
        Route(dialect.CHAT, partial(ollama.chat, serving), methods=["POST"]),
        Route(dialect.GENERATE, partial(ollama.generate, serving), methods=["POST"]),
        Route(dialect.EMBED, partial(ollama.embed, serving), methods=["POST"]),
        Route(dialect.EMBEDDINGS, partial(ollama.embed, serving, is_older=True), methods=["POST"]),
        Route(dialect.TAGS, partial(ollama_models.tags, serving), methods=["GET"]),
        Route(dialect.PS, partial(ollama_models.running, serving), methods=["GET"]),
        Route(dialect.SHOW, partial(ollama_models.show, serving), methods=["POST"]),
        Route(dialect.VERSION, ollama_models.version, methods=["GET"]),
        *(Route(f"{dialect.PREFIX}{change}{rest}", ollama_models.refuse_change, methods=["GET", "POST", "DELETE"])
          for change in dialect.CHANGES for rest in ("", "/{name:path}")),
        Route(dialect.ROOT, ollama_models.root, methods=["GET"])]


class QuietServer(uvicorn.Server):
    """uvicorn's server without signal handlers: signals belong to the program that runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def new_server(serving: ServerState) -> uvicorn.Server:
    """A uvicorn server without logs, WebSockets and lifespan events; of its warnings one a minute."""
    sparse_log.install()
    return QuietServer(uvicorn.Config(
        create_app(serving), http=GuardedProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S, backlog=BACKLOG,
        timeout_graceful_shutdown=FLUSH_S))


async def _serve(serving: ServerState, listener: socket.socket) -> None:
    server = new_server(serving)
    if serving.gateway is not None:
        serving.gateway.start()
    asyncio.get_running_loop().set_exception_handler(_AcceptErrors(serving.log))
    serve_task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not serve_task.done():
        await asyncio.sleep(0.01)
    if serving.gateway is not None:
        _lower_latency()
    for worker in serving.models.values():
        asyncio.get_running_loop().run_in_executor(None, worker.warm)
    signals = asyncio.Queue[int]()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    address = address_of(serving.settings.host, listener)
    await local_server.join(serving, address)
    _say_where(serving, address)
    if await _signalled(serve_task, signals):
        await _stop(serving, server, signals)
        server.should_exit = True
    await serve_task
    if serving.replica is not None:
        await serving.replica.leave()
    if serving.gateway is not None:
        serving.gateway.close()


def _say_where(serving: ServerState, address: str) -> None:
    names = [*serving.models, *([] if serving.gateway is None else serving.gateway.large.places)]
    page = "" if serving.settings.page is None else f"\nits page is at {address.removesuffix('/v1')}{PAGE}/"
    print(f"brise serves {', '.join(names)} at {address}{page}", file=serving.log, flush=True)
    if serving.settings.supervision is not None:
        serving.settings.supervision.ready()


class _AcceptErrors:
    """Handles what asyncio has nobody to tell: that no descriptor is left is one line a minute, not thousands."""

    def __init__(self, log: TextIO) -> None:
        self._log, self._said_s = log, -ACCEPT_LINE_S

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or "accept" not in str(context.get("message")):
            loop.default_exception_handler(context)
        elif loop.time() >= self._said_s + ACCEPT_LINE_S:
            self._said_s = loop.time()
            print(f"connections wait: {error.strerror} (the limit of files is that of `ulimit -n`)", file=self._log,
                  flush=True)


def _lower_latency() -> None:
    """Removes pauses from the event loop: a gateway adds only a millisecond or two to an answer.

    Objects that live as long as the process are frozen, because a full garbage collection takes tens of milliseconds.
    The thread that captures traffic yields to the event loop after 0.5 ms instead of 5.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.0005)


async def _stop(serving: ServerState, server: uvicorn.Server, signals: asyncio.Queue[int]) -> None:
    """Waits for running requests, or for another signal; requests that are left are cancelled."""
    if serving.settings.supervision is not None:
        serving.settings.supervision.stop_accepting(server)
    timeout_s = serving.settings.drain_timeout_s
    print(f"stopping: {serving.traffic.num_running} requests run, at most {timeout_s:g} s (again: at once)",
          file=serving.log, flush=True)
    draining = asyncio.create_task(serving.traffic.drain(timeout_s))
    if await _signalled(draining, signals) or not await draining:
        draining.cancel()
        if serving.gateway is not None:
            serving.gateway.end()
        for worker in serving.models.values():
            await asyncio.to_thread(worker.shutdown, drain=False)


async def _signalled(task: asyncio.Task[T], signals: asyncio.Queue[int]) -> bool:
    """Waits for a signal or the end of `task`; True if it was a signal."""
    next_signal = asyncio.create_task(signals.get())
    await asyncio.wait((task, next_signal), return_when=asyncio.FIRST_COMPLETED)
    next_signal.cancel()
    return not task.done()


def address_of(host: str, listener: socket.socket) -> str:
    """The base URL for clients."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"


def bind(settings: ServeSettings) -> socket.socket:
    """Binds the port, so that a port in use is reported before a model is loaded. Connections need `listen`, too.

    Under supervision it is the supervisor's socket.
    """
    if settings.supervision is not None:
        return settings.supervision.listener
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With IPPROTO_TCP, because asyncio sets TCP_NODELAY on such sockets only. Without it the body of a response waits
    # until the client acknowledges the head, which takes 40 ms on Linux.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with _port_errors(settings):
            bound.bind((settings.host, settings.port))
    except BaseException:
        bound.close()
        raise
    return bound


@contextmanager
def _port_errors(settings: ServeSettings) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BriseError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
                         hint="another program may have the port; choose one with --port") from None


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return respond(error, request.url.path)


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and wrong methods, in the same format as other errors."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]!r}"
    if error.status_code != 405:
        return respond(NotFoundError(f"there is no {where}"), request.url.path)
    allowed = (error.headers or {}).get("Allow", "")
    response = respond(MethodError(f"there is no {where}; allowed is {allowed}"), request.url.path)
    response.headers["Allow"] = allowed
    return response
