"""The hub's routes: static files for everybody, enrolling and reports for devices, the rest for the operator's key.

    GET  /repository/...            metadata and targets, with ETag and ranges
    POST /enrol                     {token, device, public_key, facts}
    POST /reports                   a batch of records, signed by its device
    POST /certificate               {device, fleet, wants}, signed by its device: a new certificate for other devices
    GET  /revocations               the certificates that devices must not accept any more, signed by the authority
    GET  /fleet                     the page, with the operator's key as the password
    GET, POST, DELETE /v1/fleet/... what `brise fleet` asks (hub_operations.py)

Signatures and keys come before parsing. A device that sends too many reports is told to wait, by the name that its key
proves, and so is an address that sends wrong requests. Reports that arrive together are kept in one transaction.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import math
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from brise.errors import BriseError, FleetError, RequestError
from brise.fleet.enrolment import EnrolmentError, FleetDevice
from brise.fleet.hub import FleetHub
from brise.fleet.peer_certificates import FleetAuthority, serial_and_end
from brise.fleet.received import ReceivedBatch, opened_batch
from brise.fleet.refusals import UnsafePathError
from brise.fleet.sealed_records import (
    DEVICE_HEADER,
    MOST_BATCH_BYTES,
    SIGNATURE_HEADER,
    check_device,
    is_signed,
    public_seal_key,
    read_batch,
)
from brise.fleet.sources import METADATA, TARGETS, check_name
from brise.serve.access import AcceptedKeys
from brise.serve.body import read_bytes
from brise.text.json_text import Json, parse_json

MOST_REQUEST_BYTES = 64 << 10  # of everything but a batch
BODY_S = 30.0
SMALL_BYTES = 256 << 10  # files that are kept in memory once they were read
MOST_SMALL = 256
LARGE_BATCH = 20  # records whose states are opened on a thread, so that other devices do not wait
MOST_BATCHES_AT_ONCE = 256
TICK_S = 1.0
_FULL = re.compile(r"bytes=0-")

Answer = Callable[[Request], Awaitable[Response]]


class Throttle:
    """So many requests a second for each name, with a reserve; the names that were seen last are remembered."""

    def __init__(self, per_s: float, reserve: float, most_names: int,
                 now: Callable[[], float] = time.monotonic) -> None:
        self._per_s, self._reserve, self._most, self._now = per_s, reserve, most_names, now
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, name: str, cost: float = 1.0) -> float:
        """0, and `cost` is taken; or the seconds until there is enough."""
        now_s = self._now()
        left, at_s = self._left.pop(name, (self._reserve, now_s))
        left = min(left + (now_s - at_s) * self._per_s, self._reserve)
        has_enough = left >= cost
        self._left[name] = (left - cost if has_enough else left, now_s)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return 0.0 if has_enough else (cost - left) / self._per_s


@dataclass
class HubService:
    """What the routes of one hub share. `root` gives the newest root for devices that enrol."""

    hub: FleetHub
    repository: Path
    root: Callable[[], bytes]
    operator: AcceptedKeys
    log: TextIO
    authority: FleetAuthority | None = None  # of devices that answer for each other
    revoked: tuple[list[int], str] | None = None  # serial numbers, and the signed list of them
    devices: Throttle = field(default_factory=lambda: Throttle(0.5, 60, 200_000))
    strangers: Throttle = field(default_factory=lambda: Throttle(0.5, 30, 10_000))  # what each address gets wrong
    small: OrderedDict[str, tuple[str, bytes]] = field(default_factory=OrderedDict)
    reports: asyncio.Queue[tuple[ReceivedBatch, asyncio.Future[str]]] = field(default_factory=asyncio.Queue)

    async def keep_reports(self) -> None:
        """Keeps the reports that wait, all of them in one transaction, for as long as the hub runs."""
        while True:
            waiting = [await self.reports.get()]
            while not self.reports.empty() and len(waiting) < MOST_BATCHES_AT_ONCE:
                waiting.append(self.reports.get_nowait())
            try:
                marks = await asyncio.to_thread(self.hub.keep, [received for received, _ in waiting])
            except BriseError as error:
                self.say(f"reports are not kept: {error}")
                for _, future in waiting:
                    if not future.cancelled():
                        future.set_exception(HTTPException(503, "the hub cannot keep reports now"))
                continue
            for (_, future), mark in zip(waiting, marks, strict=True):
                if not future.cancelled():  # the device has gone; it will send them again
                    future.set_result(mark)

    async def tick(self) -> None:
        """Lets the hub do what is due every second, for as long as it runs. What fails is said once and tried again."""
        said = ""
        while True:
            try:
                await asyncio.to_thread(self.hub.tick)
                said = ""
            except (BriseError, OSError) as error:
                if str(error) != said:
                    self.say(f"the hub could not do its work: {error}")
                said = str(error)
            await asyncio.sleep(TICK_S)

    def say(self, text: str) -> None:
        """Writes a line of the log."""
        print("".join(char if char.isprintable() else " " for char in text), file=self.log, flush=True)


def create_app(service: HubService, operations: Sequence[BaseRoute]) -> Starlette:
    """The ASGI application; `operations` are the operator's routes."""
    return Starlette(
        routes=[Route("/repository/{path:path}", partial(static_file, service), methods=["GET"]),
                Route("/enrol", partial(enrol, service), methods=["POST"]),
                Route("/reports", partial(report, service), methods=["POST"]),
                Route("/certificate", partial(certificate, service), methods=["POST"]),
                Route("/revocations", partial(revocations, service), methods=["GET"]),
                Route("/health", _health, methods=["GET"]), *operations],
        exception_handlers={FleetError: _fleet_error, RequestError: _request_error, HTTPException: _http_error})


async def static_file(service: HubService, request: Request) -> Response:
    """A file of the repository. Its ETag is its place on the disk and its time: files are replaced, never changed."""
    name = str(request.path_params["path"])
    try:
        segments = check_name(name)
    except UnsafePathError:
        raise HTTPException(404, "there is no such file") from None
    if segments[0] not in (METADATA, TARGETS):
        raise HTTPException(404, "there is no such file")
    path = service.repository.joinpath(*segments)
    try:
        about = os.lstat(path)
    except OSError:
        raise HTTPException(404, "there is no such file") from None
    if not stat.S_ISREG(about.st_mode):
        raise HTTPException(404, "there is no such file")
    tag = f'"{about.st_ino:x}-{about.st_mtime_ns:x}-{about.st_size:x}"'
    headers = {"etag": tag, "cache-control": "no-cache"}
    if tag in [one.strip() for one in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range")
    if about.st_size > SMALL_BYTES or (asked is not None and not _FULL.fullmatch(asked)):
        return FileResponse(path, headers=headers, stat_result=about, media_type="application/octet-stream")
    known = service.small.pop(name, None)
    body = known[1] if known is not None and known[0] == tag else path.read_bytes()
    service.small[name] = (tag, body)
    if len(service.small) > MOST_SMALL:
        service.small.popitem(last=False)
    return Response(body, headers=headers, media_type="application/octet-stream")


async def enrol(service: HubService, request: Request) -> Response:
    """A device joins with its token, and gets what it needs to trust the repository and to seal its records."""
    value = await read_object(request)
    token, device, public = (value.get(name) for name in ("token", "device", "public_key"))
    facts = value.get("facts", {})
    try:
        if not isinstance(token, str) or not isinstance(device, str) or not isinstance(facts, dict):
            raise EnrolmentError("a device enrols with {token, device, public_key, facts}")
        key = bytes.fromhex(public) if isinstance(public, str) and len(public) == 64 else b""
        await asyncio.to_thread(service.hub.enrolment.enrol, token, check_device(device), key, facts)
    except (FleetError, ValueError) as error:
        raise _refused(service, request, 403, str(error)) from None
    service.hub.enrolled_changed()
    return JSONResponse({"root": service.root().decode(), "fleet": service.hub.fleet,
                         "hub_seal_key": public_seal_key(service.hub.seal_key).hex(),
                         "tls": await asyncio.to_thread(_tls, service, str(device), key)})


def _tls(service: HubService, device: str, key: bytes) -> dict[str, str]:
    """The device's certificate for other devices, and whom it may trust; empty if this hub makes none."""
    authority = service.authority
    if authority is None:
        return {}
    made = authority.issue(device, key, time.time())
    service.hub.enrolment.add_certificate(device, *serial_and_end(made))
    return {"certificate": made, "authority": authority.certificate}


async def certificate(service: HubService, request: Request) -> Response:
    """A new certificate for a device that is in the fleet, in the place of one that ends soon."""
    device, body = await _signed(service, request, MOST_REQUEST_BYTES)
    if parse_json(body) != {"device": device.name, "fleet": service.hub.fleet, "wants": "certificate"}:
        raise HTTPException(400, "a device asks for a certificate with {device, fleet, wants}")
    made = await asyncio.to_thread(_tls, service, device.name, device.public_key)
    if not made:
        raise HTTPException(404, "this hub makes no certificates: it has no brise[peers]")
    return JSONResponse(made)


async def revocations(service: HubService, request: Request) -> Response:
    """The list of revoked certificates; anybody may read it."""
    authority = service.authority
    if authority is None:
        return JSONResponse({"list": ""})
    serials = await asyncio.to_thread(service.hub.enrolment.revoked_certificates)
    if service.revoked is None or service.revoked[0] != serials:
        service.revoked = serials, await asyncio.to_thread(authority.revocations, serials, time.time())
    return JSONResponse({"list": service.revoked[1]})


async def _signed(service: HubService, request: Request, most: int) -> tuple[FleetDevice, bytes]:
    """The device of the fleet that signed the request, and the request's body, of which nothing is parsed yet."""
    name, signature = (request.headers.get(header, "") for header in (DEVICE_HEADER, SIGNATURE_HEADER))
    device = service.hub.enrolment.device(name[:64]) if name else None
    is_known = device is not None and not device.is_revoked
    body = await read_bytes(request, most, BODY_S) if is_known else b""
    if device is None or not is_known or not is_signed(device.public_key, body, signature):
        raise _refused(service, request, 401, "the request is not signed by a device of this fleet")
    wait_s = service.devices.wait_s(name)
    if wait_s:
        raise _too_many(wait_s)
    return device, body


async def report(service: HubService, request: Request) -> Response:
    """A batch of records. It is acknowledged when it is on the disk, and may be sent again at any time."""
    device, body = await _signed(service, request, MOST_BATCH_BYTES)
    batch = read_batch(body, device.name, service.hub.fleet)
    opening = partial(opened_batch, batch, service.hub.seal_key, service.hub.fleet)
    received = await asyncio.to_thread(opening) if len(batch.records) > LARGE_BATCH else opening()
    future = asyncio.get_running_loop().create_future()
    service.reports.put_nowait((received, future))
    return JSONResponse({"acknowledged": await future, "ignored": received.ignored})


def check_operator(service: HubService, request: Request, *, is_page: bool = False) -> None:
    """Raises unless the operator's key came along, as a bearer token. For the page it may be the password that a
    browser asks for; browsers send that with other sites' requests, too, so it is good for nothing else.
    """
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    key = given.strip()
    if is_page and scheme.lower() == "basic":
        try:
            key = base64.b64decode(key, validate=True).decode().partition(":")[2]
        except (binascii.Error, ValueError):
            key = ""
    elif scheme.lower() != "bearer":
        key = ""
    if not service.operator.accept(key):
        asks = {"www-authenticate": 'Basic realm="brise fleet", charset="UTF-8"' if is_page else "Bearer"}
        if not given:
            raise HTTPException(401, "the operator's key is missing", asks)
        raise _refused(service, request, 401, "the operator's key is wrong", asks)


async def read_object(request: Request) -> Mapping[str, Json]:
    """The JSON object in the body of a request."""
    value = parse_json(await read_bytes(request, MOST_REQUEST_BYTES, BODY_S))
    if not isinstance(value, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return value


def _refused(service: HubService, request: Request, status: int, message: str,
             headers: Mapping[str, str] | None = None) -> HTTPException:
    """The answer to a request that is wrong. Whoever sends many is told to wait. Right ones always pass, since others
    may have the same address, such as that of a proxy.
    """
    wait_s = service.strangers.wait_s(request.client.host if request.client is not None else "")
    return _too_many(wait_s) if wait_s else HTTPException(status, message, headers)


def _too_many(wait_s: float) -> HTTPException:
    retry_s = max(math.ceil(wait_s), 1)
    return HTTPException(429, f"too many requests; try again in {retry_s} s", {"retry-after": str(retry_s)})


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as JSON."""
    body: dict[str, Any] = {"error": {"message": message, "status": status}}
    return Response(json.dumps(body), status, dict(headers or {}), "application/json")


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


async def _fleet_error(request: Request, error: Exception) -> Response:
    return error_response(400, str(error))


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"connection": "close"} if error.status in (408, 413) else {}  # the rest of the body is not read
    return error_response(error.status, str(error), headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, str(error.detail), error.headers)
