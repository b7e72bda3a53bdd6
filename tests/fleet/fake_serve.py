"""Stands in for `brise serve` in tests of nodes: answers with what it read when it started, over the same two sockets.

It is run as `python -S fake_serve.py WORDS...` with the words that a node gives. The adapter's file is JSON: `version`,
and `fails`: "start" (it ends at once), "later" (from the second start on), "fingerprint" (it is another model), "crash"
(it ends at the first request).
"""

import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

COMPLETION = {"id": "c", "object": "chat.completion", "created": 1, "model": "tickets", "choices": [
    {"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}]}


def main() -> None:
    """Until SIGTERM, or until the node has ended."""
    words = sys.argv[1:]
    listener = socket.socket(fileno=int(words[words.index("--listen-fd") + 1]))
    link = socket.socket(fileno=int(words[words.index("--supervisor-fd") + 1]))
    base = Path(words[1].partition("=")[2])
    adapter = Path(words[words.index("--adapter") + 1].partition("=")[2]) / "adapter_model.safetensors"
    manifest = json.loads((adapter.parent.parent / "manifest.json").read_bytes())
    about = json.loads(adapter.read_bytes())
    if about.get("fails") == "start":
        sys.exit("the file of the adapter is broken")
    if about.get("fails") == "later":
        counter = Path(about["counter"])
        counter.write_text((counter.read_text() if counter.exists() else "") + "x")
        if counter.read_text() != "x":
            sys.exit("the file of the adapter is broken now")
    answer = {"version": manifest["version"], "adapter": about["version"], "base": base.read_text(),
              "fingerprint": "ee" * 16 if about.get("fails") == "fingerprint" else "0f" * 16}
    threading.Thread(target=end_with, args=(link,), daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    link.send(b"ready\n")
    number = 0
    while True:
        connection, _ = listener.accept()
        with connection:
            head = connection.makefile("rb").readline()
            number += head.startswith(b"POST")
            if about.get("fails") == "crash" and head.startswith(b"POST"):
                os._exit(1)
            body = json.dumps(answer | COMPLETION if head.startswith(b"POST") else answer).encode()
            if b" /metrics " in head:
                body = f'brise_requests_total{{endpoint="/v1/chat/completions",status="200"}} {number}.0\n'.encode()
            connection.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n"
                               b"content-length: %d\r\n\r\n%s" % (len(body), body))


def end_with(link: socket.socket) -> None:
    """Ends this process when the node has ended."""
    try:
        link.recv(1)
    finally:  # the node may have ended with our word unread, which is an error here
        os._exit(0)


if __name__ == "__main__":
    main()
