"""`brise keys`: keys are made, shown once, listed with what they have used, changed and ended."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from brise.cli.main import main
from brise.traffic.key_budgets import MINUTE_S, NANO, Amounts, KeyChange
from brise.traffic.stores import open_virtual_keys
from brise.traffic.virtual_keys import KeyLimits


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRISE_HOME", str(tmp_path))
    return tmp_path


def made(*options: str) -> int:
    return main(["keys", "add", "team-a", *options])


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    capsys.readouterr()
    assert main(["keys", "list", "--json"]) == 0
    row: dict[str, object] = json.loads(capsys.readouterr().out)
    return row


def test_a_new_key_is_printed_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert made("--usd-per-day", "5", "--requests-per-minute", "60", "--models", "a, b/*", "--expires", "30d") == 0
    out = capsys.readouterr()
    assert out.out.startswith("brise-") and len(out.out.split()) == 1 and "shown this once" in out.err
    row = listed(capsys)
    assert row["limits"] == {"usd_per_day": 5.0, "usd_per_month": None, "requests_per_minute": 60,
                             "tokens_per_minute": None, "models": ["a", "b/*"], "page": None}
    assert abs(float(str(row["expires_s"])) - time.time() - 30 * 86_400) < 60 and row["state"] == "active"


def test_the_list_shows_what_was_used_and_how_much_of_it_is_an_estimate(
        home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made("--usd-per-day", "5")
    keys, budgets = open_virtual_keys(None, home)
    now_s, used = time.time(), Amounts(3, 500, 2 * NANO)
    budgets.exchange({(keys.named("team-a").id, int(now_s // MINUTE_S)): KeyChange(used, used, NANO, 1)}, [],
                     {keys.named("team-a").id: now_s})
    keys.close()
    assert main(["keys"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "2.0000 2.0000 1.0000, 1 request 3 5 USD a day" in shown and shown.endswith("never")
    day = listed(capsys)["day"]
    assert day == {"requests": 3, "tokens": 500, "usd": 2.0, "estimated_usd": 1.0, "unknown_requests": 1,
                   "reserved_usd": 0.0}


def test_keys_are_changed_and_ended(capsys: pytest.CaptureFixture[str]) -> None:
    made("--usd-per-day", "5", "--models", "a")
    assert main(["keys", "change", "team-a", "--usd-per-day", "7.5", "--models", "none"]) == 0
    assert listed(capsys)["limits"] == {"usd_per_day": 7.5, "usd_per_month": None, "requests_per_minute": None,
                                        "tokens_per_minute": None, "models": None, "page": None}
    for action, state in (("disable", "disabled"), ("enable", "active")):
        assert main(["keys", action, "team-a"]) == 0 and listed(capsys)["state"] == state
    assert main(["keys", "rotate", "team-a", "--keep-old", "1h"]) == 0
    assert capsys.readouterr().out.startswith("brise-")
    assert main(["keys", "remove", "team-a"]) == 0
    assert main(["keys"]) == 0 and "there are no keys" in capsys.readouterr().err


@pytest.mark.parametrize("options", [
    ("--usd-per-day", "-1"), ("--usd-per-day", "nan"), ("--requests-per-minute", "0"), ("--tokens-per-minute", "1.5"),
    ("--models", ","), ("--expires", "0d"), ("--expires", "30"), ("--usd-per-day", "none")])
def test_bad_limits_are_wrong_usage(options: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        made(*options)
    assert caught.value.code == 2 and options[0] in capsys.readouterr().err


def test_errors_name_the_key(capsys: pytest.CaptureFixture[str]) -> None:
    made()
    assert made() == 1 and "there is a key 'team-a'" in capsys.readouterr().err
    assert main(["keys", "remove", "team-b"]) == 1 and "there is no key 'team-b'" in capsys.readouterr().err
    assert main(["keys", "add", "two words"]) == 1 and "'two words'" in capsys.readouterr().err


def test_a_mistyped_store_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "none.sqlite"
    assert main(["keys", "list", "--store", str(place)]) == 1
    err = capsys.readouterr().err
    assert "there is no store" in err and not place.exists()
    assert f"hint: brise keys add NAME --store {place} makes it" in err


def test_python_makes_the_same_keys(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, _ = open_virtual_keys(None, home)
    keys.add("team-b", KeyLimits(tokens_per_minute=9))
    keys.close()
    assert listed(capsys)["name"] == "team-b"


def test_a_server_says_which_upstream_gets_no_key(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made()
    with pytest.raises(SystemExit):
        main(["serve", "--upstream", "http://127.0.0.1:1/v1", "--virtual-keys", "perhaps"])
    assert main(["serve", "--upstream", "http://127.0.0.1:1/v1", "--host", "256.0.0.1"]) == 1
    shown = capsys.readouterr().err
    assert "virtual keys do not go upstream: http://127.0.0.1:1/v1 gets no key" in shown and "256.0.0.1" in shown


def test_a_server_for_others_needs_a_key_in_its_store(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--upstream", "http://127.0.0.1:1/v1", "--host", "0.0.0.0"]) == 1
    assert "refusing to listen on '0.0.0.0' without API keys" in capsys.readouterr().err


@pytest.mark.parametrize("options", [
    ("--otel-content",), ("--otel-endpoint", "collector:4318"), ("--otel-endpoint", "http://h/?a=b")])
def test_bad_options_of_telemetry_are_errors(options: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--upstream", "http://127.0.0.1:1/v1", *options]) == 1
    assert "--otel" in capsys.readouterr().err
