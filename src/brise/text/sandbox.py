"""Runs chat templates, which are untrusted programs from model files, each in a process of its own.

The process has limits of processor time and memory, no way to open a file or a connection, and nothing of this
process's environment. It stays for the next conversation. One that dies, hangs or runs out of memory is an error of the
request that it worked for, and the next request gets a new one. It ends when this process does, however that happens.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

import jinja2
import markupsafe

import brise
from brise import settings
from brise.errors import RequestError
from brise.text.bounded_template import MAX_CHARS, BoundedTemplate, BrokenTemplateError

MAX_BYTES = 512 << 20  # of address space beyond what Python takes; 32 texts of the longest length that is allowed
_GRACE_S = 0.5  # of processor time beyond the template's own, to read what it gets and to say what was wrong
_WAIT_S = 30.0  # beside ten times the processor time: a machine may have other things to do
_MAX_REASON = 2000  # characters of an error's text
_MAX_ANSWER = 4 * MAX_CHARS  # bytes
_HEAD = struct.Struct("<cQ")
_TEXT, _BROKEN, _REFUSES, _IS_FULL = b"t", b"b", b"r", b"m"
# The standard library and the folders of three packages: no .pth files, no current folder, no PYTHONPATH.
_START = "import sys; sys.path += sys.argv[1:]; from brise.text.sandbox import main; main()"


class TemplateProgram:
    """A template and the process that renders it; `render` gives its text or raises RequestError."""

    def __init__(self, source: str, *, max_cpu_s: float = 5.0) -> None:  # real templates take milliseconds
        self._first = {"source": source, "max_cpu_s": max_cpu_s}
        self._max_cpu_s = max_cpu_s
        self._lock = threading.Lock()  # a process renders one conversation at a time
        self._process: _Process | None = None
        with self._lock:
            self._started()

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
            process = _Process(10 * self._max_cpu_s + _WAIT_S)
            self._answer(process, _packed(self._first))
            self._process = process
        return self._process

    def _answer(self, process: _Process, request: bytes) -> str:
        try:
            kind, body = process.ask(request)
        except BaseException as error:  # an interrupt, too, leaves it between a question and its answer
            self._process = None
            status = process.end()
            if isinstance(error, OSError | EOFError):
                raise _refused(_why(status, error, self._max_cpu_s)) from None
            raise
        text = body.decode("utf-8", "surrogatepass")
        if kind == _TEXT:
            return text
        if kind != _REFUSES:
            self._process = None
            process.end()
        if kind == _BROKEN:
            raise RequestError(f"the model's chat template is broken: {text}", param="messages",
                               code="chat_template_error")
        raise _refused(text if kind == _REFUSES else f"it took over {MAX_BYTES >> 20} MiB of memory")


class _Process:
    """A process that runs `main`, and this end of the pair of sockets to it."""

    def __init__(self, wait_s: float) -> None:
        self._wait_s, self._owner = wait_s, os.getpid()
        folders = dict.fromkeys(str(Path(str(module.__file__)).parent.parent) for module in (brise, jinja2, markupsafe))
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

    def ask(self, request: bytes) -> tuple[bytes, bytes]:
        """Sends a request and gives the kind and the bytes of the answer. OSError or EOFError if there is none."""
        deadline_s = time.monotonic() + self._wait_s
        self._socket.settimeout(self._wait_s)
        self._socket.sendall(request)
        kind, size = _HEAD.unpack(self._read(_HEAD.size, deadline_s))
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
    return _HEAD.pack(_TEXT, len(body)) + body


def main() -> None:
    """The program of the process: reads a template, then conversations, and answers each."""
    _warm_up()
    _limit()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    template: BoundedTemplate | None = None
    with socket.socket(fileno=0) as theirs, theirs.makefile("rb") as questions:
        while head := questions.read(_HEAD.size):
            size = _HEAD.unpack(head)[1]
            fields = json.loads(questions.read(size).decode("utf-8", "surrogatepass"))
            kind, body = _TEXT, b""
            try:
                if template is None:
                    _start_clock(fields["max_cpu_s"])
                    max_cpu_s = fields["max_cpu_s"]
                    template = BoundedTemplate(fields["source"], max_cpu_s)
                else:
                    _start_clock(max_cpu_s)
                    body = template.render(fields).encode("utf-8", "surrogatepass")
            except BrokenTemplateError as error:
                kind, body = _BROKEN, _reason(error)
            except MemoryError:
                kind, body = _IS_FULL, b""
            except Exception as error:  # untrusted code: whatever it raises is the request's error
                kind, body = _REFUSES, _reason(error)
            signal.setitimer(signal.ITIMER_PROF, 0)
            theirs.sendall(_HEAD.pack(kind, len(body)) + body)


def _start_clock(max_cpu_s: float) -> None:
    """From here on the kernel ends this process after so much processor time, wherever it is."""
    signal.setitimer(signal.ITIMER_PROF, max_cpu_s + _GRACE_S)


def _reason(error: Exception) -> bytes:
    return (str(error)[:_MAX_REASON] or type(error).__name__).encode("utf-8", "surrogatepass")


def _warm_up() -> None:
    """Loads what rendering loads late, while files can be opened still."""
    time.localtime()
    template = BoundedTemplate("{{ strftime_now('%Y %b') }}{{ [1, 'é'] | tojson(ensure_ascii=true) }}{{ a.b.c }}", 5)
    try:
        template.render({})
    except jinja2.TemplateError:
        return


def _limit() -> None:
    """No more memory than allowed, no descriptor beside the three (so no file and no connection), no core dump."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    wanted = {resource.RLIMIT_AS: pages * resource.getpagesize() + MAX_BYTES, resource.RLIMIT_NOFILE: 3,
              resource.RLIMIT_FSIZE: 0, resource.RLIMIT_CORE: 0}
    for limit, number in wanted.items():
        most = resource.getrlimit(limit)[1]
        number = number if most == resource.RLIM_INFINITY else min(number, most)
        resource.setrlimit(limit, (number, number))


def _end_with_parent() -> None:
    """Waits for the end of the parent, which closes its socket; the template may be at work meanwhile."""
    waiting = select.poll()
    waiting.register(0, select.POLLHUP | select.POLLERR)
    waiting.poll()
    os._exit(0)
