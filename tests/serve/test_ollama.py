"""Ollama's own client runs against a local model: chats, prompts, streams, tools, schemas, lists and errors."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import ollama
import pydantic
import pytest

from brise.errors import QueueFullError
from brise.serve.error_response import respond
from brise.serve.serving import ServeSettings
from brise.text.chat import ChatTemplate
from brise.text.load import Tokens
from tests.engine.stub import stub_model
from tests.engine.stub_vision import stub_vision
from tests.serve.live import Live, live
from tests.text.vocabulary import CHATML, tokenizer
from tests.waiting import LIMIT_S

CALL = 'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {
    "type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}}
HI = [{"role": "user", "content": "hi"}]
GREEDY: dict[str, Any] = {"model": "stub", "messages": HI, "options": {"temperature": 0}}
PROMPT: dict[str, Any] = {"model": "stub", "prompt": "hi", "options": {"temperature": 0}}


class City(pydantic.BaseModel, extra="forbid"):
    capital: bool


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(stub_model(CALL)) as running:
        yield running
        running.wait_idle()


def connected(server: Live) -> ollama.Client:
    return ollama.Client(host=server.url, timeout=LIMIT_S, trust_env=False)


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[ollama.Client]:
    with connected(server) as opened:
        yield opened


def test_a_chat(client: ollama.Client) -> None:
    answer = client.chat(**GREEDY)
    assert (answer.message.role, answer.message.content, answer.message.tool_calls) == ("assistant", CALL, None)
    assert (answer.model, answer.done, answer.done_reason) == ("stub", True, "stop")
    assert answer.eval_count == len(CALL) + 1


def test_the_durations_are_parts_of_the_whole(client: ollama.Client) -> None:
    answer = client.chat(**GREEDY)
    parts = [answer.load_duration, answer.prompt_eval_duration, answer.eval_duration]
    assert all(parts) and sum(parts) == pytest.approx(answer.total_duration, abs=4)
    assert answer.total_duration < 20e9  # nanoseconds


def test_a_stream_says_the_same(client: ollama.Client) -> None:
    whole = client.chat(**GREEDY, tools=[TOOL])
    lines = list(client.chat(**GREEDY, tools=[TOOL], stream=True))
    assert "".join(line.message.content or "" for line in lines) == whole.message.content == "Let me see."
    calls = [call for line in lines for call in line.message.tool_calls or ()]
    assert calls == whole.message.tool_calls and calls[0].function.arguments == {"x": 1}
    assert [line.done for line in lines] == [False] * (len(lines) - 1) + [True]
    assert (lines[-1].done_reason, lines[-1].eval_count) == ("stop", whole.eval_count)


def test_streaming_is_the_default_and_goes_by_lines(server: Live) -> None:
    response = server.post("/api/chat", GREEDY)
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == CALL and lines[-1]["done"] is True


def test_an_agent_loop_sends_calls_and_results_back(client: ollama.Client) -> None:
    message = client.chat(**GREEDY, tools=[TOOL]).message
    for result in ({"role": "tool", "tool_name": "add", "content": "2"}, {"role": "tool", "content": "2"}):
        again = client.chat(**{**GREEDY, "messages": [*HI, message, result]}, tools=[TOOL])
        assert again.message.tool_calls == message.tool_calls


def test_a_call_that_was_cut_is_not_made(server: Live) -> None:
    answer = server.post("/api/chat", {**GREEDY, "tools": [TOOL], "stream": False,
                                       "options": {"temperature": 0, "num_predict": len(CALL) - 20}}).json()
    assert answer["done_reason"] == "length" and "tool_calls" not in answer["message"]
    assert answer["brise"]["cut_calls"] == [{"name": "add", "arguments": '{"'}]


def test_a_schema_of_pydantic(client: ollama.Client) -> None:
    answer = client.chat(**{**GREEDY, "options": {"seed": 1, "num_predict": 200}}, format=City.model_json_schema())
    assert City.model_validate_json(answer.message.content or "").capital in (True, False)
    told = client.generate(**{**PROMPT, "raw": True}, format={"enum": ["Paris"]})
    assert told.response == '"Paris"'


def test_a_schema_that_is_not_enforced_whole_is_reported(server: Live) -> None:
    schema = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
    response = server.post("/api/generate", {**PROMPT, "stream": False, "format": schema})
    assert response.json()["brise"] == {"not_enforced": ["format.uniqueItems"],
                                        "invalid": ["response: the answer: uniqueItems"]}


def test_a_prompt(client: ollama.Client) -> None:
    answer = client.generate(**PROMPT)
    assert (answer.response, answer.done_reason, answer.context) == (CALL, "stop", None)
    assert "".join(line.response for line in client.generate(**PROMPT, stream=True)) == CALL
    with_system = client.generate(**PROMPT, system="be brief")
    assert with_system.prompt_eval_count > answer.prompt_eval_count


def test_a_raw_prompt_is_taken_as_it_is(client: ollama.Client) -> None:
    answer = client.generate("stub", "Let me", raw=True, options={"temperature": 0})
    assert answer.response == CALL.removeprefix("Let me") and answer.prompt_eval_count == 6
    written = client.generate("stub", "<|im_start|>a<|im_end|>", raw=True, options={"num_predict": 1})
    assert written.prompt_eval_count == 3


def test_a_model_without_a_template_continues_text() -> None:
    with live(replace(stub_model(CALL), chat=None)) as base, connected(base) as client:
        assert client.generate("stub", "Let", options={"temperature": 0}).response == CALL.removeprefix("Let")
        with pytest.raises(ollama.ResponseError, match="chat template"):
            client.generate("stub", "Let", system="be")
        assert client.show("stub").capabilities == ["completion"]


def test_stops_limits_and_the_beginning_of_an_answer(client: ollama.Client) -> None:
    stopped = client.chat(**{**GREEDY, "options": {"temperature": 0, "stop": ["see"]}})
    assert (stopped.message.content, stopped.done_reason) == ("Let me ", "stop")
    cut = client.chat(**{**GREEDY, "options": {"temperature": 0, "num_predict": 3}})
    assert (cut.message.content, cut.done_reason, cut.eval_count) == ("Let", "length", 3)
    begun = client.chat(**{**GREEDY, "messages": [*HI, {"role": "assistant", "content": "Let me"}]})
    assert begun.message.content == CALL.removeprefix("Let me")


def test_logprobs(client: ollama.Client) -> None:
    for answer in (client.chat(**GREEDY, logprobs=True, top_logprobs=2),
                   client.generate(**PROMPT, logprobs=True, top_logprobs=2)):
        assert answer.logprobs is not None and len(answer.logprobs) == len(CALL) + 1
        assert [top.token for top in answer.logprobs[0].top_logprobs or ()][0] == answer.logprobs[0].token == "L"
    lines = client.chat(**GREEDY, logprobs=True, stream=True)
    assert sum(len(line.logprobs or ()) for line in lines) == len(CALL) + 1


def test_what_is_loaded_stays_and_the_answer_says_so(server: Live, client: ollama.Client) -> None:
    loaded = client.generate("stub")
    assert (loaded.response, loaded.done, loaded.done_reason) == ("", True, "load")
    unloaded = server.post("/api/chat", {"model": "stub", "messages": [], "keep_alive": 0}).json()
    assert unloaded["done_reason"] == "load" and "unloads nothing" in unloaded["brise"]["ignored"]["keep_alive"]
    assert client.ps().models[0].model == "stub:latest"


def test_the_models_are_listed_and_found_again(server: Live, client: ollama.Client) -> None:
    listed = client.list().models[0]
    assert listed.model == "stub:latest" and listed.details is not None and listed.details.family == "llama"
    assert client.chat(**{**GREEDY, "model": listed.model}).model == "stub:latest"
    with server.client() as openai:  # Ollama has OpenAI's API, too, and clients take the name from its list
        assert openai.chat.completions.create(model=listed.model, messages=HI, max_tokens=1).choices  # type: ignore[arg-type]
    assert 'model="stub"' in (scraped := server.metrics()) and "latest" not in scraped
    running = client.ps().models[0]
    assert running.context_length == server.worker.max_context and running.size_vram == 0


def test_a_model_is_shown(client: ollama.Client, server: Live) -> None:
    shown = client.show("stub")
    assert shown.capabilities == ["completion", "tools"] and "im_start" in (shown.template or "")
    assert shown.modelinfo is not None and shown.modelinfo["llama.context_length"] == server.worker.max_context
    assert server.post("/api/show", {"name": "stub:latest"}).json()["details"]["parameter_size"] == "2.07K"


def test_a_client_finds_that_there_is_a_server(server: Live) -> None:
    assert "running" in server.get("/").text
    assert httpx.head(server.url, trust_env=False).status_code == 200
    version = server.get("/api/version").json()["version"]
    assert all(part.isdecimal() for part in version.split("."))


@pytest.mark.parametrize(("ask", "status", "message"), [
    (lambda client: client.chat("nope", HI), 404, "'nope' does not exist here; there is 'stub'"),
    (lambda client: client.show("nope"), 404, "'nope' does not exist"),
    (lambda client: client.pull("llama3"), 403, "`brise pull NAME`"),
    (lambda client: list(client.pull("llama3", stream=True)), 403, "chosen when it starts"),
    (lambda client: client.create("m", from_="stub"), 403, "'/api/create' is refused"),
    (lambda client: client.delete("stub"), 403, "'/api/delete' is refused"),
    (lambda client: client.copy("stub", "m"), 403, "'/api/copy' is refused"),
    (lambda client: client.push("m"), 403, "'/api/push' is refused"),
    (lambda client: client.embed("stub", "x"), 400, "makes no embeddings"),
    (lambda client: client.generate("stub", "a", suffix="b"), 400, "'suffix' is not supported"),
    (lambda client: client.generate("stub", "a", context=[1]), 400, "'context' is not supported"),
    (lambda client: client.generate("stub", "a", template="{{ .Prompt }}"), 400, "'template' is not supported"),
    (lambda client: client.generate("stub", "a", raw=True, system="b"), 400, "'system' is not supported"),
    (lambda client: client.chat("stub", HI, think=True), 400, "does not think"),
    (lambda client: client.chat("stub", HI, think="high"), 400, "'think' 'high' is not supported"),
    (lambda client: client.chat("stub", HI, options={"mirostat": 2}), 400, "'options.mirostat' is not supported"),
    (lambda client: client.chat("stub", HI, options={"top_k": "a"}), 400, "'options.top_k' must be an integer"),
    (lambda client: client.generate("stub", "a", images=[b"GIF89a"]), 400, "'images[0]' is an image"),
    (lambda client: client.chat("stub", [{"role": "tool", "content": "1"}]), 400, "answers no call"),
    (lambda client: client.generate("stub", "a" * 5000), 400, "context length")])
def test_errors_have_ollamas_form(client: ollama.Client, ask: Callable[[ollama.Client], Any], status: int,
                                  message: str) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        ask(client)
    assert caught.value.status_code == status and message in caught.value.error


def test_an_error_in_a_stream_is_a_line() -> None:
    with live(stub_model(CALL)) as ending, connected(ending) as opened:
        stream = opened.chat(**GREEDY, stream=True)
        next(iter(stream))
        ending.worker.shutdown(drain=False)
        with pytest.raises(ollama.ResponseError, match="shut down"):
            list(stream)


def test_the_async_client_runs_many_at_once(server: Live) -> None:
    async def ask() -> list[str]:
        async with ollama.AsyncClient(host=server.url, timeout=LIMIT_S, trust_env=False) as client:
            answers = await asyncio.gather(*(client.chat(**GREEDY) for _ in range(8)))
        return [answer.message.content or "" for answer in answers]

    assert asyncio.run(ask()) == [CALL] * 8


def test_a_client_that_goes_away_ends_its_answer(server: Live) -> None:
    async def ask() -> None:
        async with ollama.AsyncClient(host=server.url, timeout=LIMIT_S, trust_env=False) as client:
            stream = await client.chat("stub", HI, stream=True, options={"temperature": 2.0})
            await anext(aiter(stream))
            await stream.aclose()

    asyncio.run(ask())
    assert "POST /api/chat 499" in server.log()


def test_a_body_needs_no_content_type_unless_a_web_page_sends_it(server: Live) -> None:
    body, form = json.dumps(GREEDY), {"content-type": "application/x-www-form-urlencoded"}  # as curl -d sends it
    assert server.post("/api/chat", content=body, headers=form).status_code == 200
    for name, value in (("origin", "https://page.example"), ("sec-fetch-site", "cross-site")):
        refused = server.post("/api/chat", content=body, headers={**form, name: value})
        assert refused.status_code == 415 and "content type" in refused.json()["error"]


def test_the_models_of_an_embedding_server() -> None:
    with live(stub_model(pooling="mean")) as embedding, connected(embedding) as client:
        two = client.embed("stub", ["a", "bc"], truncate=True, keep_alive=-1)
        older = client.embeddings("stub", "a").embedding
        assert len(two.embeddings) == 2 and list(two.embeddings[0]) == list(older)
        assert two.prompt_eval_count == 3
        assert client.embed("stub", []).embeddings == [] and client.show("stub").capabilities == ["embedding"]
        with pytest.raises(ollama.ResponseError, match=r"'input\[1\]' is empty"):
            client.embed("stub", ["a", ""])
        with pytest.raises(ollama.ResponseError, match="'dimensions' is 7"):
            client.embed("stub", "a", dimensions=7)


def test_thinking_stands_apart() -> None:
    words = tokenizer(control=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"))
    tokens = Tokens(words, ChatTemplate(CHATML + "{{ '' if enable_thinking is defined }}", words))
    with live(stub_model("<think>hm</think>yes", tokens=tokens)) as thinking, connected(thinking) as client:
        whole = client.chat(**GREEDY, think=True)
        lines = list(client.chat(**GREEDY, stream=True))
        prompt = client.generate(**PROMPT)
        assert client.show("stub").capabilities == ["completion", "tools", "thinking"]
        client.chat(**{**GREEDY, "messages": [*HI, whole.message, *HI]}, think=False)
        with pytest.raises(ollama.ResponseError, match="'think' 'high' is not supported"):
            client.chat(**GREEDY, think="high")
    assert (whole.message.thinking, whole.message.content) == (prompt.thinking, prompt.response) == ("hm", "yes")
    assert "".join(line.message.thinking or "" for line in lines) == "hm"
    assert "".join(line.message.content or "" for line in lines) == "yes"


def test_an_image() -> None:
    pytest.importorskip("cv2")
    image = io.BytesIO()
    pytest.importorskip("PIL.Image").new("RGB", (8, 8)).save(image, "PNG")
    with live(stub_model("I see.", vision=stub_vision())) as seeing, connected(seeing) as client:
        said = client.chat("stub", [{**HI[0], "images": [image.getvalue()]}], options={"temperature": 0})
        told = client.generate("stub", "hi", images=[image.getvalue()], options={"temperature": 0})
        assert said.message.content == told.response == "I see." and said.prompt_eval_count == told.prompt_eval_count
        assert client.show("stub").capabilities == ["completion", "tools", "vision"]
        with pytest.raises(ollama.ResponseError, match="not base64"):
            client.generate("stub", "hi", images=["!"])


def test_a_model_without_a_known_digest_has_an_id(tmp_path: Path) -> None:
    blob = tmp_path / "sha256-12"  # files in the store have no suffix
    blob.write_bytes(b"1234")
    with live(replace(stub_model("yes"), path=blob, digest=None)) as own, connected(own) as client:
        card = client.list().models[0]
        assert len(card.digest or "") == 64 and card.size == 4 and card.details and card.details.format == "gguf"
        assert card.digest == client.list().models[0].digest


def test_a_refusal_keeps_its_headers() -> None:
    refused = respond(QueueFullError(5, 4), "/api/chat")
    assert refused.status_code == 429 and refused.headers["retry-after"]
    assert "4" in json.loads(bytes(refused.body))["error"]


def test_a_strict_server_with_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    with live(stub_model("yes"), ServeSettings(api_keys_path=keys, strict=True)) as strict:
        with connected(strict) as stranger, pytest.raises(ollama.ResponseError, match="API key") as caught:
            stranger.list()
        assert caught.value.status_code == 401
        with ollama.Client(strict.url, headers={"Authorization": "Bearer secret"}, trust_env=False) as client:
            assert client.chat(**GREEDY, keep_alive="5m").message.content == "yes"
            with pytest.raises(ollama.ResponseError, match=r"unknown field 'options.made_up'"):
                client.chat("stub", HI, options={"made_up": 1})
