"""Files of `brise deploy`, checked by the programs and schemas that they are for."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import compose_spec
import kubernetes_validate
import pytest
import yaml

from brise.cli.deploy import served
from brise.cli.main import main
from brise.deploy import files, yaml_text
from brise.deploy.options import KINDS, DeployOptions, Kind, ServedCommand, ServerPlace
from brise.errors import BriseError, UnsupportedError

WORDS = ("smollm2", "--upstream", "https://api.example.com/v1", "--upstream-key-env", "API_KEY", "--store",
         "postgresql://brise@db/brise", "--memory", "2GB", "--api-keys", "keys.txt", "--port", "8081",
         "--drain-seconds=30", "--upstream-path", "/v1/a b/$HOME/100%")
PLACES = (ServerPlace("a", "127.0.0.1", 8081), ServerPlace("b", "::1", 8082), ServerPlace("c", "localhost", 8083))


def made(kind: Kind, **options: Any) -> dict[str, str]:
    return dict(files.files_of(DeployOptions(kind, served(WORDS), PLACES, **options)))


def checked(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("kind", ["haproxy", "kubernetes"])
def test_haproxy_takes_its_configuration(kind: Kind, tmp_path: Path) -> None:
    haproxy, text = program("haproxy"), made(kind)
    config = text["haproxy.cfg"] if kind == "haproxy" else yaml.safe_load(text["haproxy-config.yaml"])["data"][
        "haproxy.cfg"]
    (tmp_path / "haproxy.cfg").write_text(config)
    said = checked(haproxy, "-c", "-f", tmp_path / "haproxy.cfg")
    assert "valid" in said
    if kind == "haproxy":
        assert "WARNING" not in said, said


def test_systemd_takes_the_unit_and_finds_little_exposed(tmp_path: Path) -> None:
    analyze, unit = program("systemd-analyze"), tmp_path / "brise@8081.service"
    text = made("systemd", program="/bin/true")["brise@.service"]
    for path in (unit, tmp_path / "brise@.service"):
        path.write_text(text)
    assert checked(analyze, "verify", unit) == ""
    security = checked(analyze, "security", "--offline=true", "--threshold=20", unit)
    assert "Overall exposure level" in security


def test_the_unit_has_the_servers_options_and_keeps_secrets_out() -> None:
    text = made("systemd", program="/bin/true")["brise@.service"]
    start = next(line for line in text.splitlines() if line.startswith("ExecStart="))
    assert start == ('ExecStart=/bin/true serve smollm2 --upstream https://api.example.com/v1 '
                     '--upstream-key-env API_KEY '
                     '--store postgresql://brise@db/brise --memory 2GB --upstream-path "/v1/a b/$$HOME/100%%" '
                     "--host 0.0.0.0 --port %i --drain-seconds 30 --api-keys %d/api-keys")
    assert "TimeoutStopSec=45\n" in text and "MemoryMax=2200000000\n" in text
    assert "LoadCredentialEncrypted=api-keys:" in text and "EnvironmentFile=/etc/brise/environment" in text


@pytest.mark.parametrize("version", ["1.29", "1.36"])
def test_kubernetes_takes_the_manifests(version: str) -> None:
    texts = made("kubernetes")
    documents = {name: yaml.safe_load(text) for name, text in texts.items()}
    listed = documents.pop("kustomization.yaml")["resources"]
    assert sorted(listed) == sorted(documents)
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_a_pod_ends_after_its_drain_and_runs_without_rights() -> None:
    pod = yaml.safe_load(made("kubernetes")["servers.yaml"])["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] > 30 and pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert {each["name"] for each in container["env"]} == {"API_KEY", "PGPASSWORD"}
    assert container["command"][-2:] == ["--api-keys", "/run/secrets/brise/api-keys"]
    assert container["resources"]["limits"]["memory"] == "2200000000"


def test_compose_takes_the_file() -> None:
    text = made("compose", count=2)["compose.yaml"]
    compose_spec.PyCompose.from_yaml(text).validate()
    services = yaml.safe_load(text)["services"]
    assert sorted(services) == ["brise-1", "brise-2", "haproxy"]
    assert services["brise-1"]["read_only"] is True and services["brise-1"]["stop_grace_period"] == "45s"
    assert "/v1/a b/$$HOME/100%" in services["brise-1"]["command"]


@pytest.mark.parametrize(("options", "error"), [
    ({"count": 0}, "number of servers is 0"), ({"count": 101}, "101"), ({"namespace": "A b"}, "namespace is 'A b'"),
    ({"image": "x y"}, "image is 'x y'"), ({"bind": "80"}, "address to bind is '80'"),
    ({"program": "brise"}, "program is 'brise'"),
    ({"servers": (PLACES[0], PLACES[0])}, "same name")])
def test_options_that_no_file_can_hold_are_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(UnsupportedError, match=error):
        DeployOptions("kubernetes", **{"serve": served(WORDS), **options})


@pytest.mark.parametrize(("make", "error"), [
    (lambda: ServedCommand(store="postgresql://brise:secret@db/brise"), "holds a password"),
    (lambda: ServedCommand(words=("a\nb",)), "printable"),
    (lambda: ServerPlace("a b", "h", 1), "server's name"), (lambda: ServerPlace("a", "h;", 1), "server's host"),
    (lambda: ServerPlace("a", "h", 0), "port is 0"),
    (lambda: DeployOptions("compose", ServedCommand()), "need a store that they share"),
    (lambda: files.files_of(DeployOptions("haproxy")), "no server to balance")])
def test_what_would_break_a_file_or_show_a_secret_is_refused(make: Any, error: str) -> None:
    with pytest.raises(UnsupportedError, match=error):
        make()


def test_files_are_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["deploy", "haproxy", "--server", "a=10.0.0.1:8080", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    assert "10.0.0.1:8080" in (tmp_path / "out" / "haproxy.cfg").read_text()
    assert main(words) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_printed(kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", kind, "--server", "a=10.0.0.1:8080", "--", *WORDS]) == 0
    assert "8080" in capsys.readouterr().out


def test_wrong_options_of_serve_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((SystemExit, BriseError)):
        main(["deploy", "systemd", "--", "smollm2", "--no-such-option"])
    assert "--no-such-option" in capsys.readouterr().err


@pytest.mark.parametrize("value", [
    {}, [], {"a": []}, {"on": "off", "n": None, "x: y": "- a"}, {"a": [{"b": 1, "c": [1, [2, "ü\"\\"]]}, "x"]},
    {"text": "a\n\n  b: c\n"}, {"text": "\n"}, {"text": " a\n"}, {"0x1": True, "a": 1.5}])
def test_yaml_is_read_as_it_was(value: Any) -> None:
    assert yaml.safe_load(yaml_text.dump(value)) == value
