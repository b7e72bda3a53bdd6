"""Traces and metrics leave through a process of their own, in which OpenTelemetry's SDK computes what it sends.

In a thread of the server it would hold up the event loop, which shares the interpreter's lock with every thread.

This end writes each finished request as it is, and then a sentinel; the other end makes spans of all of them, sends
them, and answers with the number that was not sent. It ends when this process does, however that happens.

    -> pickled TracedRequest, ..., None    <- a line of JSON: the number that was lost; at the start null, or an error
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import IO

from brise.errors import BriseError
from brise.gateway.trace import RequestTrace
from brise.serve import span_attributes
from brise.serve.otlp import OtlpExporter, OtlpSampler
from brise.serve.telemetry import TracedRequest

# With this process's paths, and whatever its site-packages set up.
_START = "import sys; sys.path[:] = sys.argv[3:]; from brise.serve.otlp_process import main; main(*sys.argv[1:3])"
NICE = 10  # added: on a busy machine the clients' answers come first
LEVEL = pickle.HIGHEST_PROTOCOL


class ExportProcess:
    """An exporter whose work another process does. It belongs to one thread, but for `is_sampled` and `end`."""

    def __init__(self, endpoint: str | None, *, with_content: bool) -> None:
        self._endpoint, self._with_content = endpoint, with_content
        self._sampler, self._lock, self._is_ended = OtlpSampler(), threading.Lock(), False
        self._process: subprocess.Popen[bytes] | None = None
        self._started()

    @property
    def pid(self) -> int:
        """Of the process; 0 if none has begun."""
        return 0 if self._process is None else self._process.pid

    def is_sampled(self, begun: RequestTrace) -> bool:
        return self._sampler.is_sampled(begun)

    def export(self, requests: Sequence[TracedRequest]) -> int:
        """Hands them over and waits until they are sent; how many were not."""
        process = self._started()
        into, out = _pipes(process)
        for request in requests:  # each by itself: what is pickled at one time holds the lock for so long
            into.write(pickle.dumps(request if self._with_content else _without_content(request), LEVEL))
        into.write(pickle.dumps(None, LEVEL))
        into.flush()
        num_lost = _answer(out)
        assert isinstance(num_lost, int), "errors are for the start"
        return num_lost

    def close(self) -> None:
        """Sends what is left, and waits for the end."""
        if self._process is not None and self._process.poll() is None:
            _pipes(self._process)[0].close()
            self._process.wait()

    def end(self) -> None:
        """Ends the process, wherever it is."""
        with self._lock:
            self._is_ended = True
            if self._process is not None:
                _end(self._process)

    def _started(self) -> subprocess.Popen[bytes]:
        """The process; another one if it has died. BriseError if it cannot begin."""
        with self._lock:
            if self._is_ended:
                raise BriseError("telemetry has ended")
            if self._process is not None and self._process.poll() is None:
                return self._process
            if self._process is not None:
                _end(self._process)
            # A session of its own: an interrupt from the terminal is this process's to handle.
            self._process = process = subprocess.Popen(
                [sys.executable, "-c", _START, self._endpoint or "", "content" * self._with_content, *sys.path],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        try:
            why = _answer(_pipes(process)[1])
        except EOFError:
            why = f"its process ended with status {process.wait()}"
        if why is not None:
            _end(process)
            raise BriseError(f"OpenTelemetry does not start: {why}", hint="the OTEL_* variables say how it works")
        return process


def main(endpoint: str, content: str) -> None:
    """The other end. Signals for the server's group are not for it: it ends when its input does."""
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, signal.SIG_IGN)
    os.nice(NICE)
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)  # whatever a library prints is no answer
        try:
            exporter = OtlpExporter(endpoint or None, with_content=bool(content))
        except Exception as error:  # of a variable that the SDK cannot read
            _say(out, f"{type(error).__name__}: {error}")
            return
        _say(out, None)
        with suppress(BrokenPipeError):
            _serve(exporter, sys.stdin.buffer, out)
        exporter.close()


def _serve(exporter: OtlpExporter, into: IO[bytes], out: IO[bytes]) -> None:
    requests = list[TracedRequest]()
    while True:
        try:
            request = pickle.load(into)
        except EOFError:
            return
        if request is not None:
            requests.append(request)
            continue
        try:
            num_lost = exporter.export(requests)
        except Exception:  # of the SDK or of ours: telemetry never ends what it watches
            num_lost = len(requests)
        requests.clear()
        _say(out, num_lost)


def _say(out: IO[bytes], what: object) -> None:
    out.write(json.dumps(what).encode() + b"\n")
    out.flush()


def _answer(out: IO[bytes]) -> int | str | None:
    line = out.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the process has ended")
    found: int | str | None = json.loads(line)
    return found


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in _pipes(process):
        with suppress(OSError):  # what was not written has no reader
            pipe.close()


def _without_content(request: TracedRequest) -> TracedRequest:
    """Without what was asked: a prompt may be megabytes long, and no span has it."""
    fields = request.exchange.request or {}
    kept = {name: fields[name] for name in span_attributes.FIELDS if name in fields}
    return replace(request, exchange=replace(request.exchange, request=kept))
