"""Pulling models from a hub on the loopback device: one file, a file and its mmproj file, a safetensors repository."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.checkpoint import make_folder

CONTENT = b"GGUF" + bytes(range(256)) * 400

HUB_PULL = """
import sys
from pathlib import Path
from brise.hub.pull import Puller, pull
from brise.hub.store import ModelStore
from brise.errors import BriseError
from brise.hub.listed import APACHE, GEMMA, ListedModel
store, reference, digest, size = ModelStore(Path(sys.argv[1])), sys.argv[2], sys.argv[3], int(sys.argv[4])
listed = ListedModel("tiny", "1b", "owner/repo", "tiny-Q8_0.gguf", "a" * 40, size, digest, GEMMA, 512, "tests", True)
try:
    entry = pull(Puller(store, lambda *a: None, lambda path: None, lambda: None, listed_models=(listed,),
                        say=lambda text: print("said:", text, file=sys.stderr)), reference)
except BriseError as error:
    sys.exit(f"{type(error).__name__}: {error}")
path = store.path(entry)
print("kept:", entry.licence, entry.revision[:3], entry.source, file=sys.stderr)
print(entry.name, sorted(file.name for file in path.iterdir()) if path.is_dir() else path.read_bytes()[:4])
"""


@dataclass
class Hub:
    """A hub with one repository on the loopback device."""

    files: dict[str, bytes]
    digest: str
    url: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    card: dict[str, str] = field(default_factory=lambda: {"license": "mit"})
    small: dict[str, str] = field(default_factory=dict)  # files that git itself holds, and what it calls them

    def hold(self, folder: Path) -> None:
        """The files of a folder in place of what is there; JSON is small."""
        self.files = {path.name: path.read_bytes() for path in folder.iterdir()}
        self.digests = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        self.small = {name: hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
                      for name, data in self.files.items() if name.endswith(".json")}


@pytest.fixture
def hub() -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    state = Hub({"tiny-Q8_0.gguf": CONTENT, "README.md": b"text"}, hashlib.sha256(CONTENT).hexdigest())

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            self._answer(True)

        def do_HEAD(self) -> None:  # noqa: N802
            self._answer(False)

        def _answer(self, with_body: bool) -> None:
            headers = {"X-Repo-Commit": "a" * 40}
            name = self.path.partition(f"/resolve/{'a' * 40}/")[2]
            if self.path.startswith("/api/models/owner/repo"):
                body = json.dumps({"id": "owner/repo", "sha": "a" * 40, "cardData": state.card, "siblings": [
                    {"rfilename": name, "size": len(data), "blobId": "b", "lfs": {
                        "sha256": state.digests.get(name, state.digest), "size": len(data), "pointerSize": 1}}
                    if name not in state.small else {"rfilename": name, "size": len(data), "blobId": state.small[name]}
                    for name, data in state.files.items()]}).encode()
            elif self.path.startswith("/owner/repo/resolve/") and name in state.files:
                body = state.files[name]
                headers["ETag"] = f'"{state.digests.get(name, state.digest)}"'
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.end_headers()
                return
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()


def pull_from_hub(tmp_path: Path, url: str, reference: str, digest: str = hashlib.sha256(CONTENT).hexdigest(),
                  size: int = len(CONTENT)) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the library reads its endpoint when it is imported."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path),
                   "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"),
                   "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": ":".join(sys.path)}
    return subprocess.run([sys.executable, "-c", HUB_PULL, str(tmp_path / "home"), reference, digest, str(size)],
                          env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("reference", ["hf:owner/repo", "hf:owner/repo/tiny-Q8_0.gguf"])
def test_a_hub_repository_is_pulled(tmp_path: Path, hub: Hub, reference: str) -> None:
    done = pull_from_hub(tmp_path, hub.url, reference)
    assert done.stdout == "tiny-Q8_0 b'GGUF'\n", done.stderr
    assert list((tmp_path / "home" / "partial").iterdir()) == []


@pytest.mark.parametrize("name", ["tiny", "tiny:1b", "Tiny:latest", "tiny-1b"])
def test_a_listed_name_is_pulled_at_its_revision_and_its_licence_is_said_first(
        tmp_path: Path, hub: Hub, name: str) -> None:
    done = pull_from_hub(tmp_path, hub.url, name)
    assert done.stdout == "tiny-1b b'GGUF'\n", done.stderr
    said, limits, kept = done.stderr.splitlines()
    assert said == "said: tiny:1b: owner/repo, licence Gemma Terms of Use, https://ai.google.dev/gemma/terms"
    assert limits.startswith("said: this licence limits use: it forbids the uses of its Prohibited Use Policy")
    assert kept == "kept: Gemma Terms of Use, https://ai.google.dev/gemma/terms aaa hf:owner/repo/tiny-Q8_0.gguf"


@pytest.mark.parametrize(("digest", "size"), [("0" * 64, len(CONTENT)), (hashlib.sha256(CONTENT).hexdigest(), 5)])
def test_a_file_that_is_not_the_listed_one_is_not_downloaded(
        tmp_path: Path, hub: Hub, digest: str, size: int) -> None:
    done = pull_from_hub(tmp_path, hub.url, "tiny", digest, size)
    assert "StoreError: the hub has tiny-Q8_0.gguf with 102404 bytes" in done.stderr and digest in done.stderr
    assert "hint: to take the hub's file all the same: brise pull hf:owner/repo/tiny-Q8_0.gguf" in done.stderr
    assert not list((tmp_path / "home").rglob("*.gguf"))


@pytest.mark.parametrize(("card", "said"), [
    ({"license": "apache-2.0"}, "said: licence: apache-2.0"),
    ({"license": "other", "license_name": "deal", "license_link": "https://x/y"},
     "said: licence: deal, https://x/y; it may limit what the model may be used for: https://huggingface.co/owner/repo"),
    ({}, "said: licence: none stated; it may limit")])
def test_the_licence_that_a_repository_states_is_said_and_kept(
        tmp_path: Path, hub: Hub, card: dict[str, str], said: str) -> None:
    hub.card = card
    first, kept = pull_from_hub(tmp_path, hub.url, "hf:owner/repo").stderr.splitlines()
    assert first.startswith(said)
    assert kept.startswith(f"kept: {', '.join(card[key] for key in list(card)[-2:])}".rstrip())


def test_a_hub_file_with_another_digest_is_refused(tmp_path: Path, hub: Hub) -> None:
    hub.digest = "0" * 64
    done = pull_from_hub(tmp_path, hub.url, "hf:owner/repo")
    assert "CheckpointError" in done.stderr and "0000 is right" in done.stderr


def test_a_hub_repository_with_several_models_lists_them(tmp_path: Path, hub: Hub) -> None:
    hub.files["tiny-Q4_0.gguf"] = CONTENT
    done = pull_from_hub(tmp_path, hub.url, "hf:owner/repo")
    assert "2 .gguf files, say which one" in done.stderr and "tiny-Q4_0.gguf, tiny-Q8_0.gguf" in done.stderr


def test_a_safetensors_repository_is_pulled_without_a_second_copy_of_the_weights(tmp_path: Path, hub: Hub) -> None:
    folder = make_folder.write_hf(tmp_path / "m", make_folder.tiny("mistral"), num_shards=2)
    make_folder.write_native(folder, make_folder.tiny("mistral"))
    (folder / "README.md").write_text("text")
    hub.hold(folder)
    expected = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                "model.safetensors.index.json"]
    for _ in range(2):  # the second time it is there already
        done = pull_from_hub(tmp_path, hub.url, "hf:owner/repo")
        assert done.stdout == f"repo {expected}\n", done.stderr
    assert list((tmp_path / "home" / "partial").iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_hub_file_of_several_with_another_digest_is_refused(tmp_path: Path, hub: Hub, name: str) -> None:
    hub.hold(make_folder.write_hf(tmp_path / "m", make_folder.tiny("mistral")))
    hub.files[name] = hub.files[name][:-1] + b" "
    done = pull_from_hub(tmp_path, hub.url, "hf:owner/repo")
    assert f"CheckpointError: the downloaded {name} has the digest" in done.stderr, done.stderr


def test_a_hub_gguf_comes_with_its_mmproj_file(tmp_path: Path, hub: Hub) -> None:
    hub.files |= {"mmproj-BF16.gguf": CONTENT, "mmproj-F16.gguf": CONTENT}
    done = pull_from_hub(tmp_path, hub.url, "hf:owner/repo")
    assert done.stdout == "tiny-Q8_0 ['mmproj-F16.gguf', 'tiny-Q8_0.gguf']\n", done.stderr


@pytest.mark.parametrize("folder", ["", "Q8_0/"])
@pytest.mark.parametrize("file", ["", "/FOLDERtiny-00002-of-00002.gguf"])
def test_all_parts_of_a_split_model_are_pulled(tmp_path: Path, hub: Hub, folder: str, file: str) -> None:
    parts = {f"{folder}tiny-{number:05}-of-00002.gguf": CONTENT[:-number] for number in (1, 2)}
    hub.files = {**parts, "README.md": b"text"}
    hub.digests = {name: hashlib.sha256(data).hexdigest() for name, data in parts.items()}
    for _ in range(2):  # the second time it is there already
        done = pull_from_hub(tmp_path, hub.url, f"hf:owner/repo{file.replace('FOLDER', folder)}")
        assert done.stdout == "tiny ['tiny-00001-of-00002.gguf', 'tiny-00002-of-00002.gguf']\n", done.stderr
    assert list((tmp_path / "home" / "partial").iterdir()) == []


def test_a_part_that_the_repository_lacks_is_named(tmp_path: Path, hub: Hub) -> None:
    hub.files = {"tiny-00002-of-00002.gguf": CONTENT}
    done = pull_from_hub(tmp_path, hub.url, "hf:owner/repo")
    assert "has no 'tiny-00001-of-00002.gguf', one of the 2 parts" in done.stderr


def test_a_hub_that_is_not_there_is_a_network_error(tmp_path: Path, hub: Hub) -> None:
    assert "NetworkError" in pull_from_hub(tmp_path, "http://127.0.0.1:9", "hf:owner/repo").stderr
    assert "NetworkError" in pull_from_hub(tmp_path, hub.url, "hf:owner/absent").stderr
