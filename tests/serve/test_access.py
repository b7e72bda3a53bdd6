"""API keys are read and checked, and without them only loopback addresses may be bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise.errors import BriseError
from brise.serve.access import AcceptedKeys, check_bind, host_name, is_loopback, read_keys
from brise.serve.app import run_server
from brise.serve.serving import ServeSettings


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    check_bind(host, has_keys=False, force=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.0.1", "example.org", "localhost.example.org"])
def test_other_addresses_need_a_key_or_force(host: str) -> None:
    with pytest.raises(BriseError, match="without API keys"):
        check_bind(host, has_keys=False, force=False)
    check_bind(host, has_keys=True, force=False)
    check_bind(host, has_keys=False, force=True)


def test_a_server_does_not_start_where_it_may_not_listen() -> None:
    with pytest.raises(BriseError, match="refusing to listen on '0.0.0.0'"):
        run_server({}, ServeSettings(host="0.0.0.0", port=0))


def test_keys_are_kept_as_digests_only() -> None:
    keys = AcceptedKeys(["sk-one", "sk-two"])
    assert keys.accept("sk-one") and keys.accept("sk-two")
    assert not keys.accept("sk-") and not keys.accept("") and not keys.accept("sk-one ")
    assert "sk-one" not in repr(vars(keys))


@pytest.mark.parametrize(("text", "message"), [
    ("", "holds no API key"), ("# only\n\n", "holds no API key"), ("two words\n", "line 1"),
    ("a\nclé\n", "line 2")])
def test_malformed_key_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    with pytest.raises(BriseError, match=message):
        read_keys(path)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620])
def test_a_key_file_that_is_open_to_others_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    path.write_text("sk-one\n", encoding="utf-8")
    path.chmod(mode)
    with pytest.raises(BriseError, match=f"mode {mode:o}; 600 is allowed") as refused:
        read_keys(path)
    assert refused.value.hint == f"chmod 600 {path}"
    path.chmod(0o400)
    assert read_keys(path).accept("sk-one")


def test_a_missing_key_file(tmp_path: Path) -> None:
    with pytest.raises(BriseError, match="cannot read the API keys"):
        read_keys(tmp_path / "none")


@pytest.mark.parametrize(("header", "name"), [
    ("localhost", "localhost"), ("LocalHost:80", "localhost"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"),
    ("a.b:c", "a.b:c"), ("", "")])
def test_host_names(header: str, name: str) -> None:
    assert host_name(header) == name
