"""The simulated large model as a server: a process of its own on loopback, with OpenAI's API, that can be killed.

It is priced by the demo's prices.toml and says in every answer that it is simulated.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from brise.demo.child import ChildError
from brise.demo.stand_in import FINGERPRINT, NAME, Nature, Spoken, StandIn
from brise.demo.workload import FunctionCall

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0
_PIECES = 4  # of a streamed answer


@dataclass
class LargeModelProcess:
    """The server's process. `kill` is an outage; `start` ends it, at the same address."""

    truth: Mapping[str, FunctionCall]
    nature: Nature
    port: int = 0
    process: BaseProcess | None = None

    @property
    def url(self) -> str:
        """What stands before /chat/completions."""
        return f"http://{HOST}:{self.port}/v1"

    def start(self) -> None:
        """Returns when it listens."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.port, self.truth, self.nature), daemon=True)
        self.process.start()
        theirs.close()
        if not ours.poll(START_TIMEOUT_S):
            self.kill()
            raise ChildError(f"the simulated large model did not start within {START_TIMEOUT_S:g} s")
        self.port = ours.recv()

    def kill(self) -> None:
        """SIGKILL: connections break, and new ones are refused."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None


def serve(started: Connection, port: int, truth: Mapping[str, FunctionCall],
          nature: Nature) -> None:
    """The process: listens, says at which port, and serves until it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the demo, which ends this process
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((HOST, port))
    listener.listen(1024)
    started.send(listener.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(create_app(StandIn(truth, nature)), lifespan="off", log_config=None,
                                           access_log=False))
    asyncio.run(server.serve(sockets=[listener]))


def create_app(stand_in: StandIn) -> Starlette:
    """The ASGI application."""
    async def complete(request: Request) -> Response:
        body = await request.json()
        spoken = stand_in.answer(body["messages"])
        if body.get("stream"):
            wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
            return StreamingResponse(_stream(spoken, stand_in.nature, wants_usage), media_type="text/event-stream")
        await asyncio.sleep(spoken.wait_s)
        return JSONResponse({**_head("chat.completion"), "usage": _usage(spoken), "choices": [
            {"index": 0, "message": {"role": "assistant", "content": spoken.text}, "finish_reason": "stop"}]})

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": NAME, "object": "model", "owned_by": "brise demo"}]})

    return Starlette(routes=[Route("/v1/chat/completions", complete, methods=["POST"]),
                             Route("/v1/models", models, methods=["GET"])])


async def _stream(spoken: Spoken, nature: Nature, wants_usage: bool) -> AsyncIterator[bytes]:
    """The answer in a few pieces: the first after its share of the time, the others evenly over the rest."""
    first_s = spoken.wait_s * nature.first_token_share
    size = max(1, -(-len(spoken.text) // _PIECES))
    pieces = [spoken.text[at:at + size] for at in range(0, len(spoken.text), size)]
    for number, piece in enumerate(pieces):
        await asyncio.sleep(first_s if number == 0 else (spoken.wait_s - first_s) / max(len(pieces) - 1, 1))
        yield _event({"delta": {"role": "assistant", "content": piece} if number == 0 else {"content": piece},
                      "finish_reason": None})
    yield _event({"delta": {}, "finish_reason": "stop"})
    if wants_usage:
        yield _data({**_head("chat.completion.chunk"), "choices": [], "usage": _usage(spoken)})
    yield b"data: [DONE]\n\n"


def _event(choice: Mapping[str, object]) -> bytes:
    return _data({**_head("chat.completion.chunk"), "choices": [{"index": 0, **choice}]})


def _data(body: Mapping[str, object]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def _head(kind: str) -> dict[str, object]:
    return {"id": "simulated", "object": kind, "created": 0, "model": NAME, "system_fingerprint": FINGERPRINT}


def _usage(spoken: Spoken) -> dict[str, int]:
    return {"prompt_tokens": spoken.prompt_tokens, "completion_tokens": spoken.completion_tokens,
            "total_tokens": spoken.prompt_tokens + spoken.completion_tokens}
