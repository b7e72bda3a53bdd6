"""Whatever a data file holds, it becomes examples, bad rows or an error for users."""

from __future__ import annotations

import copy
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brise.data.example import TrainingExample
from brise.data.parse_row import KEYS, RowRules, parse_row
from brise.data.read_rows import read_rows
from brise.errors import EvidenceError, RequestError
from tests.data.rows import CALL, TOOL
from tests.profiles import examples

SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=False) | st.sampled_from(
    ["", "user", "assistant", "tool", "system", "text", "function", "{}", "abcdefgh1", "add"]) | st.text(max_size=4)
NAMES = st.sampled_from([*KEYS, "role", "content", "tool_calls", "tool_call_id", "weight", "type", "text", "function"])
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
                    max_leaves=12)
ROW = {"messages": [{"role": "system", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                    {"role": "assistant", "content": None, "tool_calls": [CALL]},
                    {"role": "tool", "tool_call_id": "abcdefgh1", "content": "1"},
                    {"role": "assistant", "content": "ho", "weight": 1, "reasoning_content": "hm"}],
       "tools": [TOOL], "conversation": "c", "provider": "acme", "meta": {"a": 1}}


def read(value: object) -> TrainingExample | None:
    try:
        return parse_row(value, "a:1", Path(), RowRules())  # type: ignore[arg-type]
    except RequestError as error:
        assert str(error)
        return None


@settings(max_examples=examples(300))
@given(JSON)
def test_any_json_is_an_example_or_a_reason(value: object) -> None:
    read(value)


@settings(max_examples=examples(400))
@given(st.data(), JSON)
def test_a_good_row_with_one_thing_changed_is_an_example_or_a_reason(data: st.DataObject, value: object) -> None:
    row: dict[str, object] = copy.deepcopy(ROW)
    assert read(row) is not None
    place: object = row
    for _ in range(data.draw(st.integers(0, 4))):
        inner = place[_key(data, place)]  # type: ignore[index]
        if not isinstance(inner, dict | list) or not inner:
            break
        place = inner
    place[_key(data, place)] = value  # type: ignore[index]
    read(row)


@settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["a.csv", "a.jsonl"]), st.binary(max_size=60) | st.text(
    alphabet='a",\n\r\0é{}:[]', max_size=60).map(str.encode))
def test_any_bytes_are_rows_or_an_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes((b"prompt,completion\n" if name == "a.csv" else b"") + content)
    try:
        rows = read_rows([tmp_path / name], RowRules())
    except EvidenceError:
        return
    assert all(bad.place.startswith(str(tmp_path / name)) and bad.reason for bad in rows.bad)


def _key(data: st.DataObject, place: object) -> object:
    assert isinstance(place, dict | list)
    return data.draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
