"""`brise doctor --airgap`: the golden path tries nothing, what is planted is found by its destination."""

from __future__ import annotations

import json
import os
import select
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brise.cli.main import main
from brise.doctor.airgap import golden_path, run
from brise.doctor.airgap.report import AirgapReport, Confinement, CountedAttempt, WalkedStep
from brise.doctor.airgap.run import AirgapOptions, airgap
from brise.doctor.airgap.witness import Attempt
from brise.errors import StoreError, UnsupportedError
from brise.serve.app import create_app
from brise.serve.serving import RequestWatch, ServeSettings, prepare
from tests.checkpoint.make_gguf import write_tiny
from tests.doctor import planted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seccomp and network namespaces are Linux's")
FOUND = (("connect", "192.0.2.7:443", ""), ("sendto", "224.0.0.251:5353", "mDNS, multicast"),
         ("sendmsg", "198.51.100.9:9", ""), ("setsockopt", "239.1.2.3", "joins a multicast group"),
         ("socket", "AF_PACKET", ""), ("socket", "SOCK_PACKET", ""), ("connect", "127.0.0.1:5355", "LLMNR"),
         ("connect", "[2001:db8::7]:443", ""))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", "llama")


@pytest.fixture(scope="module", params=["namespace", "seccomp"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[
        tuple[AirgapReport, Path]]:
    """What is found of the planted program, in both confinements."""
    confinement: Confinement = request.param
    left = tmp_path_factory.mktemp("planted") / "left"
    report = airgap(AirgapOptions(steps=(), also=(shlex.join([sys.executable, planted.__file__, str(left)]),),
                                  confinement=confinement))
    skip_if_unproven(report)
    yield report, left


def skip_if_unproven(report: AirgapReport) -> None:
    if report.verdict == "unproven":
        pytest.skip(f"this machine does not allow it: {report.reason}")


def test_every_planted_attempt_is_found_with_its_address(found: tuple[AirgapReport, Path]) -> None:
    report, _ = found
    assert report.verdict == "attempts" and [step.state for step in report.steps] == ["done"], report.steps
    counts = {(one.attempt.call, one.attempt.address, one.attempt.note): one.count for one in report.attempts
              if "DNS of" not in one.attempt.note}
    assert counts == dict.fromkeys(FOUND, 1), "and nothing of what stays on this machine"


def test_a_look_up_is_named(found: tuple[AirgapReport, Path]) -> None:
    names = [one for one in found[0].attempts if one.attempt.note == "DNS of planted.example"]
    assert names and all(one.attempt.address.endswith(":53") and one.count for one in names)


def test_an_attempt_names_its_command_and_process(found: tuple[AirgapReport, Path]) -> None:
    by_address = {one.attempt.address: one.attempt for one in found[0].attempts}
    assert planted.__file__ in by_address["192.0.2.7:443"].process
    assert planted.GRANDCHILD in by_address["[2001:db8::7]:443"].process
    assert all(planted.__file__ in attempt.command for attempt in by_address.values())


def test_nothing_is_left_running(found: tuple[AirgapReport, Path]) -> None:
    number = int(found[1].read_text())
    assert not Path(f"/proc/{number}/exe").exists()


def test_the_golden_path_tries_nothing(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--airgap", "--model", str(tiny), "--json"])
    report = json.loads(capsys.readouterr().out)
    if report["verdict"] == "unproven":
        pytest.skip(report["reason"])
    assert report["attempts"] == [] and status == 0
    assert [(step["name"], step["state"], step["why"]) for step in report["steps"]] == [
        (name, "done", "") for name in golden_path.STEP_NAMES]


def test_an_attempt_inside_a_command_of_ours_is_exit_status_1(
        tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import socket, sys\nif 'plan' in sys.orig_argv:\n    socket.socket().connect_ex(('203.0.113.5', 80))\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    status = main(["doctor", "--airgap", "--model", str(tiny), "--steps", "plan"])
    shown = capsys.readouterr()
    if status == 3:
        pytest.skip(shown.out)
    assert status == 1 and "203.0.113.5:80" in shown.out and "brise plan given --json" in shown.out
    assert "FAIL: 1 attempts to leave this machine, all refused" in shown.out and "plan: done" in shown.err


def test_without_a_namespace_the_filter_works_alone_and_says_so(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nif 'brise.doctor.airgap.watched' in sys.orig_argv:\n"
        "    from brise.doctor.airgap import namespace\n"
        "    def refuse():\n        raise PermissionError(1, 'unshare: Operation not permitted')\n"
        "    namespace.enter = refuse\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    status = main(["doctor", "--airgap", "--steps", "none", "--also", "true"])
    out = capsys.readouterr().out
    if status == 3:
        pytest.skip(out)
    assert status == 0 and out.endswith(
        "PASS: nothing tried to leave this machine, under a seccomp filter alone (no network namespace: unshare: "
        "Operation not permitted)\n")


def test_where_attempts_cannot_be_counted_the_status_is_3(tmp_path: Path) -> None:
    """A process has one descriptor to be watched at, so within a watched one there is no second proof."""
    inner = shlex.join([sys.executable, "-m", "brise", "doctor", "--airgap", "--steps", "none", "--also", "true"])
    report = airgap(AirgapOptions(steps=(), also=(f"sh -c '{inner} > {tmp_path}/out; echo $? >> {tmp_path}/out'",)))
    skip_if_unproven(report)
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[0].startswith("UNPROVEN: attempts cannot be counted on this machine: no seccomp filter")
    assert lines[-1] == "3"


def test_whoever_kills_it_leaves_nothing_running(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "began")
    also = shlex.join(["sh", "-c", f"echo $$ > {tmp_path}/began; exec sleep 60"])
    with subprocess.Popen([sys.executable, "-m", "brise", "doctor", "--airgap", "--steps", "none", "--also", also],
                          stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)}) as doctor:
        began = os.open(tmp_path / "began", os.O_RDWR | os.O_NONBLOCK)
        poll = select.poll()
        poll.register(began, select.POLLIN)
        while not poll.poll(100):
            if doctor.poll() is not None:
                os.close(began)
                assert doctor.returncode == 3, "it ended, and does not say that it cannot prove anything"
                pytest.skip("this machine does not allow it")
        watched = os.pidfd_open(int(os.read(began, 20)))
        os.close(began)
        doctor.kill()
    poll.unregister(began)
    poll.register(watched, select.POLLIN)
    assert poll.poll(30_000), "what was watched goes on without anybody who watches"
    os.close(watched)


def test_every_route_of_the_server_is_asked() -> None:
    app = create_app(prepare({}, ServeSettings(), None, None, None, RequestWatch()))  # type: ignore[arg-type]
    asked = [(method, path) for method, path, _ in golden_path.routes("m", None)]
    missing = [(method, route.path) for route in app.routes for method in sorted(route.methods - {"HEAD"})
               if not any(method == other and route.path_regex.fullmatch(path) for other, path in asked)]
    assert not missing, "what they do has to be proven, too"
    paths = [route.path_regex for route in app.routes]
    assert not [path for _, path in asked if not any(one.fullmatch(path) for one in paths)], "routes that are gone"


@pytest.mark.parametrize(("options", "message"), [
    (AirgapOptions(steps=("pull", "fly")), "the step 'fly' is not known, allowed are pull, plan"),
    (AirgapOptions(steps=()), "nothing to run"),
    (AirgapOptions(also=("echo 'half",)), "the command .* cannot be read: No closing quotation"),
    (AirgapOptions(also=(" ",)), "the command ' ' is empty"),
    (AirgapOptions(model="nobody"), "'nobody' is neither in the store nor a file or folder"),
    (AirgapOptions(), "there is no model to try\nhint: brise pull smollm2")])
def test_what_cannot_run_is_refused(options: AirgapOptions, message: str, tmp_path: Path,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    with pytest.raises((UnsupportedError, StoreError), match=message):
        airgap(options)


def test_a_failed_step_is_no_clean_proof() -> None:
    steps = [WalkedStep("pull", ("brise pull m",), "done", "", 1.0), WalkedStep("tune", (), "skipped", "torch", 0.0)]
    attempt = CountedAttempt(Attempt("brise chat m", "python (7)", "connect", "192.0.2.1:80"), 2)
    failed = WalkedStep("chat", (), "failed", "status 1", 1.0)

    def verdict(more: list[WalkedStep], attempts: list[CountedAttempt], confinement: Confinement = "seccomp") -> str:
        return AirgapReport(confinement, "", "m", [*steps, *more], attempts).verdict

    assert verdict([], []) == "clean" and verdict([failed], []) == "incomplete"
    assert verdict([failed], [attempt]) == "attempts" and verdict([], [], "none") == "unproven"


def test_elsewhere_than_on_linux_nothing_is_proven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.sys, "platform", "darwin")
    assert airgap(AirgapOptions(steps=(), also=("true",))).verdict == "unproven"
