"""Endpoints: what is sent, when it is sent again, and a real server of ours."""

from __future__ import annotations

import json
import socket
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest

from brise.errors import NetworkError, UnsupportedError
from brise.evals.answering import AnswerSettings, answer_all
from brise.evals.endpoint import Endpoint, EndpointAnswerer
from brise.evals.example import AnsweredCall, EvalAnswer, EvalExample
from tests.engine.stub import stub_model
from tests.evals.rows import example, examples
from tests.evals.test_answering import ignore
from tests.serve.live import live
from tests.waiting import LIMIT_S

URL = "http://teacher.test/v1"


def said(text: str | None, **message: object) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": text, **message}, "finish_reason": "stop"}],
                                     "usage": {"prompt_tokens": 3, "completion_tokens": 2}})


class Server:
    """Gives these responses one after the other, and remembers what it was asked and how long was waited."""

    def __init__(self, *responses: httpx.Response | Exception) -> None:
        self.responses, self.requests = list(responses), list[httpx.Request]()
        self.waits: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = self.responses.pop(0)
        if isinstance(response, Exception):
            raise response
        return response

    def answerer(self, asked: AnswerSettings | None = None) -> EndpointAnswerer:
        return EndpointAnswerer(Endpoint(URL, "teacher", "secret"), asked or AnswerSettings(64), wait=self.wait,
                                transport=httpx.MockTransport(self))

    async def wait(self, seconds: float) -> None:
        self.waits.append(seconds)

    def answer(self, row: EvalExample | None = None, asked: AnswerSettings | None = None) -> EvalAnswer:
        answerer = self.answerer(asked)
        answerer.prepare([])
        try:
            return answerer.answer(row or example("x", "hi"))
        finally:
            answerer.close()


@pytest.mark.parametrize("usage", [None, [], {"prompt_tokens": None, "completion_tokens": "2"},
                                   {"prompt_tokens": -3, "completion_tokens": 1.5}])
def test_counts_that_cannot_be_do_no_harm(usage: object) -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}], "usage": usage}
    assert Server(httpx.Response(200, json=body)).answer() == EvalAnswer("yes")


def test_the_body_decides_whether_there_was_an_answer() -> None:
    failed = httpx.Response(200, json={"error": {"message": "Provider returned error", "code": 502}})
    server = Server(failed, failed, said("yes"))
    assert server.answer().text == "yes" and len(server.waits) == 2
    ended = {"choices": [{"message": {"content": "half an"}, "finish_reason": "error"}]}
    answer = Server(httpx.Response(200, json=ended)).answer()
    assert (answer.finish, answer.error) == ("error", "it ended with the finish reason 'error'")


def test_an_answer_in_parts_is_its_text() -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "ye"},
             {"type": "text", "text": "s"}]
    body = {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}
    assert Server(httpx.Response(200, json=body)).answer() == EvalAnswer("yes")


def test_what_is_sent() -> None:
    server = Server(said("yes"))
    assert server.answer() == EvalAnswer("yes", prompt_tokens=3, completion_tokens=2)
    request, = server.requests
    assert str(request.url) == f"{URL}/chat/completions" and request.headers["authorization"] == "Bearer secret"
    assert json.loads(request.content) == {"model": "teacher", "messages": [{"role": "user", "content": "hi"}],
                                           "temperature": 0, "max_tokens": 64}


def test_tools_calls_and_schemas_are_sent_in_openais_form() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": "ü"}}}
    row = replace(example("x"), tools=({"type": "function", "function": {"name": "f"}},), prompt=(
        {"role": "user", "content": "hi"}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "1"}))
    server = Server(said(None, tool_calls=[{"function": {"name": "f", "arguments": "{}"}}]))
    assert server.answer(row, AnswerSettings(9, '{"type": "object"}')).calls == (AnsweredCall("f", "{}"),)
    body = json.loads(server.requests[0].content)
    assert body["messages"][1]["tool_calls"][0]["function"]["arguments"] == '{"x": "ü"}'
    assert body["tools"] == list(row.tools)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize("failure", [
    httpx.Response(429), httpx.Response(503, text="busy"), httpx.ConnectError("refused"), httpx.ReadTimeout("slow")])
def test_a_busy_server_is_asked_again_after_ever_longer_waits(failure: httpx.Response | Exception) -> None:
    server = Server(failure, failure, failure, said("yes"))
    assert server.answer().text == "yes" and server.waits == [1, 2, 4]


def test_the_server_says_how_long_to_wait() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    busy = [httpx.Response(429, headers={"retry-after": value}) for value in ("7", date, "soon")]
    server = Server(*busy, said("yes"))
    assert server.answer().text == "yes"
    assert server.waits[0] == 7 and 35 < server.waits[1] <= 40 and server.waits[2] == 4


@pytest.mark.parametrize("responses", [
    [httpx.Response(500)] * 6, [httpx.Response(429, headers={"retry-after": "999"})]])
def test_a_server_that_stays_busy_ends_the_run(responses: list[httpx.Response]) -> None:
    server = Server(*responses)
    with pytest.raises(NetworkError, match=f"did not answer in {len(responses)} attempts: status"):
        server.answer()
    assert not server.responses


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_row_that_the_server_refuses_is_an_error_of_that_row(status: int) -> None:
    answer = Server(httpx.Response(status, json={"error": {"message": "too long"}})).answer()
    assert answer.error == f"status {status}: too long" and answer.text == ""


@pytest.mark.parametrize("response", [
    httpx.Response(401, json={"error": {"message": "bad key"}}), httpx.Response(404), httpx.Response(302),
    httpx.Response(200, text="<html>"), httpx.Response(200, json={"choices": []}), httpx.Response(200, json=[])])
def test_what_no_row_would_survive_ends_the_run(response: httpx.Response) -> None:
    with pytest.raises(NetworkError, match=URL) as caught:
        Server(response).answer()
    assert "secret" not in str(caught.value)


def test_closing_ends_what_waits_for_a_server_that_never_answers() -> None:
    """The request is on its way when the run is closed; it has a timeout of two minutes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        answerer = EndpointAnswerer(Endpoint(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", "x"), AnswerSettings())
        answerer.prepare([])
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(answerer.answer, example("x"))
            connection, _ = listener.accept()
            with connection:
                answerer.close()
                with pytest.raises(CancelledError):
                    answer.result(LIMIT_S)
    with pytest.raises(NetworkError, match="was stopped"):
        answerer.answer(example("x"))


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(Endpoint(URL, "teacher", "secret"))
    answerer = Server().answerer()
    assert "secret" not in str(answerer.identity())


def test_an_error_that_quotes_the_key_is_kept_without_it() -> None:
    refused = httpx.Response(400, json={"error": {"message": "secret is no key for this model"}})
    assert Server(refused).answer().error == "status 400: [key] is no key for this model"


@pytest.mark.parametrize("url", ["teacher.test/v1", "ftp://teacher.test", "http://", ""])
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(UnsupportedError, match="allowed is http"):
        Endpoint(url, "teacher")


def test_pictures_and_perplexity_are_refused_before_anything_is_sent() -> None:
    picture = replace(example("x"), prompt=({"role": "user", "content": [{"type": "image", "image": None}]},))
    answerer = Server().answerer()
    with pytest.raises(UnsupportedError, match=r"data\.jsonl:1 has parts of type image"):
        answer_all(answerer, [picture], None, ignore)
    with pytest.raises(UnsupportedError, match="perplexity needs the model itself"):
        Server().answerer(AnswerSettings(scores=True))


def test_our_own_server_answers_many_at_once(tmp_path: Path) -> None:
    with live(stub_model("Hello there!")) as server:
        answerer = EndpointAnswerer(Endpoint(f"{server.url}/v1/", "stub"), AnswerSettings(64), parallel=4)
        found = answer_all(answerer, examples(*map(str, range(12))), tmp_path / "out.jsonl", ignore)
        server.wait_idle()
    assert {answer.text for answer in found.answers} == {"Hello there!"} and found.answers[0].completion_tokens == 13
