"""The body decides whether there was an answer: errors, HTML, nothing; and why an answer stopped."""

from __future__ import annotations

from typing import Any

import pytest

from brise.dialects.bodies import Kind
from brise.dialects.failures import reported
from brise.dialects.table import named
from tests.gateway.fake_answers import chat_body


def chat(finish: object = "stop", **message: object) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}]}


def response(status: str = "completed", *output: object, **more: object) -> dict[str, Any]:
    return {"id": "r", "object": "response", "status": status, "error": None, "output": list(output), **more}


SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ""}]}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
VECTOR = {"object": "list", "data": [{"index": 0, "embedding": [0.5]}]}


@pytest.mark.parametrize(("kind", "body"), [
    ("chat", chat_body("hi")), ("chat", chat(content="")), ("chat", chat(content=None, refusal="no")),
    ("chat", chat("length", content="half")), ("chat", chat("content_filter", content=None)),
    ("chat", chat("tool_calls", content=None, tool_calls=[{}])), ("chat", chat("a new reason", content="x")),
    ("chat", {"choices": [{"message": {"content": "it names no reason"}}]}),
    ("chat", {**chat(content="x"), "error": None}), ("chat", {**chat(content="x"), "detail": "of a provider"}),
    ("completion", {"choices": [{"text": "", "finish_reason": "stop"}]}),
    ("responses", response("completed", SAID)), ("responses", response("incomplete")),
    ("responses", response("queued", background=True)),
    ("messages", {"type": "message", "content": [], "stop_reason": "end_turn"}),
    ("messages", {"type": "message", "content": [], "stop_reason": "refusal"}), ("embedding", VECTOR),
    ("other", {"error": {"message": "nothing is known of it"}}), ("other", None)])
def test_answers(kind: Kind, body: dict[str, Any]) -> None:
    assert named(kind).failure(body) is None


@pytest.mark.parametrize("kind", ["chat", "completion", "responses", "messages", "embedding"])
@pytest.mark.parametrize("body", [
    None, {}, "", "<html><body>502 Bad Gateway</body></html>", [], 3, {"choices": None}, {"choices": []},
    {"choices": [None]}, {"choices": [{"index": 0}]}, {"output": None, "content": None, "data": None},
    {"error": {"message": "Provider returned error", "code": 502}}, {"error": "overloaded"}, {"detail": "Not Found"},
    {"object": "error", "message": "stopped", "code": 500}, {"type": "error", "error": {"type": "api_error"}}])
def test_bodies_that_are_no_answers_in_any_dialect(kind: Kind, body: object) -> None:
    assert named(kind).failure(body)


@pytest.mark.parametrize(("kind", "body"), [
    ("chat", chat("error", content="half")), ("chat", chat(None, content="half")), ("chat", chat("", content="half")),
    ("chat", {"choices": [{"message": None, "finish_reason": "stop"}]}),
    ("chat", {**chat(content="all"), "error": {"message": "after it", "code": 500}}),
    ("chat", {"choices": [{**chat(content="x")["choices"][0], "error": {"code": 502}}]}),
    ("chat", {"choices": [*chat(content="a")["choices"], *chat("error", content="b")["choices"]]}),
    ("chat", chat("function_call_filter: MALFORMED_FUNCTION_CALL")),
    ("completion", {"choices": [{"text": None, "finish_reason": "stop"}]}),
    ("completion", {"choices": [{"text": "half", "finish_reason": None}]}),
    ("responses", response("completed")), ("responses", response("failed", SAID)),
    ("responses", response("in_progress", SAID)), ("responses", response("cancelled", SAID)),
    ("messages", {"type": "message", "content": [], "stop_reason": None}),
    ("messages", {"type": "message", "content": None, "stop_reason": "end_turn"}), ("embedding", {"data": []})])
def test_bodies_that_are_no_whole_answers(kind: Kind, body: dict[str, Any]) -> None:
    assert named(kind).failure(body)


@pytest.mark.parametrize(("kind", "body", "reason"), [
    ("chat", chat_body("hi"), "stop"), ("chat", chat("eos_token", content="x"), "stop"),
    ("chat", chat("MAX_TOKENS", content="x"), "length"), ("chat", chat("model_length", content="x"), "length"),
    ("chat", chat("content_filter: PROHIBITED_CONTENT"), "content_filter"), ("chat", chat("SAFETY"), "content_filter"),
    ("chat", chat("function_call"), "tool_calls"), ("chat", chat("error"), "error"), ("chat", chat("abort"), "error"),
    ("chat", chat("a new reason"), None), ("chat", {"choices": None}, None), ("chat", chat(["stop"]), None),
    ("completion", {"choices": [{"text": "x", "finish_reason": "length"}]}, "length"),
    ("responses", response("completed", SAID), "stop"), ("responses", response("completed", CALL), "tool_calls"),
    ("responses", response("incomplete", incomplete_details={"reason": "max_output_tokens"}), "length"),
    ("responses", response("incomplete", incomplete_details={"reason": "content_filter"}), "content_filter"),
    ("responses", response("failed"), "error"), ("messages", {"stop_reason": "tool_use"}, "tool_calls"),
    ("messages", {"stop_reason": "max_tokens"}, "length"), ("messages", {"stop_reason": "refusal"}, "content_filter"),
    ("embedding", VECTOR, None)])
def test_finish_reasons_have_common_names(kind: Kind, body: dict[str, Any], reason: str | None) -> None:
    assert named(kind).finish_reason(body) == reason


@pytest.mark.parametrize("error", [
    {"code": 400}, {"code": "413"}, {"code": 422.0, "type": "server_error"}, {"type": "BadRequestError"},
    {"code": "context_length_exceeded"}, {"type": "request_too_large"}, {"type": "invalid_request_error"},
    {"code": "model_not_found"}, {"code": "unsupported_value"}, {"status": "INVALID_ARGUMENT"},
    {"code": "content_policy_violation"}, {"message": "litellm.BadRequestError: no such thing"}])
def test_the_clients_own_errors(error: dict[str, Any]) -> None:
    found = reported({"error": {"message": "m", **error}})
    assert found is not None and found.is_own


@pytest.mark.parametrize("error", [
    {"code": 408}, {"code": 429}, {"code": "429", "type": "invalid_request_error"}, {"code": 500, "type": "BadRequest"},
    {"type": "overloaded_error"}, {"code": "rate_limit_exceeded", "type": "invalid_request_error"}, {"code": True},
    {"message": "the engine stopped"}, {"type": "InternalServerError"}, {"type": "invalid_response"}, {"type": []}])
def test_errors_of_the_server(error: dict[str, Any]) -> None:
    found = reported({"error": {"message": "m", **error}})
    assert found is not None and not found.is_own


def test_a_string_an_event_and_a_failed_response_report_errors() -> None:
    assert reported({"error": "Not found", "status": 404}) == reported({"error": {"message": "Not found", "code": 404}})
    named_only = reported({"message": "stopped"}, "error")
    assert named_only is not None and named_only.message == "stopped"
    failed = reported({"type": "response.failed", "response": {"error": {"code": "invalid_prompt", "message": "m"}}})
    assert failed is not None and failed.is_own
