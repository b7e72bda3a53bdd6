"""Parts that may be missing or broken: optional packages, and the process that runs chat templates."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from brise.doctor.findings import Finding
from brise.errors import BriseError
from brise.text.sandbox import TemplateProgram

# The extras of pyproject.toml that a user may want, with their packages and what they are for.
EXTRAS: Mapping[str, tuple[Sequence[str], str]] = MappingProxyType({
    "hf": (("huggingface_hub",), "brise pull hf:OWNER/REPO"),
    "mistral": (("mistral-common",), "tekken.json, Mistral's chat formats, images"),
    "tune": (("torch", "matplotlib"), "brise tune, parity, demo"),
    "eval": (("scikit-learn",), "the TF-IDF baseline"),
    "postgres": (("psycopg",), "a store that several gateways share"),
    "encodings": (("brotli",), "upstreams that compress answers"),
    "otel": (("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http"), "traces and metrics to a collector"),
    "fleet": (("tuf",), "brise ship, node and hub: signed bundles for many devices"),
    "peers": (("cryptography", "zeroconf"), "devices of a fleet that answer for each other"),
    "mavlink": (("pymavlink",), "a bridge to drones and rovers that speak MAVLink"),
    "zenoh": (("eclipse-zenoh",), "a bridge to ROS 2"),
    "sim": (("mujoco", "minigrid"), "brise act walk, and the drone in MuJoCo"),
    "ray": (("ray",), "replicas on a Ray cluster")})
_ESCAPE = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
_ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def examine() -> Iterator[Finding]:
    """All of them."""
    for extra, (packages, purpose) in EXTRAS.items():
        yield _extra(extra, packages, purpose)
    yield from _templates()


def _extra(extra: str, packages: Sequence[str], purpose: str) -> Finding:
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            return Finding("extras", extra, "NOTE", f"not installed: {purpose}", f"pip install 'brise[{extra}]'")
    return Finding("extras", extra, "PASS", ", ".join(versions))


def _templates() -> Iterator[Finding]:
    """A template renders; one that wants out, or never ends, is refused and takes nothing with it."""
    try:
        text = TemplateProgram("{% for one in messages %}{{ one }};{% endfor %}").render({"messages": ["a", "b"]})
    except BriseError as error:
        yield Finding("templates", "process", "FAIL", str(error).partition("\n")[0], "no model can be talked to")
        return
    if text != "a;b;":
        yield Finding("templates", "process", "FAIL", f"a template gives {text!r}, right is 'a;b;'")
        return
    yield Finding("templates", "process", "PASS", "renders in a process of its own")
    for name, source in (("sandbox", _ESCAPE), ("limits", _ENDLESS)):
        try:
            TemplateProgram(source, max_cpu_s=0.2).render({})
        except BriseError as error:
            yield Finding("templates", name, "PASS", f"refused: {_short(str(error))}")
        else:
            yield Finding("templates", name, "FAIL", "a template that must be refused was rendered",
                          "pip install --force-reinstall brise")


def _short(text: str) -> str:
    line = text.partition("\n")[0]
    return line if len(line) <= 80 else line[:79] + "\u2026"
