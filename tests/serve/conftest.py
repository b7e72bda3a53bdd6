"""The official client of the server that the test module's own `server` fixture runs."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.serve.live import Live


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    with server.client() as opened:
        yield opened
