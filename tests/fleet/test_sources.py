"""Folders, web servers and peers as sources: resumed, bounded in bytes and in time, no link followed."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from brise.fleet.refusals import SourceError, TooLongError, TooSlowError, UnsafePathError
from brise.fleet.sources import CHANGING, FolderSource, HttpSource, Pace, PeerSource
from brise.fleet.trust import TrustedRepository
from tests.fleet.repositories import Fleet


def read(source: FolderSource | HttpSource, name: str, most: int = 1000, offset: int = 0) -> bytes:
    try:
        return b"".join(source.read(name, most, offset))
    finally:
        if isinstance(source, HttpSource) and source.url.startswith("http://127."):
            source.close()


def test_a_folder_is_read_from_anywhere_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata/1.root.json").write_bytes(b"0123456789")
    source = FolderSource(tmp_path)
    assert read(source, "metadata/1.root.json") == b"0123456789"
    assert read(source, "metadata/1.root.json", 6, 4) == b"456789"
    with pytest.raises(TooLongError):
        read(source, "metadata/1.root.json", 9)
    with pytest.raises(SourceError) as caught:
        read(source, "metadata/2.root.json")
    assert caught.value.is_missing


@pytest.mark.parametrize("name", ["../secret", "metadata/../../secret", "/etc/passwd", "metadata//x", ".hidden", "",
                                  "metadata\\x", "a/b/c/d/e/f/g"])
def test_no_name_leads_out_of_a_folder(name: str, tmp_path: Path) -> None:
    for source in (FolderSource(tmp_path), HttpSource("http://127.0.0.1:9")):
        with pytest.raises(UnsafePathError):
            read(source, name)


def test_links_pipes_and_devices_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "inside"
    (folder / "link").symlink_to("../secret")
    (folder / "away").symlink_to("..")
    os.mkfifo(folder / "pipe")
    for name in ("link", "away/secret", "pipe"):
        with pytest.raises(UnsafePathError):
            read(FolderSource(folder), name)
    (folder / "zero").symlink_to("/dev/zero")
    with pytest.raises(UnsafePathError):
        read(FolderSource(folder), "zero")


@contextmanager
def server(answers: list[Iterator[bytes]]) -> Iterator[tuple[str, list[bytes]]]:
    """A server on the loopback that sends these bytes, one answer a connection, and what it was asked."""
    asked = list[bytes]()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(65536))
                    try:
                        for part in answer:
                            connection.sendall(part)
                    except OSError:
                        continue  # the client has gone

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked


FAST = Pace(grace_s=0.3, least_rate=1e6, silent_s=0.3)


def trickle(begin: bytes, pause_s: float = 0.02) -> Iterator[bytes]:
    """Bytes that come one by one, without an end: no time-out of a socket ever passes."""
    yield begin
    while True:
        time.sleep(pause_s)
        yield b"x"


@pytest.mark.parametrize("begin", [
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", id="body"),
    pytest.param(b"HTTP/1.1 200 OK\r\nX-Long: ", id="header"), pytest.param(b"", id="status")])
def test_a_slow_trickle_is_ended(begin: bytes) -> None:
    with server([trickle(begin)]) as (url, _):
        begun = time.monotonic()
        with pytest.raises((TooSlowError, SourceError)) as caught:
            read(HttpSource(url, pace=FAST), CHANGING, 2_000_000)
        assert time.monotonic() - begun < 5
    assert isinstance(caught.value, TooSlowError) or begin == b""  # what begins with x is no HTTP at once


def test_a_silent_server_is_left() -> None:
    def silent() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123"
        time.sleep(1)

    with server([silent()]) as (url, _), pytest.raises(TooSlowError):
        read(HttpSource(url, pace=FAST), CHANGING)


def test_an_endless_file_is_cut() -> None:
    def endless() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        while True:
            yield b"1000\r\n" + b"0" * 4096 + b"\r\n"

    with server([endless()]) as (url, _), pytest.raises(TooLongError):
        read(HttpSource(url), CHANGING, 100_000)


def test_a_server_that_is_not_there_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(SourceError, match=f"127.0.0.1:{port}"):
        read(HttpSource(f"http://127.0.0.1:{port}"), CHANGING)


def http(files: dict[str, bytes], *, takes_ranges: bool = True) -> tuple[HttpSource, list[httpx.Request]]:
    """A source over a web server that has these files."""
    asked = list[httpx.Request]()

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        content = files.get(request.url.path)
        if content is None:
            return httpx.Response(404)
        etag = f'"{hash(content)}"'
        if request.headers.get("if-none-match") == etag:
            return httpx.Response(304)
        at = request.headers.get("range", "bytes=0-").removeprefix("bytes=").rstrip("-")
        if int(at) and takes_ranges:
            if int(at) >= len(content):
                return httpx.Response(416)
            return httpx.Response(206, stream=httpx.ByteStream(content[int(at):]), headers={
                "content-range": f"bytes {at}-{len(content) - 1}/{len(content)}"})
        return httpx.Response(200, stream=httpx.ByteStream(content), headers={"etag": etag})

    return HttpSource("http://hub/repository/", transport=httpx.MockTransport(answer),
                      headers={"Authorization": "Bearer t"}), asked


@pytest.mark.parametrize("takes_ranges", [True, False])
def test_a_web_server_is_read_from_the_middle_on(takes_ranges: bool) -> None:
    source, asked = http({"/repository/targets/x": b"0123456789"}, takes_ranges=takes_ranges)
    assert read(source, "targets/x", 6, 4) == b"456789"
    assert asked[0].headers["range"] == "bytes=4-" and asked[0].headers["authorization"] == "Bearer t"


def test_a_file_that_ends_before_the_middle_is_named() -> None:
    source, _ = http({"/repository/targets/x": b"0123456789"})
    with pytest.raises(SourceError, match="ends before byte 10"):
        read(source, "targets/x", 6, 10)


def test_the_timestamp_is_asked_for_with_its_etag() -> None:
    files = {"/repository/metadata/timestamp.json": b"one"}
    source, asked = http(files)
    assert [read(source, CHANGING) for _ in range(2)] == [b"one", b"one"]
    assert "if-none-match" in asked[1].headers
    files["/repository/metadata/timestamp.json"] = b"two"
    assert read(source, CHANGING) == b"two"


def test_a_peer_has_blobs_by_digest_and_nothing_else() -> None:
    digest = "ab" * 32
    peer = PeerSource("http://peer", transport=httpx.MockTransport(lambda request: httpx.Response(
        200 if request.url.path == f"/blobs/sha256/{digest}" else 500,
        stream=httpx.ByteStream(b"weights"))))
    assert read(peer, f"targets/blobs/sha256/{digest}.{digest}") == b"weights"
    with pytest.raises(SourceError):
        read(peer, CHANGING)


# No byte is parsed before its signature.

_OPENED = list[tuple[str, str]]()  # path, and the module of brise that opened it; filled while _watched is not empty
_WATCHED = list[Path]()


def _hear(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _WATCHED or not isinstance(arguments[0], str | os.PathLike):
        return
    path = os.fsdecode(arguments[0])
    if any(path.startswith(str(folder)) for folder in _WATCHED):
        frame = sys._getframe()
        while frame is not None and "/brise/" not in frame.f_code.co_filename:
            frame = frame.f_back  # type: ignore[assignment]
        _OPENED.append((path, Path(frame.f_code.co_filename).stem if frame is not None else "python-tuf"))


sys.addaudithook(_hear)  # cannot be taken away; it returns at once unless a folder is watched


def test_no_byte_is_parsed_before_its_digest_was_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A counting opener hears of each file that is opened on the device, and a counting parser of each JSON."""
    import hashlib  # noqa: PLC0415 - replaced below
    import json  # noqa: PLC0415

    fleet = Fleet(tmp_path)
    shipped = fleet.ship(content=b"weights" * 1000)
    verified, parsed = set[str](), list[str]()
    signed = {sha256 for target in fleet.repository.targets.targets.values() for sha256 in target.hashes.values()}
    real_loads, real_hash = json.loads, hashlib.sha256

    class Counting:
        """A digest that notes what it was computed to be."""

        def __init__(self, data: bytes = b"") -> None:
            self._inner = real_hash(data)

        def update(self, data: bytes) -> None:
            self._inner.update(data)

        def hexdigest(self) -> str:
            verified.add(self._inner.hexdigest())
            return self._inner.hexdigest()

    def loads(text: str, **options: object) -> object:
        digest = real_hash(text.encode() if isinstance(text, str) else text).hexdigest()
        parsed.append(digest)
        caller = sys._getframe(1).f_code.co_filename
        is_of_tuf = "/tuf/" in caller  # it reads signatures out of JSON, of bounded length
        assert is_of_tuf or digest in verified, "JSON was parsed before its digest"
        return real_loads(text, **options)  # type: ignore[arg-type]

    device = TrustedRepository(fleet.source, tmp_path / "device", fleet.root, fleet.clock)
    monkeypatch.setattr("brise.fleet.trust.hashlib.sha256", Counting)
    monkeypatch.setattr(json, "loads", loads)
    _WATCHED.append(tmp_path / "device")
    try:
        device.refresh()
        device.fetch_bundle(device.bundle(shipped.digest), tmp_path / "device/slot")
    finally:
        _WATCHED.clear()
    assert len(parsed) >= 6 and signed <= verified | {shipped.digest}
    before = [(path, module) for path, module in _OPENED if "/incoming/" in path]
    assert before and {module for _, module in before} == {"incoming"}, "only the downloader opened unverified files"
    slot = [path for path, _ in _OPENED if "/slot/" in path and not os.path.isdir(path)]
    assert not slot, "what is verified gets its name by a rename"
