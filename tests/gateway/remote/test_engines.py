"""What each engine says of itself, and what of that makes another fingerprint."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from brise.dialects.table import CHAT
from brise.errors import RequestError, UnsupportedError
from brise.gateway.remote.models import RemoteModels
from brise.gateway.remote.server import RemoteModel
from tests.gateway.fake_upstream import answer
from tests.gateway.remote.small_server import (
    LLAMA_CARD,
    LLAMA_PROPS,
    OLLAMA_TAG,
    SHAPES,
    VLLM_CARD,
    MemoryLedger,
    SmallServer,
    drive,
    listed,
    small_server,
)

ASKED = {"model": "big", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
MISSING = {"vllm": ["hidden state", "exact grammar"], "sglang": ["hidden state", "exact grammar"],
           "llama.cpp": ["hidden state", "exact grammar"],
           "ollama": ["hidden state", "log-probabilities", "exact grammar", "text continuation"],
           "llama-cpp-python": ["hidden state", "exact grammar", "text continuation"]}
PREFIX = "one two"


def models(server: SmallServer, ledger: MemoryLedger | None = None, **options: Any) -> RemoteModels:
    remote = RemoteModel(server.url, **options)
    return RemoteModels({"mine": remote}, ledger or MemoryLedger(), log=io.StringIO())  # type: ignore[arg-type]


def look(remotes: RemoteModels) -> None:
    drive(remotes, remotes.look())


def fingerprint(server: SmallServer, ledger: MemoryLedger) -> str:
    """As a gateway that starts now sees it."""
    remotes = models(server, ledger)
    look(remotes)
    return remotes.fingerprint("mine")


@dataclass(frozen=True)
class Known:
    """An engine that was looked at once."""

    engine: str
    server: SmallServer
    remotes: RemoteModels
    ledger: MemoryLedger

    def can(self, what: str) -> bool:
        return what not in MISSING[self.engine]


@pytest.fixture(scope="module", params=SHAPES)
def known(request: pytest.FixtureRequest) -> Iterator[Known]:
    ledger = MemoryLedger()
    with small_server(request.param) as server:
        remotes = models(server, ledger)
        look(remotes)
        yield Known(request.param, server, remotes, ledger)


def test_an_engine_is_known_and_what_it_does_not_give_is_named(known: Known) -> None:
    engine, card, (line,) = known.engine, known.remotes.card("mine"), known.ledger.lines
    assert (card["engine"], card["missing"], card["parent"]) == (engine, MISSING[engine], SHAPES[engine].names[0])
    assert line.kind == "remote" and line.body["fingerprint"] == card["fingerprint"]
    assert (line.body["engine"], line.body["missing"]) == (engine, MISSING[engine])


def test_an_answer_has_the_signals_that_the_engine_gives(known: Known) -> None:
    known.server.chats.clear()
    found = drive(known.remotes, known.remotes.answer(
        "mine", CHAT, {**ASKED, "store": True, "max_completion_tokens": 50}, logprobs=2))
    (sent,) = known.server.chats
    assert (sent["model"], sent["max_tokens"], "store" in sent) == (SHAPES[known.engine].names[0], 50, False)
    assert found.body["model"] == "mine" and found.body["choices"][0]["logprobs"] is None
    assert found.usage.completion_tokens == 5 and set(found.ignored) == {"store"}
    texts = [token.text for token in found.tokens]
    assert texts == ([b"one", b"two", b"three", b"four", b"five"] if known.can("log-probabilities") else [])
    assert all(token.top[0][0] == token.token != token.top[1][0] for token in found.tokens)


def test_a_text_is_continued_by_the_engine_s_own_way_or_refused_by_name(known: Known) -> None:
    known.server.chats.clear()

    async def rest() -> str:
        stream = await known.remotes.stream("mine", CHAT, {**ASKED, "max_tokens": 50}, prefix=PREFIX)
        return "".join([choice["delta"].get("content") or "" async for chunk in stream.chunks
                        for choice in chunk["choices"]])

    if not known.can("text continuation"):
        with pytest.raises(RequestError, match=rf"\({known.engine}\) has no text continuation"):
            drive(known.remotes, rest())
        return
    assert drive(known.remotes, rest()) == " three four five"
    (sent,) = known.server.chats
    assert sent["messages"][-1] == {"role": "assistant", "content": PREFIX}
    has_flags = known.engine in ("vllm", "sglang")
    assert (sent.get("continue_final_message"), sent.get("add_generation_prompt")) == (
        (True, False) if has_flags else (None, None))
    assert sent["max_tokens"] == (48 if known.engine == "sglang" else 47)  # the fake of SGLang has no /tokenize


@pytest.mark.parametrize(("engine", "change"), [
    ("vllm", {"version": {"version": "0.11.3"}}), ("vllm", {"models": listed({**VLLM_CARD, "root": "/models/new"})}),
    ("llama.cpp", {"props": {**LLAMA_PROPS, "model_path": "/models/new.gguf"}}),
    ("llama.cpp", {"models": listed({**LLAMA_CARD, "meta": {"size": 1}})}),
    ("ollama", {"tags": {"models": [{**OLLAMA_TAG, "digest": "0" * 64}]}})])
def test_another_fact_is_another_fingerprint(engine: str, change: dict[str, object]) -> None:
    ledger = MemoryLedger()
    with small_server(engine) as server:
        first, again = fingerprint(server, ledger), fingerprint(server, ledger)
        server.serve(**change)
        assert first == again != fingerprint(server, ledger)
    assert len(ledger.lines) == 2 and " was " in ledger.lines[1].body["reason"]


@pytest.mark.parametrize("engine", ["vllm", "ollama"])
def test_another_model_behind_the_same_facts_is_found_by_the_probe(engine: str) -> None:
    ledger = MemoryLedger()
    with small_server(engine) as server:
        first = fingerprint(server, ledger)
        server.says = lambda prompt: "four five six seven"
        other = fingerprint(server, ledger)
        server.says = lambda prompt: "one two three four five"
        assert fingerprint(server, ledger) == first != other, "it came back"
    assert "its probe is" in ledger.lines[1].body["reason"] and len(ledger.lines) == 2


def test_another_system_fingerprint_is_another_fingerprint() -> None:
    ledger = MemoryLedger()
    with small_server("llama-cpp-python") as server:
        first = fingerprint(server, ledger)
        server.shape = replace(server.shape, names=(server.shape.names[0], "fp_2"))
        assert first != fingerprint(server, ledger)
    assert ledger.lines[1].body["facts"]["system_fingerprint"] == "fp_2"


def test_what_changes_with_every_request_is_no_fact() -> None:
    ledger = MemoryLedger()
    with small_server() as server:
        first = fingerprint(server, ledger)
        permission = [{"id": "modelperm-2", "created": 2}]
        server.serve(models=listed({**VLLM_CARD, "created": 2, "permission": permission}))
        assert fingerprint(server, ledger) == first
    assert len(ledger.lines) == 1


@pytest.mark.parametrize(("cards", "model", "why"), [
    ([VLLM_CARD, {**VLLM_CARD, "id": "base"}], None, "the server has 2 models: 'tickets', 'base', and none is named"),
    ([VLLM_CARD], "base", "the server does not have the model 'base'; it has 'tickets'"), ([], None, "has 0 models")])
def test_which_model_is_meant_is_said_or_refused(cards: list[object], model: str | None, why: str) -> None:
    with small_server() as server:
        server.serve(models=listed(*cards))
        remotes = models(server, model=model)
        look(remotes)
        assert why in str(remotes.card("mine")["unavailable"])
        with pytest.raises(RequestError, match="is not available"):
            remotes.fingerprint("mine")


@pytest.mark.parametrize(("url", "options", "why"), [
    ("htp://h/v1", {}, "the small model's server is 'htp://h/v1'"), ("http://u:p@h/v1", {}, "holds a user"),
    ("http://h/v1#a", {"model": "b"}, "'a' by its URL and 'b' by its name"),
    ("http://h/v1", {"probe_every_s": 0.0}, "probe_every_s is 0")])
def test_a_wrong_remote_model_is_refused(url: str, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        RemoteModel(url, **options)


def test_a_model_s_name_may_stand_in_the_url() -> None:
    assert RemoteModel("http://h/v1#tickets") == RemoteModel("http://h/v1", "tickets")


def test_a_line_of_a_later_version_hides_no_other() -> None:
    ledger = MemoryLedger()
    with small_server("llama.cpp") as server:
        first = fingerprint(server, ledger)
        ledger.append("remote", {"name": "mine", "engine": "of a later version"})
        assert fingerprint(server, ledger) == first


def test_a_watch_says_once_what_it_sees() -> None:
    log = io.StringIO()
    with small_server() as server:
        remotes = RemoteModels({"mine": RemoteModel(server.url)}, MemoryLedger(), log=log)  # type: ignore[arg-type]

        async def twice() -> None:
            await remotes.look()
            await remotes.look()
        drive(remotes, twice())
    assert log.getvalue().count("the small model 'mine' is 'tickets' of vllm") == 1


@pytest.mark.parametrize("answer_", [
    {"choices": [{"index": 0, "message": None, "finish_reason": "stop"}]}, {"choices": [1]}, [], {"object": "list"},
    {"choices": [{"index": 0, "message": {"content": 7}, "finish_reason": "stop", "logprobs": {"content": [
        {"token": 1, "logprob": None, "top_logprobs": [{"token": None, "logprob": float("-inf")}]}]}}]}])
def test_answers_of_any_shape_end_no_watch(answer_: object) -> None:
    ledger = MemoryLedger()
    with small_server() as server:
        server.fake.default = answer(answer_)
        remotes = models(server, ledger, model="tickets", engine="other")
        look(remotes)
        assert remotes.is_available("mine") == bool(ledger.lines)
        server.fake.default = server.behave
        look(remotes)
        assert remotes.is_available("mine")


def test_a_llama_cpp_server_that_closes_the_last_message_continues_nothing() -> None:
    with small_server("llama.cpp") as server:
        server.serve(template={"prompt": "the wind from the<|im_end|>\n<|im_start|>assistant\n"})
        remotes = models(server)
        look(remotes)
        assert "text continuation" in remotes.card("mine")["missing"]
        with pytest.raises(RequestError, match="has no text continuation"):
            drive(remotes, remotes.stream("mine", CHAT, ASKED, prefix=PREFIX))
