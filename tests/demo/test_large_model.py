"""The simulated large model as a server: real sockets, streams, and an outage on cue."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from brise.demo.large_model import LargeModelProcess
from brise.demo.stand_in import NAME, Nature, truth_of
from brise.demo.workload import Workload
from tests.waiting import LIMIT_S

TALKS = Workload(1).talks(5, held_out=0.0)


@pytest.fixture
def large() -> Iterator[LargeModelProcess]:
    server = LargeModelProcess(truth_of(TALKS), Nature(accuracy=1.0, median_s=0.001))
    server.start()
    yield server
    server.kill()


def test_it_answers_streams_and_can_be_killed_and_started_again(large: LargeModelProcess) -> None:
    body = {"model": NAME, "messages": TALKS[0].messages(0, []), "stream_options": {"include_usage": True}}
    right = TALKS[0].turns[0].call.text()
    with httpx.Client(base_url=large.url, timeout=LIMIT_S, trust_env=False) as client:
        answer = client.post("/chat/completions", json=body).json()
        assert answer["choices"][0]["message"]["content"] == right and "simulated" in answer["model"]
        lines = client.post("/chat/completions", json={**body, "stream": True}).text.split("\n\n")
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        pieces = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
        assert "".join(pieces) == right and chunks[-1]["usage"]["completion_tokens"] > 5
    large.kill()
    with httpx.Client(base_url=large.url, timeout=LIMIT_S, trust_env=False) as client:
        with pytest.raises(httpx.ConnectError):
            client.get("/models")
        large.start()
        assert client.get("/models").json()["data"][0]["id"] == NAME
