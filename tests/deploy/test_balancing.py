"""HAProxy with the configuration that `brise deploy haproxy` prints, in front of two servers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from brise.demo.child import reserved_port
from brise.deploy import files
from brise.deploy.options import DeployOptions, ServerPlace
from tests.serve.live import Live, live
from tests.waiting import LIMIT_S, wait_until

HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/sbin")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(HAPROXY is None, reason="HAProxy is not installed")]


@dataclass(frozen=True)
class Balanced:
    """The balancer's URL, and the servers behind it by name."""

    url: str
    servers: dict[str, Live]

    def chat(self, conversation: str | None = None) -> httpx.Response:
        headers = {} if conversation is None else {"x-brise-conversation": conversation}
        return httpx.post(f"{self.url}/v1/chat/completions", headers=headers, trust_env=False, timeout=LIMIT_S, json={
            "model": "stub", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2})

    def server_of(self, conversation: str) -> str:
        answer = self.chat(conversation)
        assert answer.status_code == 200
        return answer.headers["x-brise-replica"]


@pytest.fixture
def balanced(tmp_path: Path) -> Iterator[Balanced]:
    with ExitStack() as stack:
        bind = f"127.0.0.1:{stack.enter_context(reserved_port())}"
        servers = {name: stack.enter_context(live()) for name in ("a", "b")}
        places = [ServerPlace(name, "127.0.0.1", int(server.url.rpartition(":")[2]))
                  for name, server in servers.items()]
        (tmp_path / "haproxy.cfg").write_text(
            files.files_of(DeployOptions("haproxy", servers=places, bind=bind))["haproxy.cfg"])
        process = stack.enter_context(subprocess.Popen([str(HAPROXY), "-f", str(tmp_path / "haproxy.cfg")],
                                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        stack.callback(process.terminate)
        made = Balanced(f"http://{bind}", servers)
        wait_until(lambda: _is_up(made))
        yield made


def _is_up(balanced: Balanced) -> bool:
    try:
        return balanced.chat().status_code == 200
    except httpx.HTTPError:
        return False


def test_a_conversation_stays_on_its_server_and_all_servers_have_some(balanced: Balanced) -> None:
    first = {f"c{number}": balanced.server_of(f"c{number}") for number in range(20)}
    assert {name: balanced.server_of(name) for name in first} == first
    assert set(first.values()) == {"a", "b"}


def test_a_server_that_drains_costs_no_request_from_the_first_moment_on(balanced: Balanced) -> None:
    names = [f"c{number}" for number in range(20)]
    assert "a" in {balanced.server_of(name) for name in names}
    balanced.servers["a"].serving.traffic.close()
    assert {balanced.server_of(name) for name in names} == {"b"}
    assert balanced.chat().status_code == 200


def test_a_request_has_one_id_that_the_balancer_gave_or_the_client(balanced: Balanced) -> None:
    given = balanced.chat().headers["x-request-id"]
    assert len(given) == 36 and given != balanced.chat().headers["x-request-id"]
    own = httpx.get(f"{balanced.url}/v1/models", headers={"x-request-id": "mine"}, timeout=LIMIT_S, trust_env=False)
    assert own.headers["x-request-id"] == "mine"
