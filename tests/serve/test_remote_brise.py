"""brise behind brise: the small model of a gateway runs in another server, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import brise
from brise.errors import UnsupportedError
from tests.engine.stub import stub_model
from tests.gateway.fake_answers import chat_events
from tests.gateway.fake_upstream import FakeUpstream, events, fake_upstream, refuse
from tests.serve.live import Live, live
from tests.waiting import LIMIT_S, wait_until

SAYS = '{"wind": "mistral"}'


@contextmanager
def before(small: object, folder: Path, **options: Any) -> Iterator[tuple[FakeUpstream, str]]:
    """A gateway before a fake large model, and its URL."""
    with fake_upstream() as fake, brise.gateway(
            upstream=fake.url, small=small, port=0, store=folder / "traffic.sqlite",  # type: ignore[arg-type]
            **options) as server:
        yield fake, server.url


@pytest.fixture(scope="module")
def remote() -> Iterator[Live]:
    with live(stub_model(SAYS)) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(remote: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeUpstream, str]]:
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRISE_HOME", str(folder))
        with before(f"{remote.url}/v1#stub", folder, fallback="stub") as made:
            wait_until(lambda: "fingerprint" in card(made[1]), 20)
            yield made


def card(url: str) -> Any:
    return httpx.get(f"{url}/models/stub", trust_env=False, timeout=LIMIT_S).json()


def ask(url: str, model: str, **fields: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], "temperature": 0, **fields}
    return httpx.post(f"{url}/chat/completions", json=body, trust_env=False, timeout=LIMIT_S)


def said(response: httpx.Response) -> str:
    chunks = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines()
              if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk.get("choices", ()))


def test_it_is_known_by_the_fingerprint_that_its_server_shows(gateway: tuple[FakeUpstream, str], remote: Live) -> None:
    found = card(gateway[1])
    assert (found["engine"], found["missing"]) == ("brise", ["hidden state"])
    own = remote.get("/v1/models/stub").json()["fingerprint"]
    assert len(own) == 32 and own == remote.get("/v1/models").json()["data"][0]["fingerprint"]


def test_it_answers_by_name_and_in_an_outage(gateway: tuple[FakeUpstream, str]) -> None:
    fake, url = gateway
    assert ask(url, "stub").json()["choices"][0]["message"]["content"] == SAYS and not fake.received
    fake.then(refuse(400))
    assert ask(url, "large").status_code == 400
    fake.then(refuse(503), refuse(503), refuse(503))
    response = ask(url, "large")
    assert (response.headers["x-brise-mode"], response.json()["model"]) == ("degraded", "stub")


def test_it_goes_on_in_the_middle_of_a_schema(gateway: tuple[FakeUpstream, str]) -> None:
    """The grammar begins behind what the client has read."""
    fake, url = gateway
    fake.then(events(chat_events('{"wind": ')[:3]))
    schema = {"type": "object", "properties": {"wind": {"type": "string"}}, "required": ["wind"]}
    response = ask(url, "large", stream=True, max_tokens=100, response_format={
        "type": "json_schema", "json_schema": {"name": "w", "schema": schema}})
    assert said(response) == SAYS and '"continued":true' in response.text


def test_two_models_of_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    with pytest.raises(UnsupportedError, match="fallback 'other': 'other' is not served here; there is 'a', 'small'"):
        brise.gateway(upstream="http://127.0.0.1:1/v1", fallback="other", store=tmp_path / "t.sqlite", small={
            "a": brise.RemoteModel("http://127.0.0.1:1/v1"), "small": "http://127.0.0.1:1/v1"})
