"""A request that names a model of this server never goes to an upstream, however it is spelled."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brise.gateway import client_body
from tests.cpu_time import cpu_s
from tests.gateway.raw_http import RawAnswer, send
from tests.gateway.rig import Rig

PROMPT = "PRIVATE-PROMPT"
HI = [{"role": "user", "content": PROMPT}]
JSON = {"content-type": "application/json"}
BODY = {"model": "stub", "messages": HI, "max_tokens": 3}
ANSWERED = ["/v1/chat/completions", "/v1/chat/completions/", "/chat/completions", "/v1//chat/completions",
            "/openai/v1/chat/completions", "/v1/v1/chat/completions", "/v1/chat%2Fcompletions",
            "/v%31/chat/completions", "http://localhost/v1/chat/completions",
            "/openai/deployments/stub/chat/completions?api-version=2024-10-21",
            "/openai/deployments/stub/chat/completions/", "/v1/engines/stub/chat/completions"]
REFUSED = ["/v1/messages/batches", "/v1/images/generations", "/api/v2/generate", "/x",
           "/openai/deployments/stub/images/generations", "/v1beta/models/stub:generateContent", "/model/stub/invoke",
           "/v1/models/stub", "/openai/deployments/big/chat/completions", "/v1/moderations?model=stub",
           "/projects/p/models/st%2575b:predict"]


def ask(made: Rig, target: str, body: bytes, headers: Mapping[str, str] | None = None,
        method: str = "POST") -> RawAnswer:
    answered = send(made.live.url, target, body, {**JSON, **(headers or {})}, method)
    assert not any(PROMPT.encode() in seen.body or "stub" in seen.target for seen in made.fake.received)
    return answered


@pytest.mark.parametrize("target", ANSWERED)
def test_every_spelling_of_a_path_that_is_served_is_answered_here(made: Rig, target: str) -> None:
    answered = ask(made, target, json.dumps(BODY).encode())
    assert answered.status == 200, answered.body
    assert json.loads(answered.body)["choices"][0]["message"]["content"]
    assert not made.fake.received


@pytest.mark.parametrize("target", ["/v1/messages", "/messages/", "/v1/messages/count_tokens",
                                    "/v1/messages?beta=true"])
def test_messages_are_answered_here_too(made: Rig, target: str) -> None:
    answered = ask(made, target, json.dumps(BODY).encode())
    body = json.loads(answered.body)
    assert answered.status == 200 and (body.get("type") == "message" or body["input_tokens"] > 0)
    assert not made.fake.received


def test_a_deployments_name_is_the_model(made: Rig) -> None:
    for body in ({"messages": HI, "max_tokens": 3}, {"model": "gpt-4o", "messages": HI, "max_tokens": 3}):
        answered = ask(made, "/openai/deployments/stub/chat/completions?api-version=1", json.dumps(body).encode())
        assert answered.status == 200 and json.loads(answered.body)["model"] == "stub"
    assert not made.fake.received


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "GET"])
@pytest.mark.parametrize("target", REFUSED)
def test_what_cannot_be_answered_here_is_refused_by_name(made: Rig, target: str, method: str) -> None:
    answered = ask(made, target, json.dumps(BODY).encode(), method=method)
    if (method, target) == ("GET", "/v1/models/stub"):
        assert json.loads(answered.body)["id"] == "stub"
        return
    error = json.loads(answered.body)["error"]
    assert answered.status == 404 and error.get("code") in ("not_served_here", None)  # Messages' errors have no code
    assert "'stub' is served here" in error["message"]
    assert not made.fake.received


def deflated(body: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(body) + packer.flush()


CODINGS: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress, "x-gzip": gzip.compress, "GZIP": gzip.compress, "deflate": zlib.compress, "identity": bytes,
    "gzip, gzip": lambda body: gzip.compress(gzip.compress(body)), "deflate, identity": deflated}


@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_body_is_decompressed_before_it_is_read(made: Rig, coding: str) -> None:
    body = CODINGS[coding](json.dumps(BODY).encode())
    answered = ask(made, "/v1/chat/completions", body, {"content-encoding": coding})
    assert answered.status == 200 and not made.fake.received
    assert ask(made, "/v1/messages/batches", body, {"content-encoding": coding}).status == 404


@pytest.mark.parametrize(("coding", "body"), [
    ("br", b"\x0b\x02\x80PRIVATE-PROMPT\x03"), ("zstd", b"\x28\xb5\x2f\xfd"), ("gzip", b"no gzip"), ("compress", b"x"),
    ("gzip", gzip.compress(json.dumps(BODY).encode(), mtime=0)[:-9]), ("aes128gcm", b"x"),
    ("gzip,gzip,gzip,gzip,gzip", b"x")])
def test_a_body_that_cannot_be_decompressed_is_refused(made: Rig, coding: str, body: bytes) -> None:
    answered = ask(made, "/v1/chat/completions", body, {"content-encoding": coding})
    assert answered.status == 415 and json.loads(answered.body)["error"]["code"] == "unsupported_encoding"
    assert answered.headers["accept-encoding"] == "gzip, deflate"
    assert not made.fake.received


def test_a_body_that_grows_over_the_limit_is_refused_before_it_is_there(made: Rig) -> None:
    bomb = gzip.compress(b" " * (40 << 20))
    answered = ask(made, "/v1/chat/completions", bomb, {"content-encoding": "gzip"})
    assert answered.status == 413 and json.loads(answered.body)["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(("charset", "status"), [
    ("utf-8", 200), ("UTF-8", 200), ("us-ascii", 200), ("iso-8859-1", 200), ("utf-16", 200), ("utf-16-be", 200),
    ("utf-32", 200), ("utf-7", 415), ("cp037", 415), ("no-such", 415)])
def test_a_charset_is_read_or_refused(made: Rig, charset: str, status: int) -> None:
    spelled = json.dumps(BODY).encode("utf-8" if charset == "no-such" else charset)
    answered = ask(made, "/v1/chat/completions", spelled, {"content-type": f"application/json; charset={charset}"})
    assert answered.status == status, answered.body
    assert not made.fake.received


@pytest.mark.parametrize(("charset", "spelled"), [
    ("utf-8", "utf-8"), ("iso-8859-1", "iso-8859-1"), ("iso-8859-1", "utf-8"), ("windows-1252", "cp1252"),
    ("utf-16", "utf-16"), ("us-ascii", "utf-8")])
def test_what_is_said_reaches_the_upstream_in_utf_8(made: Rig, charset: str, spelled: str) -> None:
    asked = {"model": "big", "messages": [{"role": "user", "content": "dïng döng"}]}
    body = json.dumps(asked, ensure_ascii=False).encode(spelled)
    sent = send(made.live.url, "/v1/chat/completions", body, {"content-type": f"application/json;charset={charset}"})
    assert sent.status == 200 and json.loads(made.fake.received[0].body.decode()) == asked


BODIES = [
    b"\xef\xbb\xbf" + json.dumps(BODY).encode(), json.dumps(BODY).encode("utf-16"),
    json.dumps(BODY).encode("utf-16-le"),
    b'{"model": "stub", "model": "big", "messages": ["PRIVATE-PROMPT"]}',
    b'{"model": "big", "model": "stub", "messages": ["PRIVATE-PROMPT"]}',
    b'{"Model": "stub", "messages": ["PRIVATE-PROMPT"]}', b'{"MODEL": "stub", "model": "big", "p": "PRIVATE-PROMPT"}',
    b'{"mod\\u0065l": "st\\u0075b", "messages": ["PRIVATE-PROMPT"]}', b'{"model ": "stub", "p": "PRIVATE-PROMPT"}',
    b'{"model": " stub ", "messages": ["PRIVATE-PROMPT"]}', b'{"model": "STUB", "messages": ["PRIVATE-PROMPT"]}',
    b'{"models": ["big", "stub"], "model": "big", "messages": ["PRIVATE-PROMPT"]}',
    b'{"model": ["stub"], "messages": ["PRIVATE-PROMPT"]}', b'[{"model": "stub", "messages": ["PRIVATE-PROMPT"]}]',
    b'{"requests": [{"params": {"model": "stub", "messages": ["PRIVATE-PROMPT"]}}]}',
    b'{"model": "stub", "messages": ["PRIVATE-PROMPT"],}', b"{'model': 'stub', 'messages': ['PRIVATE-PROMPT']}",
    b'{"model": "stub", "messages": ["PRIVATE-PROMPT"]', b'{"model": "stub", "messages": ["PRIVATE-PROMPT \xff"]}',
    b'{"model": "stub"} {"model": "big", "p": "PRIVATE-PROMPT"}', b"model=stub&prompt=PRIVATE-PROMPT",
    b"MODEL=s%74ub&prompt=PRIVATE-PROMPT", b"m%6fdel=s%2574ub&prompt=PRIVATE-PROMPT", b'<model="stub">PRIVATE-PROMPT',
    b'{"custom_id": "1", "body": {"model": "stub", "x": "PRIVATE-PROMPT"}}\n{"body": {"model": "big"}}\n',
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nstub\r\n--b\r\n\r\nPRIVATE-PROMPT\r\n--b--\r\n',
    b"--b\nContent-Disposition: form-data; name=model\nContent-Type: text/plain\n\nstub\n--b\n\nPRIVATE-PROMPT\n"]


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/audio/transcriptions", "/v1/messages", "/v1/files"])
@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_every_place_in_a_body_that_names_a_model_is_seen(made: Rig, body: bytes, target: str) -> None:
    answered = ask(made, target, body)
    assert answered.status in (200, 400, 404, 415), answered.body
    assert not made.fake.received


SLASHES = st.sampled_from(["/", "//", "/%2f"])
PATHS = st.builds(lambda parts, slash, end: "".join(f"{slash}{part}" for part in parts).replace(slash, "/", 1) + end,
                  st.sampled_from([["v1", "chat", "completions"], ["chat", "completions"], ["v1", "messages"],
                                   ["openai", "v1", "responses"], ["v1", "embeddings"], ["v1", "completions"],
                                   ["openai", "deployments", "stub", "chat", "completions"], ["v1", "files"],
                                   ["V1", "Chat", "Completions"], ["api", "v1", "chat", "completions"], ["v1"]]),
                  SLASHES, st.sampled_from(["", "/", "//", "?a=1", "/?model=stub"]))


def spelled(name: str, value: str, *, escaped: bool, copies: int, before: bool) -> bytes:
    text = "".join(f"\\u{ord(letter):04x}" for letter in value) if escaped else value
    other, mine = '"model": "big"', ", ".join([f'"{name}" : "{text}"'] * copies)
    fields = [other, mine] if before else [mine, '"x": 1']
    return ("{" + ", ".join((*fields, f'"messages": [{{"role": "user", "content": "{PROMPT}"}}]')) + "}").encode()


DOCUMENTS = st.builds(spelled, st.sampled_from(["model", "Model", "MODEL"]), st.sampled_from(["stub", "STUB", " stub"]),
                      escaped=st.booleans(), copies=st.integers(1, 2), before=st.booleans())


@settings(deadline=None, max_examples=60)
@given(path=PATHS, document=DOCUMENTS, coding=st.sampled_from(sorted(CODINGS)),
       charset=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
       method=st.sampled_from(["POST", "POST", "PUT", "GET", "DELETE"]),
       kind=st.sampled_from(["application/json", "text/plain", "application/octet-stream"]))
def test_no_spelling_lets_a_prompt_out(module_rig: Rig, path: str, document: bytes, coding: str, charset: str,
                                       method: str, kind: str) -> None:
    body = CODINGS[coding](document.decode().encode(charset))
    answered = ask(module_rig, path, body, {"content-encoding": coding, "content-type": kind}, method)
    assert answered.status in (200, 400, 404, 405, 415, 422), answered.body


def test_a_body_that_names_very_many_models_is_refused(made: Rig) -> None:
    lines = "\n".join(json.dumps({"body": {"model": f"m{number}", "x": PROMPT}}) for number in range(2000))
    assert ask(made, "/v1/files", f'{lines}\n{{"model": "stub"}}'.encode()).status == 400
    assert not made.fake.received


@pytest.mark.parametrize("piece", [b"model", b'"model":"', b'name="model"\n', b"name=model\na: b\n", b"model    ",
                                   b"%25", b'{"model":', b"deployment=", b'"model":"\\', b"'model':'"])
def test_no_body_is_read_again_and_again(piece: bytes) -> None:
    short, long = (cpu_s(partial(client_body.read, piece * (size // len(piece)))) for size in (50_000, 400_000))
    assert long < 20 * short + 0.5


def test_what_only_quotes_a_name_still_goes_on(made: Rig) -> None:
    quoting = {"model": "big", "messages": [{"role": "user", "content": '"model": "stub", model=stub'}]}
    assert send(made.live.url, "/v1/chat/completions", json.dumps(quoting).encode(), JSON).status == 200
    assert send(made.live.url, "/v1/images/generations", b'{"model": "big", "prompt": "a stub"}', JSON).status == 200
    assert len(made.fake.received) == 2
