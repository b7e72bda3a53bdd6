"""Charts: values stand where they belong, extremes stay, names are read, odd numbers break nothing."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brise.report import charts
from brise.report.charts import Axis, BarChart, ChartBar, Dot, IntervalChart, LineChart, Reference, Series
from tests.report.html import seen, words

UNITS = Axis("units")
WEALTH = Axis("wealth", is_log=True)


def points(svg: str) -> list[tuple[float, float]]:
    """The corners of the first curve."""
    path = next(attributes["d"] for tag, attributes in seen(svg).elements
                if tag == "path" and attributes.get("class") == "curve")
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path or "")]


def numbers_of(svg: str) -> list[float]:
    return [float(text) for _, attributes in seen(svg).elements for name, text in attributes.items()
            if name in ("x", "y", "cx", "cy", "x1", "x2", "y1", "y2", "width", "height") and text and text != "100%"]


def test_a_logarithmic_axis_has_equal_steps_for_equal_factors() -> None:
    axis = Axis("", 0.01, 100.0, is_log=True).fitted([])
    assert [round(axis.place(value), 6) for value in (0.01, 0.1, 1, 10, 100)] == [0, 0.25, 0.5, 0.75, 1]
    assert [value for value, _ in axis.ticks()] == pytest.approx([0.01, 0.1, 1, 10, 100])


def test_ticks_are_round_and_within() -> None:
    assert [text for _, text in Axis("", 0.0, 2137.0).fitted([]).ticks()] == ["0", "500", "1,000", "1,500", "2,000"]


def test_a_long_line_keeps_its_peak() -> None:
    ys = np.ones(20_000)
    ys[12_345] = 1e6
    drawn = points(LineChart("t", "d", [Series("k", range(20_000), ys.tolist())], UNITS, WEALTH).svg())
    assert len(drawn) < 2000
    top = min(y for _, y in drawn)
    assert [x for x, y in drawn if y == top] == [pytest.approx(64 + 402 * (12_345 + 1274) / (19_999 + 2400), abs=8)]


def test_wealth_of_zero_lies_at_the_bottom_of_a_logarithmic_axis() -> None:
    drawn = points(LineChart("t", "d", [Series("k", [0, 1, 2], [1.0, 10.0, 0.0])], UNITS, WEALTH).svg())
    assert drawn[2][1] == max(y for _, y in drawn)


def test_a_reference_is_named_and_within_the_picture() -> None:
    svg = LineChart("t", "d", [Series("k", [0, 1], [1.0, 2.0])], UNITS, WEALTH,
                    [Reference(1e4, "alarm at 10,000")]).svg()
    assert "alarm at 10,000" in words(svg)
    assert all(0 <= number <= 480 for number in numbers_of(svg))


@pytest.mark.parametrize("values", [(20.0, 32.9), (20.0, 20.0), (1e6, 1e5), (1e-3, 1e6)])
def test_names_of_references_do_not_lie_on_each_other(values: tuple[float, float]) -> None:
    svg = LineChart("t", "d", [Series("k", [0, 1], [1e-3, 1e6])], UNITS, WEALTH,
                    [Reference(value, f"at {value:g}") for value in values]).svg()
    names = [float(attributes["y"] or 0) for tag, attributes in seen(svg).elements
             if tag == "text" and attributes.get("class") == "halo strong"]
    assert len(names) == 2 and abs(names[0] - names[1]) >= 12


def test_series_differ_in_dashes_and_are_named() -> None:
    svg = charts.cumulative("t", "d", {"hosted": [1.0, 2.0], "small": [0.1, 0.2], "nobody": []}, WEALTH).svg()
    dashes = {attributes.get("stroke-dasharray") for tag, attributes in seen(svg).elements if tag == "path"}
    assert len(dashes) == 2 and "hosted" in words(svg) and "nobody" not in words(svg)


def test_an_unknown_interval_is_drawn_as_an_open_mark() -> None:
    svg = IntervalChart("t", "d", [Dot("a", 0.9, 0.8, 0.95, "90 %"), Dot("b", 0.7, None, None, "70 %")], UNITS).svg()
    marks = [attributes.get("class") for tag, attributes in seen(svg).elements if tag == "circle"]
    assert marks == ["solid", "open"] and "90 %" in words(svg)


def test_bars_begin_at_zero() -> None:
    svg = BarChart("t", "d", [ChartBar("a", 4.0, "$4"), ChartBar("b", 2.0, "$2")], UNITS).svg()
    rows = [(float(a["x"] or 0), float(a["width"] or 0)) for tag, a in seen(svg).elements if tag == "rect"]
    assert rows[0][0] == rows[1][0] and rows[0][1] == pytest.approx(2 * rows[1][1], abs=0.1)


def test_a_chart_says_what_it_shows_and_escapes_it() -> None:
    svg = BarChart("a <b>", "c & d", [ChartBar("<i>", 1.0, "1")], UNITS).svg()
    found = seen(svg)
    root = found.elements[0][1]
    ids = {attributes.get("id") for _, attributes in found.elements}
    assert root["role"] == "img" and set((root["aria-labelledby"] or "").split()) <= ids
    assert {"a <b>", "c & d", "<i>"} <= set(found.text)


@given(st.lists(st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(1e-300, 1e300)), max_size=30))
def test_any_numbers_make_a_picture_of_finite_places(ys: list[float]) -> None:
    for y in (UNITS, WEALTH):
        svg = LineChart("t", "d", [Series("k", range(len(ys)), ys)], UNITS, y).svg()
        assert all(math.isfinite(number) for number in numbers_of(svg))
