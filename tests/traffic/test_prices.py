"""prices.toml: what a token and an hour cost, and what is wrong in the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from brise.dialects.bodies import Usage
from brise.errors import UnsupportedError
from brise.traffic.prices import Hardware, Price, Prices, read_prices

GOOD = """
[models."big-1"]
input = 2.5
cached_input = 0.5
output = 10
[models.plain]
input = 1
output = 2
[hardware]
price = 1262.304
years = 4
watts = 100
usd_per_kwh = 0.36
utilisation = 0.5
"""


def read(tmp_path: Path, text: str) -> Prices:
    path = tmp_path / "prices.toml"
    path.write_text(text)
    return read_prices(path)


def test_tokens_cost_what_the_file_says(tmp_path: Path) -> None:
    prices = read(tmp_path, GOOD)
    usage = Usage(prompt_tokens=1000, completion_tokens=100, cached_tokens=400)
    assert prices.cost("big-1", "big", usage) == pytest.approx((600 * 2.5 + 400 * 0.5 + 100 * 10) / 1e6)
    assert prices.cost("plain-2026-01-01", "plain", usage) == pytest.approx((1000 * 1 + 100 * 2) / 1e6)


CACHED = """
[models.claude]
input = 3
cached_input = 0.3
cache_write = 3.75
cache_write_1h = 6
output = 15
[models.claude.long]
over = 200_000
input = 6
output = 22.5
"""


@pytest.mark.parametrize(("usage", "usd"), [
    (Usage(3 + 2000 + 12304, 550, 12304, 2000), 0.0194502),
    (Usage(3 + 2000 + 12304, 550, 12304, 2000, 500), 0.0194502 + 500 * 2.25e-6),
    (Usage(200_000, 10), 0.6 + 150e-6), (Usage(200_001, 10), 200_001 * 6e-6 + 225e-6),
    (Usage(200_001, 10, 5, 0), 200_001 * 6e-6 + 225e-6), (Usage(200_001, 10, 0, 5), None),
    (Usage(100, None), None), (Usage(None, 10), None), (Usage(100, 10, None), None), (Usage(100, 10, 101), None),
    (Usage(100, 10, 0, 50, None), None), (Usage(100, 10, audio_prompt_tokens=1), None), (Usage(0, 0), 0.0)])
def test_what_is_written_into_the_cache_has_a_price(tmp_path: Path, usage: Usage, usd: float | None) -> None:
    assert read(tmp_path, CACHED).cost("claude", "", usage) == (None if usd is None else pytest.approx(usd))


def test_a_price_that_is_missing_is_not_zero() -> None:
    written, audio = Usage(100, 10, 0, 50), Usage(100, 10, audio_completion_tokens=10)
    assert Price(1, 2).of(written) is None and Price(1, 2, cache_write=1).of(written) is not None
    assert Price(1, 2).of(audio) is None and Price(1, 2, audio_output=8).of(audio) == pytest.approx(180e-6)


def test_what_is_not_known_has_no_price(tmp_path: Path) -> None:
    prices = read(tmp_path, GOOD)
    assert prices.cost("other", "another", Usage(1, 1)) is None
    assert prices.cost("big-1", "big", None) is None
    assert Prices().cost("big-1", "big", Usage(1, 1)) is None


def test_a_machine_is_spread_over_the_time_in_which_it_works(tmp_path: Path) -> None:
    machine = read(tmp_path, GOOD).hardware
    assert machine is not None
    assert machine.usd_per_busy_s == pytest.approx(1262.304 / (4 * 365.25 * 86400 * 0.5))
    assert machine.usd_of_power_s * 3600 == pytest.approx(0.036)
    assert Hardware(100, 1, 1, 1).utilisation == 1


@pytest.mark.parametrize(("old", "new", "message"), [
    ("output = 10", "output = '10'", "output.*'10'.*0 to"), ("output = 10", "", "output.*missing"),
    ("output = 10", "output = -1", "-1"), ("output = 10", "output = nan", "nan"), ("years = 4", "years = 0", "over 0"),
    ("utilisation = 0.5", "utilisation = 50", "over 0 to 1"), ("watts = 100", "watt = 100", "'watt'.*watts"),
    ("output = 10", "output = 10\nlong = {over = 0, input = 1, output = 2}", "big-1.long: 'over' is '0'"),
    ("output = 10", "output = 10\nlong = {over = 5, input = 1}", "big-1.long: 'output' is missing"),
    ("output = 10", "output = 10\nlong = {over = 5, input = 1, output = 2, long = {}}", "unknown field 'long'"),
    ("output = 10", "output = 10\ncache_writes = 3", "'cache_writes'.*cache_write"),
    ("[hardware]", "[machine]", "'machine'"), ("[models.plain]", "models", "TOML")])
def test_errors_name_the_field_and_what_is_allowed(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"nowhere\.toml"):
        read_prices(tmp_path / "nowhere.toml")
