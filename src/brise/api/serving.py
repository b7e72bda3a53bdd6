"""`brise.serve` and `brise.gateway`: servers in this program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TextIO, TypedDict, TypeVar, Unpack

from brise import settings
from brise.api.loading import Size, load, whole
from brise.api.model import Model
from brise.api.options import check as check_names
from brise.api.server import Server, ServerParts
from brise.errors import RequestError, UnsupportedError
from brise.gateway import candidates
from brise.gateway.candidates import Candidates
from brise.gateway.retry import RetrySettings
from brise.gateway.upstream import Limits, UpstreamSettings
from brise.serve.access import AcceptedKeys, is_key, read_keys
from brise.serve.local_answers import LocalAnswers
from brise.serve.open_gateway import GatewayOptions, SmallOptions, UpstreamDialect, open_gateway
from brise.serve.serving import SEEING_BODY_BYTES, TEXT_BODY_BYTES, ServeSettings, bounded
from brise.traffic.capture import CaptureOptions, CaptureStats

T = TypeVar("T")
ModelLike = Model | str | Path
Models = ModelLike | Mapping[str, ModelLike]
Candidate = str | Mapping[str, str]  # a model for all tasks, or models by task
DAY_S = 86400.0


class ServerOptions(TypedDict, total=False):
    """What every server may be given; None stands for the default.

    host, port: where to listen (default: 127.0.0.1, 8080); port 0 takes any free one.
    memory: what loading the model may take, if it is given by its name or path.
    api_keys: the keys that are accepted, or the Path of a file with one a line. Without keys the server answers only
    requests that name this machine as their host, and listens for this machine only.
    any_host: answer and listen for everybody although there are no keys, as for an application that mounts the server
    and lets in whom it likes.
    image_urls: fetch images that clients name by http(s) URLs, from public addresses only.
    access_log: write a line for each request to `log` (default: False; stderr).
    drain_timeout: seconds that requests get to finish when the server ends (default: 60).
    """

    host: str | None
    port: int | None
    memory: Size | None
    api_keys: Path | Sequence[str] | None
    any_host: bool | None
    image_urls: bool | None
    access_log: bool | None
    log: TextIO | None
    drain_timeout: float | None


class UpstreamOptions(ServerOptions, total=False):
    """What a gateway may be given besides.

    upstream_key: the key for the upstream. Without one the clients' own keys go on, unless there are `api_keys`.
    upstream_dialect: "openai" (the default), or "anthropic" for its Messages API.
    retries, hedge_after, limits: how often a request is sent again (default: 2), after how many seconds without an
    answer a second time (default: never), and how long it may take.
    store: where traffic is written, a path or a postgresql:// URL (default: in the folder gateway of BRISE_HOME).
    capture, content: share of conversations that are written down (default: 1), and whether with what they say.
    keep_days, prices: delete what is older; the file with what tokens cost.
    fallback: the model or adapter that answers where the upstream cannot: one for all tasks, or some by task.
    shadow, candidate: share of requests that the candidate answers too, in the background, for `brise.prove`.
    reask: share of requests that the upstream is asked once more. Each is paid.
    """

    upstream_key: str | None
    upstream_dialect: UpstreamDialect | None
    retries: int | None
    hedge_after: float | None
    limits: Limits | None
    store: str | Path | None
    capture: float | None
    content: bool | None
    keep_days: float | None
    prices: str | Path | None
    fallback: Candidate | None
    shadow: float | None
    candidate: Candidate | None
    reask: float | None


def serve(models: Models, **options: Unpack[ServerOptions]) -> Server:
    """A server of models over the OpenAI HTTP API: an ASGI application, which also listens by itself.

        async with brise.serve(model, port=0) as server: ...   # server.url is the base URL for clients
        app.mount("/llm", brise.serve(model))                  # /llm/v1/chat/completions

    `models` is a `Model`, a name or a path; or several by the names that requests give. Names and paths are loaded
    here, and closed with the server; models stay open.
    """
    check_names(options, ServerOptions)
    with ExitStack() as owned:
        opened = _opened(models, options.get("memory"), owned)
        if not opened:
            raise UnsupportedError("there is nothing to serve", hint="give a model")
        return Server(ServerParts(opened, _settings(opened, options, TEXT_BODY_BYTES), owned.pop_all(),
                                  _keys(options.get("api_keys")), log=options.get("log")))


def gateway(*, upstream: str, small: Models | None = None, **options: Unpack[UpstreamOptions]) -> Server:
    """A gateway in front of a hosted model: it passes requests on, writes them down, and lets a small model help.

        app.mount("/llm", brise.gateway(upstream="https://api.openai.com/v1", small=model))

    `upstream` is the base URL of the hosted model's server. Requests for the models in `small`, which are given as to
    `serve`, are answered here; all others go to the upstream, unless `brise switch` has put a small model in its place.
    """
    check_names(options, UpstreamOptions)
    with ExitStack() as owned:
        opened = {} if small is None else _opened(small, options.get("memory"), owned)
        local = LocalAnswers({name: model.worker for name, model in opened.items()},
                             allow_image_urls=options.get("image_urls") or False)
        gateway_options = _gateway_options(upstream, options, local.names())
        opened_gateway = owned.enter_context(open_gateway(gateway_options, settings.read().home, local, _ignore))
        return Server(ServerParts(opened, _settings(opened, options, SEEING_BODY_BYTES), owned.pop_all(),
                                  _keys(options.get("api_keys")), opened_gateway, options.get("log")))


def _opened(models: Models, memory: Size | None, owned: ExitStack) -> dict[str, Model]:
    """All of them by name. What is loaded here is closed with `owned`."""
    given = models if isinstance(models, Mapping) else {None: models}
    to_load = [each for each in given.values() if not isinstance(each, Model)]
    if memory is not None and (len(to_load), len(given)) != (1, 1):
        raise UnsupportedError(f"memory is for one model that is loaded here, here are {len(to_load)} of {len(given)}",
                               hint="brise.load(..., memory=...)")
    opened: dict[str, Model] = {}
    for name, each in given.items():
        model = each if isinstance(each, Model) else owned.enter_context(load(each, memory=memory))
        opened[model.name if name is None else name] = model
    return opened


def _settings(models: Mapping[str, Model], options: ServerOptions, body_bytes: int) -> ServeSettings:
    made = ServeSettings(
        host=options.get("host") or "127.0.0.1", port=_port(options.get("port")),
        allow_insecure_bind=options.get("any_host") or False, access_log=options.get("access_log") or False,
        allow_image_urls=options.get("image_urls") or False, max_body_bytes=body_bytes,
        drain_timeout_s=_or(options.get("drain_timeout"), 60.0))
    for model in models.values():
        if model.is_limited:
            return bounded(made, model.worker)
    sees = any(model.worker.model.vision is not None for model in models.values())
    return replace(made, max_body_bytes=SEEING_BODY_BYTES) if sees else made


def _gateway_options(upstream: str, options: UpstreamOptions, names: Sequence[str]) -> GatewayOptions:
    shadow, keep_days, prices = _share(options.get("shadow"), "shadow"), options.get("keep_days"), options.get("prices")
    only = names[0] if len(names) == 1 else None
    candidate = _candidates(options.get("candidate") or only, names, "candidate")
    if shadow and candidate == Candidates():
        raise UnsupportedError(f"shadow is {shadow:g}, and it is not said which of {len(names)} models answers",
                               hint="candidate=NAME")
    capture = CaptureOptions(
        share=_share(options.get("capture"), "capture", 1.0), content=options.get("content") is not False,
        ttl_s=None if keep_days is None else keep_days * DAY_S)
    return GatewayOptions(
        UpstreamSettings(upstream, options.get("upstream_key"), options.get("api_keys") is None,
                         options.get("limits") or Limits(), settings.proxy(upstream)),
        options.get("upstream_dialect") or "openai", _or(options.get("retries"), RetrySettings().retries),
        options.get("hedge_after"), options.get("store"), capture, None if prices is None else Path(prices),
        SmallOptions(_candidates(options.get("fallback"), names, "fallback"), candidate, shadow,
                     _share(options.get("reask"), "reask")))


def _candidates(given: Candidate | None, names: Sequence[str], option: str) -> Candidates:
    match given:
        case None:
            return Candidates()
        case str():
            return candidates.parse([given], names, option)
        case _:
            return candidates.parse([f"{task}={model}" for task, model in given.items()], names, option)


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
