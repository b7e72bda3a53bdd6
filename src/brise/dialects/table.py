"""The dialects that there are, by the path of a request and by the name that records give them.

A path counts as one of ours in every spelling that clients have for it: with or without /v1, with slashes too many, as
Azure OpenAI has it (/openai/v1/..., /openai/deployments/NAME/...), and a chat's under any other prefix.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from brise.dialects import ollama
from brise.dialects.anthropic_messages import AnthropicMessages
from brise.dialects.bodies import Kind
from brise.dialects.dialect import Dialect
from brise.dialects.opaque import Opaque
from brise.dialects.openai_chat import OpenAIChat
from brise.dialects.openai_completions import OpenAICompletions
from brise.dialects.openai_responses import OpenAIResponses

CHAT, MESSAGES = OpenAIChat(), AnthropicMessages()
EMBEDDINGS = Opaque("embedding", "/v1/embeddings", is_read=True, is_served=True)
UNKNOWN = Opaque("other", "", is_read=False, is_served=False)
ALL: Sequence[Dialect] = (CHAT, OpenAICompletions(), EMBEDDINGS, OpenAIResponses(), MESSAGES)
BY_PATH: Mapping[str, Dialect] = {dialect.path: dialect for dialect in ALL}
BY_NAME: Mapping[Kind, Dialect] = {dialect.name: dialect for dialect in (*ALL, UNKNOWN)}

COUNT_PATH = "/v1/messages/count_tokens"  # the routes of this server answer it for their own models

MAX_PATH = 2048  # characters; a longer path is none of ours
_SLASHES = re.compile(r"/{2,}")
_VERSIONS = re.compile(r"(?:/v1)+(?=/|$)")
_OUR_ENDS = "|".join(re.escape(dialect.path.removeprefix("/v1")) for dialect in ALL)
# Azure's form, and that of OpenAI's engines. A name may hold a slash; what follows it is ours, or one word or two.
_DEPLOYMENT = re.compile(rf"(?:/openai|/v1)*/(?:deployments|engines)/(?:(.+?)({_OUR_ENDS})|([^/]+)(/.+))")
# What this server and OpenAI's clients have besides, which may come without its /v1.
_OTHERS = frozenset({"/v1/models", "/v1/adapters"})
_PARENTS = tuple(f"{path}/" for path in (*BY_PATH, *_OTHERS))


@dataclass(frozen=True)
class KnownPath:
    """What a path stands for. `path` is its usual spelling; `model` is the one that stands in the path.

    `is_ours`: it is one that upstreams have below their base URL, so it is sent on in its usual spelling.
    """

    dialect: Dialect
    path: str
    model: str | None = None
    is_ours: bool = False
    is_deployment: bool = False


def of_request(method: str, path: str) -> Dialect:
    """The dialect of a request; UNKNOWN for all that passes through as it is."""
    return locate(method, path).dialect


@lru_cache(1024)
def locate(method: str, path: str) -> KnownPath:
    """The meaning of a path, by its decoded path."""
    if len(path) > MAX_PATH:
        return KnownPath(UNKNOWN, path)
    plain = _SLASHES.sub("/", path)
    plain = plain.rstrip("/") or "/"
    deployment = _DEPLOYMENT.fullmatch(plain)
    if deployment is not None:
        usual = f"/v1{deployment[2] or deployment[4]}"
        return KnownPath(_dialect(method, usual), usual, deployment[1] or deployment[3], is_ours=True,
                        is_deployment=True)
    usual = spelled(plain)
    dialect = _dialect(method, usual)
    named, slash, name = usual.removeprefix("/v1").partition("/models/")
    if dialect is UNKNOWN and not named and slash:
        return KnownPath(dialect, usual, name, is_ours=True)
    if dialect is not UNKNOWN or usual in _OTHERS or usual.startswith("/v1/"):
        return KnownPath(dialect, usual, is_ours=True)
    if method == "POST" and plain.endswith("/chat/completions"):
        return KnownPath(CHAT, plain)
    return KnownPath(UNKNOWN, plain)


def named(name: Kind) -> Dialect:
    """The dialect of a record."""
    return BY_NAME.get(name, UNKNOWN)


def spelled(plain: str) -> str:
    """A path with one /v1 before it, if it is ours. It may be percent-encoded."""
    plain = _SLASHES.sub("/", plain)
    rest = plain.removeprefix("/openai") if plain.startswith("/openai/") else plain
    if (versions := _VERSIONS.match(rest)) is not None:
        return f"/v1{rest[versions.end():]}"
    usual = f"/v1{rest}"
    is_ours = rest != plain or usual in BY_PATH or usual in _OTHERS or usual.startswith(_PARENTS)
    return usual if is_ours else plain


def _dialect(method: str, path: str) -> Dialect:
    if method != "POST":
        return UNKNOWN
    return BY_PATH.get(path) or ollama.BY_PATH.get(path, UNKNOWN)
