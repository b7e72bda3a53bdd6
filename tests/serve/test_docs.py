"""The server's guide documents every field, every error code and every metric."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions
from openai.resources.embeddings import Embeddings
from openai.resources.responses import Responses

from tests.serve.live import live
from tests.serve.test_parse_others import CLIENT_ONLY

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs" / "guides" / "server.md").read_text(encoding="utf-8")
SOURCES = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src/brise/serve").glob("*.py"))


@pytest.mark.parametrize("create", [ChatCompletions.create, Completions.create, Embeddings.create,
                                    Responses.create])
def test_every_field_of_the_official_client_is_documented(create: object) -> None:
    assert callable(create)
    fields = inspect.signature(create).parameters.keys() - CLIENT_ONLY
    assert [name for name in sorted(fields) if f"`{name}`" not in DOCS] == []


def test_every_field_that_is_read_is_documented() -> None:
    fields = set(re.findall(r"\bfields\.\w+\(\"(\w+)\"", SOURCES))
    inner = {"role", "id", "status", "phase", "type", "refusal", "annotations", "index", "content",
             "tool_call_id", "tool_calls", "description", "schema", "max_tokens", "tool_choice"}
    assert [name for name in sorted(fields - inner) if f"`{name}`" not in DOCS] == []


def test_every_error_code_is_documented() -> None:
    codes = set(re.findall(r"code=\"(\w+)\"", SOURCES))| {"no_chat_template", "invalid_grammar"}
    assert [code for code in sorted(codes) if f"`{code}`" not in DOCS] == []


def test_every_metric_is_documented() -> None:
    with live() as server:
        server.chat()
        names = set(re.findall(r"# TYPE (\w+)", server.metrics()))
    short = {name.removeprefix("brise_engine").removesuffix("_created") for name in names}
    assert [name for name in sorted(short) if name not in DOCS] == []
