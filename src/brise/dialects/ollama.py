"""Ollama's API for local models: its paths, its names of models, and lines of JSON as streams.

This server answers it for its own models. No upstream is asked in it, so the paths pass as opaque dialects.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from brise.dialects import sse
from brise.dialects.bodies import Body
from brise.dialects.opaque import Opaque

ROOT, PREFIX = "/", "/api/"  # clients ask at the first whether there is a server
CHAT, GENERATE, EMBED, EMBEDDINGS = "/api/chat", "/api/generate", "/api/embed", "/api/embeddings"
# What a model answers, each by the kind under which traces and the budgets of virtual keys count it.
BY_PATH: Mapping[str, Opaque] = {
    CHAT: Opaque("chat", CHAT, is_read=True, is_served=True),
    GENERATE: Opaque("completion", GENERATE, is_read=True, is_served=True),
    EMBED: Opaque("embedding", EMBED, is_read=True, is_served=True),
    EMBEDDINGS: Opaque("embedding", EMBEDDINGS, is_read=True, is_served=True)}
TAGS, SHOW, PS, VERSION = "/api/tags", "/api/show", "/api/ps", "/api/version"
ABOUT_MODELS = frozenset({TAGS, SHOW, PS, VERSION})
# What changes the models of a server, by the word in the path.
CHANGES = ("pull", "push", "create", "copy", "delete", "blobs")
# The version of Ollama's API whose fields are read here. Clients compare it: some refuse to talk to an older one.
API_VERSION = "0.13.0"
MEDIA_TYPE = "application/x-ndjson"
TAG = ":latest"  # stands behind a name without a tag


def is_path(path: str) -> bool:
    """Whether a path belongs to Ollama's API. Other services have theirs below /api/v1."""
    return path.startswith(PREFIX) and "/" not in path.removeprefix(PREFIX) or is_about_models(path)


def is_about_models(path: str) -> bool:
    """Whether a path is one that asks for no answer of a model: such as lists, or what would change them."""
    return path in ABOUT_MODELS or any(
        path == f"{PREFIX}{word}" or path.startswith(f"{PREFIX}{word}/") for word in CHANGES)


def tagged(name: str) -> str:
    """The name as Ollama lists it; clients look for that spelling."""
    return name if ":" in name else name + TAG


def untagged(name: str) -> str:
    """The name without the tag that says nothing."""
    return name.removesuffix(TAG)


def line(entry: Body) -> bytes:
    """One line of a stream."""
    return sse.json_text(entry).encode() + b"\n"


def error_body(message: str) -> Body:
    """An error, as a body or as the last line of a stream."""
    return {"error": message}


def timestamp(at_s: float | None = None) -> str:
    """A time, or this moment, as Ollama writes it (RFC 3339)."""
    at = datetime.now(UTC) if at_s is None else datetime.fromtimestamp(at_s, UTC)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
