"""`brise switch` from end to end: what it refuses, what it writes into the ledger, what it shows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brise.cli.main import main
from brise.prove import certificates
from brise.stats import sequential_test
from brise.stats.certificate import Certificate, CertifiedModel, Window
from brise.switch.rule import to_body
from brise.traffic.seal import SigningKey, load_or_create_signing_key
from brise.traffic.sql_store import SqlStore
from brise.traffic.stores import keys_folder, open_store
from tests.switch.ledger_lines import audit
from tests.switch.small_models import rule

FORCE = ("--force", "--reason", "a trial")


@pytest.fixture
def store(home: Path) -> Iterator[SqlStore]:
    opened = open_store(None, home)
    yield opened
    opened.close()


def switched(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["switch", "calls", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)[0]
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["switch", *words]) == 1
    return capsys.readouterr().err


def signed(home: Path, key: SigningKey | None = None, **changes: Any) -> certificates.Signed:
    """A certificate of 200 units of which the small model was better in 20."""
    differences = (1.0,) * 20 + (0.0,) * 180
    outcome = sequential_test.decide(differences, sequential_test.NonInferiorityTest())
    assert outcome.decided_at is not None
    plain: dict[str, Any] = {
        "task": "calls", "student": CertifiedModel("small"), "teachers": ("hosted-1",), "contexts": ("none",),
        "window": Window("a log", None, None, None, "conversation", 200, "d" * 64), "delta": 0.02, "alpha": 0.05,
        "alpha_of_all": 0.05, "candidate": 1, "futility": 20.0, "bound": 1.0, "discordance": 0.1, "differing": 0.3,
        "labels": "outcome", "scoring": "equal", "dimensions": (), "proven": (), "claims": (),
        "differences": differences, "path": tuple(map(float, outcome.path)), "decided_at": outcome.decided_at,
        "made_at_s": time.time(), "expires_at_s": time.time() + 1e6, "selection": {}, "made_by": "a test"}
    return certificates.sign(Certificate(**plain | changes), key or load_or_create_signing_key(keys_folder(home)))


def write(home: Path, path: Path, **changes: Any) -> str:
    certificates.write(signed(home, **changes), path)
    return str(path)


def test_without_a_certificate_only_force_switches(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no certificate for the task 'calls'" in refused(capsys, "calls", "--candidate", "small")
    assert "--force needs --reason" in refused(capsys, "calls", "--candidate", "small", "--force")
    found = switched(capsys, "--candidate", "small", *FORCE)
    assert found["is_on"] and found["share"] == 0.01 and found["forced"] == "a trial" and found["certificate"] is None
    line = list(store.ledger())[-1]
    assert line.kind == "switch" and line.body["reason"] == "a trial" and line.body["user"]


def test_a_certificate_switches(store: SqlStore, home: Path, tmp_path: Path,
                                capsys: pytest.CaptureFixture[str]) -> None:
    path = write(home, tmp_path / "c.json")
    assert "a switch begins with 1 %" in refused(capsys, "calls", "--certificate", path, "--share", "50")
    found = switched(capsys, "--certificate", path)
    assert found["is_on"] and found["candidate"] == "small" and found["forced"] is None
    assert found["certificate"]["contexts"] == ["none"] and found["tolerance"] == pytest.approx(0.32)


def test_the_newest_certificate_of_the_ledger_is_taken_by_itself(
        store: SqlStore, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    proven = signed(home)
    certificates.record(store, proven, home / "c.json")
    assert switched(capsys, "--candidate", "small")["certificate"]["digest"] == proven.digest


def test_a_certificate_whose_switch_an_alarm_took_back_is_used_up(
        store: SqlStore, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(home, tmp_path / "c.json")
    switched(capsys, "--certificate", path)
    assert not switched(capsys, "--back")["is_on"]
    assert switched(capsys, "--certificate", path)["is_on"], "what a user took back by hand may begin again"
    line = list(store.ledger())[-1]
    store.append("back", {"task": "calls", "switch": line.number, "by": "gateway", "reason": "alarm: it rang"})
    assert "was taken back: alarm: it rang" in refused(capsys, "calls", "--certificate", path)
    assert switched(capsys, "--certificate", path, *FORCE)["forced"] == "a trial"


@pytest.mark.parametrize(("changes", "says"), [
    ({"task": "other"}, "is for the task 'other'"), ({"student": CertifiedModel("large")}, "'large', not for"),
    ({"expires_at_s": 1.0}, "expired"), ({"decided_at": 9}, "does not prove what it says"),
    ({"key": SigningKey(b"7" * 32)}, "is not this machine's")])
def test_a_certificate_that_does_not_fit_is_refused(
        changes: dict[str, Any], says: str, store: SqlStore, home: Path, tmp_path: Path,
        capsys: pytest.CaptureFixture[str]) -> None:
    path = write(home, tmp_path / "c.json", **changes)
    assert says in refused(capsys, "calls", "--candidate", "small", "--certificate", path)
    assert not list(store.ledger())


def test_a_changed_certificate_is_refused(store: SqlStore, home: Path, tmp_path: Path,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "c.json"
    write(home, path)
    path.write_text(path.read_text().replace('"discordance": 0.1', '"discordance": 0.2'))
    assert "somebody changed it" in refused(capsys, "calls", "--certificate", str(path))


def test_another_machines_certificate_counts_if_its_key_is_trusted(
        store: SqlStore, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = SigningKey(b"7" * 32)
    path = write(home, tmp_path / "c.json", key=key)
    assert switched(capsys, "--certificate", path, "--trust", key.public.hex())["is_on"]


def test_steps_go_up_only_if_audits_are_fine(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    switched(capsys, "--candidate", "small", *FORCE)
    assert "0 answers were audited at this share, 30 are needed" in refused(capsys, "calls", "--share", "10")
    for _ in range(30):
        store.append("audit", audit(0.0))
    assert switched(capsys, "--share", "10")["share"] == 0.1
    assert "30 are needed" in refused(capsys, "calls", "--share", "50")
    assert switched(capsys, "--share", "100", *FORCE)["share"] == 1.0
    assert switched(capsys, "--share", "1")["share"] == 0.01, "down is always allowed"


def test_a_tolerance_of_everything_never_gets_into_the_ledger(store: SqlStore,
                                                              capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["switch", "calls", "--candidate", "small", *FORCE, "--tolerance", "100"])
    assert "under 100 is allowed" in capsys.readouterr().err and not list(store.ledger())


def test_back_and_status(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not switched" in refused(capsys, "calls", "--back")
    switched(capsys, "--candidate", "small", *FORCE)
    assert not switched(capsys, "--back", "--reason", "holidays")["is_on"]
    assert main(["switch", "--status"]) == 0
    shown = capsys.readouterr().out
    assert "calls" in shown and "holidays" in shown and "hosted" in shown
    assert main(["switch", "unknown"]) == 0 and "is not switched" in capsys.readouterr().err


def test_contradictions_are_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "needs a TASK" in refused(capsys, "--candidate", "small")
    assert "--status changes nothing" in refused(capsys, "calls", "--status", "--back")
    assert "one is allowed" in refused(capsys, "calls", "--back", "--share", "10")
    assert "there is no store" in refused(capsys, "--status")


def test_a_rule_of_another_version_does_not_go_with_the_certificate(store: SqlStore, home: Path, tmp_path: Path,
                                                                    capsys: pytest.CaptureFixture[str]) -> None:
    of_v1, of_v2 = rule(fingerprint="v1"), rule(threshold=0.6, fingerprint="v2")
    for known in (of_v1, of_v2):
        store.append("cascade", to_body(known))
    path = write(home, tmp_path / "v1.json", student=CertifiedModel("small", fingerprint="v1"))
    assert switched(capsys, "--certificate", path)["rule"]["digest"] == of_v1.digest
    switched(capsys, "--back")
    path = write(home, tmp_path / "named.json")
    assert main(["switch", "calls", "--certificate", path, "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)[0]["rule"]["digest"] == of_v2.digest and "by its name alone" in printed.err


def test_what_the_ledger_knows_is_said_before_and_after_forcing_and_stands_in_the_line(
        store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.append("proof", {"task": "calls", "student": "small", "fingerprint": None, "definition": "d", "delta": 0.02,
                           "verdict": "not good enough", "reason": "quality: refuted", "since_s": 1.0})
    store.append("certification", {"task": "calls", "candidate": "small", "risk": 0.05, "result": "impossible",
                                   "reason": "too many are wrong", "rule": None, "number": 1})
    assert "knows against small: NOT GOOD ENOUGH" in refused(capsys, "calls", "--candidate", "small")
    assert main(["switch", "calls"]) == 0
    assert "calls: the ledger knows against small: NOT GOOD ENOUGH" in capsys.readouterr().out
    assert main(["switch", "calls", "--candidate", "small", *FORCE]) == 0
    printed = capsys.readouterr()
    assert "forced against what the ledger knows: small: NOT GOOD ENOUGH at a margin of 2 points" in printed.err
    assert "calls: forced against small: impossible to keep" in printed.out
    line = list(store.ledger())[-1]
    assert [one.partition(" (")[0] for one in line.body["against"]] == [
        "small: NOT GOOD ENOUGH at a margin of 2 points: quality: refuted",
        "small: impossible to keep answers of which at most 5 % are wrong: too many are wrong"]
    store.append("back", {"task": "calls", "switch": line.number, "by": "gateway", "reason": "alarm: it rang"})
    assert main(["switch", "--status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert len(found["forced_against"]) == 2 and found["against"][2]["what"] == "alarm: it rang"
    assert main(["audit"]) == 0
    shown = capsys.readouterr().out
    assert "forced against: small: NOT GOOD" in " ".join(shown.split()) and "against small: alarm: it rang" in shown


def test_a_forced_step_says_what_it_overrides(store: SqlStore, capsys: pytest.CaptureFixture[str]) -> None:
    switched(capsys, "--candidate", "small", *FORCE)
    assert "forced_against" not in switched(capsys), "there was nothing to know"
    found = switched(capsys, "--share", "100", *FORCE)
    assert found["forced_against"] == ["0 answers were audited at this share, 30 are needed"]
    assert list(store.ledger())[-1].body["against"] == found["forced_against"]
