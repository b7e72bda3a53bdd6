"""The large model behind TLS, and behind a proxy: as a company's network has it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
import trustme

from tests.gateway.fake_proxy import fake_proxy
from tests.gateway.fake_upstream import chat
from tests.gateway.rig import Rig, rig

BODY = {"model": "big", "messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusted(authority: trustme.CA, monkeypatch: pytest.MonkeyPatch) -> Iterator[trustme.CA]:
    """The authority that this machine trusts."""
    with authority.cert_pem.tempfile() as path:
        monkeypatch.setenv("SSL_CERT_FILE", path)
        yield authority


@pytest.fixture
def server(trusted: trustme.CA) -> ssl.SSLContext:
    """Of a large model in whose name it speaks."""
    return context(trusted, "127.0.0.1")


def context(authority: trustme.CA, name: str) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(made)
    return made


def says_hello(made: Rig) -> bool:
    whole, stream = made.live.post(CHAT, BODY), made.live.post(CHAT, {**BODY, "stream": True})
    return (whole.status_code == 200 and whole.json()["choices"][0]["message"]["content"] == "hello"
            and stream.status_code == 200 and stream.text.endswith("data: [DONE]\n\n"))


def test_answers_come_through_tls(server: ssl.SSLContext) -> None:
    with rig(tls=server) as made:
        assert says_hello(made) and made.fake.num_connections == 1, "a connection is used again"
        assert [row.error for row in made.captured.wait(2)] == [None, None]


def test_a_stream_that_is_lost_in_tls_ends_in_an_error(server: ssl.SSLContext) -> None:
    with rig(tls=server) as made:
        made.fake.then(chat("one two three four"))
        made.fake.default = chat("hello")
        assert "data: [DONE]" in made.live.post(CHAT, {**BODY, "stream": True}).text
        made.fake.stop()
        refused = made.live.post(CHAT, BODY)
        assert refused.status_code == 502 and "refused" in refused.json()["error"]["message"].lower()


@pytest.mark.parametrize("why", ["stranger", "other name"])
def test_a_certificate_that_does_not_hold_is_an_error_and_nothing_is_sent(
        trusted: trustme.CA, why: str) -> None:
    strange = context(trustme.CA(), "127.0.0.1") if why == "stranger" else context(trusted, "api.example.com")
    with rig(tls=strange) as made:
        refused = made.live.post(CHAT, BODY)
        assert refused.status_code == 502 and "certificate" in refused.json()["error"]["message"].lower()
        assert not made.fake.received


def test_tls_goes_through_a_tunnel_of_the_proxy(server: ssl.SSLContext) -> None:
    with fake_proxy() as proxy, rig(tls=server, proxy=f"http://anna:p%40ss@127.0.0.1:{proxy.port}") as made:
        assert says_hello(made)
        head = proxy.heads[0].lower()
        assert head.startswith(f"connect 127.0.0.1:{made.fake.port} http/1.1\r\n") and len(proxy.heads) == 1
        assert "proxy-authorization: basic yw5uytpwqhnz\r\n" in head  # anna:p@ss
        assert all(received.header("proxy-authorization") is None for received in made.fake.received)


def test_plain_http_goes_to_the_proxy_as_a_whole_url() -> None:
    with fake_proxy() as proxy, rig(proxy=f"http://anna:geheim@127.0.0.1:{proxy.port}") as made:
        assert made.live.post(CHAT, BODY).status_code == 200
        head = proxy.heads[0].lower()
        assert head.startswith(f"post http://127.0.0.1:{made.fake.port}{CHAT} http/1.1\r\n")
        assert "proxy-authorization: basic yw5uytpnzwhlaw0=\r\n" in head


def test_a_proxy_that_lets_nobody_through_is_named(server: ssl.SSLContext) -> None:
    with fake_proxy(407) as proxy, rig(tls=server, proxy=f"127.0.0.1:{proxy.port}") as made:
        refused = made.live.post(CHAT, BODY)
        assert refused.status_code == 502
        assert "the proxy did not let us through: status 407" in refused.json()["error"]["message"]
        assert not made.fake.received
