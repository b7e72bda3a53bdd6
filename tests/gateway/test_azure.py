"""Azure OpenAI: its clients in front of any upstream, and any client in front of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from brise.errors import UnsupportedError
from brise.gateway.fallback import SmallModelFallback
from brise.gateway.gateway import Components
from brise.gateway.small_models import TaskModels
from brise.gateway.upstream import UpstreamSettings
from tests.gateway.fake_answers import chat_body
from tests.gateway.fake_upstream import answer, refuse
from tests.gateway.rig import Rig, SeveralRig, rig, several
from tests.waiting import LIMIT_S

HI = [{"role": "user", "content": "hi"}]
VERSION = "?api-version=2024-10-21"
JWT = "eyJ0eXAi.eyJhdWQi.c2ln"


@pytest.fixture(scope="module")
def azure() -> Iterator[Rig]:
    with rig(path=VERSION) as made:
        yield made


@pytest.fixture
def made_azure(azure: Rig) -> Rig:
    azure.live.wait_idle()
    azure.fake.received.clear()
    azure.captured.clear()
    return azure


@pytest.mark.parametrize(("path", "body", "there"), [
    ("/v1/chat/completions", {"messages": HI}, f"/openai/deployments/dep/chat/completions{VERSION}"),
    ("/chat/completions/", {"messages": HI}, f"/openai/deployments/dep/chat/completions{VERSION}"),
    ("/v1/completions", {"prompt": "hi"}, f"/openai/deployments/dep/completions{VERSION}"),
    ("/v1/embeddings?x=1", {"input": "hi"}, "/openai/deployments/dep/embeddings?x=1&api-version=2024-10-21"),
    ("/v1/responses", {"input": "hi"}, f"/openai/responses{VERSION}"),
    ("/openai/deployments/dep/chat/completions?api-version=2025-01-01", {"messages": HI},
     "/openai/deployments/dep/chat/completions?api-version=2025-01-01"),
    ("/openai/deployments/d%2Fp/images/generations", {"prompt": "hi"},
     f"/openai/deployments/d/images/generations{VERSION}".replace("/d/images", "/d/p/images")),
    ("/v1/models", None, f"/openai/models{VERSION}")])
def test_every_client_reaches_a_deployment(made_azure: Rig, path: str, body: dict[str, object] | None,
                                           there: str) -> None:
    headers = {"authorization": "Bearer their-key"}
    if body is None:
        made_azure.fake.then(answer({"data": []}))
        made_azure.live.get(path, headers=headers)
    else:
        assert made_azure.live.post(path, {"model": "dep", **body}, headers=headers).status_code == 200
    received, = made_azure.fake.received
    assert received.target == there
    assert (received.header("api-key"), received.header("authorization")) == ("their-key", None)


def test_a_token_of_entra_stays_a_bearers(made_azure: Rig) -> None:
    made_azure.live.post("/v1/chat/completions", {"model": "dep", "messages": HI}, headers={
        "authorization": f"Bearer {JWT}"})
    received, = made_azure.fake.received
    assert (received.header("api-key"), received.header("authorization")) == (None, f"Bearer {JWT}")


def test_the_gateways_own_key_goes_in_azures_header() -> None:
    with rig(path=VERSION, key="own-key") as made:
        made.live.post("/v1/chat/completions", {"model": "dep", "messages": HI}, headers={
            "authorization": "Bearer theirs", "api-key": "theirs"})
        received, = made.fake.received
        assert (received.header("api-key"), received.header("authorization")) == ("own-key", None)


def azure_client(made: Rig | SeveralRig) -> openai.AzureOpenAI:
    return openai.AzureOpenAI(azure_endpoint=made.live.url, api_key="their-key", api_version="2024-10-21",
                              max_retries=0, timeout=LIMIT_S)


@pytest.mark.parametrize(("path", "there"), [
    ("/v1", "/v1/chat/completions"), ("/api/v1", "/api/v1/chat/completions"),
    ("", f"/openai/deployments/dep/chat/completions{VERSION}"),
    ("/openai", f"/openai/deployments/dep/chat/completions{VERSION}")])
def test_azures_own_client_reaches_every_kind_of_upstream(path: str, there: str) -> None:
    with rig(path=path) as made, azure_client(made) as client:
        answered = client.chat.completions.create(model="dep", messages=HI)  # type: ignore[arg-type]
        assert answered.choices[0].message.content == "hello"
        received, = made.fake.received
        assert received.target == there and received.json["model"] == "dep"
        key = ("authorization", "Bearer their-key") if path.endswith("/v1") else ("api-key", "their-key")
        assert received.header(key[0]) == key[1]
        row, = made.captured.wait()
        assert (row.kind, row.path, row.model) == ("chat", "/v1/chat/completions", "dep")


def test_azures_client_names_one_of_several_upstreams() -> None:
    with several(["a", "b"]) as made, azure_client(made) as client:
        client.chat.completions.create(model="b/dep", messages=HI)  # type: ignore[arg-type]
        received, = made.fakes["b"].received
        assert received.json["model"] == "dep" and received.target == "/v1/chat/completions"


def test_azures_client_of_a_model_that_is_served_here(made_azure: Rig) -> None:
    with azure_client(made_azure) as client:
        assert client.chat.completions.create(model="stub", messages=HI).model == "stub"  # type: ignore[arg-type]
    assert not made_azure.fake.received


def test_a_deployments_outage_is_one(made_azure: Rig) -> None:
    made_azure.fake.then(refuse(503))
    answered = made_azure.live.post("/openai/deployments/dep/chat/completions", {"messages": HI})
    assert answered.status_code == 503 and answered.headers["x-brise-mode"] == "failed"
    assert made_azure.live.post("/v1/chat/completions", {"model": "dep", "messages": HI}).json() == chat_body("hello")


@pytest.mark.parametrize("query", ["?api-version=", "?api-version=1&key=2", "?version=1", "?api-version=a b", "?"])
def test_no_other_query_is_taken(query: str) -> None:
    if query == "?":
        assert UpstreamSettings(f"https://x.openai.azure.com{query}").api_version is None
        return
    with pytest.raises(UnsupportedError, match="the upstream is"):
        UpstreamSettings(f"https://x.openai.azure.com{query}")


@pytest.mark.parametrize("path", ["/openai/deployments/dep/chat/completions?api-version=1", "/chat/completions",
                                  "/v1//chat/completions/", "/openai/v1/chat/completions", "/api/v1/chat/completions"])
def test_every_spelling_has_a_fallback(path: str) -> None:
    def around(local: Any, large: Any, captured: Any) -> Components:
        return Components(fallback=SmallModelFallback(local, TaskModels("stub")))

    with rig(around=around) as made:
        made.fake.stop()
        answered = made.live.post(path, {"model": "dep", "messages": HI, "temperature": 0})
        assert answered.status_code == 200 and answered.headers["x-brise-mode"] == "degraded"
        assert answered.json()["brise"]["reason"] == "refused"
        row, = made.captured.wait()
        assert (row.kind, row.model, row.task, row.mode) == ("chat", "dep", "dep", "degraded")


def test_another_prefix_is_a_chat_too_and_keeps_its_path(made: Rig) -> None:
    made.live.post("/api/v1/chat/completions", {"model": "big", "messages": HI})
    assert made.fake.received[0].target == "/api/v1/chat/completions"
    assert [(row.kind, row.path) for row in made.captured.wait()] == [("chat", "/api/v1/chat/completions")]
