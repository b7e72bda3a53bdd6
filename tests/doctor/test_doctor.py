"""`brise doctor`: what is wrong is named with what to do about it, nothing is changed, nothing is contacted unasked."""

from __future__ import annotations

import json
import socket
import sqlite3
import tomllib
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

import brise
from brise.cli.main import main
from brise.doctor import machine, parts, reach, stores
from brise.doctor.examine import DoctorOptions, doctor
from brise.doctor.findings import DoctorReport, Finding
from brise.errors import UnsupportedError
from brise.text.sandbox import TemplateProgram
from brise.traffic.stores import open_store
from tests.checkpoint.make_gguf import write_tiny

PYPROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with one model and a store of traffic with a ledger."""
    home = tmp_path / "home"
    monkeypatch.setenv("BRISE_HOME", str(home))
    assert main(["pull", str(write_tiny(tmp_path / "tiny.gguf", "llama"))]) == 0
    with closing(open_store(None, home)) as store:
        for number in range(3):
            store.append("note", {"number": number})
    return home


def of(findings: Iterable[Finding], area: str, name: str) -> Finding:
    return next(one for one in findings if (one.area, one.name) == (area, name))


def kept(home: Path, place: str | None = None, *, digests: bool = False) -> list[Finding]:
    return list(stores.examine(home, place, digests=digests))


def test_a_healthy_machine_passes(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in home.rglob("*") if path.is_file())
    assert main(["doctor", "--digests", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    texts = {(one["area"], one["name"]): (one["verdict"], one["text"]) for one in found["findings"]}
    assert found["passed"] and found["counts"]["FAIL"] == 0
    assert texts["versions", "brise"] == ("PASS", brise.__version__)
    assert texts["traffic", "ledger"] == ("PASS", "whole, 3 lines")
    assert texts["traffic", "schema"][0] == texts["keys", "master.key"][0] == texts["templates", "process"][0] == "PASS"
    assert texts["models", "tiny"][1].endswith("computed anew") and not any(area == "reach" for area, _ in texts)
    assert before == sorted((path, path.stat().st_mtime_ns) for path in home.rglob("*") if path.is_file())


def test_the_table_says_fail_and_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "gateway" / "keys" / "master.key").chmod(0o644)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "FAIL" in out and "has mode 644" in out and "chmod 600" in out and out.endswith("looked at\n")
    assert "1 FAIL, " in out


@pytest.mark.parametrize(("place", "area", "name", "verdict"), [
    ("gateway/traffic.sqlite", "traffic", "store", "FAIL"), ("gateway/keys", "keys", "folder", "FAIL"),
    ("gateway/keys/subjects.sqlite", "keys", "subjects.sqlite", "FAIL"), ("gateway", "traffic", "folder", "WARN"),
    (".", "permissions", "BRISE_HOME", "WARN")])
def test_what_others_can_read_is_named(home: Path, place: str, area: str, name: str, verdict: str) -> None:
    path = home / place
    path.chmod(path.stat().st_mode | 0o040)
    found = of(kept(home), area, name)
    assert found.verdict == verdict and found.hint.startswith("chmod ") and str(path) in found.text


@pytest.mark.parametrize(("sql", "reason"), [
    ("UPDATE ledger SET body = '{\"number\":7}' WHERE number = 2", "line 2 was changed"),
    ("DELETE FROM ledger WHERE number = 2", "line 2 is missing"),
    ("UPDATE ledger SET body = 'no JSON' WHERE number = 3", "a line cannot be read")])
def test_a_ledger_that_was_changed_fails(home: Path, sql: str, reason: str) -> None:
    with closing(sqlite3.connect(home / "gateway" / "traffic.sqlite")) as connection, connection:
        connection.execute(sql)
    found = of(kept(home), "traffic", "ledger")
    assert found.verdict == "FAIL" and reason in found.text


def test_a_newer_or_damaged_store_fails(home: Path) -> None:
    path = home / "gateway" / "traffic.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert "layout 99" in of(kept(home), "traffic", "schema").text
    path.write_bytes(b"no database at all, " * 100)
    assert of(kept(home), "traffic", "database").verdict == "FAIL"


def test_a_damaged_model_fails_when_its_digest_is_asked_for(home: Path) -> None:
    blob = next((home / "blobs").iterdir())
    blob.chmod(0o600)
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert of(kept(home), "models", "tiny").verdict == "PASS", "its length is right"
    found = of(kept(home, digests=True), "models", "tiny")
    assert found.verdict == "FAIL" and "SHA-256" in found.text and "brise pull" in found.hint
    blob.write_bytes(b"short")
    assert "5 bytes instead of" in of(kept(home), "models", "tiny").text


def test_an_empty_home_is_fine_and_a_store_that_was_named_must_be_there(tmp_path: Path) -> None:
    empty = kept(tmp_path / "nothing")
    assert not any(one.verdict == "FAIL" for one in empty) and of(empty, "models", "store").hint == "brise pull smollm2"
    assert not (tmp_path / "nothing").exists()
    assert of(kept(tmp_path, str(tmp_path / "typo.sqlite")), "traffic", "store").verdict == "FAIL"


def test_a_template_that_gets_out_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TemplateProgram, "render", lambda self, variables: "a;b;")
    assert [one.name for one in DoctorReport(list(parts.examine())).failures] == ["sandbox", "limits"]


def test_a_missing_extra_names_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "EXTRAS", {"fast": (("numpy", "brise-no-such-package"), "speed")})
    found = of(parts.examine(), "extras", "fast")
    assert found.verdict == "NOTE" and found.hint == "pip install 'brise[fast]'"


def test_every_extra_for_users_is_looked_for() -> None:
    assert set(parts.EXTRAS) == set(PYPROJECT["project"]["optional-dependencies"]) - {"bench", "docs", "dev", "goldens"}


def test_only_what_is_asked_for_is_contacted(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        there = f"postgresql://user:secret@127.0.0.1:{port}/store"
        silent = doctor(DoctorOptions(home=tmp_path, store=there)).findings
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()
        asked = reach.examine([f"http://127.0.0.1:{closed.getsockname()[1]}/v1", "ftp://host", "no url", there], None)
        reached = {one.name: one.verdict for one in asked}
    assert of(silent, "traffic", "store").verdict == "NOTE"
    assert list(reached.values()) == ["FAIL", "FAIL", "FAIL", "PASS"] and "secret" not in str(reached)
    assert list(reached)[3] == f"postgresql://127.0.0.1:{port}/store"


def test_a_store_on_a_server_is_read_when_it_is_asked_for(
        tmp_path: Path, postgres_url: Callable[[], str]) -> None:
    place = postgres_url()
    empty = list(stores.examine_server(place))
    assert of(empty, "traffic", "schema").text.startswith("no store yet") and len(empty) == 2
    with closing(open_store(place, tmp_path)) as store:
        store.append("note", {"number": 1})
        found = list(reach.examine(["no url"], place))
        assert of(found, "traffic", "server").verdict == of(found, "traffic", "schema").verdict == "PASS"
        assert of(found, "traffic", "ledger") == Finding("traffic", "ledger", "PASS", "whole, 1 lines")
        with psycopg.connect(place) as connection:
            connection.execute("UPDATE ledger SET kind = 'other'")
        assert "line 1 was changed" in of(stores.examine_server(place), "traffic", "ledger").text


def test_control_groups_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").write_text("0::/a/b\n")
    (tmp_path / "a" / "b").mkdir(parents=True)
    limits = {"memory.max": "2000000000", "memory.current": "500000000", "cpu.max": "150000 100000"}
    for folder, files in (("a/b", {"memory.max": "max", "cpu.max": "max 100000"}), ("a", limits)):
        for name, text in files.items():
            (tmp_path / folder / name).write_text(text + "\n")
    groups = machine.groups(tmp_path, tmp_path / "own")
    assert groups == [tmp_path / "a" / "b", tmp_path / "a", tmp_path]
    monkeypatch.setattr(machine, "groups", lambda: groups)
    monkeypatch.setenv("BRISE_THREADS", "8")
    report = list(machine.examine(tmp_path / "home"))
    assert of(report, "memory", "control group").text == "2.0 GB, of which 500.0 MB are in use"
    assert of(report, "processor", "threads").hint.startswith("BRISE_THREADS=1:")


@pytest.mark.parametrize(("words", "message"), [
    (["--model", "m"], "--model is for --airgap"), (["--steps", "pull"], "--steps is for --airgap"),
    (["--also", "true"], "--also is for --airgap"), (["--airgap", "--reach"], "--reach is not for --airgap"),
    (["--airgap", "--digests"], "--digests is not for --airgap")])
def test_options_of_the_other_use_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]
                                              ) -> None:
    assert main(["doctor", *words]) == 1
    assert message in capsys.readouterr().err


def test_it_is_python_too() -> None:
    assert brise.doctor is doctor and brise.airgap.__module__ == "brise.doctor.airgap.run"
    with pytest.raises(UnsupportedError, match="nothing to run"):
        brise.airgap(brise.AirgapOptions(steps=()))
