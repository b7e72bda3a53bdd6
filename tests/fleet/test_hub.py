"""The hub: enrolment, reports that are kept once, roll-outs, forgetting, and what hostile devices meet."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from brise.fleet import enrolment
from brise.fleet.offers import OfferedRollout
from brise.fleet.sealed_records import RecordBatch, batch_json, signed_headers, subject_digest
from brise.traffic.seal import SigningKey
from tests.fleet.hubs import HubRig, hub
from tests.fleet.repositories import Clock, Fleet

Body = Callable[[HubRig], Awaitable[None]]


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path / "repository", Clock())


def run(fleet: Fleet, tmp_path: Path, body: Body, **changes: Any) -> None:
    async def whole() -> None:
        async with hub(fleet, tmp_path, **changes) as rig:
            await body(rig)
    asyncio.run(whole())


def offered(fleet: Fleet) -> OfferedRollout:
    """What a device reads, verified."""
    return fleet.device().refresh().rollouts[-1]


async def begun(rig: HubRig, fleet: Fleet, devices: int = 3, **terms: Any) -> str:
    """A fleet of devices and a roll-out; the digest of its bundle."""
    digest = fleet.ship(is_running=False).digest
    token = await rig.token()
    for number in range(devices):
        await rig.enrol(f"d{number}", token)
    await rig.ask("POST", "/v1/fleet/roll-outs", {"bundle": digest, "rollout": "r1", "user": "anna",
                                                  "reason": "", **terms})
    return digest


def test_a_roll_out_goes_through_three_devices_and_devices_read_it_signed(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        digest = await begun(rig, fleet, wait_s=0)
        for _ in range(3):
            rig.hub.tick()
            for name in rig.hub.order("r1").within(rig.hub.rollout("r1").share):
                if name not in rig.hub.rollout("r1").devices:
                    assert offered(fleet).has(name)
                    rig.says(name, "r1", digest, "fetched", "verified", "staged", "gate-passed", "trial", "committed")
                    await rig.send(name)
            rig.hub.tick()
        found = (await rig.ask("GET", "/v1/fleet/status"))["rollouts"][0]
        assert (found["state"], found["committed"], found["unknown"]) == ("complete", 3, 0)
        assert (offered(fleet).state, offered(fleet).share) == ("complete", 1.0)
        assert [one["running"] for one in await rig.ask("GET", "/v1/fleet/devices")] == [digest] * 3
    run(fleet, tmp_path, body)


def test_reports_are_kept_once_however_often_they_come(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        await rig.enrol("d1", await rig.token())
        rig.outboxes["d1"].add("label", {"score": 1}, "evidence")
        batch = batch_json(RecordBatch("d1", rig.hub.fleet, tuple(rig.outboxes["d1"].batch(1 << 20))))
        headers = signed_headers(rig.devices["d1"], "d1", batch)
        answers = [(await rig.post(batch, headers)).json() for _ in range(3)]
        assert answers[0] == answers[1] == answers[2]
        lines = (await rig.client.get("/v1/fleet/records", headers=dict(rig.operator))).text.splitlines()
        assert [json.loads(line)["body"] for line in lines] == [{"score": 1}]
    run(fleet, tmp_path, body)


def test_what_was_acknowledged_survives_a_restart(fleet: Fleet, tmp_path: Path) -> None:
    async def report(rig: HubRig) -> None:
        digest = await begun(rig, fleet)
        name = rig.hub.order("r1").within(rig.hub.rollout("r1").share)[0]
        rig.says(name, "r1", digest, "fetched")
        await rig.send(name)  # no tick: the ledger has not got it yet

    async def read(rig: HubRig) -> None:
        rig.hub.tick()
        assert len(rig.hub.rollout("r1").devices) == 1
    run(fleet, tmp_path, report)
    run(fleet, tmp_path, read)


def test_only_the_device_itself_reports_its_state(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        token = await rig.token()
        for name in ("d1", "d2"):
            await rig.enrol(name, token)
        rig.outboxes["d1"].add("alarm", {}, "alarm")
        batch = batch_json(RecordBatch("d1", rig.hub.fleet, tuple(rig.outboxes["d1"].batch(1 << 20))))
        as_other = signed_headers(rig.devices["d2"], "d1", batch)
        assert (await rig.post(batch, as_other)).status_code == 401
        assert (await rig.post(batch, signed_headers(rig.devices["d2"], "d2", batch))).status_code == 400
        assert (await rig.post(batch, {})).status_code == 401
        elsewhere = batch_json(RecordBatch("d1", "another fleet", ()))
        assert (await rig.post(elsewhere, signed_headers(rig.devices["d1"], "d1", elsewhere))).status_code == 400
        await rig.ask("POST", "/v1/fleet/devices/d1/revoke")
        assert (await rig.post(batch, signed_headers(rig.devices["d1"], "d1", batch))).status_code == 401
    run(fleet, tmp_path, body)


def test_a_device_that_was_not_let_in_has_no_say(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        digest = await begun(rig, fleet)
        order = rig.hub.order("r1")
        outside = next(name for name in order.names if name not in order.within(rig.hub.rollout("r1").share))
        rig.says(outside, "r1", digest, "fetched", "gate-failed", reason="I say so")
        rig.says(outside, "r1", "b" * 64, "fetched")
        rig.says(outside, "invented", digest, "fetched")
        await rig.send(outside)
        rig.hub.tick()
        assert rig.hub.rollout("r1").devices == {}
    run(fleet, tmp_path, body)


def test_a_record_that_cannot_be_read_blocks_no_other(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        digest = await begun(rig, fleet)
        name = rig.hub.order("r1").within(rig.hub.rollout("r1").share)[0]
        rig.outboxes[name].add("device-state", {"state": "glorious"}, "alarm")
        rig.says(name, "r1", digest, "fetched")
        assert (await rig.send(name))["ignored"] == 1
        rig.hub.tick()
        assert list(rig.hub.rollout("r1").devices) == [name]
        assert len(rig.outboxes[name]) == 0
    run(fleet, tmp_path, body)


def test_a_failure_among_three_pauses_and_a_person_decides(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        digest = await begun(rig, fleet)
        name = rig.hub.order("r1").within(rig.hub.rollout("r1").share)[0]
        rig.says(name, "r1", digest, "fetched", "gate-failed", reason="p95 is 3 s, 1 s is allowed")
        await rig.send(name)
        rig.hub.tick()
        found = (await rig.ask("GET", "/v1/fleet/status"))["rollouts"][0]
        assert (found["state"], found["has_statistic"]) == ("paused", False)
        assert found["reasons"] == [{"reason": "p95 is 3 s, 1 s is allowed", "devices": 1}]
        assert "there is no statistic with 3 devices" in found["reason"]
        back = await rig.ask("POST", "/v1/fleet/roll-outs/r1/back", {"user": "anna", "reason": "too slow"})
        assert (back["state"], offered(fleet).state) == ("back", "back")
    run(fleet, tmp_path, body)


def test_devices_that_were_stopped_are_no_failures(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        digest = await begun(rig, fleet)
        name = rig.hub.order("r1").within(rig.hub.rollout("r1").share)[0]
        rig.says(name, "r1", digest, "fetched", "trial")
        await rig.send(name)
        rig.hub.tick()
        await rig.ask("POST", "/v1/fleet/roll-outs/r1/back", {"user": "anna", "reason": "a typo"})
        rig.says(name, "r1", digest, "rolled-back", reason="the roll-out was taken back")
        await rig.send(name)
        rig.hub.tick()
        assert rig.hub.rollout("r1").count("failed") == 0
        assert (await rig.ask("GET", "/v1/fleet/devices?state=rolled-back"))[0]["device"] == name
    run(fleet, tmp_path, body)


def test_forgetting_a_subject_reaches_devices_and_records(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        await rig.enrol("d1", await rig.token())
        digest = subject_digest(rig.hub.fleet, "anna")
        rig.outboxes["d1"].add("label", {"note": "about Anna"}, "evidence", digest)
        await rig.send("d1")
        assert await rig.ask("POST", "/v1/fleet/forget", {"subject": "anna", "user": "bert"}) == {"digest": digest}
        assert fleet.device().refresh().forgotten.digests == (digest,)
        assert (await rig.client.get("/v1/fleet/records", headers=dict(rig.operator))).text == ""
    run(fleet, tmp_path, body)


@pytest.mark.parametrize("spoil", ["expired", "used up", "revoked", "invented"])
def test_a_token_that_is_not_good_enrols_nobody(fleet: Fleet, tmp_path: Path, spoil: str) -> None:
    async def body(rig: HubRig) -> None:
        token = await rig.token(uses=1, valid_s=60)
        if spoil == "expired":
            rig.clock.at += 61
        elif spoil == "used up":
            await rig.enrol("d0", token)
        elif spoil == "revoked":
            await rig.ask("DELETE", f"/v1/fleet/tokens/{token.split('-')[1]}")
        else:
            token = f"{enrolment.PREFIX}{'0' * 12}-{'A' * 43}"
        found = await rig.enrol("d1", token, 403)
        assert "this token" in found["error"]["message"]
        assert rig.hub.enrolment.device("d1") is None
    run(fleet, tmp_path, body)


def test_a_name_stays_with_the_key_that_took_it(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        token = await rig.token(uses=2)
        first = await rig.enrol("d1", token)
        again = await rig.enrol("d1", token)  # the same device again, with another certificate for its peers
        assert {**again, "tls": None} == {**first, "tls": None}
        other = SigningKey(b"o" * 32)
        assert "is taken" in (await rig.enrol("d1", token, 403, public_key=other.public.hex()))["error"]["message"]
        assert (await rig.ask("GET", "/v1/fleet/tokens"))[0]["used"] == 1
    run(fleet, tmp_path, body)


def test_the_database_has_no_token_and_the_folder_is_private(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        token = await rig.token()
        for path in (tmp_path / "hub").iterdir():
            assert token.encode() not in path.read_bytes()
            assert path.stat().st_mode & 0o077 == 0
    run(fleet, tmp_path, body)


@pytest.mark.parametrize("wrong", [
    {"device": "a/b"}, {"device": "x" * 65}, {"device": 3}, {"public_key": "00" * 32}, {"public_key": "zz"},
    {"facts": {f"f{number}": 1 for number in range(17)}}, {"facts": {"note": "x" * 201}}, {"facts": {"a": [1]}},
    {"facts": {"a": "\x1b[2J"}}, {"token": None}])
def test_an_enrolment_in_another_form_is_refused(fleet: Fleet, tmp_path: Path, wrong: dict[str, Any]) -> None:
    async def body(rig: HubRig) -> None:
        await rig.enrol("d1", await rig.token(), 403, **wrong)
        assert rig.hub.enrolment.names() == []
    run(fleet, tmp_path, body)


@pytest.mark.parametrize(("method", "path"), [
    ("GET", "/fleet"), ("GET", "/v1/fleet/status"), ("GET", "/v1/fleet/records"), ("POST", "/v1/fleet/tokens"),
    ("POST", "/v1/fleet/roll-outs"), ("POST", "/v1/fleet/roll-outs/r1/back"), ("POST", "/v1/fleet/forget"),
    ("DELETE", "/v1/fleet/tokens/x"), ("POST", "/v1/fleet/devices/x/revoke")])
def test_the_operators_routes_need_the_operators_key(fleet: Fleet, tmp_path: Path, method: str, path: str) -> None:
    async def body(rig: HubRig) -> None:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic !"}):
            response = await rig.client.request(method, path, headers=headers, json={})
            assert response.status_code == 401
            assert response.headers["www-authenticate"].startswith("Basic" if path == "/fleet" else "Bearer")
    run(fleet, tmp_path, body)


def test_the_password_that_a_browser_sends_by_itself_changes_nothing(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        key = (tmp_path / "hub" / "operator.key").read_text().strip()
        assert (await rig.client.get("/fleet", auth=("", key))).status_code == 200
        for path in ("/v1/fleet/forget", "/v1/fleet/tokens"):
            response = await rig.client.post(path, auth=("", key), json={"subject": "anna", "user": "x"})
            assert response.status_code == 401
    run(fleet, tmp_path, body)


def test_whoever_guesses_keys_is_told_to_wait_and_nobody_else(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        wrong = {"authorization": "Bearer wrong"}
        statuses = [(await rig.client.get("/v1/fleet/status", headers=wrong)).status_code for _ in range(40)]
        assert statuses[0] == 401
        assert statuses[-1] == 429
        await rig.ask("GET", "/v1/fleet/status")  # the operator behind the same proxy is not shut out
        await rig.enrol("d1", await rig.token())
        await rig.send("d1")
        assert (await rig.client.get("/repository/metadata/timestamp.json")).status_code == 200
    run(fleet, tmp_path, body)


def test_one_device_cannot_send_without_end(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        token = await rig.token()
        for name in ("d1", "d2"):
            await rig.enrol(name, token)
        batch = batch_json(RecordBatch("d1", rig.hub.fleet, ()))
        headers = signed_headers(rig.devices["d1"], "d1", batch)
        statuses = [(await rig.post(batch, headers)).status_code for _ in range(80)]
        assert (statuses[0], statuses[-1]) == (200, 429)
        await rig.send("d2")
    run(fleet, tmp_path, body)


def test_a_device_pushes_out_its_own_records_only(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        token = await rig.token()
        for name in ("d1", "d2"):
            await rig.enrol(name, token)
        rig.outboxes["d2"].add("label", {"text": "kept"}, "evidence")
        await rig.send("d2")
        for _ in range(20):
            rig.outboxes["d1"].add("sample", {"text": "x" * 10_000}, "sample")
            await rig.send("d1")
        count, size = rig.hub.received.numbers()
        assert size <= 70_000
        assert count <= 7
        assert rig.hub.received.records("label", ("", ""), 10)[0][0] == "d2"
    run(fleet, tmp_path, body, device_bytes=60_000)


def test_old_records_are_deleted(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        await rig.enrol("d1", await rig.token())
        rig.outboxes["d1"].add("sample", {}, "sample")
        await rig.send("d1")
        rig.clock.at += 91 * 86400
        rig.hub.tick()
        assert rig.hub.received.numbers() == (0, 0)
    run(fleet, tmp_path, body)


def test_the_timestamp_is_signed_again_before_it_expires(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        device = fleet.device()
        for _ in range(30):
            rig.clock.at += 86400
            rig.hub.tick()
            device.refresh()
    run(fleet, tmp_path, body)


def test_a_roll_out_needs_a_bundle_of_the_release_key(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        response = await rig.ask("POST", "/v1/fleet/roll-outs", {"bundle": "c" * 64, "user": "anna"}, 400)
        assert "was signed with the release key" in response["error"]["message"]
        await begun(rig, fleet)
        again = await rig.ask("POST", "/v1/fleet/roll-outs", {"bundle": fleet.ship(2, is_running=False).digest,
                                                              "user": "anna"}, 400)
        assert "has not ended" in again["error"]["message"]
    run(fleet, tmp_path, body)


def test_static_files_have_an_etag_and_ranges_and_stay_in_the_repository(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        (fleet.repository.folder / "secret").write_text("no")
        (fleet.repository.folder / "metadata" / "link.json").symlink_to("../secret")
        first = await rig.client.get("/repository/metadata/timestamp.json")
        again = await rig.client.get("/repository/metadata/timestamp.json",
                                     headers={"if-none-match": first.headers["etag"]})
        part = await rig.client.get("/repository/metadata/1.root.json", headers={"range": "bytes=5-9"})
        whole = await rig.client.get("/repository/metadata/1.root.json")
        assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
        assert (part.status_code, part.content) == (206, whole.content[5:10])
        for name in ("secret", "metadata/link.json", "metadata/%2e%2e/secret", "../hub/operator.key", "metadata", ""):
            assert (await rig.client.get(f"/repository/{name}")).status_code == 404
    run(fleet, tmp_path, body)


def test_bodies_are_bounded(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        await rig.enrol("d1", await rig.token())
        huge = b" " * (2 << 20)
        assert (await rig.post(huge, signed_headers(rig.devices["d1"], "d1", huge))).status_code == 413
        assert (await rig.client.post("/enrol", content=huge)).status_code == 413
    run(fleet, tmp_path, body)


def test_the_page_shows_the_roll_out_without_scripts(fleet: Fleet, tmp_path: Path) -> None:
    async def body(rig: HubRig) -> None:
        digest = await begun(rig, fleet, reason="<b>try</b>")
        name = rig.hub.order("r1").within(rig.hub.rollout("r1").share)[0]
        rig.says(name, "r1", digest, "fetched", "gate-failed", reason="<script>alert(1)</script>")
        await rig.send(name)
        rig.hub.tick()
        key = (tmp_path / "hub" / "operator.key").read_text().strip()
        response = await rig.client.get("/fleet", auth=("", key))
        assert response.status_code == 200
        assert "<script" not in response.text
        assert "&lt;script&gt;alert(1)" in response.text
        assert "there is no statistic with 3 devices" in response.text
        assert 'http-equiv="refresh"' in response.text
    run(fleet, tmp_path, body)
