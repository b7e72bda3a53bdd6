"""Every fault of a remote small model: under a switch the large model answers the same request, in an outage the client
reads why, and another model behind the same name ends what was certified."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from brise.gateway.breaker import Breaker, BreakerSettings
from brise.gateway.fallback import SmallModelFallback
from brise.gateway.gateway import Components
from brise.gateway.remote.models import JoinedModels, RemoteModels
from brise.gateway.remote.server import RemoteModel
from brise.gateway.small_models import SmallModels, TaskModels
from brise.gateway.upstreams import Upstreams
from brise.switch import components
from brise.switch.rule import to_body
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.gateway.fake_answers import chat_events
from tests.gateway.fake_upstream import Behaviour, Hold, answer, cut, events, hang, raw, refuse
from tests.gateway.remote.small_server import SHAPES, SmallServer, half_stream, small_server
from tests.gateway.rig import SHORT, Memory, Rig, rig
from tests.switch.ledger_lines import certified, switched
from tests.switch.small_models import rule
from tests.waiting import LIMIT_S, wait_until

SAYS = "one two three four five"
FOREVER = Hold()
ANSWERED = {"id": "c", "object": "chat.completion", "created": 1, "model": "tickets"}


def says(prompt: str) -> str:
    return SAYS


@dataclass(frozen=True)
class House:
    """A gateway, the large model's fake, the server of the small model, and their store. The task `calls` is switched,
    others are not."""

    rig: Rig
    small: SmallServer
    remotes: RemoteModels
    store: SqlStore

    def ask(self, model: str = "calls", **fields: Any) -> httpx.Response:
        return self.rig.live.post("/v1/chat/completions", {
            "model": model, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, **fields})

    def mode(self) -> str:
        response = self.ask()
        assert response.status_code == 200 and text_of(response) in ("hello", self.small.says(""))
        return response.headers["x-brise-mode"]

    def lines(self, kind: str) -> list[Any]:
        return [line.body for line in self.store.ledger() if line.kind == kind]

    def settle(self) -> None:
        """The small model is known again, and answers."""
        wait_until(lambda: self.mode() == "small")
        self.rig.fake.received.clear()
        self.small.chats.clear()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("remote")
    store = open_store(folder / "traffic.sqlite", folder)
    with small_server(says=says) as small:
        remote = RemoteModel(small.url, limits=SHORT, probe_every_s=0.2)
        remotes = RemoteModels({"small": remote}, store, log=io.StringIO())

        def around(local: SmallModels, large: Upstreams, captured: Memory) -> Components:
            joined = JoinedModels(local, remotes)
            parts = components.switch_components(joined, large, store, captured, io.StringIO())
            return replace(parts, fallback=SmallModelFallback(joined, TaskModels("small")), remote=remotes,
                           background=(*parts.background, remotes))

        with rig(around=around, breaker=Breaker(BreakerSettings(failures=1_000_000))) as made:
            made.outwaits(FOREVER)
            wait_until(lambda: remotes.is_available("small"))
            fitted = rule(fingerprint=remotes.fingerprint("small"))
            store.append("cascade", to_body(fitted))
            store.append("switch", switched(rule=fitted.digest, audit=0.0, certificate=certified(
                expires_s=1e12, fingerprint=fitted.fingerprint)))
            yield House(made, small, remotes, store)
            FOREVER.release()
    store.close()


@pytest.fixture
def house(running: House) -> House:
    running.small.fault = None
    running.small.says, running.small.shape = says, SHAPES["vllm"]
    running.settle()
    return running


def text_of(response: httpx.Response) -> str:
    """All that a client has of the text, whole or as a stream."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        return str(response.json()["choices"][0]["message"]["content"])
    chunks = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines()
              if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ()))


FAULTS: dict[str, Behaviour] = {
    "busy": refuse(503), "too many": refuse(429), "failed": refuse(500), "wrong key": refuse(401),
    "refused": refuse(400, "temperature is not supported"), "no such path": refuse(404),
    "error in 200": answer({"error": {"message": "out of memory", "type": "server_error", "code": 500}}),
    "vLLM's error": answer({"object": "error", "message": "boom", "type": "InternalServerError", "code": 500}, 500),
    "no answer": answer({}), "no JSON": answer(b"<html>"), "no HTTP": raw(b"hello\r\n\r\n"),
    "no choice": answer({**ANSWERED, "choices": []}),
    "before": cut(answer({}), 0), "in the head": cut(answer({}), 20, reset=True),
    "while": cut(answer({**ANSWERED, "choices": ["x" * 500]}), 300), "slow": hang(FOREVER),
    "wrong model": answer({**ANSWERED, "model": "another", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": SAYS}, "finish_reason": "stop"}]})}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_large_model_answers_the_same_request(house: House, fault: str) -> None:
    house.small.fault = FAULTS[fault]
    response = house.ask(stream=fault < "n")
    assert (response.status_code, text_of(response), response.headers["x-brise-mode"]) == (200, "hello", "escalated")
    assert len(house.rig.fake.received) == 1
    if fault not in ("before", "in the head"):  # as a connection ends that had waited too long: another one is tried
        assert len(house.small.chats) == 1, "it was not asked twice"


def test_a_server_that_dies_loses_no_request_and_comes_back(house: House) -> None:
    house.small.fake.stop()
    assert {house.mode() for _ in range(3)} == {"escalated"}
    card = house.rig.live.get("/v1/models/small").json()
    assert "unavailable" in card and "fingerprint" not in card
    assert 'brise_gateway_small_available{model="small"} 0.0' in house.rig.live.metrics()
    house.small.fake.start()
    wait_until(lambda: house.mode() == "small")
    assert 'brise_gateway_small_available{model="small"} 1.0' in house.rig.live.metrics()


@pytest.mark.parametrize("hides", [False, True])
def test_another_model_behind_the_name_ends_the_switch_and_the_old_one_is_known_again(house: House, hides: bool
                                                                                      ) -> None:
    """Its server says so when it comes back, or only the probe tells."""
    before, lines = house.remotes.fingerprint("small"), len(house.lines("remote"))
    house.small.says = lambda prompt: f"{'six' if hides else 'ten'} seven eight nine"
    if not hides:
        house.small.fake.stop()
        assert house.mode() == "escalated", "it restarts"
        house.small.serve(models={"object": "list", "data": [{"id": "tickets", "owned_by": "vllm", "root": "/other"}]})
        house.small.fake.start()
        assert house.mode() == "escalated", "it is there again, and has shown nothing yet"
    wait_until(lambda: len(house.lines("remote")) > lines)
    wait_until(lambda: house.remotes.is_available("small"))
    assert house.mode() == "escalated" and house.remotes.fingerprint("small") != before
    wait_until(lambda: any("not the model that was certified" in line["reason"] for line in house.lines("changed")))
    assert ("its probe is" if hides else "its card.") in house.lines("remote")[-1]["reason"]
    house.small.says, house.small.shape = says, SHAPES["vllm"]
    house.settle()
    assert house.remotes.fingerprint("small") == before


def test_a_rule_that_needs_a_missing_signal_keeps_nothing(house: House) -> None:
    house.small.fault = answer({**ANSWERED, "choices": [
        {"index": 0, "message": {"role": "assistant", "content": SAYS}, "finish_reason": "stop"}]})
    assert house.mode() == "escalated"
    small = house.rig.live.serving.gateway.components.small  # type: ignore[union-attr]
    assert small.refused["calls", "missing_signal"] == 1  # type: ignore[union-attr]


# An outage of the large model.

@pytest.mark.parametrize("stream", [False, True])
def test_it_stands_in_for_the_large_model(house: House, stream: bool) -> None:
    house.rig.fake.then(refuse(500))
    response = house.ask("other", stream=stream)
    assert (text_of(response), response.headers["x-brise-mode"]) == (SAYS, "degraded")


def test_it_goes_on_in_the_middle_of_a_stream(house: House) -> None:
    house.rig.fake.then(events(chat_events(SAYS)[:3]))
    response = house.ask("other", stream=True, max_tokens=50)
    assert text_of(response) == SAYS and '"continued":true' in response.text
    (sent,) = house.small.chats
    assert (sent["messages"][-1]["content"], sent["continue_final_message"], sent["max_tokens"]) == (
        "one two", True, 47)


def test_a_schema_is_not_gone_on_with_where_its_grammar_would_begin_anew(house: House) -> None:
    house.rig.fake.then(events(chat_events(SAYS)[:3]))
    response = house.ask("other", stream=True, response_format={"type": "json_object"})
    assert text_of(response) == "one two" and "no exact grammar" in response.text and not house.small.chats


@pytest.mark.parametrize("fault", ["busy", "error in 200", "before", "slow", "wrong model"])
def test_when_both_fail_the_client_reads_both_reasons(house: House, fault: str) -> None:
    house.rig.fake.then(refuse(500))
    house.small.fault = FAULTS[fault]
    response = house.ask("other")
    assert response.status_code == 500 or "small model" in response.json()["error"]["message"]
    assert response.headers["x-brise-mode"] == "failed"


def test_a_continuation_that_breaks_ends_with_a_typed_error(house: House) -> None:
    house.rig.fake.then(events(chat_events(SAYS)[:3]))
    house.small.fault = half_stream(" three")
    response = house.ask("other", stream=True)
    assert text_of(response) == "one two three" and "event: error" in response.text
    assert "the small model failed too" in response.text


# By its own name.

@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_names_it_is_answered_by_it_and_goes_nowhere_else(house: House, stream: bool) -> None:
    response = house.ask("small", stream=stream)
    assert text_of(response) == SAYS and not house.rig.fake.received
    assert house.small.chats[0]["model"] == "tickets"
    assert "authorization" not in dict(house.small.fake.received[-1].headers)


@pytest.mark.parametrize(("method", "path", "body"), [
    ("POST", "/v1/moderations", {"model": "small"}), ("POST", "/tokenize", {"model": "small", "prompt": "hi"}),
    ("POST", "/v1/chat/completions", {"model": "Small ", "messages": []}), ("GET", "/v1/x?model=small", None)])
def test_what_names_it_and_is_not_for_it_is_refused(house: House, method: str, path: str, body: object) -> None:
    response = httpx.request(method, f"{house.rig.live.url}{path}", json=body, timeout=LIMIT_S, trust_env=False)
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_served_here")
    assert not house.rig.fake.received and not house.small.chats


@pytest.mark.parametrize("fault", ["busy", "before", "slow", "no JSON"])
def test_its_failure_is_a_typed_error(house: House, fault: str) -> None:
    house.small.fault = FAULTS[fault]
    response = house.ask("small")
    error = response.json()["error"] if fault != "no JSON" else {"code": "small_model_unavailable"}
    assert error["code"] == "small_model_unavailable" and not house.rig.fake.received


def test_its_own_refusal_goes_out_as_it_came(house: House) -> None:
    house.small.fault = refuse(400, "no such field")
    response = house.ask("small")
    assert (response.status_code, response.json()["error"]["message"]) == (400, "no such field")


def test_it_is_in_the_list_of_models(house: House) -> None:
    cards = house.rig.live.get("/v1/models").json()["data"]
    card = next(card for card in cards if card["id"] == "small")
    assert (card["engine"], card["parent"]) == ("vllm", SHAPES["vllm"].names[0])
    assert next(card for card in cards if card["id"] == "stub")["fingerprint"]
