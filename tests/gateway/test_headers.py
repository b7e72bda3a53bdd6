"""Headers and keys: what goes on, what comes back, and what never leaves this process."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import httpx
import openai
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from brise.gateway.gateway import Components, Gateway
from brise.gateway.large_model import LargeModel
from brise.gateway.upstream import Upstream, UpstreamSettings
from brise.gateway.upstreams import Upstreams
from brise.serve.gateway_metrics import GatewayMetrics
from brise.serve.serving import ServeSettings
from brise.traffic.capture import Capture
from brise.traffic.stores import open_store
from tests.gateway.fake_answers import chat_body
from tests.gateway.fake_upstream import Hold, answer, chat
from tests.gateway.rig import Rig, rig
from tests.serve.live import Live

BODY = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"
KEY = "sk-very-secret-0123456789"


def ask(live: Live, headers: dict[str, str] | None = None, path: str = CHAT) -> httpx.Response:
    return live.post(path, BODY, headers=headers or {})


def test_headers_of_one_connection_stay_on_it(made: Rig) -> None:
    ask(made.live, {"connection": "keep-alive, x-hop", "x-hop": "1", "te": "trailers", "keep-alive": "9",
                    "openai-project": "p", "x-stainless-lang": "python", "traceparent": "00-1", "cookie": "a=b"})
    received = made.fake.received[0]
    assert not [name for name in ("x-hop", "te", "keep-alive", "connection") if received.header(name)]
    assert [received.header(name) for name in ("openai-project", "x-stainless-lang", "traceparent", "cookie")] == [
        "p", "python", "00-1", "a=b"]
    assert received.header("host") == f"127.0.0.1:{made.fake.port}"


def test_headers_that_come_back(made: Rig) -> None:
    made.fake.then(answer(chat_body(), headers={
        "openai-processing-ms": "12", "x-ratelimit-limit-requests": "100", "x-request-id": "req_9", "keep-alive": "3",
        "alt-svc": 'h3=":443"', "x-brise-mode": "small", "set-cookie": "a=b", "connection": "x-hop", "x-hop": "1"}))
    headers = ask(made.live).headers
    assert (headers["openai-processing-ms"], headers["x-ratelimit-limit-requests"], headers["x-request-id"],
            headers["x-brise-mode"]) == ("12", "100", "req_9", "hosted")
    assert not {"alt-svc", "keep-alive", "x-hop", "set-cookie"} & headers.keys()


def test_an_answer_that_is_read_here_is_asked_for_without_compression(made: Rig) -> None:
    ask(made.live, {"accept-encoding": "gzip, br"})
    ask(made.live, {"accept-encoding": "gzip, br"}, path="/v1/audio/transcriptions")
    assert [each.header("accept-encoding") for each in made.fake.received] == ["identity", "gzip, br"]


def test_a_compressed_answer_goes_on_as_it_is_and_is_read_all_the_same(made: Rig) -> None:
    packed = gzip.compress(json.dumps(chat_body("hello")).encode())
    made.fake.then(answer(packed, headers={"content-type": "application/json", "content-encoding": "gzip"}))
    assert ask(made.live).json() == chat_body("hello")
    assert made.captured.wait()[0].response == chat_body("hello")


def test_without_a_key_of_its_own_the_clients_goes_on(made: Rig) -> None:
    ask(made.live, {"authorization": f"Bearer {KEY}", "x-api-key": "k"})
    received = made.fake.received[0]
    assert (received.header("authorization"), received.header("x-api-key")) == (f"Bearer {KEY}", "k")


def test_its_own_key_takes_the_place_of_the_clients() -> None:
    with rig(key=KEY) as made:
        ask(made.live, {"authorization": "Bearer theirs", "api-key": "theirs"})
        ask(made.live, {"x-api-key": "theirs"}, path="/v1/messages")
        chats, messages = made.fake.received
        assert (chats.header("authorization"), chats.header("api-key")) == (f"Bearer {KEY}", None)
        assert (messages.header("x-api-key"), messages.header("authorization")) == (KEY, None)


def test_keys_of_this_server_never_go_on(tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("ours\n")
    keys.chmod(0o600)
    with rig(settings=ServeSettings(api_keys_path=keys)) as made:
        assert ask(made.live, {"authorization": "Bearer wrong"}).status_code == 401
        assert ask(made.live, {"authorization": "Bearer ours"}).status_code == 200
        assert ask(made.live, {"x-api-key": "ours"}, path="/v1/messages").status_code == 200
        assert [(each.header("authorization"), each.header("x-api-key")) for each in made.fake.received] == [
            (None, None), (None, None)]


def test_no_key_is_written_down(tmp_path: Path) -> None:
    store = open_store(None, tmp_path)
    capture = Capture(store)
    with rig(key=KEY, parts=Components(capture=capture)) as made:
        made.live.post(f"{CHAT}?key={KEY}", BODY, headers={"authorization": f"Bearer {KEY}2", "x-api-key": KEY})
        made.fake.stop()
        ask(made.live, {"authorization": f"Bearer {KEY}3"})
        log = made.live.log()
    assert capture.drain().written == 2
    store.close()
    assert KEY not in log and CHAT in log
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


def test_a_path_of_the_upstreams_own() -> None:
    with rig(path="/api/v1") as made:
        ask(made.live)
        ask(made.live, path="/v1beta/x?a=1")
        assert [each.target for each in made.fake.received] == ["/api/v1/chat/completions", "/api/v1beta/x?a=1"]


@pytest.mark.parametrize("headers", [{"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}])
def test_other_sites_pages_may_not_spend_the_gateways_money(headers: dict[str, str]) -> None:
    with rig(key=KEY) as made:
        refused = ask(made.live, {**headers, "content-type": "text/plain"})
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "cross_site"
        assert not made.fake.received


def test_a_body_over_the_limit_is_refused_and_not_sent() -> None:
    with rig(settings=ServeSettings(max_body_bytes=1000)) as made:
        refused = made.live.post("/v1/files", content=b"x" * 1001)
        assert refused.status_code == 413 and not made.fake.received


def test_metrics_and_the_log_tell_who_answered(made: Rig) -> None:
    ask(made.live)
    text, log = made.live.metrics(), made.live.log()
    assert 'brise_gateway_requests_total{kind="chat",mode="hosted"}' in text
    assert 'brise_gateway_breaker{state="closed"} 1.0' in text
    assert f"POST {CHAT} 200" in log and "mode=hosted" in log


def test_a_server_that_ends_tells_the_clients_of_streams() -> None:
    hold = Hold()
    with rig() as made, made.live.client() as client:
        made.fake.then(chat("one two", hold=hold, hold_after=2))
        stream = client.chat.completions.create(model="big", messages=[{"role": "user", "content": "hi"}], stream=True)
        next(stream)
        assert made.live.serving.gateway is not None
        made.live.call_soon(made.live.serving.gateway.end)
        with pytest.raises(openai.APIError, match="shut down"):
            list(stream)
        assert made.captured.wait()[0].error is not None
        hold.release()


def test_every_metric_of_the_gateway_is_documented(made: Rig, tmp_path: Path) -> None:
    capture = Capture(open_store(None, tmp_path))
    registry = CollectorRegistry()
    large = Upstreams.only(LargeModel(Upstream(UpstreamSettings("http://127.0.0.1:1/v1"))))
    gateway = Gateway(large, Components(capture=capture))
    GatewayMetrics(gateway, registry)
    names = set(re.findall(r"# TYPE (\w+) (?:counter|gauge|histogram)", generate_latest(registry).decode()))
    capture.drain()
    text = (Path(__file__).parents[2] / "docs" / "guides" / "gateway.md").read_text(encoding="utf-8")
    assert [name for name in sorted(names) if f"`{name}`" not in text and not name.endswith("_created")] == []
