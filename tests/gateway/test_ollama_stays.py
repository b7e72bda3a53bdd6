"""Ollama's API is for the models of this server: what it asks goes to no upstream, unless the operator says so."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.gateway.fake_upstream import answer
from tests.gateway.raw_http import send
from tests.gateway.rig import Rig, rig

JSON = {"content-type": "application/json"}
HI = [{"role": "user", "content": "PRIVATE-PROMPT"}]


@pytest.mark.parametrize("target", ["/api/chat", "/api/chat/", "//api//chat", "/api/chat?x=1", "/%61pi/chat"])
@pytest.mark.parametrize("model", ["stub", "stub:latest"])
def test_a_chat_with_a_model_of_this_server_is_answered_here(made: Rig, target: str, model: str) -> None:
    body = {"model": model, "messages": HI, "stream": False, "options": {"num_predict": 3}}
    answered = send(made.live.url, target, json.dumps(body).encode(), JSON)
    if target.startswith("//"):  # such a target is none
        assert answered.status == 400
    else:
        assert answered.status == 200 and json.loads(answered.body)["message"]["content"]
    assert not made.fake.received


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"])
@pytest.mark.parametrize("body", [{"model": "gpt-4o"}, {"model": "STUB"}, {}, []])
def test_what_this_server_has_not_is_refused_and_goes_nowhere(made: Rig, path: str, body: object) -> None:
    more = {"messages": HI, "prompt": "PRIVATE-PROMPT", "input": "PRIVATE-PROMPT"}
    asked = {**more, **body} if isinstance(body, dict) else body
    if path != "/api/chat" and isinstance(asked, dict):
        asked.pop("messages")
    refused = made.live.post(path, asked)
    assert refused.status_code in (400, 404) and isinstance(refused.json()["error"], str)
    assert not made.fake.received


@pytest.mark.parametrize(("method", "path"), [("GET", "/"), ("GET", "/api/tags"), ("GET", "/api/ps"),
                                              ("GET", "/api/version"), ("POST", "/api/pull"),
                                              ("DELETE", "/api/delete"), ("POST", "/api/blobs/sha256:1")])
def test_what_is_said_of_models_is_said_here(made: Rig, method: str, path: str) -> None:
    answered = send(made.live.url, path, b"{}", JSON, method)
    assert answered.status == (200 if method == "GET" else 403) and not made.fake.received


@pytest.mark.parametrize("path", ["/v1/api/chat", "/v1/chat", "/api/chat/x", "/v1/moderations"])
@pytest.mark.parametrize("model", ["stub:latest", " Stub:Latest "])
def test_the_tag_hides_no_model_of_this_server(made: Rig, path: str, model: str) -> None:
    answered = made.live.post(path, {"model": model, "messages": HI})
    assert answered.status_code == 404 and "'stub' is served here" in answered.json()["error"]["message"]
    assert not made.fake.received


def test_a_client_is_told_where_the_models_of_upstreams_are(made: Rig) -> None:
    assert "below /v1" in made.live.post("/api/chat", {"model": "big", "messages": HI}).json()["error"]


@pytest.fixture(scope="module")
def listed() -> Iterator[Rig]:
    with rig(key="operator", paths=("/api/*",)) as opened:
        yield opened


def test_the_operators_list_lets_other_models_go_on(listed: Rig) -> None:
    listed.fake.default = answer({"message": {"content": "far"}, "done": True})
    far = listed.live.post("/api/chat", {"model": "llama3", "messages": [], "stream": False})
    row = listed.captured.wait()[0]
    assert far.json()["message"]["content"] == "far" and (row.kind, row.request, row.response) == ("other", None, None)
    near = listed.live.post("/api/chat", {"model": "stub", "messages": HI, "stream": False,
                                          "options": {"num_predict": 3}})
    assert near.json()["model"] == "stub" and len(listed.fake.received) == 1
