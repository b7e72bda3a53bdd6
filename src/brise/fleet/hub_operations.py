"""What the operator asks of a hub, as routes: state, devices, roll-outs, tokens, forgetting, records and the page."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from brise.errors import FleetError
from brise.files.digests import DIGEST
from brise.fleet import fleet_document, hub
from brise.fleet.enrolment import EnrolmentToken, FleetDevice
from brise.fleet.hub_routes import HubService, check_operator, read_object
from brise.fleet.offers import TrialTerms
from brise.fleet.rollout import FOR_EVER_S, STAGES, RolloutTerms
from brise.fleet.sealed_records import BatchError, open_record
from brise.report import html
from brise.stats.failure_rate import FailureTest
from brise.text.json_text import Json

MOST_PAGE, MOST_TEXT = 1000, 500
REFRESH_S = 10


@dataclass(frozen=True)
class SignedBundle:
    """A bundle that the release key has signed."""

    name: str
    version: int
    digest: str


Bundles = Callable[[], list[SignedBundle]]


def routes(service: HubService, bundles: Bundles) -> list[Route]:
    """The operator's routes. Each of them asks for the key first."""
    def guarded(answer: Callable[..., Any], *more: Any) -> Callable[[Request], Any]:
        async def checked(request: Request) -> Response:
            check_operator(service, request, is_page=answer is page)
            found: Response = await answer(service, request, *more)
            return found
        return checked

    base = "/v1/fleet"
    return [Route("/fleet", guarded(page), methods=["GET"]),
            Route(f"{base}/status", guarded(_status), methods=["GET"]),
            Route(f"{base}/bundles", guarded(_bundles, bundles), methods=["GET"]),
            Route(f"{base}/devices", guarded(_devices), methods=["GET"]),
            Route(f"{base}/devices/{{name}}/revoke", guarded(_revoke), methods=["POST"]),
            Route(f"{base}/tokens", guarded(_tokens), methods=["GET"]),
            Route(f"{base}/tokens", guarded(_add_token), methods=["POST"]),
            Route(f"{base}/tokens/{{id}}", guarded(_revoke_token), methods=["DELETE"]),
            Route(f"{base}/roll-outs", guarded(_begin, bundles), methods=["POST"]),
            Route(f"{base}/roll-outs/{{name}}/{{action}}", guarded(_change), methods=["POST"]),
            Route(f"{base}/forget", guarded(_forget), methods=["POST"]),
            Route(f"{base}/records", guarded(_records), methods=["GET"])]


async def page(service: HubService, request: Request) -> Response:
    """The page: no scripts, made anew by the browser every few seconds."""
    found = await _in_thread(partial(hub.status, service.hub, service.hub.now_s()))
    made = html.page(fleet_document.document(found), refresh_s=REFRESH_S)
    return HTMLResponse(made, headers={"cache-control": "no-store"})


async def _status(service: HubService, request: Request) -> Response:
    return JSONResponse(await _in_thread(partial(hub.status, service.hub, service.hub.now_s())))


async def _bundles(service: HubService, request: Request, bundles: Bundles) -> Response:
    return JSONResponse([asdict(one) for one in await _in_thread(bundles)])


async def _devices(service: HubService, request: Request) -> Response:
    query = request.query_params
    limit = query.get("limit", "100")
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:6]) <= MOST_PAGE:
        raise FleetError(f"limit is {limit[:20]!r}, 1 to {MOST_PAGE} is allowed")
    found = await _in_thread(partial(service.hub.enrolment.devices, query.get("after", ""), int(limit),
                                     query.get("state")))
    return JSONResponse([device_json(one) for one in found])


async def _revoke(service: HubService, request: Request) -> Response:
    await _in_thread(partial(service.hub.enrolment.revoke, request.path_params["name"]))
    service.hub.enrolled_changed()
    return JSONResponse({"revoked": request.path_params["name"]})


async def _tokens(service: HubService, request: Request) -> Response:
    now_s = service.hub.now_s()
    return JSONResponse([token_json(one, now_s) for one in await _in_thread(service.hub.enrolment.tokens)])


async def _add_token(service: HubService, request: Request) -> Response:
    value = await read_object(request)
    text, token = await _in_thread(partial(
        service.hub.enrolment.add_token, _text(value, "label"), int(_number(value, "uses", 1)),
        _number(value, "valid_s", 86400.0)))
    return JSONResponse({"token": text, **token_json(token, service.hub.now_s())})


async def _revoke_token(service: HubService, request: Request) -> Response:
    await _in_thread(partial(service.hub.enrolment.revoke_token, request.path_params["id"]))
    return JSONResponse({"revoked": request.path_params["id"]})


async def _begin(service: HubService, request: Request, bundles: Bundles) -> Response:
    value = await read_object(request)
    terms = terms_of(value, await _in_thread(bundles))
    await _in_thread(partial(service.hub.begin, terms, _text(value, "user"), _text(value, "reason", "")))
    return JSONResponse(await _in_thread(partial(_one, service, terms.rollout)))


async def _change(service: HubService, request: Request) -> Response:
    value, name = await read_object(request), request.path_params["name"]
    await _in_thread(partial(service.hub.change, name, request.path_params["action"], _text(value, "user"),
                             _text(value, "reason")))
    return JSONResponse(await _in_thread(partial(_one, service, name)))


async def _forget(service: HubService, request: Request) -> Response:
    value = await read_object(request)
    subject, digest = value.get("subject"), value.get("digest")
    if not (subject is None or isinstance(subject, str)) or not (digest is None or isinstance(digest, str)):
        raise FleetError("subject and digest must be texts")
    found = await _in_thread(partial(service.hub.forget, subject, digest, _text(value, "user")))
    return JSONResponse({"digest": found})


async def _records(service: HubService, request: Request) -> Response:
    """What devices sent, opened, one JSON object a line."""
    return StreamingResponse(opened_lines(service, request.query_params.get("kind")),
                             media_type="application/jsonl")


def opened_lines(service: HubService, kind: str | None) -> Iterator[str]:
    """The records of this kind (None: of all). One that does not open says so."""
    after = ("", "")
    while found := service.hub.received.records(kind, after, 100):
        for device, record in found:
            line: dict[str, Any] = {"device": device, "id": record.id, "kind": record.kind, "subject": record.subject}
            try:
                opened = open_record(service.hub.seal_key, service.hub.fleet, device, record)
                line |= {"at_s": opened.at_s, "body": opened.body}
            except BatchError as error:
                line["error"] = str(error)
            yield json.dumps(line) + "\n"
        after = (found[-1][0], found[-1][1].id)


def terms_of(value: Mapping[str, Json], bundles: list[SignedBundle]) -> RolloutTerms:
    """The terms of a roll-out that somebody asks for. FleetError if no such bundle was signed."""
    bundle = find_bundle(_text(value, "bundle"), bundles)
    back = value.get("back_to")
    test = FailureTest(_number(value, "f0", FailureTest.tolerated), _number(value, "f1", FailureTest.refuted),
                       _number(value, "alpha", FailureTest.alpha))
    stages = value.get("stages", list(STAGES))
    if not isinstance(stages, list) or not all(type(one) in (int, float) for one in stages):
        raise FleetError("stages must be a list of shares")
    name = _text(value, "rollout", "") or f"{bundle.name}-{bundle.version}"
    return RolloutTerms(
        name, bundle.digest, f"{bundle.name} {bundle.version}", secrets.token_hex(8),
        tuple(float(one) for one in stages), test,  # type: ignore[arg-type]  # their types were compared
        _number(value, "not_before_s", 0.0), _number(value, "until_s", FOR_EVER_S),
        _number(value, "deadline_s", RolloutTerms.deadline_s),
        TrialTerms(int(_number(value, "trial_requests", TrialTerms.requests)),
                   _number(value, "trial_hours", TrialTerms.hours)),
        None if back is None else find_bundle(str(back), bundles).digest,
        _number(value, "most_unknown", RolloutTerms.most_unknown), _number(value, "wait_s", RolloutTerms.wait_s))


def find_bundle(text: str, bundles: list[SignedBundle]) -> SignedBundle:
    """The bundle of a digest, NAME:VERSION or NAME (its newest version)."""
    name, colon, version = text.partition(":")
    found = [one for one in bundles if (one.digest == text if DIGEST.fullmatch(text) else one.name == name and (
        not colon or str(one.version) == version))]
    if not found:
        known = ", ".join(f"{one.name}:{one.version}" for one in bundles[-8:]) or "none"
        raise FleetError(f"no bundle {text[:80]!r} was signed with the release key; there are {known}",
                         hint="brise ship signs one into the hub's repository")
    return max(found, key=lambda one: one.version)


def device_json(device: FleetDevice) -> dict[str, Any]:
    """A device for people and programs."""
    return {"device": device.name, "state": device.state, "reason": device.reason, "state_s": device.state_s,
            "rollout": device.rollout, "bundle": device.bundle, "running": device.running, "seen_s": device.seen_s,
            "enrolled_s": device.enrolled_s, "token": device.token, "revoked": device.is_revoked,
            "facts": dict(device.facts), "dropped": dict(device.dropped)}


def token_json(token: EnrolmentToken, now_s: float) -> dict[str, Any]:
    """A token without its secret."""
    return {"id": token.id, "label": token.label, "created_s": token.created_s, "expires_s": token.expires_s,
            "uses_left": token.uses_left, "used": token.used, "why_not": token.why_not(now_s)}


def _one(service: HubService, name: str) -> dict[str, Any]:
    return hub.rollout_json(service.hub, service.hub.rollout(name))


def _text(value: Mapping[str, Json], name: str, default: str | None = None) -> str:
    found = value.get(name, default)
    if not isinstance(found, str) or len(found) > MOST_TEXT or not found.isprintable():
        raise FleetError(f"{name} must be a text of up to {MOST_TEXT} printable characters")
    return found


def _number(value: Mapping[str, Json], name: str, default: float) -> float:
    found = value.get(name, default)
    if isinstance(found, bool) or not isinstance(found, int | float) or not abs(found) <= FOR_EVER_S:
        raise FleetError(f"{name} is {str(found)[:40]!r}, a number is allowed")
    return float(found)


async def _in_thread(work: Callable[[], Any]) -> Any:
    try:
        return await asyncio.to_thread(work)
    except FleetError as error:
        raise HTTPException(400, str(error)) from None
