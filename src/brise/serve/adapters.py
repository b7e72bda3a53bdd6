"""`/v1/adapters`: which adapters there are, one more, one less; while the server runs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.engine.adapters import AdapterExistsError, AdapterInfo, AdapterNotFoundError
from brise.engine.engine_thread import EngineThread
from brise.errors import RequestError
from brise.serve.body import read_json
from brise.serve.serving import ServerState
from brise.text.fields import RequestFields
from brise.text.json_text import Json


class AdaptersNeedKeysError(RequestError):
    """Anybody who reaches this server could make it read files."""

    status = 403

    def __init__(self) -> None:
        super().__init__("without API keys this server is open to other machines, and adapters are not managed over it",
                         code="adapters_need_keys", hint="start it with --api-keys FILE, or for this machine only")


@dataclass(frozen=True)
class AdapterRequest:
    """A folder on the server's machine, and the name that requests will give as their model."""

    name: str
    path: str
    model: str | None  # that it goes on; None: the only one
    any_base: bool


async def adapters(serving: ServerState, request: Request) -> Response:
    """All adapters, model by model; or with POST one more."""
    _check_allowed(serving)
    if request.method == "POST":
        return await _add(serving, request)
    return JSONResponse({"object": "list", "data": [_card(model, info) for model, worker in serving.models.items()
                                                    for info in worker.adapters]})


async def _add(serving: ServerState, request: Request) -> Response:
    """What runs goes on meanwhile."""
    settings = serving.settings
    wanted = parse_adapter(await read_json(request, settings.max_body_bytes, settings.body_timeout_s))
    model, worker = _base(serving, wanted)
    async with serving.adapters_change:
        if serving.is_taken(wanted.name):
            raise AdapterExistsError(wanted.name)
        info = await asyncio.to_thread(partial(worker.add_adapter, wanted.name, Path(wanted.path),
                                               any_base=wanted.any_base))
    return JSONResponse(_card(model, info))


async def remove(serving: ServerState, request: Request) -> Response:
    """No new request may name it; those that run are finished."""
    _check_allowed(serving)
    name = request.path_params["name"]
    async with serving.adapters_change:
        for worker in serving.models.values():
            if worker.has_adapter(name):
                worker.remove_adapter(name)
                serving.metrics.forget(name)
                return JSONResponse({"id": name, "object": "adapter", "deleted": True})
    raise AdapterNotFoundError(name)


def parse_adapter(body: Json) -> AdapterRequest:
    """The typed request, or a RequestError that names the field."""
    fields = RequestFields(body)
    wanted = AdapterRequest(fields.required_text("name"), fields.required_text("path"), fields.text("model"),
                            fields.flag("any_base") or False)
    fields.done()
    if not wanted.path or not wanted.path.isprintable():
        raise fields.error("path", "must be the path of a folder on the server's machine")
    return wanted


def _check_allowed(serving: ServerState) -> None:
    if serving.keys is None and not serving.local_only:
        raise AdaptersNeedKeysError


def _base(serving: ServerState, wanted: AdapterRequest) -> tuple[str, EngineThread]:
    if wanted.model is not None:
        return wanted.model, serving.base(wanted.model)
    if len(serving.models) > 1:
        raise RequestError(f"this server has {len(serving.models)} models, and 'model' does not say which one the "
                           f"adapter is for: {', '.join(serving.models)}", param="model",
                           code="missing_required_parameter")
    return next(iter(serving.models.items()))


def _card(model: str, info: AdapterInfo) -> dict[str, object]:
    return {"id": info.name, "object": "adapter", "parent": model, "path": str(info.path), "digest": info.digest,
            "rank": info.rank, "bytes": info.nbytes, "resident": info.is_resident, "running": info.users}
