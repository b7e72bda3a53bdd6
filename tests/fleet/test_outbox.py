"""The outbox: durable, within its budget, the lowest grade dropped first, ids that grow, and nothing lost or twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise.errors import FleetError
from brise.fleet import sealed_records
from brise.fleet.outbox import GRADES, LEAST_BYTES, Outbox
from brise.fleet.sealed_records import BatchError, Record, RecordBatch
from brise.traffic.seal import SigningKey

PRIVATE = sealed_records.new_seal_key()
PUBLIC = sealed_records.public_seal_key(PRIVATE)
SUBJECT = sealed_records.subject_digest("f1", "anna")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


def outbox(path: Path, clock: Clock, most_bytes: int = 1 << 20, key: bytes | None = PUBLIC) -> Outbox:
    return Outbox(path / "outbox.sqlite", most_bytes, clock, fleet="f1", device="robot-1", hub_key=key)


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_records_come_out_in_order_and_only_the_hub_opens_them(tmp_path: Path, clock: Clock) -> None:
    box = outbox(tmp_path, clock)
    ids = [box.add("device-state", {"state": state}, "alarm") for state in ("fetched", "verified", "staged")]
    records = box.batch(1 << 20)
    assert [one.id for one in records] == ids == sorted(ids)
    assert b"fetched" not in records[0].body
    found = sealed_records.open_record(PRIVATE, "f1", "robot-1", records[0])
    assert (found.kind, found.body, found.at_s) == ("device-state", {"state": "fetched"}, clock.now_s)


def test_what_was_added_survives_a_restart_and_stays_until_it_is_acknowledged(tmp_path: Path, clock: Clock) -> None:
    box = outbox(tmp_path, clock)
    first, second = box.add("alarm", {"n": 1}, "alarm"), box.add("alarm", {"n": 2}, "alarm")
    box.close()
    box = outbox(tmp_path, clock)
    box.acknowledge(first)
    assert [one.id for one in box.batch(1 << 20)] == [second] == [one.id for one in box.batch(1 << 20)]


def test_ids_grow_where_the_clock_goes_back(tmp_path: Path, clock: Clock) -> None:
    box = outbox(tmp_path, clock)
    before = box.add("alarm", {}, "alarm")
    clock.now_s = 1000.0
    assert box.add("alarm", {}, "alarm") > before


def test_a_restored_copy_gives_no_id_again_that_the_hub_has_seen(tmp_path: Path, clock: Clock) -> None:
    clock.now_s = 1000.0
    box = outbox(tmp_path, clock)
    box.acknowledge(seen := f"{2000 << 32:016x}")
    assert box.add("alarm", {}, "alarm") > seen


def test_the_lowest_grade_is_dropped_first_and_counted(tmp_path: Path, clock: Clock) -> None:
    box = outbox(tmp_path, clock, LEAST_BYTES)
    for _ in range(40):
        for grade in GRADES:
            box.add("record", {"text": "x" * 600}, grade)
    assert box.held_bytes <= LEAST_BYTES
    assert box.dropped["sample"] == 40
    assert box.dropped["alarm"] == 0
    assert len(box) + sum(box.dropped.values()) == 160


def test_no_record_is_dropped_for_one_of_a_lower_grade(tmp_path: Path, clock: Clock) -> None:
    box = outbox(tmp_path, clock, LEAST_BYTES)
    while not box.dropped["alarm"]:
        box.add("record", {"text": "x" * 4000}, "alarm")
    kept = [one.id for one in box.batch(1 << 20)]
    box.add("record", {"text": "x" * 4000}, "sample")
    assert [one.id for one in box.batch(1 << 20)] == kept
    assert box.dropped["sample"] == 1


def test_the_file_stays_near_its_budget(tmp_path: Path, clock: Clock) -> None:
    box = outbox(tmp_path, clock, 1 << 18)
    for number in range(600):
        box.add("sample", {"text": "x" * 1000, "number": number}, "sample")
    box.close()
    assert (tmp_path / "outbox.sqlite").stat().st_size < 1.5 * (1 << 18)


def test_a_batch_keeps_its_bytes(tmp_path: Path, clock: Clock) -> None:
    box = outbox(tmp_path, clock)
    for _ in range(20):
        box.add("record", {"text": "x" * 1000}, "evidence")
    records = box.batch(10_000)
    assert 3 < len(records) < 20
    assert len(sealed_records.batch_json(RecordBatch("robot-1", "f1", tuple(records)))) < 10_000 + 500


def test_a_subject_is_forgotten(tmp_path: Path, clock: Clock) -> None:
    box = outbox(tmp_path, clock)
    box.add("label", {"text": "about Anna"}, "evidence", SUBJECT)
    other = box.add("label", {"text": "about Bert"}, "evidence", sealed_records.subject_digest("f1", "bert"))
    assert box.forget([SUBJECT]) == 1
    assert [one.id for one in box.batch(1 << 20)] == [other]


def test_a_device_without_a_hub_seals_what_it_kept_once_it_has_one(tmp_path: Path, clock: Clock) -> None:
    box = outbox(tmp_path, clock, key=None)
    box.add("alarm", {"text": "in the clear"}, "alarm")
    assert b"in the clear" in box.batch(1 << 20)[0].body
    box.close()
    (record,) = outbox(tmp_path, clock).batch(1 << 20)
    assert sealed_records.open_record(PRIVATE, "f1", "robot-1", record).body == {"text": "in the clear"}


def test_a_record_that_is_too_large_is_refused(tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(FleetError, match="has 300"):
        outbox(tmp_path, clock).add("record", {"text": "x" * 300_000}, "alarm")


@pytest.mark.parametrize(("fleet", "device", "id"), [("f2", "robot-1", "0" * 16), ("f1", "robot-2", "0" * 16),
                                                     ("f1", "robot-1", "1" * 16)])
def test_a_record_opens_for_its_own_place_only(fleet: str, device: str, id: str) -> None:
    plain = sealed_records.record_json("alarm", 1.0, {})
    sealed = sealed_records.seal_record(PUBLIC, "f1", "robot-1", Record("0" * 16, 1.0, "alarm", plain))
    moved = Record(id, 1.0, "alarm", sealed.body)
    with pytest.raises(BatchError, match="does not open"):
        sealed_records.open_record(PRIVATE, fleet, device, moved)


def test_a_batch_is_read_as_it_was_signed(tmp_path: Path, clock: Clock) -> None:
    box, key = outbox(tmp_path, clock), SigningKey(b"k" * 32)
    box.add("label", {"score": 1}, "evidence", SUBJECT)
    data = sealed_records.batch_json(RecordBatch("robot-1", "f1", tuple(box.batch(1 << 20)), box.dropped))
    signature = sealed_records.signed_headers(key, "robot-1", data)[sealed_records.SIGNATURE_HEADER]
    assert sealed_records.is_signed(key.public, data, signature)
    assert not sealed_records.is_signed(key.public, data + b" ", signature)
    assert not sealed_records.is_signed(SigningKey(b"o" * 32).public, data, signature)
    found = sealed_records.read_batch(data, "robot-1", "f1")
    assert (found.records[0].subject, found.dropped) == (SUBJECT, box.dropped)


@pytest.mark.parametrize("data", [
    b"", b"[]", b"{", b'{"device": "robot-1"}', b'{"device":"robot-2","fleet":"f1","records":[],"dropped":{}}',
    b'{"device":"robot-1","fleet":"f1","records":[["x","alarm",null,""]],"dropped":{}}',
    b'{"device":"robot-1","fleet":"f1","records":[["' + b"0" * 16 + b'","alarm",null,"?"]],"dropped":{}}',
    b'{"device":"robot-1","fleet":"f1","records":' + b"[" * 5000 + b"]" * 5000 + b',"dropped":{}}',
    b'{"device":"robot-1","fleet":"f1","records":[],"dropped":{"sample":-1}}'])
def test_a_batch_in_another_form_is_refused(data: bytes) -> None:
    with pytest.raises(BatchError):
        sealed_records.read_batch(data, "robot-1", "f1")
