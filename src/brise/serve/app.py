"""The HTTP server: routes, and the life of the process from the first socket to the last answer."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TextIO, TypeVar

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from brise.engine.engine_thread import EngineThread
from brise.errors import BriseError, RequestError
from brise.gateway.gateway import Gateway
from brise.serve import adapters, chat, completions, embeddings, models_and_health, responses
from brise.serve.access import AcceptedKeys, check_bind
from brise.serve.access_middleware import AccessMiddleware
from brise.serve.error_response import MethodError, NotFoundError, respond
from brise.serve.gateway_middleware import GatewayMiddleware
from brise.serve.serving import ServerState, ServeSettings, prepare
from brise.serve.uvicorn_protocol import CoalescingProtocol

T = TypeVar("T")
# After the engines were told to stop, so that their last words ("shutting down") reach the clients.
LAST_WORDS_S = 5
BACKLOG = 2048  # connections that wait to be accepted
# An idle connection is kept longer than its client keeps it, so that the client is the one who ends it. uvicorn ends it
# without a word, and a request that is on its way just then is lost: most clients do not repeat a POST. OpenAI's client
# keeps connections for 5 s, load balancers do so for 60 (nginx and AWS, unless they are set otherwise).
KEEP_ALIVE_S = 75


def run_server(models: Mapping[str, EngineThread], settings: ServeSettings, log: TextIO | None = None,
               bound: socket.socket | None = None, gateway: Gateway | None = None,
               keys: AcceptedKeys | None = None) -> int:
    """Serves until SIGINT or SIGTERM, lets what runs finish, and shuts the engines down. Returns the status.

    A second signal, or `drain_timeout_s`, ends what still runs with an error that its client sees.
    `bound` is the socket of an earlier `bind`; `keys` are accepted where the settings name no file of them.
    """
    serving = prepare(models, settings, log or sys.stderr, gateway, keys)
    check_bind(settings.host, serving.keys is not None, settings.allow_insecure_bind)
    with bound or bind(settings) as listener:
        with _port_errors(settings):
            listener.listen(BACKLOG)
        asyncio.run(_serve(serving, listener))
    for worker in models.values():
        worker.shutdown(drain=False)
    return 0


def create_app(serving: ServerState) -> Starlette:
    """The ASGI application; it neither starts nor stops engines."""
    middleware = [Middleware(AccessMiddleware, serving=serving)]
    if serving.gateway is not None:
        middleware.append(Middleware(GatewayMiddleware, serving=serving, gateway=serving.gateway))
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", partial(chat.complete, serving), methods=["POST"]),
            Route("/v1/completions", partial(completions.complete, serving), methods=["POST"]),
            Route("/v1/embeddings", partial(embeddings.embed, serving), methods=["POST"]),
            Route("/v1/responses", partial(responses.create, serving), methods=["POST"]),
            Route("/v1/models", partial(models_and_health.models, serving), methods=["GET"]),
            Route("/v1/models/{name:path}", partial(models_and_health.model, serving), methods=["GET"]),
            Route("/v1/adapters", partial(adapters.adapters, serving), methods=["GET", "POST"]),
            Route("/v1/adapters/{name}", partial(adapters.remove, serving), methods=["DELETE"]),
            Route("/health", partial(models_and_health.health, serving), methods=["GET"]),
            Route("/metrics", partial(models_and_health.metrics, serving), methods=["GET"]),
        ],
        middleware=middleware,
        exception_handlers={RequestError: _request_error, HTTPException: _http_error})
    app.router.redirect_slashes = False
    return app


class QuietServer(uvicorn.Server):
    """uvicorn's server, which leaves signals to the program that it runs in."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def new_server(serving: ServerState) -> uvicorn.Server:
    """uvicorn, quiet and without what we do not use."""
    return QuietServer(uvicorn.Config(
        create_app(serving), http=CoalescingProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=LAST_WORDS_S))


async def _serve(serving: ServerState, listener: socket.socket) -> None:
    server = new_server(serving)
    if serving.gateway is not None:
        serving.gateway.start()
    running = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started and not running.done():
        await asyncio.sleep(0.01)
    if serving.gateway is not None:
        _attend_to_latency()
    signals = asyncio.Queue[int]()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    address = address_of(serving.settings.host, listener)
    names = [*serving.models, *([] if serving.gateway is None else [serving.gateway.large.upstream.settings.url])]
    print(f"brise serves {', '.join(names)} at {address}", file=serving.log, flush=True)
    if await _signalled(running, signals):
        await _stop(serving, signals)
        server.should_exit = True
    await running
    if serving.gateway is not None:
        serving.gateway.close()


def _attend_to_latency() -> None:
    """A gateway's own share of an answer's time is a millisecond or two.

    What lives as long as the process is taken out of the garbage collector's sight, a full collection of which takes
    tens of milliseconds. And the thread that writes down gives way to the event loop after 0.5 ms instead of 5.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.0005)


async def _stop(serving: ServerState, signals: asyncio.Queue[int]) -> None:
    """Waits for what runs, or for another signal; what is left then is cancelled."""
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
    signal_comes = asyncio.create_task(signals.get())
    await asyncio.wait((task, signal_comes), return_when=asyncio.FIRST_COMPLETED)
    signal_comes.cancel()
    return not task.done()


def address_of(host: str, listener: socket.socket) -> str:
    """What clients take as their base URL."""
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"


def bind(settings: ServeSettings) -> socket.socket:
    """Takes the port, so that one in use is known before a model is loaded. Nobody is let in before it listens."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named as TCP, for asyncio sends small pieces at once (TCP_NODELAY) on such sockets only: else an answer's body
    # waits for the client to acknowledge its head, which takes Linux 40 ms.
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
    return respond(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and wrong methods, in the same shape as everything else."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:200]!r}"
    if error.status_code != 405:
        return respond(NotFoundError(f"there is no {where}"))
    allowed = (error.headers or {}).get("Allow", "")
    answer = respond(MethodError(f"there is no {where}; allowed is {allowed}"))
    answer.headers["Allow"] = allowed
    return answer
