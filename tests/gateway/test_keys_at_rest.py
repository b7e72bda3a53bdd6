"""Whoever quotes the key of a request, what is written down of it, and can be decrypted, does not hold the key."""

from __future__ import annotations

import ast
import base64
import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.gateway import exchange as exchange_module
from brise.gateway import request as asked
from brise.gateway.breaker import Breaker, BreakerSettings
from brise.gateway.exchange import answer_of
from brise.gateway.fallback import SmallModelFallback
from brise.gateway.gateway import Components
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.reanswer import Reanswer, ReanswerOptions
from brise.gateway.small_models import TaskModels
from brise.switch.shadow import Reask, Shadow, ShadowOptions
from brise.traffic import redact
from brise.traffic.capture import Capture
from brise.traffic.records import Exchange
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import open_store
from tests.engine.stub import stub_model
from tests.gateway.fake_answers import chat_body, chat_events
from tests.gateway.fake_upstream import Behaviour, answer, chat, events, raw
from tests.gateway.rig import Rig, rig
from tests.traffic import records
from tests.waiting import wait_until

KEY = "sk-very/secret+0123456789="
BODY: dict[str, Any] = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
BEARER = {"authorization": f"Bearer {KEY}"}
Rows = list[dict[str, Any]]


def written(store: SqlStore) -> Rows:
    exchanges = list(store.exchanges())
    return [*map(asdict, exchanges), *map(asdict, store.answers([each.id for each in exchanges]))]


def kept(home: Path, behaviours: Sequence[Behaviour], send: Callable[[Rig], object], key: str | None = None) -> Rows:
    """Every row that is written of the requests that `send` sends, decrypted."""
    store = open_store(None, home)
    capture = Capture(store)
    with rig(key=key, parts=Components(capture=capture)) as made:
        made.fake.then(*behaviours)
        send(made)
    assert not capture.drain().dropped
    rows = written(store)
    store.close()
    assert rows
    return rows


def check(rows: Rows) -> str:
    """Text of the rows, without the key in any form, nor more than half of it."""
    text = json.dumps(rows)
    for letters in ("very", "secret", "0123456789"):
        assert letters not in text
    return text


def quoting(*places: str) -> dict[str, Any]:
    return {"error": {"message": f"Incorrect API key provided: {KEY}.", "code": "invalid_api_key",
                      **{place: [KEY, {KEY: 1}] for place in places}}}


def test_an_error_that_quotes_the_key(tmp_path: Path) -> None:
    said = json.dumps(quoting("details")).encode()

    def send(made: Rig) -> None:
        response = made.live.post(CHAT, BODY, headers=BEARER)
        assert (response.status_code, response.content) == (401, said)  # the client's is as it came

    rows = kept(tmp_path, [answer(said, 401, {"content-type": "application/json"})], send)
    assert rows[0]["error"] == "Incorrect API key provided: [key]."
    assert rows[0]["response"]["error"]["details"] == ["[key]", {"[key]": 1}]
    check(rows)


def test_a_compressed_error(tmp_path: Path) -> None:
    said = gzip.compress(json.dumps(quoting()).encode())
    rows = kept(tmp_path, [answer(said, 401, {"content-type": "application/json", "content-encoding": "gzip"})],
                lambda made: made.live.post(CHAT, BODY, headers=BEARER))
    assert "[key]" in check(rows)


@pytest.mark.parametrize("headers", [
    {"x-api-key": KEY}, {"api-key": KEY}, {"x-goog-api-key": KEY}, {"cf-aig-authorization": f"Bearer {KEY}"},
    {"authorization": KEY}, {"authorization": f"Bearer {KEY}", "x-api-key": KEY + "2"},
    {"authorization": f"Basic {base64.b64encode(f'user:{KEY}'.encode()).decode()}"}])
def test_wherever_the_key_came(headers: Mapping[str, str], tmp_path: Path) -> None:
    rows = kept(tmp_path, [answer(quoting(), 401)], lambda made: made.live.post(CHAT, BODY, headers=dict(headers)))
    assert "[key]" in check(rows)


def test_a_key_in_the_query(tmp_path: Path) -> None:
    rows = kept(tmp_path, [answer(quoting(), 401)],
                lambda made: made.live.post(f"{CHAT}?key=sk-very%2Fsecret%2B0123456789%3D&api-version=2026", BODY))
    assert "[key]" in check(rows)


def test_keys_that_a_request_hands_on(tmp_path: Path) -> None:
    body = {**BODY, "tools": [{"type": "mcp", "authorization": KEY, "headers": {"X-Auth-Token": KEY}}]}
    rows = kept(tmp_path, [answer(quoting(), 400)], lambda made: made.live.post(CHAT, body))
    assert rows[0]["request"]["tools"] == [
        {"type": "mcp", "authorization": "[key]", "headers": {"X-Auth-Token": "[key]"}}]
    check(rows)


def test_the_gateways_own_key(tmp_path: Path) -> None:
    rows = kept(tmp_path, [answer(quoting(), 401)], lambda made: made.live.post(CHAT, BODY), key=KEY)
    assert "[key]" in check(rows)


def test_a_stream_that_ends_in_an_error(tmp_path: Path) -> None:
    rows = kept(tmp_path, [events([*chat_events("one")[:2], quoting()])],
                lambda made: made.live.post(CHAT, {**BODY, "stream": True}, headers=BEARER))
    assert "[key]" in rows[0]["error"]
    check(rows)


def test_a_key_in_pieces(tmp_path: Path) -> None:
    """Said by the model itself, a token an event; the log-probabilities say it once more."""
    chunks = chat_events("x")

    def chunk(token: str) -> dict[str, Any]:
        return {**chunks[1], "choices": [{  # type: ignore[dict-item]
            "index": 0, "delta": {"content": token}, "finish_reason": None,
            "logprobs": {"content": [{"token": token, "logprob": -0.1, "bytes": list(token.encode()),
                                      "top_logprobs": []}]}}]}

    pieces = ["Your key is ", *(KEY[at:at + 3] for at in range(0, len(KEY), 3)), ", isn't it?"]
    rows = kept(tmp_path, [events([chunks[0], *map(chunk, pieces), *chunks[2:]])],
                lambda made: made.live.post(CHAT, {**BODY, "stream": True, "logprobs": True}, headers=BEARER))
    choice, = rows[0]["response"]["choices"]
    assert choice["message"]["content"] == "Your key is [key], isn't it?" and choice["logprobs"] is None
    assert rows[0]["request"]["logprobs"] is True
    check(rows)


def test_an_answer_that_is_no_http_and_a_quote_that_is_cut(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\n"
    rows = kept(tmp_path, [raw(head + b"bad " + KEY.encode() + b"\r\n"), events([f"so {KEY}"])],
                lambda made: [made.live.post(CHAT, {**BODY, "stream": stream}, headers=BEARER)
                              for stream in (False, True)])
    check(rows)


def test_whoever_answers_the_request_once_more(tmp_path: Path) -> None:
    """The candidate in the shadow, the large model asked again: both are told the key by the request itself."""
    store = open_store(None, tmp_path)
    capture = Capture(store)

    def around(local: Any, large: Any, _: Any) -> Components:
        both = Shadow(local, TaskModels("stub"), ShadowOptions(1.0), capture), Reask(large, 1.0, capture)
        return Components(observers=both, background=both, capture=capture)

    body = {"model": "big", "messages": [{"role": "user", "content": f"my key is {KEY}"}]}
    with rig(model=stub_model(f"it is {KEY}"), around=around) as made:
        made.fake.then(chat(f"{KEY} it is"), chat(f"{KEY} it is again"))
        assert made.live.post(CHAT, body, headers=BEARER).json() == chat_body(f"{KEY} it is")
        wait_until(lambda: capture.flush() and len(written(store)) == 3)
    capture.drain()
    rows = {row.get("role", "first"): row for row in written(store)}
    store.close()
    assert rows["first"]["request"]["messages"][0]["content"] == "my key is [key]"
    assert [rows[name]["response"]["choices"][0]["message"]["content"] for name in ("first", "shadow", "reask")] == [
        "[key] it is", "it is [key]", "[key] it is again"]
    check(list(rows.values()))


def test_answers_of_an_outage_and_after_it(tmp_path: Path) -> None:
    store, made = open_store(None, tmp_path), list[Reanswer]()
    capture = Capture(store)

    def around(local: Any, large: Any, _: Any) -> Components:
        made.append(Reanswer(large, store, capture, ReanswerOptions(every_s=0.001)))
        return Components(fallback=SmallModelFallback(local, TaskModels("stub")), observers=made, background=made,
                     capture=capture)

    with rig(model=stub_model(f"it is {KEY}"), around=around,
             breaker=Breaker(BreakerSettings(failures=1_000_000))) as running:
        running.fake.then(answer(quoting(), 503), chat("back"), answer(quoting(), 400))
        assert running.live.post(CHAT, BODY, headers=BEARER).headers["x-brise-mode"] == "degraded"
        running.live.post(CHAT, BODY, headers=BEARER)
        wait_until(lambda: any(row.get("role") == "reanswer" for row in written(store)))
    capture.drain()
    rows = written(store)
    store.close()
    assert [row["error"] for row in rows if row.get("role") == "reanswer"] == ["Incorrect API key provided: [key]."]
    check(rows)


def test_an_audits_answer() -> None:
    request = asked.read("POST", CHAT, CHAT.encode(), [(b"authorization", f"Bearer {KEY}".encode())], b"{}")
    said = answer_of(request, "audit", 0.0, RequestOutcome("hosted", 401, response=quoting(), error=f"no {KEY}"), 0.0)
    assert said.error == "no [key]" and KEY not in json.dumps(said.response)


# The pieces.

def exchange(**fields: Any) -> Exchange:
    return redact.exchange(records.exchange("a", **fields), [KEY])


@pytest.mark.parametrize("spelt", [
    KEY, KEY.replace("/", "\\/"), KEY.replace("+", "\\u002B").replace("=", "\\u003d"),
    "sk-very%2Fsecret%2b0123456789%3D", json.dumps(json.dumps(KEY.replace("/", "\\/"))), KEY[:20], KEY[:14]])
def test_it_is_known_escaped_and_cut(spelt: str) -> None:
    found = exchange(response={"a": [f"x {spelt} y"]}).response
    assert found is not None and "very" not in found["a"][0] and found["a"][0].startswith("x ")
    assert found["a"][0].endswith(" y") and redact.MARK in found["a"][0]


@given(st.text(max_size=30), st.text(max_size=30), st.text(st.characters(min_codepoint=33, max_codepoint=126),
                                                          min_size=8, max_size=40))
def test_the_rest_of_a_text_stays(before: str, after: str, secret: str) -> None:
    found = redact.text(f"{before}\n{secret}\n{after}", [secret])
    assert secret not in found and (found == f"{before}\n[key]\n{after}" or secret[:4] in before + after
                                    or secret[0] in "\\%")


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=4)
                    | st.dictionaries(st.text(), inner, max_size=4), max_leaves=20))
def test_what_holds_no_key_is_the_same_object(value: Any) -> None:
    whole = records.exchange("a", response={"value": value})
    assert redact.exchange(whole, [KEY]) is whole


def test_a_short_key_is_no_secret() -> None:
    """Servers at home take any key: `none`, `EMPTY`, `x`."""
    assert redact.secrets_of([(b"authorization", b"Bearer none")], b"/v1", None) == ()


def test_what_is_no_secret() -> None:
    headers = [(b"x-brise-label-key", b"0123456789"), (b"content-type", b"application/json"),
               (b"cookie", b"theme=darkmode; session=0123456789abcdefghij"), (b"x-max-tokens", b"0123456789")]
    fields = {"prompt_cache_key": "0123456789", "user": "0123456789", "tools": [
        {"type": "function", "function": {"name": "get_token", "parameters": {"properties": {"token": {
            "type": "string"}}}}}]}
    assert redact.secrets_of(headers, b"/v1?model=0123456789", fields) == (
        "0123456789abcdefghij", "session=0123456789abcdefghij")


def test_a_subject_may_not_be_a_key() -> None:
    found = exchange(subject=KEY, labels={"who": KEY}, conversation=KEY)
    assert (found.subject, found.labels, found.conversation) == ("[key]", {"who": "[key]"}, "[key]")


@given(st.sampled_from([b"authorization", b"cookie", b"api-key"]),
       st.sampled_from([b"", b"Basic ", b"Bearer ", b"Basic ,"]), st.binary(max_size=20), st.binary(max_size=20))
def test_nothing_that_a_client_sends_is_an_error(name: bytes, scheme: bytes, value: bytes, query: bytes) -> None:
    wanted = asked.read("POST", CHAT, CHAT.encode() + b"?key=" + query, [(name, scheme + value)], b'{"tools": [1, {}]}')
    redact.exchange(records.exchange("a", response={"a": value.decode("latin-1")}), wanted.secrets)


def test_a_body_nested_too_deep_to_be_cleaned_is_left_out() -> None:
    deep: Any = KEY
    for _ in range(900):
        deep = [deep]
    found = exchange(response={"a": deep}, error=KEY)
    assert (found.response, found.error) == (None, "[key]")


def test_rows_of_requests_are_made_in_one_file_which_leaves_keys_out() -> None:
    source = Path(exchange_module.__file__).parents[1]
    makers = {str(path.relative_to(source)) for package in ("gateway", "switch", "serve")
              for path in (source / package).glob("*.py") for node in ast.walk(ast.parse(path.read_text()))
              if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
              and node.func.id in ("Exchange", "RecordedAnswer")}
    assert makers == {"gateway/exchange.py"}
