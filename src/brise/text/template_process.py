"""The program of a template's process, which sandbox.py starts: reads a template, then conversations, answers each."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import socket
import threading
import time
from pathlib import Path

import jinja2

from brise.text.bounded_template import BoundedTemplate, BrokenTemplateError
from brise.text.sandbox import BROKEN, GRACE_S, HEAD, IS_FULL, MAX_BYTES, REFUSES, TEXT

_MAX_REASON = 2000  # characters of an error's text


def main() -> None:
    """Works until the socket at descriptor 0 is closed."""
    _warm_up()
    _limit()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    template: BoundedTemplate | None = None
    with socket.socket(fileno=0) as theirs, theirs.makefile("rb") as questions:
        while head := questions.read(HEAD.size):
            size = HEAD.unpack(head)[1]
            fields = json.loads(questions.read(size).decode("utf-8", "surrogatepass"))
            kind, body = TEXT, b""
            try:
                if template is None:
                    _start_clock(fields["max_cpu_s"])
                    max_cpu_s = fields["max_cpu_s"]
                    template = BoundedTemplate(fields["source"], max_cpu_s)
                else:
                    _start_clock(max_cpu_s)
                    body = template.render(fields).encode("utf-8", "surrogatepass")
            except BrokenTemplateError as error:
                kind, body = BROKEN, _reason(error)
            except MemoryError:
                kind, body = IS_FULL, b""
            except Exception as error:  # untrusted code: whatever it raises is the request's error
                kind, body = REFUSES, _reason(error)
            signal.setitimer(signal.ITIMER_PROF, 0)
            theirs.sendall(HEAD.pack(kind, len(body)) + body)


def _start_clock(max_cpu_s: float) -> None:
    """From here on the kernel ends this process after so much processor time, wherever it is."""
    signal.setitimer(signal.ITIMER_PROF, max_cpu_s + GRACE_S)


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
