"""The two servers of a device beside its own: one for other devices, and one that relays to them in its own's absence.

Both run in an event loop on a thread of their own. The relay takes connections from the device's port only while no
server of the device is ready and a peer has the fingerprint that is to answer; else connections wait for the server.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress

import uvicorn
from starlette.types import ASGIApp

from brise.fleet.peer_certificates import PeerTls
from brise.fleet.peers import Answering, PeerApp, Peers
from brise.serve.app import BACKLOG, QuietServer
from brise.serve.uvicorn_protocol import GuardedProtocol

LOOK_AGAIN_S = 1.0
STOP_S = 10.0


class PeerServers:
    """`wanted` says which bundle is to answer at the device's port. Its methods may be called from any thread."""

    def __init__(self, peers: Peers, wanted: Callable[[], Answering | None], relay: ASGIApp,
                 port: socket.socket) -> None:
        self._peers, self._wanted, self._relay, self._port = peers, wanted, relay, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="brise-peers", daemon=True)
        self._is_stopping = False
        self._answers = False  # whether a server of the device is ready
        self._changed = asyncio.Event()
        self._tasks = list[Future[None]]()
        self._listening: uvicorn.Server | None = None
        self._app: PeerApp | None = None
        self.is_relaying = False

    def start(self) -> None:
        """Begins to relay where it is due."""
        self._thread.start()
        self._tasks.append(asyncio.run_coroutine_threadsafe(self._relay_in_absence(), self._loop))

    def listen(self, app: PeerApp, host: str, port: int, tls: PeerTls) -> tuple[str, int]:
        """Answers other devices at this address, and returns it."""
        bound = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET,
                                     backlog=BACKLOG)
        server, self._app = _server(app), app
        server.config.load()
        server.config.ssl = tls.server()
        self._listening = server
        self._tasks.append(asyncio.run_coroutine_threadsafe(server.serve(sockets=[bound]), self._loop))
        found = bound.getsockname()
        return str(found[0]), int(found[1])

    def set_answering(self, answers: bool) -> None:
        """A server of the device is ready now, or no longer."""
        self._answers = answers
        self._loop.call_soon_threadsafe(self._changed.set)

    def add_peer(self, url: str) -> None:
        """Another device that may answer."""
        self._loop.call_soon_threadsafe(self._peers.add, url)

    def end_connections(self) -> None:
        """Ends connections with other devices after the answer that is under way; whoever may still connect does so
        anew."""
        self._loop.call_soon_threadsafe(self._end_connections)

    def _end_connections(self) -> None:
        self._peers.end_connections()
        if self._listening is not None:
            for connection in list(self._listening.server_state.connections):
                connection.shutdown()

    def stop(self) -> None:
        """Ends both servers."""
        if self._listening is not None:
            self._listening.should_exit = True
        self._answers = self._is_stopping = True
        self._loop.call_soon_threadsafe(self._changed.set)
        for task in self._tasks:
            with suppress(TimeoutError):
                task.result(STOP_S)
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(STOP_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _close(self) -> None:
        """Ends connections, and lets the loop see their ends."""
        await self._peers.close()
        if self._app is not None:
            self._app.close()
        for _ in range(3):
            await asyncio.sleep(0)

    async def _relay_in_absence(self) -> None:
        while not self._is_stopping:
            wanted = None if self._answers else self._wanted()
            if wanted is not None and await self._peers.with_fingerprint(wanted.fingerprint):
                await self._relay_until_ready()
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), None if self._answers else LOOK_AGAIN_S)
            self._changed.clear()

    async def _relay_until_ready(self) -> None:
        """Shares the device's port with the server that is being started, until that is ready."""
        server = _server(self._relay)
        task = asyncio.ensure_future(server.serve(sockets=[self._port.dup()]))
        self.is_relaying = True
        try:
            while not self._answers and not task.done():
                await self._changed.wait()
                self._changed.clear()
        finally:
            self.is_relaying = False
            server.should_exit = True
            if server.started:  # else it has no listeners yet, and closes those that it opens by itself
                for each in server.servers:
                    each.close()
            await task


def _server(app: ASGIApp) -> uvicorn.Server:
    return QuietServer(uvicorn.Config(app, http=GuardedProtocol, ws="none", lifespan="off", log_config=None,
                                      access_log=False, server_header=False, proxy_headers=False,
                                      timeout_graceful_shutdown=5))
