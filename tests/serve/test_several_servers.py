"""Two gateways on one store in PostgreSQL: what is done through one holds on the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

import brise
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.serve import replica
from brise.traffic.store import Query
from brise.traffic.stores import open_store
from tests.checkpoint.make_adapter import random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.gateway.fake_upstream import FakeUpstream, fake_upstream
from tests.traffic import postgres
from tests.waiting import LIMIT_S, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not postgres.is_possible(), reason="PostgreSQL is not installed")]


@dataclass(frozen=True)
class Pair:
    """Two gateways, by their base URLs, and the store that they share."""

    one: str
    other: str
    store: str
    fake: FakeUpstream
    adapter: Path

    def get(self, url: str, path: str) -> Any:
        return httpx.get(url.removesuffix("/v1") + path, trust_env=False, timeout=LIMIT_S).json()

    def post(self, url: str, path: str, body: object, **headers: str) -> httpx.Response:
        return httpx.post(url + path, json=body, headers=headers, trust_env=False, timeout=LIMIT_S)

    def names(self, url: str) -> list[str]:
        return [adapter["id"] for adapter in self.get(url, "/v1/adapters")["data"]]


@pytest.fixture(scope="module")
def pair(postgres_url: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder, store = tmp_path_factory.mktemp("pair"), postgres_url()
    model = write_tiny(folder / "tiny.gguf", "llama")
    write_adapter(folder / "calls", AdapterFile(random_low_ranks(open_checkpoint(model).config, 1), 3, 6.0), None,
                  open_checkpoint(model).config)
    with pytest.MonkeyPatch.context() as patch, fake_upstream() as fake:
        patch.setenv("BRISE_HOME", str(folder / "home"))
        patch.setattr(replica, "BEAT_S", 0.1)
        with (brise.gateway(upstream=fake.url, small={"small": model}, store=store, port=0) as one,
              brise.gateway(upstream=fake.url, small={"small": model}, store=store, port=0) as other):
            wait_until(lambda: main(["servers", "--store", store]) == 0)
            made = Pair(one.url, other.url, store, fake, folder / "calls")
            wait_until(lambda: all(made.get(url, "/readyz").get("servers") == 2 for url in (one.url, other.url)))
            yield made


def test_both_are_listed_with_the_same_fingerprints(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["servers", "--store", pair.store, "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(row["report"]["address"] for row in rows) == sorted([pair.one, pair.other])
    assert len({json.dumps(row["report"]["fingerprints"]) for row in rows}) == 1
    assert {row["gone"] for row in rows} == {False}
    assert main(["servers", "--store", pair.store]) == 0
    assert capsys.readouterr().out.count(brise.__version__) == 2


def test_an_adapter_is_loaded_and_unloaded_by_all(pair: Pair) -> None:
    loaded = pair.post(pair.one, "/adapters", {"name": "calls", "path": str(pair.adapter), "any_base": True})
    assert loaded.status_code == 200, loaded.text
    assert (loaded.json()["servers"], loaded.json()["servers_loaded"]) == (2, 2)
    assert pair.names(pair.other) == ["calls"]
    answer = pair.post(pair.other, "/completions", {"model": "calls", "prompt": "a", "max_tokens": 2})
    assert answer.status_code == 200 and not pair.fake.received
    httpx.delete(f"{pair.other}/adapters/calls", timeout=LIMIT_S, trust_env=False)
    wait_until(lambda: pair.names(pair.one) == [])


def test_one_of_them_leads(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    def leaders() -> int:
        main(["servers", "--store", pair.store, "--json"])
        return sum(json.loads(line)["report"]["leads"] for line in capsys.readouterr().out.splitlines())

    wait_until(lambda: leaders() == 1)


def test_a_request_that_is_sent_again_to_the_other_is_written_down_once(pair: Pair, tmp_path: Path) -> None:
    def ask(url: str, text: str) -> str:
        answer = pair.post(url, "/chat/completions", {"model": "big", "messages": [{"role": "user", "content": text}]},
                           **{"x-request-id": "balancer-1", "x-brise-task": "again"})
        assert answer.status_code == 200
        return answer.headers["x-brise-id"]

    with closing(open_store(pair.store, tmp_path)) as store:
        again = ask(pair.one, "one"), ask(pair.other, "one")
        assert again[0] == again[1] != ask(pair.other, "another")
        wait_until(lambda: store.count(Query(task="again")) == 2)
        ask(pair.one, "the last")  # what was before it is written by then
        wait_until(lambda: store.count(Query(task="again")) == 3)


def test_the_balancers_file_has_the_servers_that_run(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "haproxy", "--store", pair.store]) == 0
    text = capsys.readouterr().out
    for url in (pair.one, pair.other):
        assert text.count(f" {url.removeprefix('http://').removesuffix('/v1')}") == 2
