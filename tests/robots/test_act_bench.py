"""`brise act bench` and the pilot's client, against a server in this process with a tiny adapter that acts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.engine.engine import EngineSettings
from brise.engine.model import load
from brise.errors import AnswerError, NetworkError, UnsupportedError
from brise.robots.acting_server import ActingServer, ServerAddress
from brise.robots.pilot import PilotOptions, replay
from brise.text.action_space import ActionSpace, ActionValue, with_rarest_tokens
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.serve.live import Live, live

SPACE = ActionSpace("cart", (ActionValue("v", -1.0, 1.0, 9, "m/s", 0.25),), steps=2, period_s=0.02)
QUESTION = [{"role": "user", "content": "go"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    root = tmp_path_factory.mktemp("acting")
    model = load(write_tiny(root / "tiny.gguf", "llama"), threads=1)
    actions = with_rarest_tokens(SPACE, model.tokenizer)
    config = open_checkpoint(model.path).config
    for name, settings in (("cart", actions.settings()), ("chat", {})):
        write_adapter(root / name, AdapterFile(random_low_ranks(config, 1), 3, 6.0),
                      replace(LINEAGE, settings={**LINEAGE.settings, **settings}), config)
    with live(model, engine_settings=EngineSettings(num_pages=256, max_adapters=2, max_rank=8)) as running:
        for name in ("cart", "chat"):
            running.worker.add_adapter(name, root / name, any_base=True)
        yield running
        running.wait_idle()


def test_the_client_reads_space_and_commands(server: Live) -> None:
    client = ActingServer(ServerAddress(server.url, "cart"))
    assert client.space() == SPACE
    answer = client.decide(QUESTION, 10.0)
    assert answer.commands.shape == (2, 1) and np.all(np.abs(answer.commands) <= 1) and not answer.is_late
    assert client.decide(QUESTION, 1e-5).is_late
    client.close()


def test_a_connection_that_the_server_has_ended_fails_no_question(server: Live) -> None:
    with closing(ActingServer(ServerAddress(server.url, "cart"))) as client:
        first = client.decide(QUESTION, 10.0)
        server.pass_time(600).result(30)  # idle connections end
        assert np.array_equal(client.decide(QUESTION, 10.0).commands, first.commands)


def test_the_client_says_what_is_wrong(server: Live) -> None:
    with closing(ActingServer(ServerAddress(server.url, "chat"))) as client:
        with pytest.raises(UnsupportedError, match="trained on no actions"):
            client.space()
    with closing(ActingServer(ServerAddress(server.url, "nobody"))) as client:
        with pytest.raises(AnswerError, match="'nobody'"):
            client.decide(QUESTION, 1.0)
    with pytest.raises(UnsupportedError, match="https"):
        ActingServer(ServerAddress("https://robot", "cart"))


def test_a_server_that_is_gone_is_named() -> None:
    with live() as running:
        url = running.url
    with pytest.raises(NetworkError, match="does not answer"):
        ActingServer(ServerAddress(url, "cart")).decide(QUESTION, 1.0)


def test_the_command_reports_and_its_log_replays(server: Live, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                 ) -> None:
    rows = tmp_path / "seen.jsonl"
    rows.write_text(json.dumps({"messages": QUESTION}) + "\n")
    status = main(["act", "bench", server.url, "--model", "cart", "--seconds", "0.6", "--deadline-ms", "5000",
                   "--observations", str(rows), "--log", str(tmp_path / "log"), "--html", str(tmp_path / "page.html"),
                   "--chats", "1", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert status == 0 and report["misses"] <= report["chances"] and report["period_ms"] == pytest.approx(20)
    assert report["ticks"]["count"] == sum(report["sources"].values())
    assert "not safety-rated" in (tmp_path / "page.html").read_text()
    pairs = replay((tmp_path / "log").read_text().splitlines(), SPACE, PilotOptions())
    assert pairs and all(np.array_equal(logged, again) for logged, again in pairs)


@pytest.mark.parametrize(("words", "named"), [
    (["--observations", "missing.jsonl"], "missing.jsonl"), (["--model", "chat"], "no actions")])
def test_what_cannot_be_measured_is_an_error(server: Live, words: list[str], named: str,
                                             capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["act", "bench", server.url, "--model", "cart", "--seconds", "0.1", *words]) == 1
    assert named in capsys.readouterr().err
