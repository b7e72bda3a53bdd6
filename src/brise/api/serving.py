"""`brise.serve` and `brise.gateway`: servers in this program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO, TypedDict, TypeVar, Unpack

from brise import settings
from brise.api.loading import Size, load, whole
from brise.api.model import Model
from brise.api.options import check as check_names
from brise.api.server import Server, ServerParts
from brise.api.words import python_words
from brise.errors import RequestError, UnsupportedError
from brise.gateway import small_models
from brise.gateway.remote.server import RemoteModel
from brise.gateway.retry import RetrySettings
from brise.gateway.small_models import TaskModels
from brise.gateway.upstream import Limits, UpstreamSettings
from brise.gateway.upstreams import is_upstream_name
from brise.page import access
from brise.page.endpoint import PageOptions
from brise.page.routes import Page, page
from brise.robots.call_rules import CallRules, read_call_rules
from brise.robots.command_queue import Scripted
from brise.serve.access import AcceptedKeys, is_key, read_keys
from brise.serve.engine_models import EngineModels
from brise.serve.open_gateway import (
    GatewayOptions,
    SmallOptions,
    UpstreamDialect,
    UpstreamServer,
    dialect_of,
    open_gateway,
    routes_of,
)
from brise.serve.open_keys import VirtualKeyOptions, open_keys
from brise.serve.open_telemetry import TelemetryOptions, open_telemetry
from brise.serve.replica import clock_of, open_replica
from brise.serve.serving import (
    TEXT_BODY_BYTES,
    VISION_BODY_BYTES,
    RequestWatch,
    ServeSettings,
    bounded,
    follow_context,
    media_body_bytes,
)
from brise.traffic.capture import CaptureOptions, CaptureStats

T = TypeVar("T")
ModelLike = Model | str | Path
Models = ModelLike | Mapping[str, ModelLike]
SmallModels = Models | RemoteModel | Mapping[str, ModelLike | RemoteModel]
Candidate = str | Mapping[str, str]  # a model for all tasks, or models by task
DAY_S = 86400.0
UNNAMED = "small"  # a remote model of a URL alone


@dataclass(frozen=True)
class NamedUpstream:
    """One of several upstreams of a gateway.

    Attributes:
        url: The base URL of its server. One with `?api-version=VERSION` is of Azure OpenAI.
        key: The key for it. Default: the clients' own keys go on; with `api_keys` none does.
        dialect: What it speaks, "openai", or "anthropic" for its Messages API.
        models: The models that it has, so that requests for them need not name it; `*` stands for any letters.
        rate_per_minute: Requests a minute that its account allows, which all gateways of the store keep together.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    dialect: UpstreamDialect = "openai"
    models: Sequence[str] = ()
    rate_per_minute: int | None = None


class ServerOptions(TypedDict, total=False):
    """What every server may be given. None stands for the default.

    Attributes:
        host: Address to listen on. Default: 127.0.0.1.
        port: Port to listen on; 0 takes any free one. Default: 8080.
        memory: What this process may take, if the model is given by its name or path and loaded here.
        device: Where models that are loaded here run, as for `brise.load`. Default: "cpu".
        api_keys: The keys that are accepted, or the Path of a file with one a line. Without keys the server listens
            for this machine only, and answers only requests that name it as their host.
        any_host: Answer and listen for everybody although there are no keys: for an application that mounts the
            server and controls access itself. Default: False.
        image_urls: Fetch images that clients name by http(s) URLs, from public addresses only. Default: False.
        strict: Refuse requests with fields that brise does not know. Default: False, they are left out and named in the
            answer.
        cors_origins: Origins whose web pages may use the server, such as "https://app.example.com"; "*" is everybody's.
            Default: none.
        access_log: Write a line for each request to `log`. Default: False.
        log: Where lines go. Default: stderr.
        drain_timeout: Seconds that requests get to finish when the server ends. Default: 60.
        virtual_keys: Keys of clients with budgets and limits, see `VirtualKeyOptions`. Default: a gateway asks for one
            as soon as its store has one, another server never does.
        telemetry: Traces and metrics for OpenTelemetry, see `TelemetryOptions`. Default: none.
        page: Show evidence, switches and traffic in a browser, at the path /page/. Without keys for this machine only.
            Default: False.
        scripts: Functions by name, which a request for actions may name as its fallback, `scripted:NAME`. Each makes
            the next command, float64 (values,), of the one before. One that raises brakes. Default: none.
        rules: Which calls of tools are refused, and which a person must confirm: what `read_call_rules` reads, or the
            Path of its file. Not for a gateway. Default: none.
    """

    host: str | None
    port: int | None
    memory: Size | None
    device: str | None
    api_keys: Path | Sequence[str] | None
    any_host: bool | None
    image_urls: bool | None
    strict: bool | None
    cors_origins: Sequence[str] | None
    access_log: bool | None
    log: TextIO | None
    drain_timeout: float | None
    virtual_keys: VirtualKeyOptions | None
    telemetry: TelemetryOptions | None
    page: bool | None
    scripts: Mapping[str, Scripted] | None
    rules: CallRules | Path | None


class UpstreamOptions(ServerOptions, total=False):
    """What a gateway may be given, besides the options of a server.

    Attributes:
        upstream_key: The key for the upstream. Default: the clients' own keys go on; with `api_keys` none does.
        upstream_dialect: What the upstream speaks, "openai", or "anthropic" for its Messages API. Default: "openai".
        upstream_paths: Paths that clients may use with the gateway's own key, besides those of the dialects and the
            list of models; `*` stands for any letters.
        default_upstream: Of several `upstreams`, the one of all models that are no other's. Default: the first.
        retries: How often a request that failed is sent again, where that does no harm. Default: 2.
        hedge_after: Seconds without an answer after which a request is sent a second time; both are paid.
            Default: never.
        limits: How long the upstream may take.
        store: Where traffic is written, a path or a postgresql:// URL. Default: in the folder gateway of BRISE_HOME.
        capture: Share of conversations that are written down, each whole or not at all. Default: 1.
        content: Whether with what they say. Default: True.
        keep_days: Delete what is older. Default: nothing is deleted.
        prices: The file with what the upstream's tokens cost.
        stream_usage: Ask for the tokens of streams whose clients did not, and take them out again. Default: True.
        fallback: The model or adapter that answers where the upstream cannot: one for all tasks, or some by task.
        shadow: Share of requests that `candidate` answers too, in the background, for `brise.prove`. Default: 0.
        candidate: The model or adapter that does. Default: the only one that there is.
        reask: Share of requests that the upstream is asked once more; each is paid. Default: 0.
    """

    upstream_key: str | None
    upstream_dialect: UpstreamDialect | None
    upstream_paths: Sequence[str] | None
    default_upstream: str | None
    retries: int | None
    hedge_after: float | None
    limits: Limits | None
    store: str | Path | None
    capture: float | None
    content: bool | None
    keep_days: float | None
    prices: str | Path | None
    stream_usage: bool | None
    fallback: Candidate | None
    shadow: float | None
    candidate: Candidate | None
    reask: float | None


def serve(models: Models, **options: Unpack[ServerOptions]) -> Server:
    """A server of models over the OpenAI HTTP API: an ASGI application, which also listens by itself.

        async with brise.serve(model, port=0) as server: ...   # server.url is the base URL for clients
        app.mount("/llm", brise.serve(model))                  # /llm/v1/chat/completions

    Args:
        models: A `Model`, a name or a path; or several by the names that requests give. Names and paths are loaded
            here, and closed with the server; models stay open.
        **options: See `ServerOptions`.
    """
    check_names(options, ServerOptions)
    with ExitStack() as owned:
        opened = _opened(models, options, owned)
        if not opened:
            raise UnsupportedError("there is nothing to serve", hint="give a model")
        watch = _watch(options, options.get("virtual_keys"), {}, owned)
        shown = _page(options, watch, PageOptions())
        return Server(ServerParts(opened, _settings(opened, options, TEXT_BODY_BYTES, shown), owned.pop_all(),
                                  _keys(options.get("api_keys")), log=options.get("log"), watch=watch))


def gateway(*, upstream: str | None = None, upstreams: Mapping[str, NamedUpstream | str] | None = None,
            small: SmallModels | None = None, **options: Unpack[UpstreamOptions]) -> Server:
    """A gateway in front of a hosted model: it passes requests on, writes them down, and lets a small model help.

        app.mount("/llm", brise.gateway(upstream="https://api.openai.com/v1", small=model))

    Requests for the models in `small` are answered here. All others go to the upstream, unless `brise switch` has put a
    small model in its place.

    Args:
        upstream: The base URL of the hosted model's server.
        upstreams: Instead of one: several by name, each a base URL or a `NamedUpstream`. A request for NAME/MODEL asks
            that one for MODEL.
        small: Models of this program, given as to `serve`; or behind another server: a `RemoteModel`, or its URL, such
            as "http://127.0.0.1:8000/v1#name". A URL without a name is served as "small".
        **options: See `UpstreamOptions`.
    """
    check_names(options, UpstreamOptions)
    if options.get("rules") is not None:
        raise UnsupportedError("rules are for models that are served here, and a gateway passes on calls of others")
    with python_words(), ExitStack() as owned:
        here, remotes = _apart(small)
        opened = _opened(here, options, owned) if here else {}
        local = EngineModels({name: model.worker for name, model in opened.items()},
                             allow_image_urls=options.get("image_urls") or False)
        servers = _upstreams(upstream, upstreams, options)
        if both := next((name for name in remotes if name in local.names()), None):
            raise UnsupportedError(f"two small models are called {both!r}")
        gateway_options = replace(_gateway_options(servers, options, [*local.names(), *remotes]), remote=remotes)
        keys = options.get("virtual_keys") or VirtualKeyOptions()
        keys = replace(keys, store=keys.store or gateway_options.store, prices=keys.prices or gateway_options.prices)
        watch = _watch(options, keys, {name: each.url for name, each in servers.items()}, owned)
        member = None if watch.replica is None else watch.replica.member
        opened_gateway = owned.enter_context(open_gateway(gateway_options, settings.read().home, local, _ignore,
                                                          member))
        shown = _page(options, watch, PageOptions(gateway_options.store, gateway_options.prices))
        return Server(ServerParts(opened, _settings(opened, options, VISION_BODY_BYTES, shown), owned.pop_all(),
                                  _keys(options.get("api_keys")), opened_gateway, options.get("log"), watch))


def _watch(options: ServerOptions, keys: VirtualKeyOptions | None, urls: Mapping[str, str],
           owned: ExitStack) -> RequestWatch:
    """Who looks at the requests beside those who answer them."""
    home = settings.read().home
    replica = None if keys is None else owned.enter_context(open_replica(keys.store, home, options.get("log")))
    return RequestWatch(
        None if keys is None else owned.enter_context(open_keys(keys, home, clock_of(replica))),
        owned.enter_context(open_telemetry(options.get("telemetry"), urls)), replica)


def _apart(small: SmallModels | None) -> tuple[Mapping[str | None, ModelLike], Mapping[str, RemoteModel]]:
    """Models of this program by name, None for a single one's own; and those behind other servers."""
    here, remotes = dict[str | None, ModelLike](), dict[str, RemoteModel]()
    given = small if isinstance(small, Mapping) else {} if small is None else {None: small}
    for name, each in given.items():
        if isinstance(each, str) and each.startswith(("http://", "https://")):
            each = RemoteModel(each, proxy=settings.proxy(each))
        if isinstance(each, RemoteModel):
            remotes[name or each.model or UNNAMED] = each
        else:
            here[name] = each
    return here, remotes


def _opened(models: Models | Mapping[str | None, ModelLike], options: ServerOptions, owned: ExitStack
            ) -> dict[str, Model]:
    """All of them by name. What is loaded here is closed with `owned`."""
    memory, device = options.get("memory"), options.get("device")
    given = models if isinstance(models, Mapping) else {None: models}
    to_load = [each for each in given.values() if not isinstance(each, Model)]
    if memory is not None and (len(to_load), len(given)) != (1, 1):
        raise UnsupportedError(f"memory is for one model that is loaded here, here are {len(to_load)} of {len(given)}",
                               hint="brise.load(..., memory=...)")
    opened: dict[str, Model] = {}
    for name, each in given.items():
        model = each if isinstance(each, Model) else owned.enter_context(
            load(each, memory=memory, device=device or "cpu"))
        opened[model.name if name is None else name] = model
    return opened


def _page(options: ServerOptions, watch: RequestWatch, data: PageOptions) -> Page | None:
    """The page, if it is asked for and protected."""
    has_keys = options.get("api_keys") is not None or watch.admission is not None and watch.admission.is_required
    if options.get("any_host") and options.get("page") and not has_keys:
        raise UnsupportedError("page and any_host are given without keys: everybody could read your traffic",
                               hint="give api_keys")
    is_shown = access.shows_page(options.get("page") or False, options.get("host") or "127.0.0.1", has_keys)
    return page(data) if is_shown else None


def _settings(models: Mapping[str, Model], options: ServerOptions, body_bytes: int, shown: Page | None
              ) -> ServeSettings:
    made = ServeSettings(
        host=options.get("host") or "127.0.0.1", page=shown, port=_port(options.get("port")),
        allow_insecure_bind=options.get("any_host") or False, access_log=options.get("access_log") or False,
        allow_image_urls=options.get("image_urls") or False, strict=options.get("strict") or False,
        max_body_bytes=body_bytes, cors_origins=_origins(options.get("cors_origins")),
        drain_timeout_s=_or(options.get("drain_timeout"), 60.0), scripts=dict(options.get("scripts") or {}),
        rules=read_call_rules(rules) if isinstance(rules := options.get("rules"), Path) else rules)
    for model in models.values():
        if model.is_limited:
            return bounded(made, model.worker)
    loaded = [model.worker.model for model in models.values()]
    if any(model.takes_media for model in loaded):
        return replace(made, max_body_bytes=max(body_bytes, media_body_bytes(loaded)))
    return made if body_bytes > TEXT_BODY_BYTES else follow_context(made, [model.worker for model in models.values()])


def _origins(given: Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(given, str):
        raise RequestError(f"cors_origins is one text, {given!r}; a list is wanted", param="cors_origins")
    return tuple(given or ())


def _upstreams(upstream: str | None, upstreams: Mapping[str, NamedUpstream | str] | None,
               options: UpstreamOptions) -> dict[str, NamedUpstream]:
    """By name; the only one has none."""
    if (upstream is None) == (not upstreams):
        raise UnsupportedError("give either `upstream`, the URL of one, or `upstreams`, several by name",
                               hint='brise.gateway(upstreams={"openai": "https://api.openai.com/v1"})')
    key, dialect = options.get("upstream_key"), options.get("upstream_dialect")
    if upstream is not None:
        if options.get("default_upstream") is not None:
            raise UnsupportedError("default_upstream is for several `upstreams`")
        return {"": NamedUpstream(upstream, key, dialect or "openai")}
    if key is not None or dialect is not None:
        raise UnsupportedError("upstream_key and upstream_dialect are for one `upstream`",
                               hint="of several, each has its own: brise.NamedUpstream(URL, key=..., dialect=...)")
    assert upstreams is not None
    if wrong := next((name for name in upstreams if not is_upstream_name(name)), None):
        raise UnsupportedError(f"the upstream's name is {wrong!r}, allowed are letters, digits, '.', '_' and '-'")
    return {name: NamedUpstream(each) if isinstance(each, str) else each for name, each in upstreams.items()}


def _gateway_options(upstreams: Mapping[str, NamedUpstream], options: UpstreamOptions,
                     names: Sequence[str]) -> GatewayOptions:
    shadow, keep_days, prices = _share(options.get("shadow"), "shadow"), options.get("keep_days"), options.get("prices")
    only = names[0] if len(names) == 1 else None
    candidate = _candidates(options.get("candidate") or only, names, "candidate")
    if shadow and candidate == TaskModels():
        raise UnsupportedError(f"shadow is {shadow:g}, and it is not said which of {len(names)} models answers",
                               hint="candidate=NAME")
    capture = CaptureOptions(
        share=_share(options.get("capture"), "capture", 1.0), content=options.get("content") is not False,
        ttl_s=None if keep_days is None else keep_days * DAY_S)
    def server(each: NamedUpstream) -> UpstreamServer:
        return UpstreamServer(UpstreamSettings(
            each.url, each.key, options.get("api_keys") is None, options.get("limits") or Limits(),
            settings.proxy(each.url), tuple(options.get("upstream_paths") or ()),
            asks_for_usage=options.get("stream_usage") is not False), dialect_of(each.dialect, "dialect"),
            None if each.rate_per_minute is None else whole(each.rate_per_minute, "rate_per_minute", 1, 10_000_000))

    table = [(model, name) for name, each in upstreams.items() for model in each.models]
    return GatewayOptions(
        {name: server(each) for name, each in upstreams.items()},
        routes_of(tuple(upstreams), table, options.get("default_upstream")),
        _or(options.get("retries"), RetrySettings().retries), options.get("hedge_after"), options.get("store"), capture,
        None if prices is None else Path(prices),
        SmallOptions(_candidates(options.get("fallback"), names, "fallback"), candidate, shadow,
                     _share(options.get("reask"), "reask")))


def _candidates(given: Candidate | None, names: Sequence[str], option: str) -> TaskModels:
    match given:
        case None:
            return TaskModels()
        case str():
            return small_models.parse_task_models([given], names, option)
        case _:
            return small_models.parse_task_models([f"{task}={model}" for task, model in given.items()], names, option)


def _keys(given: Path | Sequence[str] | None) -> AcceptedKeys | None:
    """The keys themselves, or those of a file."""
    if given is None:
        return None
    if isinstance(given, Path):
        return read_keys(given)
    if isinstance(given, str) or not given or not all(isinstance(key, str) and is_key(key) for key in given):
        raise RequestError("api_keys is a list of keys, ASCII without spaces, or the Path of a file with one a line",
                           param="api_keys")
    return AcceptedKeys(given)


def _port(port: int | None) -> int:
    return 8080 if port is None else whole(port, "port", 0, 65535)


def _share(value: float | None, name: str, default: float = 0.0) -> float:
    if value is None:
        return default
    if not 0 <= value <= 1:
        raise RequestError(f"{name} is {value!r}, allowed is a share from 0 to 1", param=name)
    return float(value)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value


def _ignore(stats: CaptureStats) -> None:
    """The counts are in the metrics while the server runs."""
