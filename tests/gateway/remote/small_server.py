"""A server of a small model as vLLM, SGLang, llama.cpp, Ollama and others write their answers, over the fake upstream.

The shapes are those of their documentation. What it says is a function of the prompt, so that a probe of another model
differs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from brise.dialects.bodies import Body
from brise.gateway.remote.models import RemoteModels
from brise.traffic.records import LedgerEntry
from tests.gateway.fake_answers import encode
from tests.gateway.fake_upstream import Behaviour, FakeUpstream, Peer, answer, events, fake_upstream, refuse

T = TypeVar("T")
Says = Callable[[str], str]
VLLM_CARD = {
    "id": "tickets", "object": "model", "created": 1764518400, "owned_by": "vllm", "root": "/models/tickets",
    "parent": None, "max_model_len": 8192,
    "permission": [{"id": "modelperm-1", "object": "model_permission", "created": 1764518400, "organization": "*"}]}
LLAMA_CARD = {
    "id": "tickets.gguf", "object": "model", "created": 1764518400, "owned_by": "llamacpp",
    "meta": {"vocab_type": 2, "n_vocab": 49152, "n_ctx_train": 8192, "n_embd": 576, "n_params": 134515008,
             "size": 90962560}}
LLAMA_PROPS = {
    "default_generation_settings": {"id": 0, "n_ctx": 4096, "is_processing": False}, "total_slots": 4,
    "model_path": "/models/tickets.gguf", "chat_template": "{{ messages }}", "build_info": "b6942-0de0a015"}
OLLAMA_TAG = {
    "name": "tickets:latest", "model": "tickets:latest", "modified_at": "2026-11-01T00:00:00Z", "size": 91739413,
    "digest": "95477a2659b7539758230498d6ea9f6bfa5aa51ffb3dea9f37c91cacbac459c1",
    "details": {"format": "gguf", "family": "llama", "parameter_size": "135M", "quantization_level": "Q4_0"}}


@dataclass(frozen=True)
class Shape:
    """How an engine answers. `places` are its GETs and POSTs besides chats; `names` is what its answers say of their
    model and of its system_fingerprint."""

    places: Mapping[str, object]
    names: tuple[str, str | None]
    has_logprobs: bool = True
    has_bytes: bool = True
    echoes: bool = False  # an open message, when it goes on in it


def listed(*cards: object) -> Body:
    """A list of models."""
    return {"object": "list", "data": list(cards)}


SHAPES: Mapping[str, Shape] = {
    "vllm": Shape({"/v1/models": listed(VLLM_CARD), "/version": {"version": "0.11.2"},
                   "/tokenize": {"count": 3, "max_model_len": 8192, "tokens": [1, 2, 3], "token_strs": None}},
                  ("tickets", None)),
    "sglang": Shape({"/v1/models": listed({"id": "tickets", "object": "model", "created": 1, "owned_by": "sglang",
                                           "root": "tickets", "parent": None, "max_model_len": 8192}),
                     "/get_model_info": {"model_path": "/models/tickets", "tokenizer_path": "/models/tickets",
                                         "is_generation": True, "preferred_sampling_params": None,
                                         "weight_version": "default"}}, ("tickets", None)),
    "llama.cpp": Shape({"/v1/models": {**listed(LLAMA_CARD), "models": [{"name": "tickets.gguf"}]},
                        "/props": LLAMA_PROPS, "/lora-adapters": [], "/tokenize": {"tokens": [1, 2, 3]},
                        "/apply-template": {"prompt": "<|im_start|>assistant\nthe wind from the"}},
                       ("tickets.gguf", "b6942-0de0a015"), echoes=True),
    "ollama": Shape({"/v1/models": listed({"id": "tickets:latest", "object": "model", "created": 1, "owned_by":
                                           "library"}),
                     "/api/version": {"version": "0.13.1"}, "/api/tags": {"models": [OLLAMA_TAG]},
                     "/api/show": {"template": "{{ .Prompt }}", "parameters": "stop \"<|im_end|>\"",
                                   "details": OLLAMA_TAG["details"]}}, ("tickets:latest", "fp_ollama"),
                    has_logprobs=False),
    "llama-cpp-python": Shape({"/v1/models": listed({"id": "/models/tickets.gguf", "object": "model", "owned_by": "me",
                                                     "permissions": []})}, ("/models/tickets.gguf", None),
                              has_bytes=False)}


@dataclass
class SmallServer:
    """A running server. `shape` and `says` may be changed while it runs, as if another model were loaded."""

    fake: FakeUpstream
    shape: Shape
    says: Says
    chats: list[Body] = field(default_factory=list)  # that are no probe's
    fault: Behaviour | None = None  # chats that are no probe's are answered so

    @property
    def url(self) -> str:
        return self.fake.url

    def serve(self, **places: object) -> None:
        """Changes what one of its places says; `models` is the list of models."""
        known = {"models": "/v1/models", "version": "/version", "props": "/props", "tags": "/api/tags",
                 "template": "/apply-template"}
        self.shape = replace(self.shape, places={**self.shape.places, **{known[name]: value
                                                                         for name, value in places.items()}})

    async def behave(self, peer: Peer) -> None:
        path = peer.received.target
        if path in self.shape.places:
            await answer(self.shape.places[path])(peer)
        elif path not in ("/v1/chat/completions", "/v1/completions"):
            await refuse(404, "Not Found")(peer)
        elif peer.received.json.get("max_tokens") in (4, 16):
            await answer(self.body(peer.received.json))(peer)
        else:
            self.chats.append(peer.received.json)
            await (self.fault or self.chat)(peer)

    async def chat(self, peer: Peer) -> None:
        fields = peer.received.json
        whole = self.body(fields)
        await (events(self.events(fields, whole)) if fields.get("stream") else answer(whole))(peer)

    def body(self, fields: Body) -> Body:
        """A chat completion; each word of it is a token."""
        said = self.said(fields)
        model, fingerprint = self.shape.names
        choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": said, "tool_calls": []},
                                  "finish_reason": "stop", "stop_reason": None, "logprobs": None}
        if fields.get("logprobs") and self.shape.has_logprobs:
            choice["logprobs"] = {"content": [self.token(word, number) for number, word in enumerate(said.split())]}
        known = {} if fingerprint is None else {"system_fingerprint": fingerprint}
        return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1764518400, "model": model, **known,
                "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}}

    def said(self, fields: Body) -> str:
        """The answer; of a text that it goes on from, the rest, as a server does that leaves it open."""
        *_, last = fields["messages"]
        if last["role"] != "assistant":
            return self.says(str(last["content"]))
        whole = self.says("")
        return whole if self.shape.echoes else whole.removeprefix(last["content"])

    def token(self, word: str, number: int) -> Body:
        """The alternatives depend on the words only, as those of one model."""
        own = -0.1 - 0.01 * (len(word) % 7)
        top = [(word, own), (f"{word}?", -2.5 - 0.1 * (number % 3))]
        return self.entry(word, own) | {"top_logprobs": [self.entry(name, value) for name, value in top]}

    def entry(self, word: str, logprob: float) -> Body:
        known = {"bytes": list(word.encode())} if self.shape.has_bytes else {"bytes": None}
        return {"token": word, "logprob": logprob, **known}

    def events(self, fields: Body, whole: Body) -> list[object]:
        """The same as a stream of letters, so that an echo comes in pieces."""
        head = {name: whole[name] for name in ("id", "created", "model")} | {"object": "chat.completion.chunk"}
        said = whole["choices"][0]["message"]["content"]
        deltas = [{"role": "assistant", "content": ""}, *({"content": letter} for letter in said)]
        chunks: list[object] = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
                                for delta in deltas]
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        if (fields.get("stream_options") or {}).get("include_usage"):
            chunks.append({**head, "choices": [], "usage": whole["usage"]})
        return [*chunks, "[DONE]"]


@contextmanager
def small_server(engine: str = "vllm", says: Says = lambda prompt: "one two three four five") -> Iterator[SmallServer]:
    """Runs until the block ends."""
    with fake_upstream() as fake:
        server = SmallServer(fake, SHAPES[engine], says)
        fake.default = server.behave
        yield server


def drive(remotes: RemoteModels, what: Coroutine[Any, Any, T]) -> T:
    """Runs it in an event loop of its own, and closes the connections."""
    async def run() -> T:
        try:
            return await what
        finally:
            remotes.close()
            await asyncio.sleep(0)
    return asyncio.run(run())


class MemoryLedger:
    """What a watch needs of a store."""

    def __init__(self) -> None:
        self.lines = list[LedgerEntry]()

    def append(self, kind: str, body: Body) -> LedgerEntry:
        kept = json.loads(json.dumps(body))
        self.lines.append(LedgerEntry(len(self.lines) + 1, 0.0, kind, kept, "", ""))
        return self.lines[-1]

    def ledger(self, after: int = 0) -> list[LedgerEntry]:
        return self.lines[after:]


def half_stream(says: str) -> Behaviour:
    """A stream that is cut in the middle of its text."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "tickets"}

    async def behave(peer: Peer) -> None:
        await peer.start(200, {"content-type": "text/event-stream"})
        await peer.send(encode({**head, "choices": [{"index": 0, "delta": {"content": says}, "finish_reason": None}]}))
        peer.close()
    return behave
