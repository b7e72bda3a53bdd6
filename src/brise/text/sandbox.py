"""Runs chat templates, which are untrusted programs from model files, each in a process of its own.

The process has limits of processor time and memory, no way to open a file or a connection, and nothing of this
process's environment. It stays for the next conversation. One that dies, hangs or runs out of memory is an error of the
request that it worked for, and the next request gets a new one. It ends when this process does, however that happens.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from brise import settings
from brise.errors import RequestError

MAX_CHARS = 1 << 24  # of one string and of all output; a context of 256k tokens is about 1 << 20
MAX_BYTES = 512 << 20  # of address space beyond what Python takes; 32 texts of the longest length that is allowed
GRACE_S = 0.5  # of processor time beyond the template's own, to read what it gets and to say what was wrong
_WAIT_S = 30.0  # beside ten times the processor time: a machine may have other things to do
_AT_ONCE = 1 << 16  # bytes that a socket takes before somebody reads
_MAX_ANSWER = 4 * MAX_CHARS  # bytes
HEAD = struct.Struct("<cQ")
TEXT, BROKEN, REFUSES, IS_FULL = b"t", b"b", b"r", b"m"
# The standard library and the folders of three packages: no .pth files, no current folder, no PYTHONPATH.
_START = "import sys; sys.path += sys.argv[1:]; from brise.text.template_process import main; main()"


class TemplateProgram:
    """A template and the process that renders it; `render` gives its text or raises RequestError."""

    def __init__(self, source: str, *, max_cpu_s: float = 5.0,  # real templates take milliseconds
                 waits: bool = True) -> None:
        """Without `waits` the process starts meanwhile, and the first `render` says if the template is broken."""
        self._first = _packed({"source": source, "max_cpu_s": max_cpu_s})
        self._max_cpu_s = max_cpu_s
        self._lock = threading.Lock()  # a process renders one conversation at a time
        self._process: _Process | None = None
        self._is_starting = False  # the process has the template, and nobody has read what it says of it
        with self._lock:
            if waits or len(self._first) > _AT_ONCE:
                self._started()
            else:
                self._begin()

    def render(self, variables: Mapping[str, object]) -> str:
        try:
            request = _packed(variables)
        except (RecursionError, TypeError, ValueError) as error:  # nested too deeply, or no JSON
            raise _refused(str(error) or type(error).__name__) from None
        with self._lock:
            return self._answer(self._started(), request)

    def _started(self) -> _Process:
        """The process; a new one if there is none, or the one there belongs to the process that this one was forked
        from."""
        if self._process is None or not self._process.is_usable():
            process, request = _Process(10 * self._max_cpu_s + _WAIT_S), self._first
        elif self._is_starting:
            process, request = self._process, b""
        else:
            return self._process
        self._process, self._is_starting = None, False
        self._answer(process, request)
        self._process = process
        return process

    def _begin(self) -> None:
        process = _Process(10 * self._max_cpu_s + _WAIT_S)
        with suppress(OSError):  # the first answer says why
            process.send(self._first)
        self._process, self._is_starting = process, True

    def _answer(self, process: _Process, request: bytes) -> str:
        """Sends a request, if there is one, and gives the text of the answer."""
        try:
            process.send(request)
            kind, body = process.receive()
        except BaseException as error:  # an interrupt, too, leaves it between a question and its answer
            self._process = None
            status = process.end()
            if isinstance(error, OSError | EOFError):
                raise _refused(_why(status, error, self._max_cpu_s)) from None
            raise
        text = body.decode("utf-8", "surrogatepass")
        if kind == TEXT:
            return text
        if kind != REFUSES:
            self._process = None
            process.end()
        if kind == BROKEN:
            raise RequestError(f"the model's chat template is broken: {text}", param="messages",
                               code="chat_template_error")
        raise _refused(text if kind == REFUSES else f"it took over {MAX_BYTES >> 20} MiB of memory")


class _Process:
    """A process that runs `main`, and this end of the pair of sockets to it."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s, self._owner = wait_s, os.getpid()
        # The packages are not imported here: a chat starts sooner.
        specs = [find_spec(name) for name in ("brise", "jinja2", "markupsafe")]
        folders = dict.fromkeys(str(Path(spec.origin).parent.parent) for spec in specs if spec and spec.origin)
        self._socket, theirs = socket.socketpair()
        try:
            with theirs:
                # A session of its own: an interrupt from the terminal is this process's to handle.
                self._child = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _START, *folders], stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
                    env=settings.bare_environment(), start_new_session=True)
        except OSError as error:
            self._socket.close()
            raise _refused(f"its process does not start: {error.strerror or error}") from None
        self._finalizer = weakref.finalize(self, _end, self._socket, self._child, self._owner)

    def is_usable(self) -> bool:
        return self._owner == os.getpid() and self._child.poll() is None

    def send(self, request: bytes) -> None:
        """Sends a request. OSError if it cannot."""
        self._socket.settimeout(self._wait_s)
        self._socket.sendall(request)

    def receive(self) -> tuple[bytes, bytes]:
        """The kind and the bytes of the next answer. OSError or EOFError if there is none."""
        deadline_s = time.monotonic() + self._wait_s
        kind, size = HEAD.unpack(self._read(HEAD.size, deadline_s))
        if size > _MAX_ANSWER:
            raise OSError(f"an answer of {size} bytes")
        return kind, self._read(size, deadline_s)

    def end(self) -> int:
        """Ends the process and gives its exit status, negative for a signal."""
        self._finalizer()
        return int(self._child.returncode)

    def _read(self, size: int, deadline_s: float) -> bytes:
        pieces = list[bytes]()
        while size:
            self._socket.settimeout(max(deadline_s - time.monotonic(), 0.001))
            piece = self._socket.recv(min(size, 1 << 20))
            if not piece:
                raise EOFError
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def _end(ours: socket.socket, child: subprocess.Popen[bytes], owner: int) -> None:
    ours.close()
    if owner != os.getpid():  # forked: the process is the parent's
        child.returncode = 0
        return
    try:
        child.wait(0.05)  # what died by itself has a status that says why
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _why(status: int, error: OSError | EOFError, max_cpu_s: float) -> str:
    if status == -signal.SIGPROF:
        return f"it ran for over {max_cpu_s:g} s"
    if status < 0 and status != -signal.SIGKILL:
        return f"its process died of {signal.Signals(-status).name}"
    if isinstance(error, TimeoutError):
        return "it does not end"
    return f"its process ended without an answer (exit status {status})"


def _refused(reason: str) -> RequestError:
    return RequestError(f"the model's chat template refuses these messages: {reason}", param="messages",
                        code="chat_template_error")


def _packed(value: Mapping[str, object]) -> bytes:
    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return HEAD.pack(TEXT, len(body)) + body
