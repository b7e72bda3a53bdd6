"""Several upstreams: who gets which request, under which name, and with whose key."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterator

import pytest

from brise.errors import UnsupportedError
from brise.gateway.upstreams import Routes, UnknownUpstreamError
from tests.gateway.fake_upstream import Peer, answer, chat, refuse
from tests.gateway.rig import SeveralRig, several

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def two() -> Iterator[SeveralRig]:
    with several(["a", "b"], models=[("shared-*", "b"), ("shared-1", "a")], keys={"a": "key-a", "b": "key-b"}) as made:
        yield made


@pytest.fixture
def made(two: SeveralRig) -> SeveralRig:
    two.live.wait_idle()
    two.captured.clear()
    for fake in two.fakes.values():
        fake.received.clear()
    return two


def ask(made: SeveralRig, model: str, path: str = CHAT, **more: object) -> int:
    return made.live.post(path, {"model": model, "messages": HI, **more}).status_code


@pytest.mark.parametrize(("model", "upstream", "there"), [
    ("a/big", "a", "big"), ("b/big", "b", "big"), ("b/org/big", "b", "org/big"), ("big", "a", "big"),
    ("shared-1", "a", "shared-1"), ("shared-2", "b", "shared-2"), ("b/shared-1", "b", "shared-1")])
def test_a_model_has_one_upstream(made: SeveralRig, model: str, upstream: str, there: str) -> None:
    assert ask(made, model) == 200
    received, = made.fakes[upstream].received
    assert sum(made.num_received().values()) == 1
    assert received.json["model"] == there and received.header("authorization") == f"Bearer key-{upstream}"
    row, = made.captured.wait()
    assert (row.model, row.upstream, row.task) == (model, upstream, model)
    assert row.request is not None and row.request["model"] == there


@pytest.mark.parametrize("model", ["c/big", "/big", "c/"])
def test_an_upstream_that_does_not_exist_is_named_with_those_that_do(made: SeveralRig, model: str) -> None:
    answered = made.live.post(CHAT, {"model": model, "messages": HI})
    error = answered.json()["error"]
    assert answered.status_code == 404 and (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'a', 'b'" in error["message"]
    assert made.num_received() == {"a": 0, "b": 0}


@pytest.mark.parametrize("body", [
    '{"messages": [{"role": "user", "content": "é"}], "model" : "b/big", "seed": 1e2}',
    '\ufeff{"model":"b\\/big","messages":[{"role":"user","content":"\\"model\\": \\"a/x\\""}],"x":{"model":"b/deep"}}'])
def test_only_the_name_is_changed_in_a_body(made: SeveralRig, body: str) -> None:
    assert made.live.post(CHAT, content=body.encode(), headers={"content-type": "application/json"}).status_code == 200
    received, = made.fakes["b"].received
    asked = json.loads(body.removeprefix("\ufeff"))
    assert received.json == {**asked, "model": "big"}
    assert "1e2" in received.body.decode() or "seed" not in body, "numbers keep their spelling"


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/embeddings", "/v1/messages", "/v1/responses"])
def test_other_paths_go_the_same_way(path: str) -> None:
    with several(["a", "b"]) as made:
        assert ask(made, "b/big", path, input="x", max_tokens=3) == 200
        received, = made.fakes["b"].received
        assert received.json["model"] == "big" and received.target == path


def test_the_log_and_the_answer_name_the_upstream() -> None:
    with several(["a", "b"]) as made:
        assert made.live.post(CHAT, {"model": "b/big", "messages": HI}).headers["x-brise-upstream"] == "b"
        log = made.live.log()
        assert " 200 " in log and " mode=hosted upstream=b " in log


def test_a_header_names_the_upstream_of_a_request_without_a_model() -> None:
    with several(["a", "b"]) as made:
        made.fakes["b"].then(answer({"data": []}), answer({}))
        assert made.live.get("/v1/files", headers={"x-brise-upstream": "b"}).status_code == 200
        assert made.live.post(CHAT, {"model": "b/big", "messages": HI}, headers={"x-brise-upstream": "b"}).is_success
        assert made.fakes["b"].received[1].json["model"] == "big"
        assert made.live.post(CHAT, {"model": "big", "messages": HI}, headers={"x-brise-upstream": "b"}).is_success
        assert made.fakes["b"].received[2].json["model"] == "big"
        assert [row.model for row in made.captured.wait(2)] == ["b/big"] * 2
        wrong = made.live.get("/v1/files", headers={"x-brise-upstream": "c"})
        assert wrong.status_code == 404 and "there is 'a', 'b'" in wrong.json()["error"]["message"]
        assert made.num_received() == {"a": 0, "b": 3}


def test_a_form_names_its_upstream_too() -> None:
    with several(["a", "b"]) as made:
        made.fakes["b"].then(answer({"text": "hi"}))
        sent = made.live.post("/v1/audio/transcriptions", files={"file": ("a.wav", b"RIFF")},
                              data={"model": "b/whisper"})
        assert sent.status_code == 200
        assert b"\r\n\r\nwhisper\r\n" in made.fakes["b"].received[0].body


def test_a_server_that_is_down_does_not_keep_the_other_from_answering() -> None:
    with several(["a", "b"]) as made:
        made.fakes["a"].stop()
        assert [ask(made, "a/big") for _ in range(8)] == [502] * 5 + [503] * 3
        assert ask(made, "b/big") == 200
        text = made.live.metrics()
        assert 'brise_gateway_breaker{state="open",upstream="a"} 1.0' in text
        assert 'brise_gateway_upstream_requests_total{mode="failed",upstream="a"} 8.0' in text
        assert 'brise_gateway_breaker{state="closed",upstream="b"} 1.0' in text
        assert 'brise_gateway_upstream_failures_total{kind="refused",upstream="a"} 5.0' in text


def poisoned(peer: Peer) -> Awaitable[None]:
    """A server that dies of some prompts, and of one model."""
    return (refuse(500) if b"POISON" in peer.received.body or b"broken" in peer.received.body else chat("hi"))(peer)


def test_two_clients_poisoned_requests_do_not_stop_the_others() -> None:
    def send(client: str, text: str) -> int:
        return made.live.post(CHAT, {"model": "b/big", "messages": [{"role": "user", "content": text}]},
                              headers={"authorization": f"Bearer {client}"}).status_code

    with several(["a", "b"]) as made:
        made.fakes["b"].default = poisoned
        for number in range(8):
            assert send("one", f"POISON {number}") in (500, 503) and send("two", "POISON") in (500, 503)
        assert [send("three", "hi"), send("one", "hi"), send("two", "hi")] == [200, 200, 200]


def test_one_models_outage_stops_neither_other_models_nor_upstreams() -> None:
    with several(["a", "b"]) as made:
        made.fakes["b"].default = poisoned
        statuses = [ask(made, "b/broken", user=f"user {number}") for number in range(9)]
        assert statuses == [500] * 5 + [503] * 4
        assert [ask(made, model) for model in ("b/big", "a/broken")] == [200, 200]
        text = made.live.metrics()
        assert 'brise_gateway_breaker_models{model="broken",upstream="b"} 1.0' in text
        assert 'brise_gateway_breaker_circuits{scope="model",upstream="b"} 1.0' in text


def test_all_models_are_listed_by_the_names_that_lead_to_them() -> None:
    with several(["a", "b", "c"], models=[("only-b", "b")], anthropic="c") as made:
        for name, fake in made.fakes.items():
            fake.default = answer({"object": "list", "data": [{"id": "big"}, {"id": f"only-{name}"}]})
        listed = made.live.get("/v1/models").json()["data"]
        assert [card["id"] for card in listed] == ["stub", "big", "only-a", "b/big", "only-b"]
        made.fakes["a"].default = refuse(500)
        assert [card["id"] for card in made.live.get("/v1/models").json()["data"]] == ["stub", "b/big", "only-b"]
        assert made.live.get("/v1/models/b%2Fbig").status_code == 200
        assert made.fakes["b"].received[-1].target == "/v1/models/big"


def test_routes_name_upstreams_that_exist() -> None:
    with pytest.raises(UnsupportedError, match="no upstream 'c'; there is 'a', 'b'"):
        Routes(("a", "b"), (("x", "c"),), "a")
    assert Routes(("only",), (), "only").find("org/model") == ("only", "org/model")
    with pytest.raises(UnknownUpstreamError):
        Routes(("a", "b"), (), "a").find("org/model")
