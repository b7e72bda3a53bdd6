"""An answer through a peer beside the same answer of the peer's own server: p50 of both, asked in turn.

    python bench/fleet_peers.py MODEL [REQUESTS]

Three processes, as on two devices: `brise serve MODEL`, the node in front of it that other devices ask over TLS, and
this one, whose node has no server and relays. The limit is 1.2 times the local p50 and 5 ms.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from brise import settings
from brise.demo.child import Brise, reserved_port
from brise.fleet.device import Device, signing_key
from brise.fleet.peer_certificates import FleetAuthority, PeerTls
from brise.fleet.peer_servers import PeerServers
from brise.fleet.peers import Answering, PeerApp, Peers, RelayApp
from brise.serve.app import bind
from brise.serve.serving import ServeSettings

NAME = "tickets"
FACTOR, EXTRA_S = 1.2, 0.005


def main() -> None:
    """Prints the figures of short answers, whole ones."""
    model, number = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 200
    with tempfile.TemporaryDirectory() as place, reserved_port() as port_a, reserved_port() as port_b:
        folder = Path(place)
        authority = FleetAuthority.new("bench", time.time())
        tls_a, tls_b = (_tls(authority, name, folder) for name in ("a", "b"))
        brise = Brise(settings.read().home, folder)
        with brise.server(f"{NAME}={model}") as url:
            own = url.removesuffix("/v1")
            fingerprint = httpx.get(f"{url}/models/{NAME}", timeout=60).json()["fingerprint"]
            with _other_device(Answering(NAME, fingerprint, own), tls_b, port_b):
                wanted = Answering(NAME, fingerprint, "")
                peers = Peers((f"https://127.0.0.1:{port_b}",), tls_a)
                listener = bind(ServeSettings(port=port_a))
                listener.listen(64)
                servers = PeerServers(peers, lambda: wanted, RelayApp(peers, lambda: wanted, None), listener)
                servers.start()
                while not servers.is_relaying:
                    time.sleep(0.05)
                _measure(own, f"http://127.0.0.1:{port_a}", number)
                servers.stop()


def _measure(local: str, relayed: str, number: int) -> None:
    times: dict[str, list[float]] = {local: [], relayed: []}
    with httpx.Client(timeout=60) as client:
        for turn in range(number + 5):
            for url, seconds in times.items():
                body = {"model": NAME, "messages": [{"role": "user", "content": f"Name a wind. {turn}"}],
                        "max_tokens": 8, "temperature": 0}
                begun = time.perf_counter()
                answer = client.post(f"{url}/v1/chat/completions", json=body)
                if turn >= 5:  # the first ones connect
                    seconds.append(time.perf_counter() - begun)
                answer.raise_for_status()
                assert (answer.headers.get("x-brise-mode") == "peer") is (url == relayed)
    own_s, peer_s = (statistics.median(seconds) for seconds in times.values())
    limit_s = FACTOR * own_s + EXTRA_S
    print(f"p50 of {number} answers of 8 tokens, in turn: own server {1e3 * own_s:.2f} ms, through a peer "
          f"{1e3 * peer_s:.2f} ms; the limit is {1e3 * limit_s:.2f} ms: {'kept' if peer_s <= limit_s else 'EXCEEDED'}")


def _tls(authority: FleetAuthority, name: str, folder: Path) -> PeerTls:
    place = folder / name
    certificate = authority.issue(name, signing_key(place).public, time.time())
    return PeerTls.of(Device(name, certificate=certificate, authority=authority.certificate), place)


@contextmanager
def _other_device(answering: Answering, tls: PeerTls, port: int) -> Iterator[None]:
    """The node in front of the server, in a process of its own."""
    process = os.fork()
    if process == 0:
        nobody = Peers((), tls)
        servers = PeerServers(nobody, lambda: None, RelayApp(nobody, lambda: None, None),
                              bind(ServeSettings(port=0)))
        servers.start()
        servers.listen(PeerApp("b", lambda: answering, lambda sha256: None), "127.0.0.1", port, tls)
        threading.Event().wait()
    try:
        yield
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


if __name__ == "__main__":
    main()
