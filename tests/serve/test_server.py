"""The server admits, refuses, drains and fails as documented, whatever the API does."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.engine.engine import EngineSettings
from brise.models.batch import Batch
from brise.serve.serving import ServeSettings
from tests.engine.drafted import LinearCost
from tests.engine.stub import stub_model
from tests.serve.live import ENGINE, Live, live
from tests.text.test_json_text import JSON
from tests.waiting import LIMIT_S, wait_until

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
ENDLESS = {"model": "stub", "messages": HI, "stream": True, "extra_body": {"ignore_eos": True}}
JSON_TYPE = {"content-type": "application/json; charset=utf-8"}
Refusal = tuple[int, str, str | None]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(settings=ServeSettings(max_body_bytes=20_000)) as running:
        yield running
        running.wait_idle()


def is_queued(server: Live, number: int) -> bool:
    stats = server.engine.stats()
    return (stats.running, stats.waiting) == (1, number)


def slow(batch: Batch) -> None:
    time.sleep(0.01)


def error(answer: httpx.Response) -> Refusal:
    body = answer.json()["error"]
    assert body.keys() == {"message", "type", "param", "code"} and body["message"]
    return answer.status_code, body["code"], body["param"]


def test_a_stream_that_its_client_closes_frees_the_engine() -> None:
    with live(stub_model(on_step=slow)) as server, server.client() as client:
        stream = client.chat.completions.create(**ENDLESS)
        next(iter(stream))
        assert server.engine.has_work
        stream.close()
        assert f"POST {CHAT} 499" in server.log()
        assert server.engine.stats().pages_free == server.engine.stats().pages


@pytest.mark.parametrize("body", [{"prompt": "a"}, {"prompt": ["a", "b", "c"], "n": 2}])
def test_an_answer_that_nobody_waits_for_frees_the_engine(body: dict[str, object]) -> None:
    with live(stub_model(on_step=slow)) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/completions", timeout=httpx.Timeout(LIMIT_S, read=0.2), trust_env=False,
                       json={"model": "stub", "max_tokens": 4000, "ignore_eos": True, **body})
        server.wait_log("POST /v1/completions 499")
        server.wait_idle()


def test_an_error_in_the_middle_is_an_event_and_the_engine_goes_on() -> None:
    def fail(batch: Batch) -> None:
        if len(steps) == 4:
            raise RuntimeError("the kernel fell over")
        steps.append(batch)

    steps: list[Batch] = []
    with live(stub_model("Hello there!", on_step=fail)) as server, server.client() as client:
        stream = client.chat.completions.create(model="stub", messages=HI, stream=True, temperature=0)
        with pytest.raises(openai.APIError, match="the kernel fell over"):
            list(stream)
        steps.append(steps[0])
        assert server.chat().json()["choices"][0]["message"]["content"] == "Hello there!"


def test_an_error_before_the_first_byte_has_a_status() -> None:
    def fail(batch: Batch) -> None:
        raise RuntimeError("no")

    with live(stub_model(on_step=fail)) as server:
        for stream in (True, False):
            assert error(server.chat(stream=stream)) == (500, "generation_failed", None)


def test_a_prompt_too_long_is_refused_with_the_numbers() -> None:
    with live(stub_model(max_context=100)) as server:
        answer = server.chat("x" * 200)
        assert error(answer) == (400, "context_length_exceeded", "messages")
        message = answer.json()["error"]["message"]
        assert "219 tokens" in message and "this model's maximum context length is 100 tokens" in message
        assert "asks for" not in message and message.endswith("prompt is too long")  # what LangChain looks for
        too_much = server.post("/v1/completions", {"model": "stub", "prompt": "a", "max_tokens": 100})
        assert error(too_much) == (400, "context_length_exceeded", "prompt")
        assert error(server.post("/v1/responses", {"model": "stub", "input": "x" * 200}))[2] == "input"


def test_a_full_queue_is_429_with_retry_after() -> None:
    is_over = threading.Event()
    model = stub_model(on_step=lambda batch: None if is_over.is_set() else time.sleep(0.005))
    small = EngineSettings(page_size=16, num_pages=64, max_sequences=1, max_waiting=1)
    with live(model, engine_settings=small) as server:
        others = [threading.Thread(target=server.chat, kwargs={"max_tokens": 900, "ignore_eos": True})
                  for _ in range(2)]
        for number, other in enumerate(others):
            other.start()
            wait_until(partial(is_queued, server, number))
        answer = server.chat()
        is_over.set()
        for other in others:
            other.join()
        assert error(answer)[:2] == (429, "queue_full") and int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize(("path", "method", "expected"), [
    ("/v1/nothing", "POST", (404, "unknown_url", None)), ("/index.html", "GET", (404, "unknown_url", None)),
    (CHAT, "GET", (405, "method_not_allowed", None)),
    ("/v1/models", "POST", (405, "method_not_allowed", None))])
def test_wrong_paths_and_methods(server: Live, path: str, method: str, expected: Refusal) -> None:
    assert error(httpx.request(method, f"{server.url}{path}", timeout=LIMIT_S, trust_env=False)) == expected


def test_malformed_bodies(server: Live) -> None:
    assert error(server.post(CHAT, content=b"{", headers=JSON_TYPE))[:2] == (400, "invalid_json")
    assert error(server.post(CHAT, content=b"[" * 9000, headers=JSON_TYPE))[:2] == (400, "invalid_json")
    assert error(server.post(CHAT, content=b"{}", headers={"content-type": "text/plain"}))[0] == 415
    assert error(server.post(CHAT, [])) == (400, "invalid_type", None)


def test_a_body_too_large_is_413_declared_or_not(server: Live) -> None:
    assert error(server.chat("x" * 30_000))[:2] == (413, "body_too_large")
    assert error(server.chat("x" * 3_000_000))[:2] == (413, "body_too_large")
    chunks = (b" " * 1000 for _ in range(40))
    assert error(server.post(CHAT, content=chunks, headers=JSON_TYPE))[0] == 413


def test_a_body_that_does_not_arrive_is_408() -> None:
    def chunks() -> Iterator[bytes]:
        yield b"{"
        server.wait_log(" 408 ")  # an id may have those digits too

    with live(settings=ServeSettings(body_timeout_s=0.1)) as server:
        assert error(server.post(CHAT, content=chunks(), headers=JSON_TYPE))[0] == 408


@settings(max_examples=40)
@given(st.sampled_from([CHAT, "/v1/completions", "/v1/embeddings", "/v1/responses"]),
       st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_random_bodies_are_client_errors(server: Live, path: str, body: bytes) -> None:
    answer = server.post(path, content=body, headers=JSON_TYPE)
    assert error(answer)[0] == 400


def test_request_ids_come_back(server: Live) -> None:
    assert server.get("/health", headers={"x-request-id": "mine-1"}).headers["x-request-id"] == "mine-1"
    made = server.get("/health", headers={"x-request-id": "not ok"}).headers["x-request-id"]
    assert made.startswith("req_") and len(made) == 36
    assert server.post("/v1/nothing", {}).headers["x-request-id"].startswith("req_")


def test_the_access_log_has_numbers_and_no_content(server: Live) -> None:
    server.chat("my secret", user="me")
    httpx.get(f"{server.url}/v1/a%0Ab?q=secret", timeout=LIMIT_S, trust_env=False)
    log = server.log()
    assert "/v1/a%0Ab" in log and "secret" not in log and "Hello" not in log
    assert " model=stub prompt=28 cached=" in log and " completion=13 first=" in log
    assert all(" id=" in line for line in log.splitlines())


def test_metrics_count_requests_and_tokens(server: Live) -> None:
    server.chat()
    text = server.metrics()
    assert f'brise_requests_total{{endpoint="{CHAT}",status="200"}}' in text
    assert 'brise_completion_tokens_total{model="stub"}' in text
    assert 'brise_engine_pages{model="stub"} 512.0' in text
    assert 'brise_first_token_seconds_count{model="stub"}' in text


def test_a_prediction_is_counted_and_changes_nothing() -> None:
    reply = "the whole text, with one word changed"
    with live(stub_model(reply), engine_settings=replace(ENGINE, max_draft=8)) as server:
        server.engine.speculation.cost = LinearCost()
        plain = server.chat().json()
        predicted = server.chat(prediction={"type": "content", "content": reply.replace("one", "a")}).json()
        text = server.metrics()
    assert predicted["choices"] == plain["choices"]
    details = predicted["usage"].pop("completion_tokens_details")
    assert details["accepted_prediction_tokens"] > 20 and details["rejected_prediction_tokens"] > 0
    assert predicted["usage"] == plain["usage"] | {"prompt_tokens_details": {"cached_tokens": 16}}
    accepted = 'brise_engine_accepted_tokens_total{model="stub",source="prediction"} '
    assert accepted + f"{details['accepted_prediction_tokens']:.1f}" in text


def test_two_servers_in_one_process_count_apart(server: Live) -> None:
    with live() as other:
        assert "brise_requests_total{" not in other.metrics()


def test_keys_are_required_everywhere_but_for_health(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\nsk-one\n\n  sk-two  \n")
    path.chmod(0o600)
    with live(settings=ServeSettings(api_keys_path=path)) as server:
        assert server.get("/health").status_code == 200
        for answer in (server.chat(), server.get("/metrics"), server.get("/v1/models"),
                       server.get("/v1/models", headers={"authorization": "Bearer sk-three"}),
                       server.get("/v1/models", headers={"authorization": "Basic sk-one"})):
            assert error(answer) == (401, "invalid_api_key", None)
            assert answer.headers["www-authenticate"] == "Bearer"
        with server.client("sk-two") as client:
            assert client.chat.completions.create(model="stub", messages=HI, temperature=0).choices
        with server.client("sk") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        assert server.get("/health", headers={"host": "example.org"}).status_code == 200


def test_a_foreign_host_header_is_refused_without_keys(server: Live) -> None:
    assert error(server.get("/v1/models", headers={"host": "evil.example:80"}))[:2] == (421, "wrong_host")
    for name in ("localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:9"):
        assert server.get("/health", headers={"host": name}).status_code == 200


def test_an_idle_connection_outlives_the_pools_of_clients_and_load_balancers() -> None:
    with live() as server:
        connection = HTTPConnection(server.url.removeprefix("http://"), timeout=LIMIT_S)
        ports = []
        for idle_s in (6, 60, 80):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            ports.append(connection.sock.getsockname()[1])
            server.pass_time(idle_s).result(LIMIT_S)
        assert len(set(ports)) == 1
        assert connection.sock.recv(1) == b""  # the server closes it after 75 s
        connection.close()


def test_draining_finishes_running_requests_and_refuses_new_ones() -> None:
    with live(stub_model("Hello there!", on_step=slow)) as server, server.client() as client:
        stream = iter(client.chat.completions.create(model="stub", messages=HI, stream=True, temperature=0))
        begun = [next(stream), next(stream)]
        server.serving.traffic.close()
        refused = server.chat()
        assert error(refused)[:2] == (503, "shutting_down") and refused.headers["retry-after"]
        health = server.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        rest = [*begun, *stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in rest) == "Hello there!"


def test_an_engine_that_stops_ends_its_streams_with_an_error() -> None:
    with live(stub_model(on_step=slow)) as server, server.client() as client:
        stream = client.chat.completions.create(**ENDLESS)
        next(iter(stream))
        threading.Thread(target=server.worker.shutdown, kwargs={"drain": False}).start()
        with pytest.raises(openai.APIError, match="shut down before the answer was complete"):
            list(stream)
        assert error(server.chat())[:2] == (503, "shutting_down")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_health_fails_when_an_engine_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise SystemExit

    with live(stub_model("x")) as server:
        assert server.get("/health").json() == {"status": "ok"}
        monkeypatch.setattr(server.worker, "_deliver", broken)
        assert error(server.chat())[0] == 503
        health = server.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "failed"})


def test_a_model_without_chat_template_says_what_to_use_instead() -> None:
    with live(replace(stub_model("x"), chat=None)) as server:
        assert error(server.chat()) == (400, "no_chat_template", "model")
        assert server.post("/v1/completions", {"model": "stub", "prompt": "a"}).status_code == 200


def test_more_requests_than_pages_all_end() -> None:
    tight = EngineSettings(page_size=16, num_pages=6)
    with live(stub_model("Hello there!"), engine_settings=tight) as server:
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(server.chat())) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        texts = [answer.json()["choices"][0]["message"]["content"] for answer in answers]
        assert texts == ["Hello there!"] * 12
        server.wait_idle()


def test_models_with_a_slash_lists_them(server: Live) -> None:
    assert server.get("/v1/models/").json() == server.get("/v1/models").json()


def test_a_byte_order_mark_before_the_body_is_read_over(server: Live) -> None:
    body = b'\xef\xbb\xbf{"model": "stub", "messages": [{"role": "user", "content": "hi"}]}'
    answer = server.post(CHAT, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_known_is_left_out_and_named(server: Live, stream: bool) -> None:
    answer = server.chat(n=2, stream=stream, new_thing=1, metadata={"a": "b"}, **{"x" * 70: 2, "\n": 3})
    assert answer.status_code == 200 and answer.headers["x-brise-ignored"].startswith("new_thing, ")
    chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    bodies = chunks if stream else [answer.json()]
    assert [body["brise"]["ignored"]["new_thing"] for body in bodies if "brise" in body] == ["it is not known here"]
    assert "brise" not in server.chat().json() and "x-brise-ignored" not in server.chat().headers


def test_a_strict_server_refuses_what_it_does_not_know() -> None:
    with live(settings=ServeSettings(strict=True)) as server:
        assert error(server.chat(new_thing=1)) == (400, "unknown_parameter", "new_thing")
        assert server.chat(new_thing=None, metadata={"a": "b"}, top_k=-1).status_code == 200


SCHEMA = {"type": "object", "properties": {"n": {"type": "array", "uniqueItems": True}}}
TOOL = {"name": "f", "parameters": {**SCHEMA, "required": ["n"]}}
IN_PART = [  # a path, the fields of the request, the keyword that is not enforced, and the place that breaks it
    ("/v1/responses", {"text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}},
     "text.format.properties.n.uniqueItems", "output[0].content[0].text: n: uniqueItems"),
    ("/v1/responses", {"tools": [{"type": "function", **TOOL}], "tool_choice": "required"},
     "tools[0].parameters.properties.n.uniqueItems", "output[0].arguments: n: uniqueItems"),
    ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
     "output_config.format.properties.n.uniqueItems", "content[0].text: n: uniqueItems"),
    ("/v1/messages", {"tools": [{"name": "f", "input_schema": TOOL["parameters"]}], "tool_choice": {"type": "any"}},
     "tools[0].input_schema.properties.n.uniqueItems", "content[0].input: n: uniqueItems")]


@pytest.fixture(scope="module")
def repeating() -> Iterator[tuple[Live, Live]]:
    """Its model writes a list with equal items, or calls the function with one."""
    with live(stub_model('{"n": [1, 1]}')) as text, live(stub_model(
            '<tool_call>\n{"name": "f", "arguments": {"n": [1, 1]}}\n</tool_call>')) as call:
        yield text, call


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "fields", "keyword", "place"), IN_PART)
def test_each_dialect_says_what_a_schema_does_not_enforce(repeating: tuple[Live, Live], path: str, stream: bool,
                                                          fields: dict[str, object], keyword: str, place: str) -> None:
    who = {"input": "hi", "max_output_tokens": 99} if path == "/v1/responses" else {
        "messages": [{"role": "user", "content": "hi"}], "max_tokens": 99}
    answer = repeating["tools" in fields].post(path, {
        "model": "stub", "temperature": 0, "stream": stream, "other": 1, **who, **fields})
    assert answer.status_code == 200 and answer.headers["x-brise-not-enforced"] == keyword
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")] if stream else [answer.text]
    bodies = [body.get("response", body) for body in map(json.loads, lines)]
    assert [body["brise"] for body in bodies if "brise" in body] == [{
        "ignored": {"other": "it is not known here"}, "not_enforced": [keyword], "invalid": [place]}]


def test_a_schema_that_is_enforced_in_part_is_said_and_checked(repeating: tuple[Live, Live]) -> None:
    server, _ = repeating
    format_ = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}
    answer = server.chat(response_format=format_, max_tokens=60)
    place = "response_format.properties.n.uniqueItems"
    assert answer.status_code == 200 and answer.headers["x-brise-not-enforced"] == place
    assert answer.json()["brise"] == {"not_enforced": [place],
                                      "invalid": ["choices[0].message.content: n: uniqueItems"]}
    format_["json_schema"]["strict"] = True  # type: ignore[index]
    assert error(server.chat(response_format=format_)) == (400, "invalid_grammar", "response_format")
