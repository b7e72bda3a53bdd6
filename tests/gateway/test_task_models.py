"""Which small model stands in, as the options name them."""

from __future__ import annotations

import pytest

from brise.errors import UnsupportedError
from brise.gateway.small_models import TaskModels, parse_task_models

KNOWN = ["small", "tickets"]


def test_one_for_all_and_others_for_single_tasks() -> None:
    found = parse_task_models(["small", "route=tickets", "a=b=tickets"], KNOWN, "--fallback")
    assert [found.of(task) for task in ("route", "a=b", "chat")] == ["tickets", "tickets", "small"]
    assert parse_task_models([], KNOWN, "--fallback") == TaskModels() and TaskModels().of("chat") is None


@pytest.mark.parametrize("words, message", [
    (["big"], "'big' is not served here; there is 'small', 'tickets'"), (["route=big"], "'big' is not served here"),
    (["small", "tickets"], "two models for all"), (["a=small", "a=tickets"], "two models for the task 'a'")])
def test_what_is_not_there_or_said_twice_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        parse_task_models(words, KNOWN, "--fallback")
