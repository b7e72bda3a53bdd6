"""What a body says, by the quick reading of usual bodies and by the whole one."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from brise.gateway.client_body import read, with_model

NAMES = st.sampled_from(["model", "Model", "model ", "models", "my model", "x", "é", 'a"b', "\\", "İ"])
TEXTS = st.text(max_size=4) | st.sampled_from(['model"', '"model": "y"', "é"])
VALUES = st.recursive(st.none() | st.integers() | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
    NAMES, inner, max_size=3), max_leaves=6)


@given(st.lists(st.tuples(NAMES, VALUES), max_size=5), st.booleans(), st.sampled_from(["", " ", "\n\t"]))
def test_a_body_is_read_as_json_and_its_models_are_found(pairs: list[tuple[str, Any]], is_ascii: bool,
                                                         space: str) -> None:
    def text(value: Any) -> str:
        return json.dumps(value, ensure_ascii=is_ascii)

    members = f",{space}".join(f"{text(name)}{space}:{space}{text(value)}" for name, value in pairs)
    body = f"{space}{{{space}{members}{space}}}{space}".encode("utf-8", "surrogatepass")
    found, fields = read(body), dict(pairs)
    assert found.fields == json.loads(body) and found.model == (
        fields["model"] if isinstance(fields.get("model"), str) else "")
    like = [name for name, _ in pairs if name.strip().lower() == "model"]
    assert found.times == len(like)
    assert {value for name, value in pairs if name.strip().lower() in ("model", "models") and isinstance(value, str)
            } <= set(found.names)
    if found.times == 1 and "model" in fields:
        assert json.loads(with_model(body, found.span, "other")) == {**json.loads(body), "model": "other"}
    if not found.times:
        assert json.loads(with_model(body, None, "other")) == {"model": "other", **json.loads(body)}


@given(st.binary(max_size=60))
def test_bytes_that_are_no_json_never_fail(body: bytes) -> None:
    found = read(body)
    assert found.fields is None or isinstance(found.fields, dict)
