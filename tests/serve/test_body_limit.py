"""A server takes bodies as large as its longest context needs, with or without a memory limit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brise.engine.engine import Engine
from brise.engine.engine_thread import EngineThread
from brise.serve.serving import TEXT_BODY_BYTES, ServeSettings, bounded, follow_context
from tests.engine.stub import stub_model
from tests.serve.live import ENGINE, live


def test_the_limit_follows_the_context() -> None:
    worker = EngineThread(Engine(stub_model("hi"), replace(ENGINE)))
    settings = follow_context(ServeSettings(), [worker])
    assert settings.max_body_bytes == 65_536 + 16 * worker.max_context
    assert settings.max_body_bytes == bounded(ServeSettings(), worker).max_body_bytes
    assert follow_context(ServeSettings(), []).max_body_bytes == TEXT_BODY_BYTES
    assert follow_context(ServeSettings(max_body_bytes=1000), [worker]).max_body_bytes == 1000


@pytest.mark.parametrize("body", [
    b'{"model":"stub","metadata":[' + b"[]," * 2_700_000 + b"[]]}",
    b'{"model":"stub","messages":[{"role":"user","content":"' + b"a" * 8_000_000 + b'"}]}'])
def test_a_body_beyond_the_context_is_refused_before_it_is_read(body: bytes) -> None:
    with live(settings=ServeSettings(max_body_bytes=66_560)) as server:
        answer = server.post("/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 413 and "66560 bytes" in answer.text
