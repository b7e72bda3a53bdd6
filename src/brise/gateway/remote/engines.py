"""The engines that may stand behind a remote small model: how each is known, what it proves, and what it cannot do.

A server says who it is in its list of models (`owned_by`), and each engine has a place of its own that says what it
serves: a digest, a path, a version. `identify` collects these facts; together with a probe (`probe.py`) they are the
model's fingerprint.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from brise.dialects.bodies import Body, objects, text
from brise.errors import RequestError, UnsupportedError
from brise.files.digests import text_digest

EngineName = Literal["brise", "vllm", "sglang", "llama.cpp", "llama-cpp-python", "ollama", "other"]
# How an answer goes on from a text. flags: vLLM's continue_final_message; prefix: an assistant's message with
# `"prefix": true`; open: the last message is the assistant's, and the server leaves it open.
Continuation = Literal["flags", "prefix", "open"]
Fetch = Callable[[str, Body | None], Awaitable[Any]]  # a path, and the body of a POST; None if there is no such place

# What a model in this process has and a remote one may lack, as records name it.
HIDDEN, LOGPROBS, GRAMMAR, CONTINUATION = "hidden state", "log-probabilities", "exact grammar", "text continuation"
MOST_LISTED = 8  # models in an error
VOLATILE = frozenset({"created", "object", "permission", "owned_by", "modified_at", "expires_at", "status"})


@dataclass(frozen=True)
class EngineKind:
    """One engine. `owners` are what it writes into `owned_by`; `place` is a GET that only it answers.

    `grammar` is whether log-probabilities are those after the grammar, which may also begin in the middle of a text.
    `tokenize` is the field under which its /tokenize takes a text.
    """

    name: EngineName
    owners: Sequence[str] = ()
    place: str | None = None
    continues: Continuation | None = None
    grammar: bool = False
    tokenize: str | None = None


KINDS: Mapping[EngineName, EngineKind] = {kind.name: kind for kind in (
    EngineKind("brise", ("brise",), None, "prefix", True, "content"),
    EngineKind("vllm", ("vllm",), "/version", "flags", tokenize="prompt"),
    EngineKind("sglang", ("sglang",), "/get_model_info", "flags", tokenize="prompt"),
    EngineKind("llama.cpp", ("llamacpp",), "/props", "open", tokenize="content"),
    EngineKind("llama-cpp-python", ("me",)),
    EngineKind("ollama", ("library", "ollama"), "/api/version"),
    EngineKind("other"))}


@dataclass(frozen=True)
class EngineIdentity:
    """What a server says of a model that it serves. `facts` change only if another model answers, or another version
    of the engine. `continues` is what this server does, which may be less than its kind."""

    kind: EngineKind
    model: str
    facts: Mapping[str, str]
    continues: Continuation | None

    def missing(self, *, gives_logprobs: bool) -> tuple[str, ...]:
        """What this server does not give, by name."""
        return (HIDDEN, *(() if gives_logprobs else (LOGPROBS,)), *(() if self.kind.grammar else (GRAMMAR,)),
                *(() if self.continues else (CONTINUATION,)))

    def difference(self, other: EngineIdentity) -> str | None:
        """The first fact that differs, in words; None if none does."""
        ours, theirs = {**self.facts, "model": self.model}, {**other.facts, "model": other.model}
        for name in sorted(ours.keys() | theirs.keys()):
            if ours.get(name) != theirs.get(name):
                return f"its {name} was {theirs.get(name)!r} and is {ours.get(name)!r}"
        return None


class IdentityError(RequestError):
    """The server does not say which model it serves, or serves another one."""

    status = 503

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, code="small_model_unknown", hint=hint)


def engine_of(word: str, option: str) -> EngineName:
    """The engine that an option names."""
    kind = next((kind for kind in KINDS.values() if kind.name == word), None)
    if kind is None:
        raise UnsupportedError(f"{option} is {word[:64]!r}, allowed are {', '.join(KINDS)}")
    return kind.name


async def identify(fetch: Fetch, model: str | None, declared: EngineName | None = None) -> EngineIdentity:
    """Asks a server who it is, and what it knows of the model; IdentityError if it does not have it."""
    listed = await fetch("/v1/models", None)
    cards = objects(listed.get("data")) if isinstance(listed, dict) else []
    cards = [card for card in cards if text(card.get("id"))]
    kind = KINDS[declared] if declared is not None else await _kind(fetch, cards)
    card = _card(cards, model)
    name = model or str(card["id"])
    facts = {"engine": kind.name, **_plain("card", card), **await _facts(fetch, kind, name)}
    return EngineIdentity(kind, name, facts, await _continuation(fetch, kind))


async def _kind(fetch: Fetch, cards: Sequence[Body]) -> EngineKind:
    owners = {str(card.get("owned_by")) for card in cards}
    for kind in KINDS.values():
        if owners & {*kind.owners}:
            return kind
    for kind in KINDS.values():
        if kind.place is not None and isinstance(await fetch(kind.place, None), dict):
            return kind
    return KINDS["other"]


def _card(cards: Sequence[Body], model: str | None) -> Body:
    """The model's entry in the list; a server that lists nothing is taken at its word."""
    names = [str(card["id"]) for card in cards]
    listed = ", ".join(map(repr, names[:MOST_LISTED])) + (", ..." if len(names) > MOST_LISTED else "")
    if model is None:
        if len(cards) != 1:
            raise IdentityError(f"the server has {len(cards)} models{': ' if cards else ''}{listed}, and none is named",
                                hint="URL#MODEL names one")
        return cards[0]
    if not cards:
        return {"id": model}
    found = next((card for card in cards if card["id"] in (model, f"{model}:latest")), None)
    if found is None:
        raise IdentityError(f"the server does not have the model {model!r}; it has {listed}")
    return found


async def _facts(fetch: Fetch, kind: EngineKind, model: str) -> Mapping[str, str]:
    """What the engine's own places say."""
    match kind.name:
        case "vllm":
            return _plain("server", await fetch("/version", None))
        case "sglang":
            found = await fetch("/get_model_info", None) or await fetch("/model_info", None)
            return _plain("model", found)
        case "llama.cpp":
            props, adapters = await fetch("/props", None), await fetch("/lora-adapters", None)
            props = props if isinstance(props, dict) else {}
            known = {name: props.get(name) for name in ("model_path", "build_info", "chat_template")}
            return _plain("server", known) | ({"adapters": _short(adapters)} if adapters else {})
        case "ollama":
            return await _ollama(fetch, model)
        case _:
            return {}


async def _ollama(fetch: Fetch, model: str) -> Mapping[str, str]:
    """The digest of all layers of the model, and the version of the server."""
    version, tags = await fetch("/api/version", None), await fetch("/api/tags", None)
    listed = objects(tags.get("models")) if isinstance(tags, dict) else []
    card = next((card for card in listed if card.get("name") in (model, f"{model}:latest")), None)
    shown = await fetch("/api/show", {"model": model})
    shown = shown if isinstance(shown, dict) else {}
    known = {name: shown.get(name) for name in ("parameters", "template", "system")}
    digest = {"digest": str(card["digest"])} if card is not None and card.get("digest") else {}
    return _plain("server", version) | _plain("show", known) | digest


async def _continuation(fetch: Fetch, kind: EngineKind) -> Continuation | None:
    """llama.cpp's server can be told to close the last message; what its template makes of one tells."""
    if kind.continues != "open":
        return kind.continues
    sentinel = "the wind from the"
    rendered = await fetch("/apply-template", {"messages": [{"role": "user", "content": "Which wind?"},
                                                            {"role": "assistant", "content": sentinel}]})
    prompt = rendered.get("prompt") if isinstance(rendered, dict) else None
    return None if isinstance(prompt, str) and not prompt.rstrip().endswith(sentinel) else kind.continues


def _plain(head: str, fields: object) -> dict[str, str]:
    """The fields that have a value, as text; long ones by their digest."""
    if not isinstance(fields, dict):
        return {}
    return {f"{head}.{name}": _short(value) for name, value in fields.items()
            if name not in VOLATILE and value not in (None, "", [], {})}


def _short(value: object) -> str:
    said = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return said if len(said) <= 200 else f"sha256 {text_digest(said)[:32]}"
