"""Options for small models behind other servers: vLLM, llama.cpp, Ollama, SGLang, brise."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from brise import settings
from brise.cli.number_types import Within
from brise.cli.serve_gateway import by_name
from brise.errors import UnsupportedError
from brise.gateway.remote.engines import KINDS, engine_of
from brise.gateway.remote.server import SMALL_LIMITS, RemoteModel
from brise.hub.store import is_name

SECONDS = Within(0.001, 86400, "a number of seconds from 0.001 to 86400")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--small and what belongs to it."""
    parser.add_argument("--small", metavar="NAME=URL[#MODEL]", action="append", default=[],
                        help="a small model behind another server with OpenAI's API: it can be a --candidate and a "
                             "--fallback, a task can be switched to it, and requests for NAME are answered by it. "
                             "MODEL is its name there (default: the only one); may be given several times. "
                             "docs/guides/engines.md")
    parser.add_argument("--small-key-env", metavar="[NAME=]VARIABLE", action="append", default=[],
                        help="environment variable with the key for such a server (default: none is sent, and the "
                             "clients' keys never are)")
    parser.add_argument("--small-engine", metavar="[NAME=]ENGINE", action="append", default=[],
                        help=f"what such a server is, {', '.join(KINDS)} (default: it is detected)")
    parser.add_argument("--small-timeout", metavar="S", type=SECONDS,
                        help="seconds until its answer is there, after which the large model is asked "
                             f"(default: {SMALL_LIMITS.answer_s:g})")
    parser.add_argument("--small-probe-every", metavar="S", type=SECONDS,
                        help="seconds between two probes of which model it serves "
                             f"(default: {RemoteModel.probe_every_s:g})")


def check(args: argparse.Namespace, taken: Collection[str]) -> Mapping[str, RemoteModel]:
    """The remote models by name; `taken` are the names of models and adapters that are served here."""
    urls = named(args.small, "--small")
    if both := next((name for name in urls if name in taken), None):
        raise UnsupportedError(f"--small {both!r}: a model that is served here has this name",
                               hint="another NAME")
    keys = {name: settings.secret(variable)
            for name, variable in by_name(args.small_key_env, urls, "--small-key-env", "--small").items()}
    engines = by_name(args.small_engine, urls, "--small-engine", "--small")
    timeout_s = args.small_timeout or SMALL_LIMITS.answer_s
    limits = replace(SMALL_LIMITS, answer_s=timeout_s, first_byte_s=min(timeout_s, SMALL_LIMITS.first_byte_s))
    every_s = args.small_probe_every or RemoteModel.probe_every_s
    return {name: RemoteModel(url, None, keys.get(name),
                              engine_of(engines[name], "--small-engine") if name in engines else None,
                              limits, every_s, settings.proxy(url)) for name, url in urls.items()}


def named(words: Sequence[str], option: str) -> Mapping[str, str]:
    """Names and URLs, in the order of the command line."""
    urls: dict[str, str] = {}
    for word in words:
        name, equals, url = word.partition("=")
        if not equals or not is_name(name):
            raise UnsupportedError(f"{option} {word!r}: NAME=URL is needed, where NAME has letters, digits, '.', '_' "
                                   "and '-'", hint=f"{option} mine=http://127.0.0.1:8000/v1")
        if name in urls:
            raise UnsupportedError(f"{option} {word!r}: two are called {name!r}")
        urls[name] = url
    return urls
