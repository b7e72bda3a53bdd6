"""Virtual keys in a store: what is kept of them, and who may change what."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from brise.errors import BriseError, StoreError, UnsupportedError
from brise.traffic.stores import open_store, open_virtual_keys
from brise.traffic.virtual_keys import KeyLimits, UnknownKeyError, VirtualKeys, find


@pytest.fixture
def keys(place: str, tmp_path: Path) -> Iterator[VirtualKeys]:
    opened, _ = open_virtual_keys(place, tmp_path)
    yield opened
    opened.close()


def test_a_key_is_found_by_its_text_only(keys: VirtualKeys) -> None:
    first, second = keys.add("a"), keys.add("b")
    known = {key.id: key for key in keys.read()}
    assert first.text.startswith("brise-") and len(first.text) == 62
    assert find(known, ["x", first.text], 0.0) == keys.named("a")
    mixed = first.text[:18] + second.text[18:]
    assert find(known, [mixed, first.text.upper(), first.text + "a", ""], 0.0) is None


def test_the_secret_is_nowhere_in_the_store(tmp_path: Path) -> None:
    keys, _ = open_virtual_keys(tmp_path / "s.sqlite", tmp_path)
    text = keys.add("a").text
    keys.close()
    assert text[18:].encode() not in b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert text not in repr(keys.add) and "digest" not in repr(keys)


def test_limits_come_back_as_they_were(keys: VirtualKeys) -> None:
    limits = KeyLimits(0.5, 10.0, 60, 1000, ("a", "b/*"))
    made = keys.add("a", limits, valid_s=60.0)
    found = keys.named("a")
    assert (found.limits, found.expires_s) == (limits, made.key.created_s + 60.0) and keys.all() == [found]


@pytest.mark.parametrize("limits", [
    {"usd_per_day": -1.0}, {"usd_per_month": float("nan")}, {"usd_per_day": float("inf")}, {"usd_per_day": "5"},
    {"requests_per_minute": 0}, {"requests_per_minute": 1.5}, {"tokens_per_minute": True}, {"models": ()},
    {"models": ("",)}, {"models": ("a\n",)}, {"models": ("a",) * 257}])
def test_bad_limits_are_refused(limits: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError, match=next(iter(limits))):
        KeyLimits(**limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["", "-a", "a b", "a\n", "é", "a" * 65, "a,b"])
def test_bad_names_are_refused(keys: VirtualKeys, name: str) -> None:
    with pytest.raises(UnsupportedError, match="the name of a key"):
        keys.add(name)


def test_a_name_is_used_once_until_its_key_is_removed(keys: VirtualKeys) -> None:
    old = keys.add("a")
    with pytest.raises(StoreError, match="there is a key 'a'"):
        keys.add("a")
    keys.remove("a")
    new = keys.add("a")
    known = {key.id: key for key in keys.read()}
    assert find(known, [old.text], 0.0) is None and find(known, [new.text], 0.0) is not None


def test_a_removed_key_does_not_come_back(keys: VirtualKeys) -> None:
    keys.add("a")
    keys.remove("a")
    assert keys.all() == [] and [key.refusal(0.0) for key in keys.read()] == ["removed"]
    for change in (keys.enable, keys.disable, keys.remove, keys.rotate, keys.named):
        with pytest.raises(UnknownKeyError, match="there is no key 'a'"):
            change("a")


def test_unknown_names_are_told_with_the_known_ones(keys: VirtualKeys) -> None:
    keys.add("a")
    with pytest.raises(UnknownKeyError, match="there are a"):
        keys.remove("b")


@pytest.mark.parametrize(("pattern", "model", "is_allowed"), [
    ("a", "a", True), ("a", "A", False), ("a/*", "a/b/c", True), ("a/*", "a", False), ("gpt-?o", "gpt-4o", True),
    ("*", "", True), ("a", "a ", False)])
def test_models_are_matched_with_wildcards(pattern: str, model: str, is_allowed: bool) -> None:
    assert KeyLimits(models=(pattern,)).allows(model) is is_allowed


def test_a_store_of_an_older_version_gets_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    open_store(path, tmp_path).close()
    with sqlite3.connect(path) as connection:
        connection.executescript("DROP TABLE virtual_keys; DROP TABLE key_spans; PRAGMA user_version = 2")
    keys, _ = open_virtual_keys(path, tmp_path)
    assert re.fullmatch(r"brise-[0-9a-f]{12}-\S{43}", keys.add("a").text)
    keys.close()


def test_a_store_that_must_exist_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(BriseError, match="there is no store"):
        open_virtual_keys(tmp_path / "none.sqlite", tmp_path, must_exist=True)
    assert not (tmp_path / "none.sqlite").exists()
