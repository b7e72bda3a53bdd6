"""Request targets: what is sent on, what is not, and what a gateway's own key pays for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.gateway.targets import TargetError, origin_form
from tests.gateway.fake_upstream import answer
from tests.gateway.raw_http import send
from tests.gateway.rig import Rig, rig

BODY = json.dumps({"model": "big", "messages": [{"role": "user", "content": "hi"}]}).encode()
JSON = {"content-type": "application/json"}
KEY = "sk-operators-own-0123456789"


@pytest.fixture(scope="module")
def paying() -> Iterator[Rig]:
    with rig(key=KEY) as made:
        yield made


@pytest.fixture
def paid(paying: Rig) -> Rig:
    paying.live.wait_idle()
    paying.fake.received.clear()
    return paying


@pytest.mark.parametrize("target", [
    "@other.example/x", "//other.example/v1/models", "/v1/../admin/keys", "/v1/%2e%2e/admin", "/v1/.%2E/admin", "/..",
    "/v1/%252e%252e/admin", "/v1/..%2fadmin", "/v1/..;/admin", "/v1/..\\admin", "/v1/..%5cadmin", "/./v1/models", "*",
    "http://anna:secret@localhost/v1/models", "http://localhost/../v1/models", "ftp://localhost/x", "other.example:443",
    "/v1/models/%00", "/v1/models/a%0d%0ahost:%20b", "/v1/models/%250a", "/v1/%c0%ae%c0%ae/x", "/v1/%u002e%u002e/x",
    "/v1/models/%2525252e", "/v1/models#x", "v1/models", "?model=x", "http:///v1/../x"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_target_that_may_lead_elsewhere_is_refused(paid: Rig, target: str, method: str) -> None:
    answered = send(paid.live.url, target, method=method)
    assert answered.status == 400, answered.body
    assert json.loads(answered.body)["error"]["code"] == "invalid_target"
    assert not paid.fake.received


def test_of_the_absolute_form_the_path_is_taken(paid: Rig) -> None:
    for place in ("http://localhost", "https://other.example:444", "HTTP://x"):
        assert send(paid.live.url, f"{place}/v1/chat/completions?a=1", BODY, JSON).status == 200
    assert send(paid.live.url, "http://localhost/health", method="GET").status == 200
    assert [seen.target for seen in paid.fake.received] == ["/v1/chat/completions?a=1"] * 3
    assert {seen.header("host") for seen in paid.fake.received} == {f"127.0.0.1:{paid.fake.port}"}


@pytest.mark.parametrize(("method", "target"), [
    ("GET", "/v1/files"), ("GET", "/v1/responses/resp_1"), ("DELETE", "/v1/models/big"),
    ("POST", "/v1/fine_tuning/jobs"), ("PUT", "/v1/models"),
    ("GET", "/admin/keys"), ("POST", "/api/v1/chat/completions"), ("GET", "/v1/chat/completions"),
    ("POST", "/v1/audio/speech"), ("GET", "/x"), ("PUT", "/"), ("POST", "/v1/chat/completions/x")])
def test_the_gateways_own_key_pays_for_listed_paths_only(paid: Rig, method: str, target: str) -> None:
    answered = send(paid.live.url, target, BODY, JSON, method)
    error = json.loads(answered.body)["error"]
    assert answered.status == 403 and error["code"] == "path_not_allowed" and "--upstream-path" in error["message"]
    assert not paid.fake.received


@pytest.mark.parametrize(("method", "target", "there"), [
    ("POST", "/chat/completions/", "/v1/chat/completions"), ("POST", "/v1//responses", "/v1/responses"),
    ("POST", "/v1/messages", "/v1/messages"), ("POST", "/v1/messages/count_tokens", "/v1/messages/count_tokens"),
    ("GET", "/v1/models/big", "/v1/models/big"), ("POST", "/openai/v1/embeddings?x=1", "/v1/embeddings?x=1"),
    ("POST", "/openai/deployments/big/completions?api-version=1", "/v1/completions")])
def test_paths_of_the_dialects_are_paid_in_every_spelling(paid: Rig, method: str, target: str, there: str) -> None:
    assert send(paid.live.url, target, BODY, JSON, method).status == 200
    received, = paid.fake.received
    assert received.target == there and KEY in (received.header("authorization") or received.header("x-api-key") or "")


def test_an_option_adds_paths() -> None:
    with rig(key=KEY, paths=("/v1/audio/*", "/v1/files")) as made:
        statuses = [send(made.live.url, target, BODY, JSON).status for target in (
            "/v1/audio/speech", "/v1/files", "/v1/files/", "/v1/files/f1", "/v1/audio/%2e%2e/files/f1")]
        assert statuses == [200, 200, 200, 403, 400]


def test_without_a_key_of_its_own_every_path_goes_on(made: Rig) -> None:
    made.fake.then(answer({"data": []}))
    assert send(made.live.url, "/v1/files?limit=3", method="GET").status == 200
    assert send(made.live.url, "/v1beta/x%20y/", BODY, JSON).status == 200
    assert [seen.target for seen in made.fake.received] == ["/v1/files?limit=3", "/v1beta/x%20y/"]


def test_what_clients_share_with_others_stays_with_the_gateway(paid: Rig) -> None:
    names = ("cookie", "x-goog-api-key", "x-auth-token", "ocp-apim-subscription-key", "x-amz-security-token",
             "x-secret", "api-key", "x-api-key", "authorization", "x-forwarded-authorization")
    target = "/v1/chat/completions?key=CLIENT-SECRET&api_key=CLIENT-SECRET&keep=1"
    sent = {**JSON, **dict.fromkeys(names, "CLIENT-SECRET"), "idempotency-key": "once", "openai-project": "p"}
    assert send(paid.live.url, target, BODY, sent).status == 200
    received, = paid.fake.received
    assert "CLIENT-SECRET" not in repr(received) and received.target == "/v1/chat/completions?keep=1"
    assert (received.header("idempotency-key"), received.header("openai-project")) == ("once", "p")


def test_of_a_path_that_is_only_passed_on_the_log_says_so_once() -> None:
    with rig() as made:
        for _ in range(2):
            send(made.live.url, "/v1/audio/speech", BODY, JSON)
        send(made.live.url, "/v1/chat/completions", BODY, JSON)
        assert made.live.log().count("'/v1/audio/speech' is passed on as it is") == 1


SEGMENTS = st.sampled_from(["v1", "models", ".", "..", "%2e", "%2E%2e", "%252e%252e", ".%2e", "a.b", "...", "..a",
                            "%20"])


@given(st.lists(SEGMENTS, min_size=1, max_size=5), st.sampled_from(["/", "%2f", "\\", "%5C", "%252f"]))
def test_no_decoding_of_a_target_that_is_taken_has_a_dot_segment(segments: list[str], slash: str) -> None:
    target = "/" + slash.join(segments)
    try:
        taken = origin_form(target.encode()).decode()
    except TargetError:
        return
    for _ in range(4):
        assert not {".", ".."} & set(taken.replace("\\", "/").split("/"))
        taken = _decoded(taken)


def _decoded(text: str) -> str:
    for code in range(128):
        text = text.replace(f"%{code:02x}", chr(code)).replace(f"%{code:02X}", chr(code))
    return text


def test_a_capture_names_the_usual_path(made: Rig) -> None:
    unnamed = BODY.replace(b'"model": "big", ', b"")
    send(made.live.url, "/openai/deployments/big/chat/completions?api-version=1", unnamed, JSON)
    row, = made.captured.wait()
    assert (row.kind, row.path, row.model, row.task) == ("chat", "/v1/chat/completions", "big", "big")
    assert row.request == {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
