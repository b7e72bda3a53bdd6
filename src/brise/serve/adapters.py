"""`/v1/adapters` lists, loads and removes adapters while the server runs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from brise.engine.adapters import AdapterExistsError, AdapterInfo, AdapterNotFoundError
from brise.engine.engine_thread import EngineThread
from brise.errors import RequestError, StoreError
from brise.serve.body import read_parsed
from brise.serve.error_response import UnavailableError
from brise.serve.serving import ServerState
from brise.text.fields import RequestFields
from brise.text.json_text import Json
from brise.traffic.servers import SharedAdapter


class AdaptersNeedKeysError(RequestError):
    """Anyone who can reach this server could make it read files."""

    status = 403

    def __init__(self) -> None:
        super().__init__("this server is open to other machines without API keys, so it does not manage adapters",
                         code="adapters_need_keys", hint="start it with --api-keys FILE, or for this machine only")


@dataclass(frozen=True)
class AdapterRequest:
    """An adapter to load: a folder on the server's machine, and the name that requests use as their model."""

    name: str
    path: str
    model: str | None  # the base; None: the only model
    any_base: bool


async def adapters(serving: ServerState, request: Request) -> Response:
    """GET lists the adapters, model by model; POST loads one."""
    _check_allowed(serving)
    if request.method == "POST":
        return await _add(serving, request)
    return JSONResponse({"object": "list", "data": [_card(model, info) for model, worker in serving.models.items()
                                                    for info in worker.adapters]})


async def _add(serving: ServerState, request: Request) -> Response:
    """Loads an adapter; running requests continue."""
    settings = serving.settings
    requested = await read_parsed(request, settings.max_body_bytes, settings.body_timeout_s, parse_adapter)
    model, worker = _base(serving, requested)
    async with serving.adapters_change:
        if serving.is_taken(requested.name):
            raise AdapterExistsError(requested.name)
        info = await asyncio.to_thread(partial(worker.add_adapter, requested.name, Path(requested.path),
                                               any_base=requested.any_base))
        shared = SharedAdapter(info.name, model, str(info.path), info.digest, requested.any_base)
        try:
            await _share(serving, shared)
        except BaseException:
            worker.remove_adapter(info.name)
            raise
    card = _card(model, info)
    if serving.replica is not None:
        loaded, number = await serving.replica.wait_loaded(info.name)
        card |= {"servers": number, "servers_loaded": loaded}
    return JSONResponse(card)


async def remove(serving: ServerState, request: Request) -> Response:
    """DELETE removes an adapter: running requests finish, new ones are refused."""
    _check_allowed(serving)
    name = request.path_params["name"]
    async with serving.adapters_change:
        for worker in serving.models.values():
            if worker.has_adapter(name):
                digest = next(info.digest for info in worker.adapters if info.name == name)
                await _share(serving, SharedAdapter(name, "", "", digest, is_removed=True))
                worker.remove_adapter(name)
                serving.metrics.forget(name)
                return JSONResponse({"id": name, "object": "adapter", "deleted": True})
    raise AdapterNotFoundError(name)


async def _share(serving: ServerState, adapter: SharedAdapter) -> None:
    """The other servers that share the store load or unload it, too, with their next beat."""
    if serving.replica is None:
        return
    try:
        await serving.replica.share(adapter)
    except StoreError as error:
        raise UnavailableError(f"the other servers cannot be told, so nothing was changed: {error}",
                               code="store_unavailable") from None


def parse_adapter(body: Json) -> AdapterRequest:
    """The typed request, or a RequestError that names the field."""
    fields = RequestFields(body)
    adapter = AdapterRequest(fields.required_text("name"), fields.required_text("path"), fields.text("model"),
                             fields.flag("any_base") or False)
    fields.done()
    if not adapter.path or not adapter.path.isprintable():
        raise fields.error("path", "must be the path of a folder on the server's machine")
    return adapter


def _check_allowed(serving: ServerState) -> None:
    if serving.keys is None and not serving.local_only:
        raise AdaptersNeedKeysError


def _base(serving: ServerState, adapter: AdapterRequest) -> tuple[str, EngineThread]:
    if adapter.model is not None:
        return adapter.model, serving.base(adapter.model)
    if len(serving.models) > 1:
        raise RequestError(f"this server has {len(serving.models)} models, and 'model' does not say which one the "
                           f"adapter is for: {', '.join(serving.models)}", param="model",
                           code="missing_required_parameter")
    return next(iter(serving.models.items()))


def _card(model: str, info: AdapterInfo) -> dict[str, object]:
    return {"id": info.name, "object": "adapter", "parent": model, "path": str(info.path), "digest": info.digest,
            "rank": info.rank, "bytes": info.nbytes, "resident": info.is_resident, "running": info.users,
            **({"drafts": info.drafts} if info.drafts else {})}
