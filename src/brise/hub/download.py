"""Downloads files over HTTP and resumes where it stopped: a partial file is kept and completed with Range requests."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import httpx

from brise.errors import NetworkError
from brise.files.digests import CHUNK_BYTES

Progress = Callable[[str, int, int | None], None]  # what, bytes done, bytes in all

ATTEMPTS = 5  # in a row without a single new byte
CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


def fetch(client: httpx.Client, url: str, target: Path, size: int, progress: Progress) -> None:
    """Downloads the `size` bytes of `url` to `target`. A part that is there already is kept and completed.

    The caller checks the digest, which also detects a part of another file.
    """
    failures = 0
    while (done := _length(target)) != size:
        if done > size:
            target.unlink()
            continue
        try:
            _attempt(client, url, target, done, size, progress)
        except httpx.TransportError as error:
            failures = failures + 1 if _length(target) == done else 0
            if failures == ATTEMPTS:
                raise NetworkError(f"the download of {url} broke off after {done} of {size} bytes: {error!r}",
                                   hint="run the same command again; it resumes from there") from error


def get_text(client: httpx.Client, url: str, headers: dict[str, str], limit_bytes: int) -> httpx.Response:
    """Reads a small page; refuses one that is longer than `limit_bytes`."""
    try:
        with client.stream("GET", url, headers=headers) as response:
            _check_status(response, url)
            body = bytearray()
            for chunk in response.iter_bytes(CHUNK_BYTES):
                body += chunk
                if len(body) > limit_bytes:
                    raise NetworkError(f"the page {url} is longer than {limit_bytes} bytes")
    except httpx.TransportError as error:
        raise NetworkError(f"could not read {url}: {error!r}", hint="is the network there?") from error
    return httpx.Response(response.status_code, content=bytes(body), request=response.request,
                          headers={"content-type": response.headers.get("content-type", "")})


def _attempt(client: httpx.Client, url: str, target: Path, done: int, size: int, progress: Progress) -> None:
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416:  # the server's file is shorter than our part
            target.unlink()
            return
        _check_status(response, url)
        if response.status_code == 206:
            _check_range(response, url, done, size)
        else:
            done = 0  # the server ignores ranges: the whole file comes again
        with target.open("ab" if done else "wb") as file:
            for chunk in response.iter_raw():  # as received: a chunk size would hold bytes back
                done += len(chunk)
                if done > size:
                    raise NetworkError(f"{url} sends more than the expected {size} bytes")
                file.write(chunk)
                progress("download", done, size)
        if done < size:
            raise httpx.ReadError("the server closed the connection early")


def _check_range(response: httpx.Response, url: str, done: int, size: int) -> None:
    text = response.headers.get("content-range", "")
    match = CONTENT_RANGE.fullmatch(text)
    if match is None or int(match[1]) != done or match[2] not in ("*", str(size)):
        raise NetworkError(f"{url} answers bytes {done}- of {size} with the range {text!r}")


def _check_status(response: httpx.Response, url: str) -> None:
    if not response.is_success:
        raise NetworkError(f"{url} answers {response.status_code} {response.reason_phrase}",
                           hint="is that the right address, and do you have access to it?")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
