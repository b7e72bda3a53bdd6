"""A dialect is looked up in one table, by path or by name; nobody else tells one from another by its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from brise.dialects import table
from brise.dialects.bodies import Kind
from brise.dialects.dialect import Progress

SOURCE = Path(table.__file__).parents[1]
EMPTY: dict[str, object] = {}
# The routes of this server parse each dialect into a request of the engine in their own way, and the servers of other
# engines take chats and completions in theirs.
OWN_ROUTES = {"serve/engine_models.py", "gateway/remote/bodies.py", "gateway/remote/models.py"}


@pytest.mark.parametrize("name", get_args(Kind))
def test_every_kind_has_its_dialect(name: Kind) -> None:
    dialect = table.named(name)
    assert dialect.name == name and (name == "other") == (dialect is table.UNKNOWN)
    assert table.of_request("POST", dialect.path) is dialect and table.of_request("GET", dialect.path) is table.UNKNOWN


@pytest.mark.parametrize("dialect", [*table.ALL, table.UNKNOWN], ids=lambda dialect: dialect.name)
def test_bodies_that_say_nothing_are_read_all_the_same(dialect: table.Dialect) -> None:
    progress = Progress()
    dialect.advance(progress, "", EMPTY)
    assert progress == Progress() and dialect.assemble([])[0] is None
    assert dialect.conversation(EMPTY) == [] and dialect.usage(EMPTY) is None and dialect.context_digest(EMPTY) is None
    assert dialect.continued_id(EMPTY) is None and dialect.answer_id(EMPTY) is None
    assert all(not item.is_answer or item.content for answer in dialect.answers(EMPTY) for item in answer)
    assert dialect.continues <= dialect.has_small_models <= dialect.is_served <= dialect.is_read
    assert "why" in str(dialect.error_body("why", "code")) and "why" in str(dialect.error_event("why", "code"))


def kinds_named(path: Path) -> Iterator[str]:
    """What a file compares with the name of a dialect. Only a file that has such a name is parsed: all take seconds."""
    source = path.read_text()
    if re.search(r"dialect\s*\.\s*name|(exchange|request)\s*\.\s*kind", source) is None:
        return
    for node in ast.walk(ast.parse(source)):
        operands = [node.left, *node.comparators] if isinstance(node, ast.Compare) else (
            [node.subject] if isinstance(node, ast.Match) else [])
        for operand in operands:
            text = ast.unparse(operand)
            if text.endswith((".dialect.name", "exchange.kind", "request.kind")) or text == "dialect.name":
                yield text


def test_nobody_else_tells_dialects_apart_by_name() -> None:
    found = {str(path.relative_to(SOURCE)) for path in SOURCE.rglob("*.py") if any(kinds_named(path))}
    assert found <= OWN_ROUTES
