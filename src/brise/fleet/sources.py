"""Where the static files of a repository come from: a folder or a stick, a web server, peers. (OCI: registry.py.)

    metadata/timestamp.json, metadata/N.root.json, ...    targets/bundles/NAME/HEX.N.json, targets/blobs/sha256/HEX.HEX

Nothing that a source sends is trusted. It is bounded in length and time here, and checked by trust.py.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import httpx

from brise import __version__
from brise.errors import FleetError
from brise.files.digests import CHUNK_BYTES
from brise.fleet.refusals import SourceError, TooLongError, TooSlowError, UnsafePathError

METADATA, TARGETS = "metadata", "targets"
CHANGING = f"{METADATA}/timestamp.json"  # the only file that is written over; all others have a version or a digest
_SEGMENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_BLOB = re.compile(rf"{TARGETS}/blobs/sha256/([0-9a-f]{{64}})\.\1")


class Source(Protocol):
    """Files by name, as bytes that nobody has checked."""

    def read(self, name: str, most: int, offset: int = 0) -> Iterator[bytes]:
        """The file from byte `offset` on. SourceError if it is not there; TooLongError behind `most` bytes;
        TooSlowError if it would never end."""


@dataclass(frozen=True)
class Pace:
    """How slow a server may be: a first answer within `grace_s`, then on average `least_rate` bytes a second; and
    never silent for `silent_s`."""

    grace_s: float = 30.0
    least_rate: float = 1024.0
    silent_s: float = 20.0


USUAL_PACE = Pace()


@dataclass(frozen=True)
class FolderSource:
    """A folder or a stick. No link is followed, and only regular files are opened."""

    folder: Path

    def read(self, name: str, most: int, offset: int = 0) -> Iterator[bytes]:
        """See Source."""
        number = self._open(check_name(name))
        with os.fdopen(number, "rb") as file:
            if os.fstat(number).st_size - offset > most:
                raise TooLongError(f"{name} of {str(self.folder)!r} has {os.fstat(number).st_size} bytes, "
                                   f"at most {most + offset} are allowed")
            file.seek(offset)
            yield from bounded(iter(lambda: file.read(CHUNK_BYTES), b""), name, most)

    def _open(self, segments: list[str]) -> int:
        """Opens the folders one in the other: a link anywhere on the way is refused."""
        name = "/".join(segments)
        try:
            number = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
            for at, segment in enumerate(segments):
                kind = os.O_DIRECTORY if at < len(segments) - 1 else os.O_NONBLOCK  # a pipe must not hold it up
                try:
                    inner = os.open(segment, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=number)
                except OSError:
                    if stat.S_ISLNK(os.stat(segment, dir_fd=number, follow_symlinks=False).st_mode):
                        raise UnsafePathError(f"{name} of {str(self.folder)!r} is a link, or lies behind one") from None
                    raise
                finally:
                    os.close(number)
                number = inner
        except FileNotFoundError:
            raise SourceError(f"{str(self.folder)!r} has no {name}", is_missing=True) from None
        except OSError as error:
            raise SourceError(f"cannot read {name} of {str(self.folder)!r}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(number).st_mode):
            os.close(number)
            raise UnsafePathError(f"{name} of {str(self.folder)!r} is no regular file")
        return number


class HttpSource:
    """A web server. The timestamp is asked for with its ETag, everything else may be asked for from the middle on.

    One connection is kept, and only one thread may use it. Redirects are not followed unless `follows`, proxies not
    used.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str] = MappingProxyType({}),
                 tls: ssl.SSLContext | None = None, pace: Pace = USUAL_PACE,
                 transport: httpx.BaseTransport | None = None, clock: Callable[[], float] = time.monotonic,
                 auth: httpx.Auth | None = None, follows: bool = False) -> None:
        self.url = url.rstrip("/")
        self._pace, self._clock = pace, clock
        self._client = httpx.Client(
            headers={"User-Agent": f"brise/{__version__}", "Accept-Encoding": "identity", **headers}, trust_env=False,
            verify=tls or True, transport=transport, auth=auth, follow_redirects=follows,
            timeout=httpx.Timeout(pace.silent_s),
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1))
        self._stream: Any = None  # of httpcore: the connection's
        self._kept: dict[str, tuple[str, bytes]] = {}  # ETag and body

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def read(self, name: str, most: int, offset: int = 0) -> Iterator[bytes]:
        """See Source."""
        check_name(name)
        begun = self._clock()
        kept = self._kept.get(name) if offset == 0 else None
        headers = {"Range": f"bytes={offset}-"} if offset else {"If-None-Match": kept[0]} if kept else {}
        request = self._client.build_request("GET", f"{self.url}/{self.place(name)}", headers=headers,
                                             extensions={"trace": self._trace})
        try:
            with self._ended_after(self._pace.grace_s) as was_ended:
                response = self._client.send(request, stream=True)
            try:
                yield from self._body(response, name, most, offset, begun, kept)
            finally:
                response.close()
        except httpx.HTTPError as error:
            if was_ended() or isinstance(error, httpx.ReadTimeout):
                raise self._slow(name) from None
            raise SourceError(f"{self.url} cannot be reached: {type(error).__name__}: {error}") from None

    def place(self, name: str) -> str:
        """The path of a file below the URL."""
        return name

    def _body(self, response: httpx.Response, name: str, most: int, offset: int, begun: float,
              kept: tuple[str, bytes] | None) -> Iterator[bytes]:
        if kept is not None and response.status_code == 304:
            yield from bounded(iter([kept[1]]), name, most)
            return
        skipped = self._skipped(response, name, offset)
        etag = response.headers.get("etag")
        whole = bytearray()
        for chunk in bounded(self._paced(response, name, begun), name, most + skipped):
            if name == CHANGING:
                whole += chunk
            if skipped >= len(chunk):
                skipped -= len(chunk)
                continue
            yield chunk[skipped:]
            skipped = 0
        if name == CHANGING and etag is not None and not offset:
            self._kept[name] = etag, bytes(whole)

    def _skipped(self, response: httpx.Response, name: str, offset: int) -> int:
        """How many bytes of the body come before `offset`: a server may ignore ranges."""
        if response.status_code == 206 and offset:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or int(found[1]) != offset:
                raise SourceError(f"{self.url} answers bytes {offset}- of {name} with the range "
                                  f"{response.headers.get('content-range', '')[:100]!r}")
            return 0
        if response.status_code == 200:
            return offset
        if response.status_code == 416 and offset:
            raise SourceError(f"{name} of {self.url} ends before byte {offset}")
        raise SourceError(f"{self.url}/{self.place(name)} answers {response.status_code}",
                          is_missing=response.status_code in (403, 404))  # 403: what stores of objects say

    def _paced(self, response: httpx.Response, name: str, begun: float) -> Iterator[bytes]:
        """The body as it comes; TooSlowError if that takes longer than the pace allows."""
        received = 0
        for chunk in response.iter_raw():
            received += len(chunk)
            if self._clock() - begun > self._pace.grace_s + received / self._pace.least_rate:
                raise self._slow(name)
            yield chunk

    def _slow(self, name: str) -> TooSlowError:
        return TooSlowError(f"{self.url} sends {name} too slowly: a first answer must come within "
                            f"{self._pace.grace_s:g} s, and then {self._pace.least_rate:g} bytes a second")

    def _trace(self, event: str, about: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._stream = about["return_value"]

    @contextmanager
    def _ended_after(self, seconds: float) -> Iterator[Callable[[], bool]]:
        """Cuts the connection if the block takes longer: time-outs of sockets begin anew with each byte of a header."""
        ended = threading.Event()

        def end() -> None:
            ended.set()
            stream = self._stream
            found = None if stream is None else stream.get_extra_info("socket")
            if found is not None:
                with suppress(OSError):
                    found.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield ended.is_set
        finally:
            timer.cancel()


class PeerSource(HttpSource):
    """Another node of the fleet: it has blobs by digest, and nothing else."""

    def read(self, name: str, most: int, offset: int = 0) -> Iterator[bytes]:
        """See Source."""
        if _BLOB.fullmatch(name) is None:
            raise SourceError(f"a peer has no {name}", is_missing=True)
        return super().read(name, most, offset)

    def place(self, name: str) -> str:
        """The path of a blob on a node."""
        found = _BLOB.fullmatch(name)
        assert found is not None
        return f"blobs/sha256/{found[1]}"


def trusted(authority: Path | None) -> ssl.SSLContext | None:
    """The certificates that a server's may be signed with: those of a PEM file, beside the usual ones; None: those
    alone."""
    if authority is None:
        return None
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(authority)
    except (OSError, ssl.SSLError) as error:
        raise FleetError(f"{str(authority)!r} holds no certificate in PEM: {error}") from None
    return context


def bounded(chunks: Iterator[bytes], name: str, most: int) -> Iterator[bytes]:
    """The chunks, of at most `most` bytes together; TooLongError instead of the first that exceeds it."""
    received = 0
    for chunk in chunks:
        received += len(chunk)
        if received > most:
            raise TooLongError(f"{name} has more than the {most} bytes that are allowed; the rest was not read")
        yield chunk


def check_name(name: str) -> list[str]:
    """The segments of a file's name; UnsafePathError unless it stays below its folder."""
    segments = name.split("/")
    if not 1 <= len(segments) <= 6 or not all(map(_SEGMENT.fullmatch, segments)):
        raise UnsafePathError(f"the name {name[:100]!r} may lead out of the repository")
    return segments
