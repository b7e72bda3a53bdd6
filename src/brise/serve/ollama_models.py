"""What Ollama's API says about the models of this server: `/api/tags`, `/api/ps`, `/api/show` and `/api/version`.

Models are chosen when the server starts, so whatever would change them is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from brise import __version__
from brise.checkpoint.model_files import find_layout
from brise.dialects import ollama
from brise.engine.model import LoadedModel
from brise.errors import BriseError, RequestError
from brise.files.digests import text_digest
from brise.models.families import FAMILIES
from brise.models.weights import Weight, place
from brise.serve.generation import Entry
from brise.serve.ollama import find, read
from brise.serve.serving import ModelHandle, ServerState
from brise.text.chat import ChatTemplate
from brise.text.fields import Ignored, RequestFields

NEVER = "2999-12-31T23:59:59Z"  # models stay loaded, and clients want a date
ADVICE: Mapping[str, str] = {
    "pull": "`brise pull NAME` on the server's machine, then `brise serve NAME`",
    "create": "`brise quantize` or `brise tune` make models, `brise serve NAME` serves them",
    "copy": "`brise serve NEW=NAME` serves a model under another name",
    "delete": "`brise serve` without it, and `brise models remove NAME` deletes its files"}


class ChangeRefusedError(RequestError):
    """The request would change the server's models."""

    status = 403

    def __init__(self, path: str) -> None:
        word = path.removeprefix(ollama.PREFIX).partition("/")[0]
        super().__init__(f"{path[:200]!r} is refused: this server's models are chosen when it starts",
                         code="models_are_fixed", hint=ADVICE.get(word))


async def root(request: Request) -> Response:
    """Says that there is a server, as clients ask before anything else."""
    return PlainTextResponse("brise is running, and answers Ollama's API and OpenAI's")


async def version(request: Request) -> Response:
    """The version of Ollama's API that is answered, which clients compare with the one that they need."""
    return JSONResponse({"version": ollama.API_VERSION, "brise": __version__})


async def tags(serving: ServerState, request: Request) -> Response:
    """The models and adapters of this server."""
    return JSONResponse({"models": [_card(serving, name) for name in serving.own_names()]})


async def running(serving: ServerState, request: Request) -> Response:
    """The models in memory, which are all of them."""
    return JSONResponse({"models": [
        {**_card(serving, name), "expires_at": NEVER, "size_vram": 0, "context_length": worker.max_context}
        for name, worker in serving.models.items()]})


async def show(serving: ServerState, request: Request) -> Response:
    """What is known of one model. Older clients name it `name`."""
    fields = await read(serving, request, lambda body: RequestFields(
        body, ignored=None if serving.settings.strict else Ignored()))
    name = fields.text("model") or fields.text("name")
    if name is None:
        raise fields.missing("model")
    for note in ("verbose", "system", "template", "options"):
        fields.raw(note)
    fields.done()
    served = find(serving, name)
    model = served.worker.model
    card = _card(serving, serving.known_name(name))
    return JSONResponse({
        "modelfile": "# there is none: brise serves the model's own files\n", "parameters": "",
        "template": model.chat.source if isinstance(model.chat, ChatTemplate) else "", "details": card["details"],
        "model_info": _model_info(served), "capabilities": _capabilities(model), "modified_at": card["modified_at"]})


async def refuse_change(request: Request) -> Response:
    """Refuses to pull, create, copy, push or delete models, and says what does it."""
    raise ChangeRefusedError(request.url.path)


def _card(serving: ServerState, name: str) -> Entry:
    served = serving.find(name)
    model = served.worker.model
    kind, num_bytes, modified_s = _file_facts(model.path)
    adapter = next((info for info in served.worker.adapters if info.name == served.adapter), None)
    digest = model.digest if adapter is None else adapter.digest
    return {
        "name": ollama.tagged(name), "model": ollama.tagged(name),
        "modified_at": ollama.timestamp(serving.created if modified_s is None else modified_s), "size": num_bytes,
        # Clients cut it to twelve letters, so there is always one: of these facts where nobody has read the whole file.
        "digest": digest or text_digest(f"{model.path.name} {num_bytes} {modified_s}"),
        "details": _details(serving, served, kind)}


def _details(serving: ServerState, served: ModelHandle, kind: str) -> Entry:
    model = served.worker.model
    architecture = FAMILIES[model.config.family].gguf_architecture
    base = next(name for name, worker in serving.models.items() if worker is served.worker)
    return {
        "parent_model": "" if served.adapter is None else ollama.tagged(base),
        "format": kind, "family": architecture,
        "families": [architecture], "parameter_size": _short(_num_parameters(model)),
        "quantization_level": model.weight_format or ""}


def _model_info(served: ModelHandle) -> Entry:
    """Sizes, by their names in GGUF files; the context is the one that requests have here."""
    model, config = served.worker.model, served.worker.model.config
    name = FAMILIES[config.family].gguf_architecture
    return {
        "general.architecture": name, "general.basename": model.name,
        "general.parameter_count": _num_parameters(model), f"{name}.context_length": served.worker.max_context,
        f"{name}.embedding_length": config.width, f"{name}.block_count": config.num_layers,
        f"{name}.feed_forward_length": config.ffn_width, f"{name}.attention.head_count": config.num_heads,
        f"{name}.attention.head_count_kv": config.num_kv_heads, f"{name}.vocab_size": config.vocab_size}


def _capabilities(model: LoadedModel) -> list[str]:
    if model.pooling is not None:
        return ["embedding"]
    chat = model.chat
    claims = {"completion": True, "tools": chat is not None, "vision": model.vision is not None,
              "thinking": chat is not None and chat.format.can_think}
    return [name for name, is_so in claims.items() if is_so]


def _num_parameters(model: LoadedModel) -> int:
    counts = list[int]()

    def count(name: str, weight: Weight) -> Weight:
        counts.append(prod(weight.shape))
        return weight

    place(model.weights, count)
    return sum(counts)


def _short(number: int) -> str:
    """134515008 is 134.52M, as Ollama writes it."""
    for unit, size, digits in (("B", 10**9, 1), ("M", 10**6, 2), ("K", 10**3, 2)):
        if number >= size:
            return f"{number / size:.{digits}f}{unit}"
    return str(number)


def _file_facts(path: Path) -> tuple[str, int, float | None]:
    """The format of the model's files, their bytes, and when they changed; "", 0 and None if they are gone."""
    try:
        layout = find_layout(path)
        facts = [os.stat(file) for file in layout.files]
    except (OSError, BriseError):
        return "", 0, None
    kind = "gguf" if layout.kind == "gguf" else "safetensors"
    return kind, sum(each.st_size for each in facts), max((each.st_mtime for each in facts), default=None)
