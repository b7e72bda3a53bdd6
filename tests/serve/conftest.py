"""The `client` fixture is OpenAI's client, connected to the `server` fixture of the test module."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.serve.live import Live


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    with server.client() as opened:
        yield opened
