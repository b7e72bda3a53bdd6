"""What balancers ask: `/livez` and `/health` say what runs, `/readyz` whether requests are to come here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.serve.serving import ServerState

Effect = Literal["degraded", "failed"]


@dataclass(frozen=True)
class Reason:
    """Why a server is not simply ready. `degraded`: it answers all the same, as far as it can."""

    code: str
    message: str
    effect: Effect = "failed"


async def health(serving: ServerState, request: Request) -> Response:
    """200 while new requests can be answered. It needs no key, so it names no models."""
    if serving.traffic.closed:
        return JSONResponse({"status": "draining"}, 503, {"Retry-After": "1"})
    if not all(worker.is_open for worker in serving.models.values()):
        return JSONResponse({"status": "failed"}, 503)
    return JSONResponse({"status": "ok"})


async def livez(serving: ServerState, request: Request) -> Response:
    """200 as long as the event loop runs: who gets no answer starts the process anew."""
    return JSONResponse({"status": "alive"})


async def readyz(serving: ServerState, request: Request) -> Response:
    """200 `ready` or `degraded`; 503 with the reasons if requests should go to another server. It needs no key."""
    reasons = reasons_of(serving)
    if not reasons:
        status = "ready"
    elif all(reason.effect == "degraded" for reason in reasons):
        status = "degraded"
    else:
        status = "draining" if serving.traffic.closed else "failed"
    body = {"status": status, "reasons": [{"code": reason.code, "message": reason.message} for reason in reasons]}
    is_ready = status in ("ready", "degraded")
    return JSONResponse(body, 200 if is_ready else 503, None if is_ready else {"Retry-After": "1"})


def reasons_of(serving: ServerState) -> Sequence[Reason]:
    """Everything that stands against sending requests to this server."""
    reasons = []
    if serving.traffic.closed:
        reasons.append(Reason("draining", "the server shuts down"))
    dead = [name for name, worker in serving.models.items() if not worker.is_open]
    if dead and not serving.traffic.closed:
        reasons.append(Reason("engine", f"{len(dead)} of {len(serving.models)} engines have ended"))
    return reasons
