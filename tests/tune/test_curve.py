"""The loss curve in text and as a picture."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from brise.errors import MissingExtraError
from brise.tune.curve import HEIGHT, Curve

FALLING = Curve([(step, 4.0 / step) for step in range(1, 201)], [(100, 1.0), (200, 0.5)])


def test_a_falling_loss_falls_from_the_upper_left_to_the_lower_right() -> None:
    lines = FALLING.lines()
    assert lines[0].strip().startswith("2.") and lines[0].split("|")[1].startswith(".")
    assert lines[HEIGHT - 1].rstrip().endswith(".") and "o" in "".join(lines[:HEIGHT])
    assert lines[-2].split() == ["step", "1", "200"] and "held out" in lines[-1]
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize("curve", [Curve([(1, 2.0)], []), Curve([(1, 2.0), (2, 2.0)], [(2, 2.0)])])
def test_few_points_and_level_ones_are_plotted(curve: Curve) -> None:
    assert "2.000" in curve.lines()[HEIGHT - 1]
    assert Curve([], []).lines() == []


def test_it_reads_a_log() -> None:
    curve = Curve.of([{"step": 1, "loss": 3.0, "held_out": None}, {"step": 2, "loss": None, "held_out": 2.5}])
    assert curve == Curve([(1, 3.0)], [(2, 2.5)])


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    FALLING.write_png(tmp_path / "curve.png", "tiny")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_without_matplotlib_the_error_has_the_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'brise\[tune\]'"):
        FALLING.write_png(tmp_path / "curve.png", "tiny")
