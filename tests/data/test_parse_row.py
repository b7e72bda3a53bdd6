"""Rows of data files: what is read, and every reason why a row is refused."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from brise.data.parse_row import RowRules, parse_row
from brise.errors import RequestError
from brise.text.images import ImageSettings
from tests.data.rows import CALL, TOOL, chat, example

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}
CALLS = {"role": "assistant", "content": None, "tool_calls": [CALL]}
VISION = ImageSettings(cell_size=28, image_size=56, image_token=10, break_token=12, end_token=13)
# A PNG of one white pixel.
PIXEL = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8/5+hHgAHggJ/PchI7wAA"
                         "AABJRU5ErkJggg==")


def refused(row: object, **rules: object) -> str:
    with pytest.raises(RequestError) as caught:
        parse_row(row, "a:1", Path(), RowRules(**rules))  # type: ignore[arg-type]
    return str(caught.value)


def image(url: str, **more: object) -> dict[str, object]:
    parts = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": url, **more}}]
    return {"messages": [{"role": "user", "content": parts}, ANSWER]}


@pytest.mark.parametrize(("row", "reason"), [
    ([], "an array, it must be an object"), (None, "null"), ("hi", "a string"), (1, "a number"),
    ({}, "neither 'messages' nor 'prompt'"), ({"prompt": "hi"}, "'completion' is missing"),
    ({"completion": "hi"}, "'prompt' is missing"), ({"prompt": "hi", "completion": ""}, "[1].content' is empty"),
    ({"prompt": ["hi"], "completion": "ho"}, "'prompt' must be a string"),
    ({"messages": []}, "0 messages"), ({"messages": "hi"}, "must be an array"), ({"messages": ["hi"]}, "an object"),
    ({"messages": [{"role": "king", "content": "hi"}, ANSWER]}, "'messages[0].role' is 'king'"),
    ({"messages": [{"role": "function", "content": "hi"}, ANSWER]}, "use 'tool'"),
    ({"messages": [{"role": "user"}, ANSWER]}, "'messages[0].content' is missing"),
    ({"messages": [{"role": "user", "content": " \n"}, ANSWER]}, "'messages[0].content' is empty"),
    ({"messages": [{"role": "user", "content": []}, ANSWER]}, "has no parts"),
    ({"messages": [USER, {"role": "assistant", "content": ""}]}, "'messages[1].content' is empty"),
    ({"messages": [USER]}, "no assistant message"), ({"messages": [ANSWER]}, "no assistant message"),
    ({"messages": [USER, {**ANSWER, "weight": 0}]}, "no assistant message"),
    ({"messages": [USER, {**ANSWER, "weight": 0.5}]}, "'messages[1].weight' must be an integer"),
    ({"messages": [{**USER, "weight": 0}, ANSWER]}, "unknown field 'messages[0].weight'"),
    ({"messages": [USER, ANSWER, USER]}, "nothing answers it"),
    ({"messages": [USER, {**ANSWER, "prefix": True}]}, "learned whole"),
    ({"messages": [USER, {**CALLS, "tool_calls": [{**CALL, "function": {"name": "add", "arguments": "{x"}}]}]},
     "must be the text of a JSON object"),
    ({"messages": [USER, {**CALLS, "function_call": {}}]}, "use 'tool_calls'"),
    ({"messages": [USER, {"role": "tool", "tool_call_id": "other", "content": "1"}, ANSWER]}, "answers no tool call"),
    ({"messages": [USER, {"role": "tool", "content": "1"}, ANSWER]}, "tool_call_id' is missing"),
    ({"messages": [USER, CALLS], "tools": [{**TOOL, "function": {"name": "sub"}}]}, "'add', which is not among"),
    ({"messages": [USER, CALLS], "tools": [TOOL, TOOL]}, "two functions of one name"),
    ({"messages": [USER, ANSWER], "tools": [{"type": "web"}]}, "only tools of type 'function'"),
    ({"messages": [USER, ANSWER], "prompt": "hi"}, "the row has 'messages'"),
    ({**chat("hi", "ho"), "functions": []}, "unknown field 'functions'"),
    ({**chat("hi", "ho"), "image": 0}, "images belong into a message's content"),
    ({**chat("hi", "ho"), "meta": "x"}, "'meta' must be an object"),
    ({**chat("hi", "ho"), "conversation": {"id": 1}}, "must be a string or a number"),
    ({**chat("hi", "ho"), "provider": 1}, "'provider' must be a string"),
    (image("data:image/png;base64,AAAA"), "this model sees none")])
def test_a_bad_row_is_told_why(row: object, reason: str) -> None:
    assert reason in refused(row)


@pytest.mark.parametrize(("url", "reason"), [
    ("https://example.org/a.png", "nothing is fetched"), ("data:image/png;base64,AAAA", "is no image"),
    ("data:text/plain;base64,AAAA", "allowed is data:image"), ("missing.png", "cannot be read")])
def test_a_bad_image_is_told_why(url: str, reason: str) -> None:
    assert reason in refused(image(url), images=VISION)
    assert "at the size that is served" in refused(image(url, detail="low"), images=VISION)


def test_images_come_from_urls_and_from_files_beside_the_data(tmp_path: Path) -> None:
    (tmp_path / "white.png").write_bytes(PIXEL)
    url = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
    found = [parse_row(image(where), "a:1", tmp_path, RowRules(images=VISION))  # type: ignore[arg-type]
             for where in (url, "white.png", f"file://{tmp_path / 'white.png'}")]
    parts = [each.messages[0]["content"][1]["image"] for each in found]  # type: ignore[index]
    assert len({part.digest for part in parts}) == 1 and parts[0].tokens == (10, 13)
    assert all((part.pixels() == parts[0].pixels()).all() for part in parts)
    (tmp_path / "white.png").write_bytes(PIXEL + b"more")
    with pytest.raises(RequestError, match="changed while"):
        parts[1].pixels()


def test_a_row_is_read_with_all_that_belongs_to_it() -> None:
    row = {"messages": [{"role": "developer", "content": "be"}, USER, CALLS,
                        {"role": "tool", "tool_call_id": "abcdefgh1", "content": "1"}, ANSWER],
           "tools": [TOOL], "parallel_tool_calls": False, "id": 7, "meta": {"a": 1}, "conversation_id": 5,
           "provider": "OpenAI", "model": "some-model"}
    read = example(row, "a.jsonl:3")
    assert [message["role"] for message in read.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert (read.place, read.conversation, read.provider, read.meta) == ("a.jsonl:3", "5", "openai", {"a": 1})
    assert read.tools == (TOOL,)


def test_prompt_and_completion_are_a_question_and_its_answer() -> None:
    read = example({"prompt": "hi", "completion": "ho", "system": "be"})
    assert read.messages == ({"role": "system", "content": "be"}, USER, ANSWER)


def test_rows_as_text_have_no_messages() -> None:
    assert "without a chat format" in refused(chat("hi", "ho"), as_text=True)
    assert "without a chat format" in refused({"prompt": "hi", "completion": "ho", "system": "x"}, as_text=True)


def test_conversations_are_told_by_name_by_fields_or_by_their_first_question() -> None:
    rules = RowRules(conversation=("meta.env", "meta.seed"))
    assert example(chat("hi", "ho", meta={"env": "maze", "seed": 3}), rules=rules).conversation == "maze/3"
    assert "'meta.seed' is missing" in refused(chat("hi", "ho", meta={"env": "maze"}), conversation=rules.conversation)
    later = {"messages": [*chat("hi", "ho")["messages"], {"role": "user", "content": "and?"},
                          ANSWER]}  # type: ignore[misc]
    assert example(chat("hi", "no")).conversation == example(later).conversation
    assert example(chat("hi", "ho")).conversation != example(chat("hi", "ho", "be")).conversation


@pytest.mark.parametrize(("row", "provider"), [
    ({}, None), ({"provider": None}, None), ({"model": "smollm2"}, None), ({"model": "openai/gpt-4o-mini"}, "openai"),
    ({"model": "claude-sonnet-4", "provider": "bedrock"}, "bedrock")])
def test_who_wrote_the_answers_is_said_by_the_row(row: dict[str, object], provider: str | None) -> None:
    assert example(chat("hi", "ho", **row)).provider == provider
    rules = RowRules(provider="Acme")
    assert example(chat("hi", "ho", **row), rules=rules).provider == (provider or "acme")


def test_arguments_are_trained_in_the_order_of_their_schema() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {
        "type": "object", "properties": {"x": {}, "y": {}}}}}
    call = {"id": "abcdefgh1", "type": "function", "function": {"name": "add", "arguments": '{"z": 3, "y": 2, "x": 1}'}}
    (asked, answered) = example({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}],
                                 "tools": [tool]}).messages
    assert asked == USER
    assert list(answered["tool_calls"][0]["function"]["arguments"]) == ["x", "y", "z"]  # type: ignore[index]
