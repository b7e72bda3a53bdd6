"""Bodies as client libraries, editors and other servers' clients send them: refused only where the answer would differ.

`client_bodies.jsonl` has those that bench/clients recorded, and those that the clients' documentation shows. `refused`
is the field that the error names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.engine.stub import stub_model
from tests.serve.live import Live, live

ROWS = [json.loads(line) for line in Path(__file__).with_name("client_bodies.jsonl").read_text("utf-8").splitlines()]
MAX_REFUSED = 0.15
SHORT = {"/v1/chat/completions": {"max_completion_tokens": 8}, "/v1/responses": {"max_output_tokens": 16}}  # added


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Live, Live]]:
    with live(stub_model("Hello there!")) as text, live(stub_model(pooling="mean")) as vectors:
        yield text, vectors


@pytest.mark.parametrize("path", sorted({row["path"] for row in ROWS}))
def test_bodies_are_answered_or_refused_by_name(servers: tuple[Live, Live], path: str) -> None:
    wrong, url = [], servers[path == "/v1/embeddings"].url
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for row in (row for row in ROWS if row["path"] == path):
            has_limit = any("tokens" in name for name in row["body"])
            answer = client.post(path, json={**row["body"], **({} if has_limit else SHORT.get(path, {}))})
            is_refused = answer.status_code == 400 and row.get("refused", "-") in answer.json()["error"]["message"]
            is_answered = answer.status_code == 200 and "event: error" not in answer.text
            if not (is_refused if "refused" in row else is_answered):
                wrong.append((row["client"], answer.status_code, answer.text[:200]))
    assert wrong == []


def test_few_are_refused() -> None:
    assert len(ROWS) >= 98 and sum("refused" in row for row in ROWS) < MAX_REFUSED * len(ROWS)
