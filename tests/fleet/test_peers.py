"""Devices that answer for each other: with the same fingerprint only, within the fleet, and never half an answer."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from brise.errors import FleetError
from brise.fleet.device import Device, signing_key
from brise.fleet.peer_certificates import FleetAuthority, PeerTls, serial_and_end
from brise.fleet.peer_servers import PeerServers
from brise.fleet.peers import Answering, PeerApp, Peers, RelayApp
from brise.fleet.refusals import SourceError
from brise.fleet.sources import PeerSource
from brise.serve.access import AcceptedKeys
from tests.fleet.repositories import NOW
from tests.waiting import LIMIT_S, wait_until

SAME, OTHER = "0f" * 16, "ee" * 16
BODY = {"model": "tickets", "messages": [{"role": "user", "content": "hi"}]}


@dataclass
class OwnServer:
    """The server of a device: one answer for each connection, which may break off; `asked` are the bodies."""

    listener: socket.socket
    chunks: list[bytes] = field(default_factory=list)
    stream: bool = False
    asked: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def run(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                request = b""
                while b"\r\n\r\n" not in request or not request.endswith(b"}"):
                    request += connection.recv(1 << 16)
                self.asked.append(request.partition(b"\r\n\r\n")[2])
                kind = b"text/event-stream" if self.stream else b"application/json"
                size = b"transfer-encoding: chunked" if self.stream else b"content-length: %d" % len(self.chunks[0])
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\n%s\r\n\r\n" % (kind, size))
                for chunk in self.chunks:
                    connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk) if self.stream else chunk)


@contextmanager
def own_server(chunks: list[bytes], *, stream: bool = False) -> Iterator[OwnServer]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = OwnServer(listener, chunks, stream)
        threading.Thread(target=server.run, daemon=True).start()
        yield server
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def authority() -> FleetAuthority:
    return FleetAuthority.new("fleet", NOW - 3e7)


def tls(authority: FleetAuthority, name: str, folder: Path) -> PeerTls:
    place = folder / name
    certificate = authority.issue(name, signing_key(place).public, NOW - 3e7)
    return PeerTls.of(Device(name, certificate=certificate, authority=authority.certificate), place)


@dataclass
class Pair:
    """Device A without a server, and device B, which may answer for it."""

    port: int
    b_url: str
    a_tls: PeerTls
    b_tls: PeerTls
    a: PeerServers
    b: PeerServers

    def ask(self, **more: object) -> httpx.Response:
        return httpx.post(f"http://127.0.0.1:{self.port}/v1/chat/completions", json=BODY | more, timeout=LIMIT_S,
                          trust_env=False)


@contextmanager
def pair(authority: FleetAuthority, folder: Path, own: OwnServer, *, fingerprint: str = SAME,
         keys: AcceptedKeys | None = None, blobs: Path | None = None) -> Iterator[Pair]:
    a_tls, b_tls = (tls(authority, name, folder) for name in ("a", "b"))
    with ExitStack() as stack:
        ports = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        nobody = Peers((), b_tls)
        b = PeerServers(nobody, lambda: None, RelayApp(nobody, lambda: None, None), ports[1])
        b.start()
        stack.callback(b.stop)
        app = PeerApp("b", lambda: Answering("tickets", fingerprint, own.url),
                       lambda sha256: None if blobs is None else blobs / sha256)
        host, port = b.listen(app, "127.0.0.1", 0, b_tls)
        url = f"https://{host}:{port}"
        peers = Peers((url,), a_tls)
        wanted = Answering("tickets", SAME, "")
        a = PeerServers(peers, lambda: wanted, RelayApp(peers, lambda: wanted, keys), ports[0])
        a.start()
        stack.callback(a.stop)
        yield Pair(ports[0].getsockname()[1], url, a_tls, b_tls, a, b)


def whole(text: str) -> list[bytes]:
    return [json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "tickets", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}).encode()]


def test_a_peer_with_the_same_fingerprint_answers_until_the_own_server_is_ready(
        authority: FleetAuthority, tmp_path: Path) -> None:
    with own_server(whole("from b")) as own, pair(authority, tmp_path, own) as two:
        answer = two.ask()
        assert (answer.status_code, answer.headers["x-brise-mode"]) == (200, "peer")
        assert answer.json()["choices"][0]["message"]["content"] == "from b"
        assert json.loads(own.asked[0]) == BODY
        two.a.set_answering(True)
        wait_until(lambda: not two.a.is_relaying)


def test_a_peer_with_another_fingerprint_is_never_asked(authority: FleetAuthority, tmp_path: Path) -> None:
    with own_server(whole("wrong")) as own, pair(authority, tmp_path, own, fingerprint=OTHER) as two:
        with httpx.Client(verify=two.a_tls.client(), timeout=LIMIT_S, trust_env=False) as client:
            refused = client.post(f"{two.b_url}/v1/chat/completions", json=BODY, headers={"brise-fingerprint": SAME})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "other_fingerprint")
        with pytest.raises(httpx.TimeoutException):  # A goes on waiting for its own server
            httpx.post(f"http://127.0.0.1:{two.port}/v1/chat/completions", json=BODY, timeout=1.5, trust_env=False)
        assert not own.asked and not two.a.is_relaying


def test_who_shows_no_certificate_of_the_fleet_is_refused(authority: FleetAuthority, tmp_path: Path) -> None:
    stranger = FleetAuthority.new("another", NOW - 3e7)
    with own_server(whole("x")) as own, pair(authority, tmp_path, own) as two:
        plain = ssl.create_default_context(cafile=str(two.a_tls.authority))
        plain.check_hostname = False
        other = tls(stranger, "stranger", tmp_path).client()
        for context in (plain, other):
            with pytest.raises(httpx.TransportError), httpx.Client(verify=context, trust_env=False) as client:
                client.get(f"{two.b_url}/peer")


def serial(peer: PeerTls) -> int:
    return serial_and_end(peer.certificate.read_text())[0]


def reaches(two: Pair, context: ssl.SSLContext) -> bool:
    with httpx.Client(verify=context, trust_env=False, timeout=LIMIT_S) as client:
        try:
            return client.get(f"{two.b_url}/peer").status_code == 200
        except httpx.TransportError:
            return False


@pytest.mark.parametrize("side", ["who asks", "who is asked"])
def test_a_revoked_device_is_refused_by_the_others(side: str, authority: FleetAuthority, tmp_path: Path) -> None:
    with own_server(whole("x")) as own, pair(authority, tmp_path, own) as two:
        context = two.a_tls.client()
        judge, other = (two.b_tls, two.a_tls) if side == "who asks" else (two.a_tls, two.b_tls)
        assert judge.revoke(authority.revocations([], NOW - 2e7)) and reaches(two, context)
        assert judge.revoke(authority.revocations([5], NOW - 1e7)) and reaches(two, context)
        newest = authority.revocations([5, serial(other)], NOW - 5e6)
        with httpx.Client(verify=context, trust_env=False, timeout=LIMIT_S) as client:
            assert client.get(f"{two.b_url}/peer").status_code == 200
            assert judge.revoke(newest) and not judge.revoke(newest)
            two.b.end_connections()
            with pytest.raises(httpx.TransportError):
                for _ in range(20):  # the kept connection may give one more answer
                    client.get(f"{two.b_url}/peer")
        assert not reaches(two, context)
        with pytest.raises(FleetError, match="older"):
            judge.revoke(authority.revocations([], NOW - 2e7))
        with pytest.raises(FleetError, match="not signed"):
            judge.revoke(FleetAuthority.new("fleet", NOW - 3e7).revocations([], NOW))
        with pytest.raises(FleetError, match="not one"):
            judge.revoke("-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----\n")
        assert not reaches(two, context)


def test_a_renewed_certificate_holds_for_the_next_connection(authority: FleetAuthority, tmp_path: Path) -> None:
    with own_server(whole("x")) as own, pair(authority, tmp_path, own) as two:
        context, before = two.a_tls.client(), serial(two.a_tls)
        two.a_tls.renew(authority.issue("a", signing_key(tmp_path / "a").public, NOW - 1e7))
        assert serial(two.a_tls) != before
        assert two.b_tls.revoke(authority.revocations([before], NOW - 5e6))
        assert reaches(two, context)


def test_a_peer_that_breaks_off_ends_the_stream_with_an_error(authority: FleetAuthority, tmp_path: Path) -> None:
    event = (b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"tickets","choices":[{"index":0,'
             b'"delta":{"role":"assistant","content":"Half"},"finish_reason":null}]}\n\n')
    with own_server([event], stream=True) as own, pair(authority, tmp_path, own) as two:
        answer = two.ask(stream=True)
        assert "Half" in answer.text and "error" in answer.text.splitlines()[-2] + answer.text.splitlines()[-3]
        assert "[DONE]" not in answer.text


def test_keys_of_the_device_hold_for_the_relay(authority: FleetAuthority, tmp_path: Path) -> None:
    with own_server(whole("x")) as own, pair(authority, tmp_path, own, keys=AcceptedKeys(["secret"])) as two:
        assert two.ask().status_code == 401
        assert not own.asked


def test_other_models_get_an_error_and_not_a_peers_large_model(authority: FleetAuthority, tmp_path: Path) -> None:
    with own_server(whole("x")) as own, pair(authority, tmp_path, own) as two:
        answer = two.ask(model="gpt-5")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_server")
        assert not own.asked


def test_blobs_come_by_digest_and_from_the_middle_on(authority: FleetAuthority, tmp_path: Path) -> None:
    digest = "ab" * 32
    (tmp_path / digest).write_bytes(b"0123456789")
    with own_server(whole("x")) as own, pair(authority, tmp_path, own, blobs=tmp_path) as two:
        source = PeerSource(two.b_url, tls=two.a_tls.client())
        assert b"".join(source.read(f"targets/blobs/sha256/{digest}.{digest}", 100)) == b"0123456789"
        assert b"".join(source.read(f"targets/blobs/sha256/{digest}.{digest}", 100, 7)) == b"789"
        with pytest.raises(SourceError):
            list(source.read(f"targets/blobs/sha256/{'cd' * 32}.{'cd' * 32}", 100))
        source.close()
