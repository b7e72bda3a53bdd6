"""A server in this program: an ASGI application, and the same listening on a port."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Future
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from threading import Thread
from types import TracebackType
from typing import Self, TextIO
from urllib.parse import quote

from starlette.types import ASGIApp, Receive, Scope, Send

from brise.api.model import Model
from brise.api.words import python_words
from brise.engine.engine_thread import EngineThread
from brise.errors import BriseError, ClosedError
from brise.gateway.gateway import Gateway
from brise.serve import local_server
from brise.serve.access import AcceptedKeys, check_bind
from brise.serve.app import BACKLOG, address_of, bind, create_app, new_server, run_server
from brise.serve.serving import RequestWatch, ServerState, ServeSettings, prepare


@dataclass(frozen=True)
class ServerParts:
    """The parts of a server. `owned` is closed with it: models that it loaded, and the gateway's store."""

    models: Mapping[str, Model]
    settings: ServeSettings
    owned: ExitStack
    keys: AcceptedKeys | None = None
    gateway: Gateway | None = None
    log: TextIO | None = None
    watch: RequestWatch = RequestWatch()


class Server:
    """Models, or a gateway, over HTTP; `brise.serve` and `brise.gateway` make it.

    A server is an ASGI application: mount it under any path of another one, or give it to an ASGI server. It also
    listens by itself: in an `async with` block (in this event loop), in a `with` block (in a thread), or in `run`
    (until Ctrl-C). Use a server once. Models that you give it stay open; models that it loads are closed with it.
    """

    def __init__(self, parts: ServerParts) -> None:
        self._parts, self._log = parts, parts.log or sys.stderr
        workers = {name: model.worker for name, model in parts.models.items()}
        self._workers: Mapping[str, EngineThread] = workers
        self._state: ServerState = prepare(workers, parts.settings, self._log, parts.gateway, parts.keys,
                                           parts.watch)
        self._app: ASGIApp = create_app(self._state)
        self._url: str | None = None
        self._has_begun = self._is_closed = False
        self._listening: AsyncExitStack | None = None
        self._thread: _ServerThread | None = None

    @property
    def url(self) -> str:
        """What clients take as their base URL, such as http://127.0.0.1:8080/v1, while the server listens."""
        if self._url is None:
            raise BriseError("the server does not listen", hint="async with brise.serve(...) as server: ...")
        return self._url

    @property
    def is_alive(self) -> bool:
        """Whether every model's engine takes requests: not after the server was closed, nor after a fault."""
        return all(worker.is_open for worker in self._workers.values())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        self._begin()
        await self._app(_unmounted(scope), receive, send)

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[Self]:
        """For the lifespan of an application that mounts the server: starts its background work, and ends it."""
        self._begin()
        try:
            await local_server.join(self._state, self._url or "")
            yield self
        finally:
            await self.aclose()

    async def aclose(self) -> None:
        """Ends the background work, writes the captured traffic, and closes the models that the server loaded."""
        self._state.traffic.close()
        if not self._is_closed:
            self._is_closed = True
            if self._state.replica is not None:
                await self._state.replica.leave()
            if self._parts.gateway is not None and self._has_begun:
                self._parts.gateway.close()
            await asyncio.to_thread(self._parts.owned.close)

    def run(self) -> None:
        """Listens until SIGINT or SIGTERM, as `brise serve` does, and lets requests finish. It closes all models."""
        self._use()
        try:
            run_server(self._workers, self._parts.settings, self._log, gateway=self._parts.gateway,
                       keys=self._parts.keys, watch=self._parts.watch)
        finally:
            self._is_closed = True
            self._parts.owned.close()

    async def __aenter__(self) -> Self:
        self._use()
        self._listening = AsyncExitStack()
        try:
            self._begin()
            self._listening.push_async_callback(self.aclose)
            await self._listening.enter_async_context(self._listen())
            await local_server.join(self._state, self.url)
        except BaseException:
            await self._listening.aclose()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None,
                        trace: TracebackType | None) -> None:
        assert self._listening is not None, "entered before"
        await self._listening.aclose()

    def __enter__(self) -> Self:
        self._thread = _ServerThread(self)
        self._thread.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        assert self._thread is not None, "entered before"
        self._thread.end()

    @asynccontextmanager
    async def _listen(self) -> AsyncIterator[None]:
        """Takes connections. At the end, requests get `drain_timeout` seconds to finish; the rest are broken off."""
        settings = self._parts.settings
        with python_words():
            check_bind(settings.host, self._state.keys is not None, settings.allow_insecure_bind)
            bound = bind(settings)
        with bound as listener:
            listener.listen(BACKLOG)
            server = new_server(self._state)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            self._url = address_of(settings.host, listener)
            try:
                yield
            finally:
                self._url = None
                if not await self._state.traffic.drain(settings.drain_timeout_s) and self._parts.gateway is not None:
                    self._parts.gateway.end()
                server.should_exit = True
                await serving

    def _begin(self) -> None:
        """Starts the background work, once, in the event loop."""
        if self._is_closed:
            raise ClosedError("the server")
        if not self._has_begun:
            self._has_begun = True
            if self._parts.gateway is not None:
                self._parts.gateway.start()
            for worker in self._workers.values():
                asyncio.get_running_loop().run_in_executor(None, worker.warm)

    def _use(self) -> None:
        if self._has_begun or self._is_closed:
            raise BriseError("a server is used once, and this one was", hint="make another one")

    async def _live(self, receive: Receive, send: Send) -> None:
        """The lifespan of an ASGI server whose application this is."""
        while True:
            match (await receive())["type"]:
                case "lifespan.startup":
                    self._begin()
                    await local_server.join(self._state, "")
                    await send({"type": "lifespan.startup.complete"})
                case "lifespan.shutdown":
                    await self.aclose()
                    await send({"type": "lifespan.shutdown.complete"})
                    return


class _ServerThread:
    """An event loop in a thread of its own, in which a server listens."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop: Future[Callable[[], object]] = Future()  # known when the server listens
        self._ended: Future[None] = Future()
        self._thread = Thread(target=self._run, name="brise-server", daemon=True)

    def begin(self) -> None:
        """Returns when the server listens, or raises why it cannot."""
        self._thread.start()
        self._stop.result()

    def end(self) -> None:
        """Returns when it has ended."""
        self._stop.result()()
        self._thread.join()
        self._ended.result()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:  # handed to whoever began it, or ends it
            (self._ended if self._stop.done() else self._stop).set_exception(error)
        else:
            self._ended.set_result(None)

    async def _serve(self) -> None:
        stop = asyncio.Event()
        async with self._server:
            self._stop.set_result(partial(asyncio.get_running_loop().call_soon_threadsafe, stop.set))
            await stop.wait()


def _unmounted(scope: Scope) -> Scope:
    """The request without the prefix under which an application has mounted the server."""
    root, path = scope.get("root_path", "").rstrip("/"), scope["path"]
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root):] or "/"
    raw, prefix = scope.get("raw_path") or b"", quote(root).encode()
    inner = raw[len(prefix):] if root and raw.startswith(prefix) else raw if path == scope["path"] else b""
    return {**scope, "root_path": "", "path": path, "raw_path": inner or quote(path).encode()}
