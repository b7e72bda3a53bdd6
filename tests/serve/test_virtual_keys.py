"""Virtual keys over HTTP: who is let in, what a key may use, and what is said where it may not."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from brise.dialects.bodies import Usage
from brise.serve.key_admission import KeyAdmission
from brise.serve.key_guard import KeyOptions
from brise.traffic.prices import Price, Prices
from tests.gateway.fake_upstream import answer
from tests.serve.keys_rig import NOON_S, KeyedRig, keyed, words
from tests.serve.live import live
from tests.waiting import wait_until

WRONG = "brise-000000000000-" + "a" * 43


@pytest.fixture
def made(tmp_path: Path) -> Iterator[KeyedRig]:
    with keyed(tmp_path / "traffic.sqlite", tmp_path) as rig:
        yield rig


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
def test_a_key_is_accepted_in_the_headers_of_all_clients(made: KeyedRig, header: str) -> None:
    key = made.add()
    value = f"Bearer {key}" if header == "authorization" else key
    response = made.rig.live.post("/v1/chat/completions", {"model": "big", "messages": []}, headers={header: value})
    assert response.status_code == 200
    assert all(made.rig.fake.received[0].header(name) is None for name in ("authorization", "x-api-key", "api-key"))


@pytest.mark.parametrize("text", ["", WRONG, "sk-other", "brise-", "brise-x-y"])
def test_other_texts_are_refused(made: KeyedRig, text: str) -> None:
    key = made.add()
    assert made.ask(text or "none").status_code == 401
    assert made.ask(key[:-1] + ("a" if key[-1] != "a" else "b")).json()["error"]["code"] == "invalid_api_key"
    assert not made.rig.fake.received


def test_the_row_names_the_key_and_holds_no_secret(made: KeyedRig) -> None:
    key = made.add("team-a")
    made.ask(key)
    exchange = made.rig.captured.wait()[0]
    assert exchange.labels == {"key": "team-a"} and key not in repr(exchange)


def test_a_client_cannot_name_another_key_in_its_row(made: KeyedRig) -> None:
    key = made.add("team-a")
    made.rig.live.post("/v1/chat/completions", {"model": "big", "messages": []},
                       headers={"authorization": f"Bearer {key}", "x-brise-label-key": "team-b"})
    assert made.rig.captured.wait()[0].labels["key"] == "team-a"


def test_a_key_that_was_made_a_moment_ago_is_known(made: KeyedRig) -> None:
    assert [made.ask(made.add(f"k{number}")).status_code for number in range(3)] == [200] * 3


@pytest.mark.parametrize("change", ["disable", "remove", "rotate"])
def test_a_change_is_seen_by_a_running_gateway(made: KeyedRig, change: str) -> None:
    key = made.add()
    assert made.ask(key).status_code == 200
    getattr(made.keys, change)("team")
    wait_until(lambda: made.ask(key).status_code == 401)
    if change == "disable":
        made.keys.enable("team")
        wait_until(lambda: made.ask(key).status_code == 200)


def test_removing_the_last_key_does_not_open_the_server(tmp_path: Path) -> None:
    with keyed(tmp_path / "traffic.sqlite", tmp_path, is_required=False) as made:
        assert made.ask("none").status_code == 200
        key = made.add()
        assert made.ask(key).status_code == 200
        wait_until(lambda: made.ask("none").status_code == 401)
        made.keys.remove("team")
        wait_until(lambda: made.ask(key).status_code == 401)
    with keyed(tmp_path / "traffic.sqlite", tmp_path, is_required=False) as made:
        assert made.ask("none").status_code == 401


def test_a_key_ends_when_it_expires(made: KeyedRig) -> None:
    key = made.keys.add("trial", valid_s=60.0)
    made.clock.now_s = key.key.created_s
    assert made.ask(key.text).status_code == 200
    made.clock.now_s = key.key.created_s + 60
    refused = made.ask(key.text)
    assert refused.status_code == 401 and "'trial' is expired" in refused.json()["error"]["message"]


def test_a_rotated_key_keeps_the_old_secret_for_a_while(made: KeyedRig) -> None:
    old = made.add()
    new = made.keys.rotate("team", keep_old_s=3600.0)
    assert made.ask(new.text).status_code == made.ask(old).status_code == 200
    made.clock.now_s = max(until_s or 0.0 for _, until_s in made.keys.named("team").digests)
    assert (made.ask(new.text).status_code, made.ask(old).status_code) == (200, 401)


@pytest.mark.parametrize(("model", "status"), [
    ("big", 200), ("x/small", 200), ("bigger", 403), ("", 403), ("X/small", 403), ("y/big", 403)])
def test_a_key_is_for_its_models(made: KeyedRig, model: str, status: int) -> None:
    key = made.add(models=("big", "x/*"))
    response = made.ask(key, model)
    assert response.status_code == status
    assert len(made.rig.fake.received) == (status == 200)
    if status == 403:
        assert response.json()["error"]["code"] == "model_not_allowed"


@pytest.mark.parametrize("body", [
    b'{"model": "other", "model": "big", "messages": []}', b'{"model": "big", "Model": "other", "messages": []}',
    b'{"models": ["big", "other"], "messages": []}', b"[]", b"{", b'{"model": ["other"]}'])
def test_a_body_that_servers_read_in_different_ways_is_refused(made: KeyedRig, body: bytes) -> None:
    key = made.add(models=("big",))
    response = made.rig.live.post("/v1/chat/completions", content=body, headers={
        "authorization": f"Bearer {key}", "content-type": "application/json"})
    assert response.status_code in (400, 403) and not made.rig.fake.received


def test_paths_without_a_model_are_not_for_a_restricted_key(made: KeyedRig) -> None:
    key, free = made.add(models=("big",)), made.add("free")
    made.rig.fake.default = answer({})
    for path, status in (("/v1/files", 403), ("/v1/models", 200)):
        assert made.rig.live.get(path, headers={"authorization": f"Bearer {key}"}).status_code == status
        assert made.rig.live.get(path, headers={"authorization": f"Bearer {free}"}).status_code == 200
    counted = made.rig.live.post("/v1/messages/count_tokens", {"model": "big"}, headers={"x-api-key": key})
    assert counted.status_code == 200


def test_a_virtual_key_sees_no_metrics_and_changes_no_adapters(made: KeyedRig) -> None:
    headers = {"authorization": f"Bearer {made.add()}"}
    for refused in (made.rig.live.get("/metrics", headers=headers),
                    made.rig.live.post("/v1/adapters", {"name": "a", "path": "/"}, headers=headers)):
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "key_not_allowed"


def test_an_error_has_the_form_of_the_path(made: KeyedRig) -> None:
    key = made.add(requests_per_minute=1, models=("big",))
    refused = made.rig.live.post("/v1/messages", {"model": "no"}, headers={"x-api-key": key})
    assert refused.json() == {"type": "error", "error": {"type": "permission_error", "message": (
        "the API key 'team' is not for the model 'no'; it is for big")}}
    unknown = made.rig.live.post("/v1/messages", {"model": "no"}, headers={"x-api-key": WRONG})
    assert unknown.json()["error"]["type"] == "authentication_error"
    assert made.ask(key).status_code == 200
    limited = made.rig.live.post("/v1/messages", {"model": "big"}, headers={"x-api-key": key})
    assert (limited.status_code, limited.json()["error"]["type"]) == (429, "rate_limit_error")


def test_requests_of_a_minute_are_limited(made: KeyedRig) -> None:
    made.clock.now_s = NOON_S + 20
    key = made.add(requests_per_minute=3)
    assert [made.ask(key).status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = made.ask(key)
    assert refused.headers["retry-after"] == "40" and refused.json()["error"] == {
        "message": "the API key 'team' has a limit: nothing is left of its requests of this minute\n"
                   "hint: try again in 40 s", "type": "rate_limit_error", "param": None, "code": "rate_limit_exceeded"}
    made.clock.now_s += 40
    assert [made.ask(key).status_code for _ in range(4)] == [200, 200, 200, 429]


def test_openais_client_sees_a_rate_limit(made: KeyedRig) -> None:
    with made.rig.live.client(made.add(requests_per_minute=1)) as client:
        client.chat.completions.create(model="big", messages=[{"role": "user", "content": "hi"}])
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="big", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "rate_limit_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_a_minute_are_limited(made: KeyedRig, stream: bool) -> None:
    key = made.add(tokens_per_minute=25)
    statuses = [made.ask(key, stream=stream, max_tokens=1).status_code for _ in range(6)]
    assert statuses[0] == 200 and statuses[-1] == 429
    assert made.use().minute.used.tokens >= 25


def test_a_budget_ends_and_begins_anew_at_midnight(made: KeyedRig) -> None:
    key = made.add(usd_per_day=0.05)
    made.rig.fake.default = answer(words(9))  # 10 x 100 and 9 x 1000 a million: 0.01 USD
    assert [made.ask(key).status_code for _ in range(7)] == [200] * 5 + [429] * 2
    refused = made.ask(key)
    assert refused.headers["retry-after"] == "43200" and refused.headers["x-should-retry"] == "false"
    assert refused.json()["error"]["code"] == refused.json()["error"]["type"] == "insufficient_quota"
    assert made.wait_settled(number=5).day.usd == pytest.approx(0.05)
    made.clock.now_s = NOON_S + 43_200
    assert made.ask(key).status_code == 200
    assert made.wait_settled().day.usd == pytest.approx(0.01)
    assert made.use().month.usd == pytest.approx(0.06)


def test_a_budget_of_a_month_goes_on_at_midnight(made: KeyedRig) -> None:
    key = made.add(usd_per_month=0.02)
    made.rig.fake.default = answer(words(9))
    assert made.ask(key).status_code == 200
    made.clock.now_s += 43_200
    assert [made.ask(key).status_code for _ in range(2)] == [200, 429]
    assert made.ask(key).headers["retry-after"] == str(30 * 86_400)
    made.clock.now_s += 30 * 86_400
    assert made.ask(key).status_code == 200


def test_what_is_used_survives_a_restart(tmp_path: Path) -> None:
    with keyed(tmp_path / "traffic.sqlite", tmp_path) as made:
        key = made.add(requests_per_minute=2, usd_per_day=1.0)
        assert made.ask(key).status_code == 200
    with keyed(tmp_path / "traffic.sqlite", tmp_path) as made:
        assert made.use("team").day.usd > 0
        assert [made.ask(key).status_code for _ in range(2)] == [200, 429]


def test_an_unknown_cost_counts_as_an_estimate(tmp_path: Path) -> None:
    options = KeyOptions(unknown_usd=0.5)
    with keyed(tmp_path / "traffic.sqlite", tmp_path, prices=None, options=options) as made:
        key = made.add(usd_per_day=1.0)
        assert [made.ask(key).status_code for _ in range(3)] == [200, 200, 429]
        use = made.wait_settled(number=2).day
        assert (use.usd, use.estimated_nano_usd, use.unknown_requests) == (1.0, 10**9, 2)


def test_refusals_of_the_upstream_cost_nothing(made: KeyedRig) -> None:
    key = made.add(usd_per_day=1.0)
    made.rig.fake.then(answer({"error": {"message": "no", "type": "invalid_request_error"}}, status=400))
    assert made.ask(key).status_code == 400
    use = made.wait_settled().day
    assert (use.used.requests, use.used.nano_usd, use.unknown_requests) == (1, 0, 0)


def test_a_request_that_its_client_left_counts_as_estimated(made: KeyedRig) -> None:
    key = made.add(usd_per_day=1.0)
    with made.rig.live.client(key) as client:
        stream = client.chat.completions.create(
            model="big", messages=[{"role": "user", "content": "hi"}], stream=True)
        next(iter(stream))
        stream.close()
    use = made.wait_settled().day
    assert use.used.requests == 1 and use.used.nano_usd > 0


def test_the_small_model_costs_nothing_and_counts(made: KeyedRig) -> None:
    key = made.add(usd_per_day=0.0, requests_per_minute=2)
    assert [made.ask(key, "stub").status_code for _ in range(3)] == [200, 200, 429]
    assert made.wait_settled(number=2).day.used.nano_usd == 0 and made.use().day.used.tokens > 0
    made.clock.now_s += 60
    assert made.ask(key, "big").json()["error"]["code"] == "insufficient_quota"


def test_a_server_without_an_upstream_takes_keys_too(tmp_path: Path) -> None:
    with keyed(tmp_path / "traffic.sqlite", tmp_path) as made:
        admission = made.rig.live.serving.admission
        with live(admission=admission) as server:
            headers = {"authorization": f"Bearer {made.add(requests_per_minute=2, models=('stub',))}"}
            body = {"model": "stub", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
            asked = [server.post("/v1/chat/completions", body, headers=headers).status_code for _ in range(3)]
            assert asked == [200, 200, 429]
            assert server.post("/v1/completions", {"model": "no"}, headers=headers).status_code == 403
            assert server.chat().status_code == 401
            assert made.wait_settled(number=2).minute.used.tokens > 0


def test_ollamas_api_keeps_to_the_limits_of_a_key(made: KeyedRig) -> None:
    mine, other = made.add("team", models=("stub",)), made.add("other", models=("big",))
    body = {"model": "stub:latest", "messages": [{"role": "user", "content": "hi"}], "stream": False,
            "options": {"num_predict": 3}}
    live = made.rig.live
    answered = live.post("/api/chat", body, headers={"authorization": f"Bearer {mine}"})
    assert answered.json()["eval_count"] == 3
    tokens = answered.json()["prompt_eval_count"] + 3
    wait_until(lambda: made.use("team").day.used.tokens == tokens)
    refused = live.post("/api/chat", body, headers={"authorization": f"Bearer {other}"})
    assert refused.status_code == 403 and "'other' is not for the model" in refused.json()["error"]
    assert live.get("/api/tags", headers={"authorization": f"Bearer {other}"}).json()["models"]


def test_what_a_request_may_cost_is_at_its_upstreams_price(tmp_path: Path) -> None:
    prices = Prices({"azure/gpt": Price(1.0, 1.0), "gpt": Price(10.0, 10.0), "dear": Price(100.0, 100.0)})
    with keyed(tmp_path / "traffic.sqlite", tmp_path, prices=prices) as made:
        made.add(usd_per_day=1000.0)
        admission, (key,) = KeyAdmission(made.guard, prices), made.keys.all()
        charges = [asyncio.run(admission.admit(key, name, Usage(1_000_000, 0), is_local=False, upstream=upstream))
                   for name, upstream in (("gpt", "azure"), ("gpt", "openai"), ("new", "azure"))]
        costs = [charge.reservation.need.nano_usd for charge in charges]
    assert costs == [1_000_000_000, 10_000_000_000, 100_000_000_000]
