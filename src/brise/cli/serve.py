"""`brise serve`: serve models over the OpenAI HTTP API."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from brise import settings
from brise.checkpoint.store import Located, Store, is_name, locate
from brise.cli import chat_options, terminal
from brise.engine.engine import Engine, EngineSettings
from brise.engine.model import load
from brise.engine.runner import EngineThread
from brise.errors import RequestError
from brise.serve.access import check_bind
from brise.serve.app import run_server
from brise.serve.serving import ServeSettings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    defaults = EngineSettings()
    parser = subparsers.add_parser(
        "serve", help="serve models over the OpenAI HTTP API", allow_abbrev=False,
        description="Serve models over the OpenAI HTTP API. Ctrl-C lets running answers finish, "
                    "a second one stops at once.",
        epilog="examples: brise serve smollm2 | "
               "brise serve small=smollm2 mine=./mine.gguf --api-keys keys.txt")
    parser.add_argument("models", metavar="MODEL", nargs="+",
                        help="a name that `brise models` lists or the path of a .gguf file; "
                             "NAME=MODEL serves it under another name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", metavar="N", type=_port, default=8080,
                        help="port to listen on; 0 takes any free one (default: 8080)")
    parser.add_argument("--api-keys", metavar="FILE", type=Path,
                        help="file with the accepted API keys, one a line; without it none is asked for")
    parser.add_argument("--allow-insecure-bind", action="store_true",
                        help="listen for other machines although there are no API keys")
    parser.add_argument("--parallel", metavar="N", type=chat_options.count, default=defaults.max_sequences,
                        help=f"answers that a model writes at one time (default: {defaults.max_sequences})")
    parser.add_argument("--queue", metavar="N", type=chat_options.count, default=defaults.max_waiting,
                        help="requests of a model that may wait; the next one gets status 429 "
                             f"(default: {defaults.max_waiting})")
    parser.add_argument("--context", metavar="N", type=chat_options.count,
                        help="tokens of a prompt and its answer (default: what the model allows)")
    parser.add_argument("--cache", choices=("f16", "q8"), default="f16",
                        help="number format of keys and values; q8 needs half the memory (default: f16)")
    parser.add_argument("--threads", metavar="N", type=chat_options.thread_count,
                        help="threads of the kernels (default: BRISE_THREADS, or one a core)")
    parser.add_argument("--log-level", choices=("info", "warning"), default="info",
                        help="info writes a line for each request to stderr (default: info)")


def run(args: argparse.Namespace) -> int:
    # Before a large model is loaded: a refusal should come at once.
    check_bind(args.host, args.api_keys is not None, args.allow_insecure_bind)
    settings_ = settings.read()
    engine_settings = EngineSettings(max_context=args.context, max_sequences=args.parallel,
                                     max_waiting=args.queue, cache_format=args.cache)
    workers: dict[str, EngineThread] = {}
    for located in _locate_all(args.models, Store(settings_.home)):
        terminal.note(f"loading {located.name} from {located.path}")
        model = load(located.path, threads=args.threads or settings_.threads,
                     name=located.name, digest=located.digest)
        workers[located.name] = EngineThread(Engine(model, engine_settings))
    for worker in workers.values():
        worker.start()
    try:
        return run_server(workers, ServeSettings(
            host=args.host, port=args.port, api_keys_path=args.api_keys,
            allow_insecure_bind=args.allow_insecure_bind, access_log=args.log_level == "info"))
    finally:
        for worker in workers.values():
            worker.shutdown(drain=False)


def _locate_all(specs: list[str], store: Store) -> list[Located]:
    """Every MODEL or NAME=MODEL; all are looked for before the first one is loaded."""
    found: dict[str, Located] = {}
    for spec in specs:
        name, equals, model = spec.partition("=")
        is_renamed = bool(equals) and is_name(name)
        located = locate(model if is_renamed else spec, store)
        shown = name if is_renamed else located.name
        if shown in found:
            raise RequestError(f"two models are called {shown!r}", hint="name one of them: NAME=MODEL")
        found[shown] = replace(located, name=shown)
    return list(found.values())


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:6]) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r}: a port from 0 (any free one) to 65535 is allowed")
    return int(text)
