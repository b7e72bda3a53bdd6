"""rights.toml: each field is checked, and only an entry that holds today allows rows."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from brise.data.rights import Rights, RightsError, provider_of_model, read_rights

TODAY = date(2026, 6, 1)
ENTRY = '[[allow]]\nprovider = "OpenAI"\nbasis = "contract 4.2"\ndate = 2026-03-01\nscope = "training"\n'


def rights(folder: Path, text: str) -> Rights:
    path = folder / "rights.toml"
    path.write_text(text, encoding="utf-8")
    return read_rights(path)


def test_an_entry_allows_the_rows_of_its_provider(tmp_path: Path) -> None:
    (used,) = rights(tmp_path, ENTRY).used({"openai": 7}, TODAY)
    assert used.as_json() == {"provider": "openai", "basis": "contract 4.2", "date": "2026-03-01",
                              "scope": ["training"], "expires": None, "rows": 7}


def test_rows_of_nobody_need_no_entry() -> None:
    assert Rights().used({}, TODAY) == ()


def test_rows_without_an_entry_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RightsError, match="7 rows hold answers of 'openai'.*no rights file was given"):
        Rights().used({"openai": 7}, TODAY)
    with pytest.raises(RightsError, match="has no entry for it"):
        rights(tmp_path, ENTRY).used({"openai": 1, "google": 1}, TODAY)


@pytest.mark.parametrize(("old", "new", "problem"), [
    ('"training"', '"evaluation"', "its scope is evaluation"), ("2026-03-01", "2026-07-01", "still to come"),
    ("scope", "expires = 2026-06-01\nscope", "expired on 2026-06-01")])
def test_an_entry_that_does_not_hold_today_is_named(tmp_path: Path, old: str, new: str, problem: str) -> None:
    with pytest.raises(RightsError, match=problem):
        rights(tmp_path, ENTRY.replace(old, new)).used({"openai": 1}, TODAY)


def test_any_entry_that_holds_will_do(tmp_path: Path) -> None:
    expired = ENTRY.replace("scope", "expires = 2026-06-01\nscope")
    both = rights(tmp_path, expired + ENTRY.replace('"training"', '["evaluation", "training"]'))
    assert both.used({"openai": 1}, TODAY)[0].right.scope == ("evaluation", "training")


@pytest.mark.parametrize(("old", "new", "problem"), [
    ('provider = "OpenAI"\n', "", "entry 1: 'provider' is missing"), ('"OpenAI"', "5", "'provider' is '5'"),
    ('basis = "contract 4.2"\n', "", "'basis' is missing"), ('"contract 4.2"', '" "', "a text that says something"),
    ("date = 2026-03-01\n", "", "'date' is missing"), ("2026-03-01", '"2026-03-01"', "unquoted"),
    ("2026-03-01", "2026-03-01T10:00:00", "a day like"), ('scope = "training"\n', "", "'scope' is missing"),
    ('"training"', '"everything"', "allowed are training, evaluation"), ('"training"', "[]", "'scope' is "),
    ("scope", "scop", "unknown field 'scop'"), ("[[allow]]", "[[permit]]", "unknown name 'permit'"),
    ("[[allow]]", "[allow]", "must be entries"), ("[[allow]]", "[[allow", "is not TOML")])
def test_a_wrong_file_is_told_why(tmp_path: Path, old: str, new: str, problem: str) -> None:
    with pytest.raises(RightsError, match=problem.replace("[", r"\[")):
        rights(tmp_path, ENTRY.replace(old, new))


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RightsError, match="cannot read"):
        read_rights(tmp_path / "rights.toml")


@pytest.mark.parametrize(("model", "provider"), [
    ("gpt-4o-mini", "openai"), ("openai/gpt-5", "openai"), ("ft:gpt-4o:acme::1", "openai"), ("o3-mini", "openai"),
    ("anthropic.claude-3-5-sonnet", "anthropic"), ("gemini-2.0-flash", "google"), ("grok-4", "xai"),
    ("gpt-oss-20b", None), ("gpt2", None), ("mistralai/Ministral-3-8B", None), ("smollm2", None), ("", None)])
def test_hosted_models_are_known_by_their_names(model: str, provider: str | None) -> None:
    assert provider_of_model(model) == provider
