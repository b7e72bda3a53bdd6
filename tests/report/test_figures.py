"""Numbers in words."""

from __future__ import annotations

import pytest

from brise.report import figures


@pytest.mark.parametrize(("share", "text"), [
    (0.974, "97.4 %"), (1.0, "100.0 %"), (0.99999, "over 99.9 %"), (0.00001, "under 0.1 %"), (0.0, "0.0 %"),
    (None, "not known")])
def test_percent_does_not_round_to_all_or_nothing(share: float | None, text: str) -> None:
    assert figures.percent(share) == text


@pytest.mark.parametrize(("value", "text"), [
    (1234.5, "$1,234"), (12.3, "$12.30"), (0.00042, "$0.00042"), (0.0, "$0.00"), (-0.5, "-$0.50"), (None, "not known")])
def test_dollars_keep_the_digits_that_matter(value: float | None, text: str) -> None:
    assert figures.usd(value) == text


@pytest.mark.parametrize(("value", "text"), [
    (0.0123, "12.3 ms"), (2.5, "2.5 s"), (75.0, "1 min 15 s"), (7300.0, "2 h 1 min"), (None, "not known")])
def test_seconds(value: float | None, text: str) -> None:
    assert figures.seconds(value) == text


def test_differences_have_a_sign() -> None:
    assert figures.points(-0.013) == "-1.3 points" and figures.points(-0.0) == "+0.0 points"
    assert figures.interval(0.951, 0.988) == "[95.1, 98.8]" and figures.interval(None, 1.0) == ""
