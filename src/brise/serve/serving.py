"""ServerState holds what the routes of one server share: models, settings, keys, metrics and running requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

from starlette.requests import Request
from starlette.routing import Route

from brise.dialects import ollama
from brise.engine.engine_thread import EngineThread
from brise.engine.model import LoadedModel
from brise.gateway.gateway import Gateway
from brise.gateway.remote.models import RemoteModels
from brise.memory.serving_plan import REQUESTS_BYTES
from brise.robots.call_rules import CallRules
from brise.robots.command_queue import Scripted
from brise.serve.access import AcceptedKeys, read_keys
from brise.serve.call_guard import CallDesks, CallGuard
from brise.serve.error_response import UnknownModelError
from brise.serve.gateway_metrics import GatewayMetrics
from brise.serve.handover import Supervision
from brise.serve.in_flight import InFlight
from brise.serve.key_admission import KeyAdmission
from brise.serve.metrics import Metrics
from brise.serve.replica import Replica
from brise.serve.stored_responses import StoredResponses
from brise.serve.switch_metrics import SwitchMetrics
from brise.serve.telemetry import Telemetry

TEXT_BODY_BYTES = 8 << 20  # 2 million tokens of text, more than any context
VISION_BODY_BYTES = 32 << 20  # a few photographs in base64
AUDIO_BODY_BYTES = 64 << 20  # half an hour of 16-bit samples at 16 kHz
# Sizes under a memory limit: a body has options, text of the context's tokens, and an image or two minutes of audio in
# base64. It is in memory as bytes, text and values at once.
BODY_BYTES, CONTEXT_TOKEN_BYTES, MEDIA_BYTES, BODY_COPIES = 1 << 16, 16, 4 << 20, 4
STORED_BYTES = 16 << 20  # of stored responses
STORED_SHARE = 8  # of the bytes for requests under a memory limit, one in so many is for stored responses
PAGE, PAGE_DATA = "/page", "/page/api/"  # the page in the browser, and what it reads: the rest of it needs no key


@dataclass(frozen=True)
class ServeSettings:
    """The settings of a server. Without keys it listens on this machine only, unless `allow_insecure_bind`.

    `page` makes the routes of the page in the browser (brise.page); None: there is no such page. Under `supervision`
    the listening socket belongs to the program that started the server. `scripts` are what requests for actions may
    name as `scripted:NAME`. `rules` hold back calls of the models here.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_keys_path: Path | None = None
    allow_insecure_bind: bool = False
    max_body_bytes: int = TEXT_BODY_BYTES
    max_requests: int | None = None  # including those whose bodies are being read; further ones get status 429
    body_timeout_s: float = 30.0
    drain_timeout_s: float = 60.0
    access_log: bool = True
    max_stored_bytes: int = STORED_BYTES  # of responses that later requests continue
    allow_image_urls: bool = False  # fetch images from http(s) URLs
    cors_origins: tuple[str, ...] = ()  # whose web pages may use the server; '*' is everybody's
    strict: bool = False  # refuse unknown fields
    page: Callable[[ServerState], Sequence[Route]] | None = None
    supervision: Supervision | None = None
    scripts: Mapping[str, Scripted] = field(default_factory=lambda: MappingProxyType({}))
    rules: CallRules | None = None


@dataclass(frozen=True)
class ModelHandle:
    """The engine behind a request's `model`, and an adapter of it or None."""

    worker: EngineThread
    adapter: str | None


@dataclass(frozen=True)
class RequestWatch:
    """Who looks at each request beside those who answer it: the budgets of virtual keys, and telemetry. `replica` is
    this server among those that share its store."""

    admission: KeyAdmission | None = None
    telemetry: Telemetry | None = None
    replica: Replica | None = None


@dataclass(frozen=True)
class ServerState:
    """The shared state of one server, which `prepare` makes."""

    models: Mapping[str, EngineThread]
    settings: ServeSettings
    keys: AcceptedKeys | None
    metrics: Metrics
    log: TextIO
    gateway: Gateway | None = None
    admission: KeyAdmission | None = None  # of virtual keys
    telemetry: Telemetry | None = None
    replica: Replica | None = None
    traffic: InFlight = field(default_factory=InFlight)
    desks: CallDesks | None = None  # of the calls that the rules hold back
    stored: StoredResponses = field(default_factory=lambda: StoredResponses(STORED_BYTES))
    adapters_change: asyncio.Lock = field(default_factory=asyncio.Lock)  # a name is checked and taken atomically
    created: int = field(default_factory=lambda: int(time.time()))
    bases: dict[EngineThread, str] = field(default_factory=dict)  # of fingerprints; filled when they are asked for

    def guard(self, request: Request) -> CallGuard | None:
        """What holds back calls of this request's answer, if there are rules."""
        return None if self.desks is None else self.desks.guard(request)

    @property
    def has_keys(self) -> bool:
        """Whether requests need a key."""
        return self.keys is not None or self.admission is not None and self.admission.is_required

    @property
    def local_only(self) -> bool:
        """Whether only Host headers of this machine are accepted, because no key protects it from web pages."""
        return not self.has_keys and not self.settings.allow_insecure_bind

    def is_page(self, path: str) -> bool:
        """Whether the path is one of the page in the browser."""
        return self.settings.page is not None and (path == PAGE or path.startswith(f"{PAGE}/"))

    def is_page_file(self, path: str) -> bool:
        """Whether it is a file of the page: the same for everybody, so it needs no key."""
        return self.is_page(path) and not path.startswith(PAGE_DATA)

    def find(self, name: str) -> ModelHandle:
        """The model or adapter of this name, or UnknownModelError."""
        return find(self.models, name)

    def base(self, name: str) -> EngineThread:
        """The model of this name, or UnknownModelError."""
        if name not in self.models:
            raise UnknownModelError(name, self.models)
        return self.models[name]

    @property
    def remote(self) -> RemoteModels | None:
        """Small models behind other servers."""
        return None if self.gateway is None else self.gateway.components.remote

    def names(self) -> list[str]:
        """All models, each followed by its adapters, then the remote ones."""
        return [*self.own_names(), *(() if self.remote is None else self.remote.names())]

    def own_names(self) -> list[str]:
        """The models of this process, each followed by its adapters."""
        return [name for model, worker in self.models.items()
                for name in (model, *(info.name for info in worker.adapters))]

    def is_taken(self, name: str) -> bool:
        """Whether a model or an adapter has this name, with or without Ollama's tag, or a remote model does."""
        return _found(self.models, name) is not None or self.is_remote(name)

    def known_name(self, name: str) -> str:
        """The name as it is served here: without Ollama's tag, unless the model has it."""
        return name if name in self.models or not self.is_taken(name) else ollama.untagged(name)

    def is_remote(self, name: str) -> bool:
        """Whether this is a small model behind another server."""
        return self.remote is not None and name in self.remote.names()


def find(models: Mapping[str, EngineThread], name: str) -> ModelHandle:
    """The model or adapter of this name, with or without Ollama's tag, or UnknownModelError."""
    found = _found(models, name)
    if found is None:
        raise UnknownModelError(name, models)
    return found


def _found(models: Mapping[str, EngineThread], name: str) -> ModelHandle | None:
    for known in dict.fromkeys((name, ollama.untagged(name))):
        if known in models:
            return ModelHandle(models[known], None)
        for worker in models.values():
            if worker.has_adapter(known):
                return ModelHandle(worker, known)
    return None


def prepare(models: Mapping[str, EngineThread], settings: ServeSettings, log: TextIO,
            gateway: Gateway | None = None, keys: AcceptedKeys | None = None,
            watch: RequestWatch = RequestWatch()) -> ServerState:
    """The state of a new server: reads the keys if the settings name a file, and sets up the metrics."""
    if settings.api_keys_path is not None:
        keys = read_keys(settings.api_keys_path)
    metrics = Metrics(lambda: {name: worker.stats() for name, worker in models.items()},
                      lambda: {name: worker.model.device for name, worker in models.items()})
    if gateway is not None:
        GatewayMetrics(gateway, metrics.registry)
        SwitchMetrics(gateway.components, metrics.registry)
        for observer in (watch.admission, watch.telemetry):
            if observer is not None:
                gateway.add_observer(observer)
    for collector in (watch.admission, watch.telemetry):
        if collector is not None:
            metrics.registry.register(collector)
    return ServerState(models, settings, keys, metrics, log, gateway, watch.admission, watch.telemetry, watch.replica,
                       desks=None if settings.rules is None else CallDesks(settings.rules),
                       stored=StoredResponses(settings.max_stored_bytes))


def follow_context(settings: ServeSettings, workers: Collection[EngineThread]) -> ServeSettings:
    """The settings with bodies as large as the longest context needs. Images, audio, and texts to embed, many in one
    request, are not bounded by a context."""
    models = [worker.model for worker in workers]
    if not workers or any(model.takes_media or model.pooling is not None for model in models):
        return settings
    return replace(settings, max_body_bytes=min(settings.max_body_bytes, max(map(_body_bytes, workers))))


def _body_bytes(worker: EngineThread) -> int:
    return BODY_BYTES + CONTEXT_TOKEN_BYTES * worker.max_context + (
        MEDIA_BYTES if worker.model.takes_media else 0)


def media_body_bytes(models: Collection[LoadedModel]) -> int:
    """The largest body of a server for these models."""
    if any(model.audio is not None for model in models):
        return AUDIO_BODY_BYTES
    return VISION_BODY_BYTES if any(model.vision is not None for model in models) else TEXT_BODY_BYTES


def bounded(settings: ServeSettings, worker: EngineThread) -> ServeSettings:
    """The settings under a memory limit: bodies as large as the context needs, and as many as the plan has room for."""
    body_bytes = _body_bytes(worker)
    stored_bytes = REQUESTS_BYTES // STORED_SHARE
    return replace(settings, max_body_bytes=body_bytes, max_stored_bytes=stored_bytes,
                   max_requests=max((REQUESTS_BYTES - stored_bytes) // (BODY_COPIES * body_bytes), 2))
