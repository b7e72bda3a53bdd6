"""`brise serve` serves models over the OpenAI HTTP API."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from socket import socket

from brise import settings
from brise.cli import (
    chat_options,
    memory_options,
    serve_adapters,
    serve_gateway,
    serve_keys,
    serve_remote,
    serve_telemetry,
    terminal,
)
from brise.cli.command_parser import examples
from brise.cli.number_types import Within
from brise.engine.adapters import AdapterInfo
from brise.engine.engine import EngineSettings
from brise.engine.engine_thread import EngineThread
from brise.engine.model import LoadedModel
from brise.errors import RequestError, UnsupportedError
from brise.files.digests import Located
from brise.files.user_functions import load_function
from brise.gateway.gateway import Gateway
from brise.hub.listed import NAME_AND_TAG
from brise.hub.locate import find_model
from brise.hub.store import is_name
from brise.memory.opening import AdapterRoom, EngineOptions, OpeningProgress, open_thread
from brise.memory.serving_plan import ServingPlan
from brise.models.batch import PAGE_SIZE
from brise.page import access
from brise.page.endpoint import PageOptions
from brise.page.routes import page
from brise.robots.call_rules import CallRules, read_call_rules
from brise.robots.command_queue import Scripted
from brise.serve.access import check_bind, read_keys
from brise.serve.app import bind, run_server
from brise.serve.engine_models import EngineModels
from brise.serve.handover import Supervision, supervised
from brise.serve.open_gateway import UpstreamServer, open_gateway
from brise.serve.open_keys import open_keys
from brise.serve.open_telemetry import open_telemetry
from brise.serve.replica import clock_of, open_replica
from brise.serve.serving import (
    VISION_BODY_BYTES,
    RequestWatch,
    ServeSettings,
    bounded,
    follow_context,
    media_body_bytes,
)
from brise.settings import Settings
from brise.traffic.ngrams import TableOpener

DRAIN = Within(0, 3600, "a number of seconds from 0 to 3600")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = EngineSettings()
    parser = subparsers.add_parser(
        "serve", help="serve models over the OpenAI HTTP API", allow_abbrev=False,
        description="Serve models over the OpenAI HTTP API, stand in front of a hosted model, or both. Ctrl-C lets "
                    "running answers finish, a second one stops at once. docs/guides/server.md describes the API, "
                    "docs/guides/gateway.md the gateway.",
        epilog=examples("brise serve smollm2",
                        "brise serve small=smollm2 mine=./mine.gguf --api-keys keys.txt --host 0.0.0.0",
                        "brise serve --upstream https://api.openai.com/v1",
                        "brise serve smollm2 --upstream https://api.mistral.ai/v1 --upstream-key-env MISTRAL_API_KEY "
                        "--api-keys keys.txt",
                        "brise serve --upstream openai=https://api.openai.com/v1 "
                        "--upstream mistral=https://api.mistral.ai/v1 --upstream-model mistral=mistral-large-latest",
                        "brise serve --upstream https://api.openai.com/v1 --small mine=http://127.0.0.1:8000/v1 "
                        "--fallback mine",
                        "brise serve smollm2 --adapter tickets=./tickets-smollm2/adapter --adapter calls=./calls"))
    parser.add_argument("models", metavar="MODEL", nargs="*", default=[],
                        help="a name from `brise models`, a .gguf file, or a folder; NAME=MODEL serves it under "
                             "another name. At least one, or --upstream")
    serve_gateway.add_arguments(parser)
    serve_gateway.add_small_arguments(parser)
    serve_remote.add_arguments(parser)
    serve_keys.add_arguments(parser)
    serve_telemetry.add_arguments(parser)
    _add_vehicle_arguments(parser)
    _add_listening_arguments(parser)
    parser.add_argument("--drain-seconds", metavar="S", type=DRAIN, default=ServeSettings().drain_timeout_s,
                        help="seconds that running requests get to finish after Ctrl-C or SIGTERM; new ones get status "
                             f"503, and /readyz says so (default: {ServeSettings().drain_timeout_s:g})")
    parser.add_argument("--parallel", metavar="N", type=chat_options.count, default=defaults.max_sequences,
                        help=f"answers that a model writes at one time (default: {defaults.max_sequences})")
    parser.add_argument("--queue", metavar="N", type=chat_options.count, default=defaults.max_waiting,
                        help="requests of a model that may wait; the next one gets status 429 "
                             f"(default: {defaults.max_waiting})")
    parser.add_argument("--context", metavar="N", type=chat_options.count,
                        help="tokens of a prompt and its answer (default: what the model allows)")
    memory_options.add_arguments(parser)
    serve_adapters.add_arguments(parser)
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads of the kernels (default: BRISE_THREADS, or one a core)")
    parser.add_argument("--allow-image-urls", action="store_true",
                        help="fetch images that clients name by http(s) URLs, from public addresses only; without it "
                             "they must send them as data URLs")
    parser.add_argument("--cors-origin", metavar="ORIGIN", action="append", default=[],
                        help="let web pages of this origin (https://app.example.com, or '*') use the server; may be "
                             "given again. Without it browsers may not")
    parser.add_argument("--page", action=argparse.BooleanOptionalAction,
                        help="show the evidence, switches, traffic and a chat in a browser, at the path /page/ "
                             "(default: on if only this machine can reach the server, or if it has keys)")
    parser.add_argument("--strict", action="store_true",
                        help="refuse requests with fields that brise does not know; without it they are left out and "
                             "named in the answer")
    parser.add_argument("--log-level", choices=("info", "warning"), default="info",
                        help="info writes a line for each request to stderr, warning does not (default: info)")


def _add_listening_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the server listens, and for whom."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", metavar="N", type=_port, default=8080,
                        help="port to listen on; 0 takes any free one (default: 8080)")
    parser.add_argument("--api-keys", metavar="FILE", type=Path,
                        help="file with the accepted API keys, one a line; without it none is asked for")
    parser.add_argument("--allow-insecure-bind", action="store_true",
                        help="listen for other machines although there are no API keys; refused otherwise")
    parser.add_argument("--listen-fd", metavar="N", type=chat_options.count,
                        help="take connections from this open socket instead of --host and --port: `brise node` hands "
                             "it down; with --supervisor-fd")
    parser.add_argument("--supervisor-fd", metavar="N", type=chat_options.count,
                        help="open socket to the program that supervises this server: it is told when the server is "
                             "ready, and the server stops when that program ends")


def run(args: argparse.Namespace) -> int:
    # Before a model is loaded, so that a refusal comes at once.
    if args.api_keys is not None:
        read_keys(args.api_keys)
    if not args.models and args.upstream is None:
        raise UnsupportedError("there is nothing to serve", hint="name a MODEL, or --upstream URL, or both")
    supervision = _supervision(args)
    upstreams = serve_gateway.check(args)
    args.rules, args.script = rules_of(args), scripts_of(args)
    settings_ = settings.read()
    telemetry_options = serve_telemetry.options_of(args)
    urls = {name: server.settings.url for name, server in upstreams.items()}
    with (open_replica(args.store, settings_.home) as replica,
          open_keys(serve_keys.options_of(args), settings_.home, clock_of(replica)) as admission,
          open_telemetry(telemetry_options, urls) as telemetry):
        has_keys = args.api_keys is not None or admission is not None and admission.is_required
        check_bind(args.host, has_keys, args.allow_insecure_bind)
        if admission is not None and admission.is_required:
            serve_keys.note_keyless(upstreams)
        args.page = access.shows_page(args.page, args.host, has_keys)
        return _serve(args, settings_, upstreams, RequestWatch(admission, telemetry, replica), supervision)


def _add_vehicle_arguments(parser: argparse.ArgumentParser) -> None:
    """Rules about calls, and what is done where a model that acts is late."""
    parser.add_argument("--rules", metavar="FILE", type=Path,
                        help="TOML file that says which calls of tools are refused, and which a person must confirm; "
                             "not with --upstream; docs/guides/car.md has an example (default: none)")
    parser.add_argument("--script", metavar="NAME=FUNCTION", action="append", default=[],
                        help="a function that requests for actions may name as their fallback, scripted:NAME: "
                             "FILE.py:FUNCTION, or MODULE:FUNCTION of an installed module; it makes the next command "
                             "of the one before; may be given again (default: none)")


def rules_of(args: argparse.Namespace) -> CallRules | None:
    """The rules that --rules names."""
    if args.rules is None:
        return None
    if args.upstream is not None:
        raise UnsupportedError("--rules hold back calls of models that are served here, and --upstream passes on "
                               "calls of others", hint="start a server of its own for the models with rules")
    return read_call_rules(args.rules)


def scripts_of(args: argparse.Namespace) -> dict[str, Scripted]:
    """The functions of --script by name; their files are executed."""
    scripts: dict[str, Scripted] = {}
    for given in args.script:
        name, equals, function = given.partition("=")
        if not equals or not name.isidentifier():
            raise UnsupportedError(f"--script is {given!r}, allowed is NAME=FILE.py:FUNCTION or NAME=MODULE:FUNCTION")
        if name in scripts:
            raise UnsupportedError(f"two scripts are called {name!r}")
        scripts[name] = load_function(function, f"--script {name}", UnsupportedError)
    return scripts


def _supervision(args: argparse.Namespace) -> Supervision | None:
    """The sockets of the program that started this server; then `--host` and `--port` are those of its socket."""
    if (args.listen_fd is None) != (args.supervisor_fd is None):
        raise UnsupportedError("--listen-fd and --supervisor-fd go together, and one of them is not given")
    if args.listen_fd is None:
        return None
    supervision = supervised(args.listen_fd, args.supervisor_fd)
    supervision.watch()
    args.host, args.port = supervision.listener.getsockname()[:2]
    return supervision


def _serve(args: argparse.Namespace, settings_: Settings, upstreams: Mapping[str, UpstreamServer],
           watch: RequestWatch, supervision: Supervision | None) -> int:
    models = _locate_all(args.models, settings_)
    if args.memory is not None and len(models) != 1:
        raise UnsupportedError(f"--memory is for one model, and there are {len(models)}",
                               hint="start one server for each, with a memory limit of its own")
    shown = PageOptions(args.store, args.prices)
    serving = ServeSettings(
        host=args.host, port=args.port, api_keys_path=args.api_keys,
        allow_insecure_bind=args.allow_insecure_bind, access_log=args.log_level == "info",
        allow_image_urls=args.allow_image_urls, strict=args.strict,
        cors_origins=tuple(args.cors_origin), drain_timeout_s=args.drain_seconds,
        page=page(shown) if args.page else None, supervision=supervision, scripts=args.script, rules=args.rules)
    room = serve_adapters.check(args, [located.name for located in models])
    names = [*(located.name for located in models), *(name for name, _ in args.adapter)]
    remotes = serve_remote.check(args, names)
    names += remotes
    small = serve_gateway.check_small(args, names)
    with bind(serving) as bound:
        workers = {located.name: _worker(located, args, args.threads or settings_.threads, room, shown)
                   for located in models}
        for worker in workers.values():
            _note_sampling(worker.model)
        if args.memory is not None:
            serving = bounded(serving, *workers.values())
        elif upstreams or any(worker.model.takes_media for worker in workers.values()):
            media = media_body_bytes([worker.model for worker in workers.values()])
            serving = replace(serving, max_body_bytes=max(media, VISION_BODY_BYTES if upstreams else 0))
        else:
            serving = follow_context(serving, workers.values())
        if not upstreams:
            return _run(workers, serving, bound, None, watch)
        local = EngineModels(workers, allow_image_urls=args.allow_image_urls)
        options = serve_gateway.options_of(args, upstreams, small, remotes)
        member = None if watch.replica is None else watch.replica.member
        with open_gateway(options, settings_.home, local, serve_gateway.report_lost, member) as gateway:
            return _run(workers, serving, bound, gateway, watch)


def _note_sampling(model: LoadedModel) -> None:
    """Says how the model's files want it sampled, and what of it is not done."""
    generation = model.generation
    if generation.sampling.given:
        terminal.note(f"{model.name}: {generation}, unless a request says otherwise")
    if generation.notes:
        terminal.note(f"{model.name}: left out {', '.join(f'{key.name} = {key.shown}' for key in generation.notes)}")


def _run(workers: Mapping[str, EngineThread], serving: ServeSettings, bound: socket, gateway: Gateway | None,
         watch: RequestWatch) -> int:
    for worker in workers.values():
        worker.start()
    try:
        return run_server(workers, serving, bound=bound, gateway=gateway, watch=watch)
    finally:
        for worker in workers.values():
            worker.shutdown(drain=False)


def _worker(located: Located, args: argparse.Namespace, threads: int | None, room: AdapterRoom,
            shown: PageOptions) -> EngineThread:
    """The model with its cache; under a memory limit it is planned first, and the plan is printed."""
    def planned(plan: ServingPlan) -> None:
        shown.plans[located.name] = plan
        share = plan.device
        host = "" if share is None or share.host_limit is None else (
            f" and {terminal.size(share.host_bytes(plan.num_pages))} of {terminal.size(share.host_limit)} on the host, "
            f"{share.num_on_device} of {share.num_layers} layers on the GPU")
        terminal.note(f"memory: {terminal.size(plan.total_bytes)} planned of {terminal.size(plan.limit or 0)}{host}; "
                      f"contexts of {plan.context} tokens, {plan.num_pages * PAGE_SIZE} tokens at one time")

    def loading(located: Located) -> None:
        terminal.note(f"loading {located.name} from {located.path}" + (f" ({located.note})" if located.note else ""))

    def adapter(info: AdapterInfo) -> None:
        terminal.note(f"adapter {info.name}: rank {info.rank}, {terminal.size(info.nbytes)}, from {info.path}"
                      + (f"; {info.drafts}" if info.drafts else ""))

    def drafts(note: str) -> None:
        terminal.note(f"{located.name}: {note}")

    def device(note: str) -> None:
        terminal.note(f"{located.name}: {note}")

    options = EngineOptions(
        memory=args.memory, context=args.context, parallel=args.parallel, queue=args.queue, cache=args.cache,
        weights=args.weights, experts=args.experts, image_size=args.image_size, threads=threads,
        device=args.device, adapters=tuple(args.adapter), any_base=args.any_base, adapter_room=room,
        speculate=args.speculate, ngrams=args.ngrams, open_sealed=TableOpener(args.store, settings.read().home))
    return open_thread(located, options, OpeningProgress(planned, loading, adapter, drafts, device))


def _locate_all(specs: list[str], settings_: Settings) -> list[Located]:
    """Every MODEL or NAME=MODEL. All are located before the first one is loaded."""
    located_models: dict[str, Located] = {}
    for spec in specs:
        name, equals, model = spec.partition("=")
        is_renamed = bool(equals) and is_name(name)
        located = find_model(model if is_renamed else spec, settings_)
        shown = name if is_renamed else _served_name(spec, located)
        if shown in located_models:
            raise RequestError(f"two models are called {shown!r}", hint="name one of them: NAME=MODEL")
        located_models[shown] = replace(located, name=shown)
    return list(located_models.values())


def _served_name(spec: str, located: Located) -> str:
    """As it was typed, where clients of Ollama type it so too (mistral:7b); else a name without colons."""
    text = spec.removeprefix("ollama:")
    return text if NAME_AND_TAG.fullmatch(text) else located.name


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:6]) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: a port from 0 (any free one) to 65535 is allowed")
    return int(text)
