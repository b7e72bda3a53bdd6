"""A real server for tests runs on a free local port, over an engine with a stub model."""

from __future__ import annotations

import asyncio
import io
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import httpx
import openai
import uvicorn

from brise.engine.engine import Engine, EngineSettings
from brise.engine.engine_thread import EngineThread
from brise.engine.model import LoadedModel
from brise.gateway.gateway import Gateway
from brise.serve import local_server
from brise.serve.app import new_server
from brise.serve.key_admission import KeyAdmission
from brise.serve.replica import Replica
from brise.serve.serving import RequestWatch, ServerState, ServeSettings, prepare
from brise.serve.telemetry import Telemetry
from tests.engine.stub import stub_model
from tests.waiting import LIMIT_S, wait_until

STEPS, TURNS = 12, 30  # of a clock that is moved on, and of the event loop in each: it deals with all that has come
ENGINE = EngineSettings(page_size=16, num_pages=512, max_step_tokens=512)


@dataclass(frozen=True)
class Live:
    """A running server; `model` is served under the name "stub"."""

    url: str
    engine: Engine
    worker: EngineThread
    serving: ServerState
    _log: io.StringIO
    loop: list[asyncio.AbstractEventLoop] = field(default_factory=list)  # empty until it runs

    def call_soon(self, call: Callable[[], object]) -> None:
        """Calls it in the server's thread."""
        self.loop[0].call_soon_threadsafe(call)

    def pass_time(self, seconds: int) -> Future[None]:
        """Moves the clock of the server's loop on, in steps, and lets everything run that is due by then. So
        no limit that a test waits for has to be short, and no slow machine exceeds one that it does not wait for."""
        return asyncio.run_coroutine_threadsafe(self._pass(seconds), self.loop[0])

    async def _pass(self, seconds: int) -> None:
        clock = asyncio.get_running_loop().time
        assert isinstance(clock, LoopClock)
        for _ in range(STEPS):
            clock.ahead_s += seconds / STEPS
            for _ in range(TURNS):
                await asyncio.sleep(0)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=LIMIT_S)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=LIMIT_S)

    def post(self, path: str, body: object = None, **more: object) -> httpx.Response:
        json_body = {} if "content" in more else {"json": body}
        return httpx.post(f"{self.url}{path}", timeout=LIMIT_S, trust_env=False, **json_body,
                          **more)  # type: ignore[arg-type]

    def get(self, path: str, **more: object) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=LIMIT_S, trust_env=False, **more)  # type: ignore[arg-type]

    def chat(self, text: str = "hi", **more: object) -> httpx.Response:
        return self.post("/v1/chat/completions", {
            "model": "stub", "messages": [{"role": "user", "content": text}], "temperature": 0, **more})

    def wait_idle(self) -> None:
        """Waits until all is done that follows the last byte of an answer: its line of the log, its row, its counts."""
        gateway = self.serving.gateway
        wait_until(lambda: not self.engine.has_work and self.serving.traffic.num_running == 0
                   and (gateway is None or gateway._num_unread == 0))
        self.engine.check()

    def log(self) -> str:
        """The log, with the lines of all requests that were answered."""
        self.wait_idle()
        return self._log.getvalue()

    def wait_log(self, text: str) -> None:
        """Waits until the log holds this text; requests may run."""
        wait_until(lambda: text in self._log.getvalue())

    def metrics(self) -> str:
        """What `/metrics` answers when it has the counts of all requests that were answered."""
        self.wait_idle()
        return self.get("/metrics").text


class LoopClock:
    """The clock of an event loop, which a test may move on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._now, self.ahead_s = loop.time, 0.0

    def __call__(self) -> float:
        return self._now() + self.ahead_s


MakeGateway = Callable[[Mapping[str, EngineThread]], Gateway]


@contextmanager
def live(model: LoadedModel | None = None, settings: ServeSettings | None = None,
         engine_settings: EngineSettings = ENGINE, gateway: MakeGateway | None = None,
         admission: KeyAdmission | None = None, telemetry: Telemetry | None = None,
         replica: Replica | None = None) -> Iterator[Live]:
    """A server that runs until the block ends, and leaves no thread behind."""
    model = model or stub_model("Hello there!")
    engine = Engine(model, replace(engine_settings))
    worker, log = EngineThread(engine), io.StringIO()
    worker.start()
    opened = None if gateway is None else gateway({"stub": worker})
    serving = prepare({"stub": worker}, settings or ServeSettings(), log, opened,
                      watch=RequestWatch(admission, telemetry, replica))
    server, loop = new_server(serving), list[asyncio.AbstractEventLoop]()
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=asyncio.run, args=(run_until_exit(server, serving, listener, loop),))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", engine, worker, serving, log, loop)
    finally:
        worker.shutdown(drain=False)
        server.should_exit = True
        thread.join(LIMIT_S)
        listener.close()
    assert not thread.is_alive()


async def run_until_exit(server: uvicorn.Server, serving: ServerState, listener: socket.socket,
                         loop: list[asyncio.AbstractEventLoop]) -> None:
    loop.append(asyncio.get_running_loop())
    loop[0].time = LoopClock(loop[0])  # type: ignore[method-assign]
    if serving.gateway is not None:
        serving.gateway.start()
    await local_server.join(serving, f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    await server.serve(sockets=[listener])
    if serving.replica is not None:
        await serving.replica.leave()
    if serving.gateway is not None:
        serving.gateway.close()
