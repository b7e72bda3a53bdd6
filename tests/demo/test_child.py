"""The commands that the demo runs: their output, their errors, and servers that end with the block."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from brise.demo.child import Brise, ChildError, shown
from tests.waiting import LIMIT_S


@pytest.fixture
def brise(tmp_path: Path) -> Brise:
    (tmp_path / "home").mkdir()
    return Brise(tmp_path / "home", tmp_path)


def test_a_command_gives_what_it_printed(brise: Brise, tmp_path: Path) -> None:
    assert brise.run("models", "list", "--json").out.strip() == "[]"
    assert "$ brise models list --json" in (tmp_path / "models.log").read_text()


def test_a_status_that_is_not_allowed_is_an_error_with_its_last_words(brise: Brise) -> None:
    with pytest.raises(ChildError, match=r"(?s)brise models show none.*status 1.*there is no model 'none'"):
        brise.run("models", "show", "none")
    assert brise.run("models", "show", "none", allowed=(0, 1)).status == 1


def test_lines_come_and_the_status_counts_at_the_end(brise: Brise) -> None:
    with pytest.raises(ChildError, match="tune.*status 1"):
        list(brise.lines("tune", "nowhere.jsonl", "--model", "none", "--json"))


def test_a_server_answers_within_the_block_and_is_gone_behind_it(brise: Brise, tmp_path: Path) -> None:
    with brise.server("--upstream", "http://127.0.0.1:9/v1", "--store", str(tmp_path / "t.sqlite")) as url:
        assert httpx.get(url.removesuffix("/v1") + "/health", timeout=LIMIT_S, trust_env=False).status_code == 200
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=LIMIT_S, trust_env=False)


def test_a_server_that_cannot_start_says_why(brise: Brise) -> None:
    with pytest.raises(ChildError, match="serve.*there is no model"), brise.server("none"):
        pass


def test_commands_are_shown_as_one_types_them() -> None:
    assert shown(["log", "export", "--task", "in car"]) == "brise log export --task 'in car'"
