"""Parsers of what comes over the network: requests, answers of upstreams, streams, calls in a model's text."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from starlette.types import Message

from brise.dialects import sse, table
from brise.dialects.bodies import Body
from brise.dialects.dialect import Dialect, Progress
from brise.engine.engine import Engine, EngineSettings
from brise.engine.engine_thread import EngineThread
from brise.gateway import client_body, encodings
from brise.gateway import request as client_request
from brise.gateway import targets as request_targets
from brise.gateway.connection import Connection, LostError, NotHttpError
from brise.gateway.stream_usage import without_count
from brise.serve.anthropic_messages import parse_message
from brise.serve.app import create_app
from brise.serve.embeddings import parse_embedding
from brise.serve.multipart import read_form
from brise.serve.openai_chat import parse_chat
from brise.serve.openai_completions import parse_completion
from brise.serve.openai_responses import parse_response
from brise.serve.serving import ServeSettings, prepare
from brise.serve.transcriptions import parse_transcription
from brise.text.answer_events import Parsed, joined
from brise.text.answer_format import AnswerFormat
from brise.text.json_text import parse_json
from brise.text.special_tokens import ARGS, CALL, CALL_ID, END_CALL, END_THINK, THINK
from tests.engine.stub import stub_model
from tests.fuzz.target import Target, as_json, pieces
from tests.gateway import fake_answers, fake_messages
from tests.serve import test_messages, test_parse_fuzz, test_responses_tools
from tests.text import vocabulary

MISTRAL = ("[INST]", "[/INST]", "<s>", "</s>", "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]")
QWEN = ("<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
SENTINELS = (THINK, END_THINK, CALL, CALL_ID, ARGS, END_CALL)
BOUNDARY = "0123456789abcdef"
DIALECTS: Sequence[Dialect] = (*table.ALL, table.UNKNOWN)


def targets() -> list[Target]:
    return [
        *(Target(f"body of {name}", _parsed(parse), seeds, "json") for name, (parse, seeds) in BODIES.items()),
        Target("every route", _routes, _route_bodies, "json", slow_s=5),
        Target("client body", _client_body, _client_bodies),
        Target("form of a transcription", _form, _forms),
        Target("request target", _request_target, lambda: [
            b"/v1/chat/completions", b"http://a:1/v1/models?x=%41", b"/openai/deployments/m/chat/completions?a=1"]),
        Target("request of a dialect", _requests, lambda: as_json(*_bodies()), "json"),
        Target("answer of a dialect", _answers, lambda: as_json(
            fake_answers.chat_body("hi there", [("f", '{"x": 1}')]), fake_messages.message("hi", [("f", {"x": 1})]),
            _stored_response(), {"error": {"message": "no", "type": "x", "code": 1}}), "json"),
        Target("server-sent events", _events, _streams),
        Target("http answer", _http, _http_answers, refusals=(LostError, NotHttpError)),
        Target("content encoding", _encoded, _encodings),
        *(Target(f"calls in text, {kind}", _calls(kind), _texts(kind)) for kind in FORMATS)]


def _schema(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def _chats() -> list[bytes]:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    tools = {**test_parse_fuzz.TOOLS, "model": "m"}
    return as_json(
        test_parse_fuzz.CHAT, tools,
        {**tools, "response_format": _schema({"type": "object", "properties": {"x": {"enum": [1]}}})},
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, image]}],
         "reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}, "top_k": 4, "min_p": 0.1})


def _bodies() -> list[Body]:
    return [*(json.loads(data) for data in _chats()), *(body for _, body in test_parse_fuzz.VALID),
            {**test_messages.BODY, "tools": [test_messages.TOOL], "system": "s"},
            {**test_responses_tools.GREEDY, "tools": [test_responses_tools.TOOL], "previous_response_id": "resp_1"}]


BODIES: Mapping[str, tuple[Callable[[Any], object], Callable[[], Sequence[bytes]]]] = {
    "chat": (parse_chat, _chats),
    "completion": (parse_completion, lambda: as_json(test_parse_fuzz.VALID[1][1])),
    "embedding": (parse_embedding, lambda: as_json(test_parse_fuzz.VALID[2][1])),
    "responses": (parse_response, lambda: as_json(
        test_parse_fuzz.VALID[3][1], {**test_responses_tools.GREEDY, "tools": [test_responses_tools.TOOL], "input": [
            {"role": "user", "content": "hi"}, {"type": "reasoning", "id": "r", "summary": []},
            {"type": "function_call", "call_id": "c", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "2"}]})),
    "messages": (parse_message, lambda: as_json(
        {**test_messages.BODY, "tools": [test_messages.TOOL], "tool_choice": {"type": "auto"}, "thinking": {
            "type": "disabled"}, "system": [{"type": "text", "text": "s"}], "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": [
                {"type": "tool_use", "id": "t", "name": "add", "input": {"x": 1}}]}, {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "t", "content": "1"}]}]}))}


def _parsed(parse: Callable[[Any], object]) -> Callable[[bytes], object]:
    def run(data: bytes) -> None:
        value = parse_json(data)
        parse(value)

    return run


@cache
def _app() -> tuple[asyncio.AbstractEventLoop, Callable[..., Awaitable[None]], io.StringIO]:
    """All routes over a stub model, and the log, which tells of failures."""
    worker = EngineThread(Engine(stub_model("Hello there!", pooling="mean"), EngineSettings(num_pages=512)))
    worker.start()
    serving = prepare({"stub": worker}, ServeSettings(access_log=False), log := io.StringIO())
    return asyncio.new_event_loop(), create_app(serving), log


OLLAMA = {"/api/chat": {"messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": 4, "top_k": 3},
                        "format": "json", "keep_alive": "5m", "think": False, "tools": [], "stream": False},
          "/api/generate": {"prompt": "hi", "system": "s", "options": {"num_predict": 4}, "stream": False, "raw": True},
          "/api/embed": {"input": ["a", "b"], "truncate": True}, "/api/embeddings": {"prompt": "a"},
          "/api/show": {"model": "stub", "verbose": False}}
ROUTES = (*OLLAMA, "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
          "/v1/messages/count_tokens", "/tokenize", "/detokenize", "/v1/adapters")


def _route_bodies() -> list[bytes]:
    short = {"model": "stub", "max_tokens": 4, "max_output_tokens": 4}
    return as_json(*(["/v1/chat/completions", {**json.loads(data), **short, "stream": False, "stream_options": None}]
                     for data in _chats()[:3]),
                   *([path, {**body, **short}] for path, body in zip(ROUTES[6:11], _bodies()[5:], strict=False)),
                   *([path, {"model": "stub", **body}] for path, body in OLLAMA.items()),
                   ["/tokenize", {"prompt": "a", "add_special_tokens": False}], ["/detokenize", {"tokens": [65, 257]}],
                   ["/v1/adapters", {"name": "a", "path": "/nowhere"}])


def _routes(data: bytes) -> None:
    try:
        path, body = json.loads(data)
    except (ValueError, TypeError, RecursionError):
        return
    if not isinstance(path, str) or path not in ROUTES:
        return
    loop, app, log = _app()
    log.truncate(0)
    status = loop.run_until_complete(asyncio.wait_for(_post(app, path, json.dumps(body).encode()), 20))
    assert status < 500, f"{path} answers {status}: {log.getvalue()[-2000:]}"


async def _post(app: Callable[..., Awaitable[None]], path: str, body: bytes) -> int:
    statuses, asked = list[int](), False
    gone = asyncio.Event()

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await gone.wait()
            return {"type": "http.disconnect"}
        asked = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    await app({"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
               "headers": headers, "client": ("127.0.0.1", 1), "http_version": "1.1", "scheme": "http",
               "asgi": {"version": "3.0"}, "root_path": "", "server": ("127.0.0.1", 1)}, receive, send)
    return statuses[0]


def _form(data: bytes) -> None:
    parse_transcription(read_form(f"multipart/form-data; boundary={BOUNDARY}", data))


def _forms() -> list[bytes]:
    fields = {"model": "m", "language": "en", "response_format": "text", "temperature": "0.5", "stream": "true"}
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
             for name, value in fields.items()]
    file = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nX-Y: z\r\n\r\n'
    return ["".join([*parts, file, f"RIFF\r\n--{BOUNDARY}--\r\n"]).encode(),
            f"preamble\r\n{parts[0]}{file}\r\n--{BOUNDARY}-- ".encode()]

def _client_bodies() -> list[bytes]:
    plain = [b'\0{"model": "m", "messages": []}', b'\0model=a&engine=b', b'\0{"a": {"model": "x"}, "model": "\\u006d"}']
    return [*plain, b"\1" + gzip.compress(plain[0][1:], mtime=0), b"\2" + zlib.compress(plain[0][1:]),
            b"\3" + plain[0][1:].decode().encode("utf-16")]


def _client_body(data: bytes) -> None:
    coding, body = data[:1], data[1:]
    headers: client_body.RawHeaders = [(b"content-type", b"application/json")]
    if coding in (b"\1", b"\2"):
        headers = [*headers, (b"content-encoding", b"gzip" if coding == b"\1" else b"deflate")]
        headers, body = client_body.decompressed(headers, body, 1 << 20)
    if coding == b"\3":
        headers, body = client_body.in_utf8([(b"content-type", b"application/json; charset=utf-16")], body)
    for path in ("/v1/chat/completions", "/v1/messages", "/other"):
        made = client_request.read("POST", path, path.encode(), headers, body)
        if made.span is not None:
            renamed = client_body.with_model(body, made.span, "new")
            assert client_body.read(renamed).model == "new"


def _request_target(data: bytes) -> None:
    path = request_targets.origin_form(data)
    request_targets.is_paid(client_request.read("GET", path.decode("latin-1"), path, [], b""), ())


def _requests(data: bytes) -> None:
    body = parse_json(data)
    if not isinstance(body, dict):
        return
    for dialect in DIALECTS:
        dialect.conversation(body), dialect.continued_id(body), dialect.context_digest(body)
        dialect.with_prefix(body, "so far")
        for form in (dialect.chat_messages, dialect.chat_tools):
            with suppress(ValueError):
                form(body)


def _stored_response() -> Body:
    return {"id": "resp_1", "object": "response", "status": "completed", "model": "m", "output": [
        {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [
            {"type": "output_text", "text": "hi", "annotations": []}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}], "usage": {
            "input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "input_tokens_details": {"cached_tokens": 1}}}


def _answers(data: bytes) -> None:
    body = parse_json(data)
    for dialect in DIALECTS:
        dialect.failure(body)
        if isinstance(body, dict):
            dialect.answers(body), dialect.answer_id(body), dialect.finish_reason(body), dialect.usage(body)
            with suppress(ValueError):
                dialect.chat_answer(body)


def _streams() -> list[bytes]:
    chat = fake_answers.chat_events("a b", [("f", '{"x": 1}')], with_usage=True)
    responses: list[object] = [
        {"type": "response.created", "response": {**_stored_response(), "output": []}},
        {"type": "response.output_text.delta", "item_id": "m", "output_index": 0, "content_index": 0, "delta": "hi"},
        {"type": "response.completed", "response": _stored_response()}]
    return [b"".join(map(fake_answers.encode, chat)) + sse.END, b"".join(map(fake_answers.encode, responses)),
            b"".join(fake_messages.message_events("a b", [("f", {"x": 1})])),
            b": hi\r\n\r\ndata: {\"error\": {\"message\": \"no\"}}\r\rdata:\n\n"]


def _events(data: bytes) -> None:
    splitter = sse.Splitter()
    blocks = [block for piece in pieces(data) for block in splitter.push(piece)]
    rest = splitter.rest()
    assert b"".join(block.data for block in (*blocks, rest)) == data, "bytes of a stream are lost"
    assert [event.data for event in sse.events(data)] == [
        block.event.data for block in (*blocks, rest) if block.event is not None and (
            block is not rest or block.event.is_readable)], "how a stream is cut changes its events"
    said = [event for event in sse.events(data) if event.fields is not None]
    for block in blocks:
        without_count(block)
    for dialect in DIALECTS:
        progress = Progress()
        for event in said:
            assert event.fields is not None
            dialect.advance(progress, event.name, event.fields)
        dialect.assemble([dict(event.fields) for event in said if event.fields is not None])


class _NoTransport(asyncio.Transport):
    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Goes nowhere."""

    def abort(self) -> None:
        """Is none."""

    def pause_reading(self) -> None:
        """Nothing is read."""

    def resume_reading(self) -> None:
        """Nothing is read."""


def _http_answers() -> list[bytes]:
    return [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n1;x=y\r\nc\r\n0\r\nt: 1\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n", b"HTTP/1.0 500 x\r\n\r\nall of it",
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"]


def _http(data: bytes) -> None:
    asyncio.run(_exchange(data))


async def _exchange(data: bytes) -> None:
    connection = Connection(lambda lost: None)
    connection.connection_made(_NoTransport())
    connection.send("GET" if len(data) % 5 else "HEAD", b"/", [(b"host", b"a")], b"")
    loop = asyncio.get_running_loop()

    def receive(left: list[bytes]) -> None:
        if left:
            connection.data_received(left[0])
            loop.call_soon(receive, left[1:])
        else:
            connection.eof_received()

    loop.call_soon(receive, pieces(data))
    await connection.answer(60.0)
    while await connection.piece(60.0):
        pass
    connection.is_renewed()


def _encodings() -> list[bytes]:
    return [b"\0" + gzip.compress(b"hello" * 9, mtime=0), b"\1" + zlib.compress(b"hello" * 9),
            b"\2\x0b\x02\x80hello\x03", b"\3(\xb5/\xfd\x04X)\x00\x00hello\x02\x1f\xf8\xc5", b"\4ab"]


def _encoded(data: bytes) -> None:
    names = (b"gzip", b"deflate", b"br", b"zstd", b"identity", b"gzip, deflate")
    if data:
        encodings.decoded(data[1:], names[data[0] % len(names)], 1 << 20)


FORMATS = {"named": AnswerFormat.of(vocabulary.tokenizer(control=MISTRAL), "named"),
           "list": AnswerFormat.of(vocabulary.tokenizer(control=MISTRAL), "list"),
           "tags": AnswerFormat.of(vocabulary.tokenizer(control=QWEN[:1], user_defined=QWEN[1:]), "tags"),
           "tags in text": AnswerFormat.of(vocabulary.tokenizer(), "tags")}


def _texts(kind: str) -> Callable[[], Sequence[bytes]]:
    arguments = '{"city": "S\\u00e3o \\"P\\" {}"}'
    texts = {
        "named": [f"a{CALL}weather{ARGS}{arguments}", f"{THINK}hm{END_THINK}{CALL}now{CALL_ID}abcdefghi{ARGS}{{}}"],
        "list": [f'{CALL}[{{"name": "weather", "arguments": {arguments}, "id": "abcdefghi"}}]', f"{CALL}[]x"],
        "tags": [f'{THINK}\nhm\n{END_THINK}\n{CALL}\n{{"name": "now", "arguments": {arguments}}}\n{END_CALL}'],
        "tags in text": ['<tool_call>\n{"name": "now", "arguments": {"a": [1, 2]}}\n</tool_call> and']}
    return lambda: [text.encode() for text in texts[kind]]


def _calls(kind: str) -> Callable[[bytes], object]:
    def run(data: bytes) -> None:
        text, was_cut = data.decode("utf-8", "replace"), len(data) % 2 == 1
        whole = _read(FORMATS[kind], [text], was_cut)
        assert _read(FORMATS[kind], [piece.decode() for piece in _characters(text)], was_cut) == whole, (
            "how a text is cut changes what is read")
        assert not any(sentinel in str(item) for item in whole for sentinel in SENTINELS), "a sentinel leaves"

    return run


def _characters(text: str) -> list[bytes]:
    step = 1 + len(text) % 5
    return [text[at:at + step].encode() for at in range(0, len(text), step)]


def _read(format: AnswerFormat, texts: Sequence[str], was_cut: bool) -> list[Parsed]:
    parser = format.parser(("weather", "now"))
    return joined([item for text in texts for item in parser.push(text)] + parser.finish(was_cut=was_cut))
