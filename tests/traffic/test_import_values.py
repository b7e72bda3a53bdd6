"""Times and counts of imported rows: what is none is a bad row, and never a traceback."""

from __future__ import annotations

import pytest

from brise.traffic.imports.forms import kind_of
from brise.traffic.imports.otel import _of_events
from brise.traffic.imports.row import seconds, whole


@pytest.mark.parametrize("value", ["²", "9" * 400, 10**400, 1e30, float("inf"), float("nan"), -1.0, -1, "", None, True])
def test_what_is_no_time(value: object) -> None:
    assert seconds(value) is None


@pytest.mark.parametrize("value", ["²", float("inf"), float("nan"), -3, "x", None, True])
def test_what_is_no_count(value: object) -> None:
    assert whole(value) == 0


def test_times_in_all_their_units() -> None:
    assert {seconds(at) for at in (1767225600, 1767225600.0, 1767225600000, "1767225600000000000",
                                   "2026-01-01T00:00:00Z", "2026-01-01")} == {1767225600.0}


@pytest.mark.parametrize("name", [["gen_ai.choice"], {"a": 1}, 7])
def test_an_event_whose_name_is_no_text_is_no_message(name: object) -> None:
    said = [{"name": "gen_ai.user.message", "content": "hi"}, {"name": name, "content": "not read"}]
    asked, answers = _of_events(said)
    assert [message["content"] for message in asked] == ["hi"] and not answers


@pytest.mark.parametrize("kind", [["message"], {"a": 1}, 7])
def test_an_item_whose_type_is_no_text_makes_no_answer_of_the_responses_api(kind: object) -> None:
    assert kind_of({}, {"output": [{"type": kind}]}) == "chat"
