"""The real server of llama-cpp-python as a remote small model, where it is installed.

    python -m venv V && V/bin/pip install 'llama-cpp-python[server]'      (it is built from source: minutes)
    BRISE_TEST_LLAMA_PYTHON=V/bin/python pytest tests/gateway/remote/test_llama_cpp_python.py
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from brise.demo.child import reserved_port
from brise.dialects.table import CHAT
from brise.errors import RequestError
from brise.gateway.remote.models import RemoteModels
from brise.gateway.remote.server import RemoteModel
from tests.gateway.remote.small_server import MemoryLedger, drive
from tests.waiting import LIMIT_S, wait_until

PYTHON = os.environ.get("BRISE_TEST_LLAMA_PYTHON", "")
pytestmark = pytest.mark.skipif(not PYTHON, reason="BRISE_TEST_LLAMA_PYTHON names no interpreter with llama_cpp.server")
ASKED = {"model": "big", "messages": [{"role": "user", "content": "Name a wind."}], "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def url(smollm2_path: Path) -> Iterator[str]:
    with reserved_port() as port:
        yield from served(smollm2_path, port)


def served(smollm2_path: Path, port: int) -> Iterator[str]:
    command = [PYTHON, "-m", "llama_cpp.server", "--model", str(smollm2_path), "--port", str(port), "--logits_all",
               "true", "--n_ctx", "1024"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as process:
        def is_there() -> bool:
            assert process.poll() is None, "it ended"
            try:
                listed = httpx.get(f"http://127.0.0.1:{port}/v1/models", timeout=LIMIT_S, trust_env=False)
                return listed.status_code == 200
            except httpx.HTTPError:
                return False
        try:
            wait_until(is_there)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()


def test_it_answers_with_signals_keeps_its_fingerprint_and_names_what_it_lacks(url: str, smollm2_path: Path) -> None:
    ledger = MemoryLedger()

    def looked() -> RemoteModels:
        remotes = RemoteModels({"mine": RemoteModel(url)}, ledger)  # type: ignore[arg-type]
        drive(remotes, remotes.look())
        return remotes

    first, again = looked(), looked()
    assert first.fingerprint("mine") == again.fingerprint("mine") and len(ledger.lines) == 1
    card = first.card("mine")
    assert (card["engine"], card["parent"]) == ("llama-cpp-python", str(smollm2_path))
    assert card["missing"] == ["hidden state", "exact grammar", "text continuation"]
    answer = drive(again, again.answer("mine", CHAT, ASKED, logprobs=2))
    said = answer.body["choices"][0]["message"]["content"]
    assert b"".join(token.text for token in answer.tokens).decode().strip() == said.strip()
    assert all(token.logprob <= 0 and len(token.top) >= 2 for token in answer.tokens)
    with pytest.raises(RequestError, match="llama-cpp-python.* has no text continuation"):
        drive(again, again.stream("mine", CHAT, ASKED, prefix="The "))
