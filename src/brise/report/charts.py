"""Charts: lines, intervals and bars, as SVG within a page and as a few characters in a terminal.

SVG takes its colours from components.css. A chart says what it shows in <title> and <desc>. Series differ in dashes or
marks and stand by their names, not by colour alone. A chart is drawn 480 units wide and stretched: at a phone's width
its letters can still be read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from markupsafe import Markup

from brise.report import figures

WIDTH = 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 12, 40  # room for labels around the plot
_HEIGHT = 260  # of charts with two axes
_MOST_POINTS = 400  # columns of a line; of what lies in one, the lowest and the highest are kept
_DASHES: Sequence[str] = ("", "7 4", "2 4", "10 3 2 3", "1 6")
_LETTERS = 12  # height of characters
_ROW = 46  # units of height for a row of intervals or bars
_HUGE = 1e100  # larger values, or on a logarithmic axis those nearer to zero, are drawn at the end
_DECADES = 12  # a logarithmic axis shows so many at most: below lies nothing that anyone compares
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Axis:
    """An axis: its name, how its numbers are written, and its ends (None: from the data).

    It maps values to places, linearly or logarithmically, with ticks at round numbers.
    """

    name: str
    low: float | None = None
    high: float | None = None
    is_log: bool = False
    words: Callable[[float], str] = figures.short
    num_ticks: int = 5

    def fitted(self, values: Iterable[float]) -> Axis:
        """The axis with ends that hold all finite `values`; a logarithmic one looks at the positive ones."""
        found = np.asarray(list(values), np.float64)
        found = found[(np.abs(found) < _HUGE) & ((found > 1 / _HUGE) | (not self.is_log))]  # nan is not, either
        low = self.low if self.low is not None else float(found.min()) if len(found) else 0.0
        high = self.high if self.high is not None else float(found.max()) if len(found) else 1.0
        if self.is_log:
            high = high if high > 0 else 1.0
            low = max(low, high / 10.0**_DECADES)
            if high / low < 10:
                low, high = low / math.sqrt(10), high * math.sqrt(10)
        elif high - low <= 1e-9 * abs(high):  # also where all values are one
            margin = max(1.0, 1e-3 * abs(high))
            low, high = low if self.low is not None else low - margin, high + margin
        elif self.low is None or self.high is None:
            margin = 0.06 * (high - low)
            low = low if self.low is not None else low - margin
            high = high if self.high is not None else high + margin
        return replace(self, low=low, high=high)

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high one; values beyond are drawn at the end."""
        assert self.low is not None and self.high is not None, "a fitted axis has its ends"
        if math.isnan(value):
            return math.nan
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> Sequence[tuple[float, str]]:
        """Round numbers within the ends, and their text."""
        assert self.low is not None and self.high is not None, "a fitted axis has its ends"
        values = (_decades if self.is_log else _steps)(self.low, self.high, self.num_ticks)
        return [(value, self.words(value)) for value in values]


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Reference:
    """A named value to compare with, drawn as a line across."""

    value: float
    name: str


@dataclass(frozen=True)
class Dot:
    """An estimate with its interval (None: it has none), and its text."""

    name: str
    estimate: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class ChartBar:
    """A bar's value and its text."""

    name: str
    value: float
    text: str


@dataclass(frozen=True)
class LineChart:
    """Lines over two axes; references are horizontal. `about` describes the chart."""

    title: str
    about: str
    series: Sequence[Series]
    x: Axis
    y: Axis
    references: Sequence[Reference] = ()

    def svg(self) -> Markup:
        """The chart as SVG."""
        x = self.x.fitted(value for line in self.series for value in line.xs)
        y = self.y.fitted([value for line in self.series for value in line.ys]
                          + [reference.value for reference in self.references])
        legend = len(self.series) > 1
        plot = _Plot(x, y, _TOP + (22 * math.ceil(len(self.series) / 2) if legend else 0))
        parts = [plot.frame()]
        for index, line in enumerate(self.series):
            parts.append(Markup('<g class="s{}"><path class="curve" d="{}" {}/></g>').format(
                index % 5 + 1, _path(plot, line), _dashes(index)))
            if legend:
                parts.append(_legend_entry(index, line.name))
        parts += plot.references(self.references)
        return drawing(self.title, self.about, plot.height, parts)

    def text(self) -> list[tuple[str, str]]:
        """A row of blocks for each path on a logarithmic axis. Other lines have their values in a table beside them."""
        return [(line.name, spark(line.ys)) for line in self.series if len(line.ys)] if self.y.is_log else []


@dataclass(frozen=True)
class IntervalChart:
    """One estimate with its interval per row, on one axis; references are vertical."""

    title: str
    about: str
    dots: Sequence[Dot]
    x: Axis
    references: Sequence[Reference] = ()

    def svg(self) -> Markup:
        """The chart as SVG."""
        ends = [value for dot in self.dots for value in (dot.estimate, dot.low, dot.high) if value is not None]
        x = self.x.fitted([*ends, *(reference.value for reference in self.references)])
        y = Axis("", 0.0, 1.0)
        plot = _Plot(x, y, _TOP + 22 * len(self.references), left=_RIGHT + 4, height=_ROW * len(self.dots))
        parts = [plot.rows_frame()]
        parts += [plot.upright(reference, index) for index, reference in enumerate(self.references)]
        for index, dot in enumerate(self.dots):
            middle = plot.top + index * _ROW + 32
            parts += [_row_names(plot, middle - 14, dot.name, dot.text), _whisker(plot, middle, dot, index)]
        return drawing(self.title, self.about, plot.height, parts)

    def text(self) -> list[tuple[str, str]]:
        """Names and estimates."""
        return [(dot.name, dot.text) for dot in self.dots]


@dataclass(frozen=True)
class BarChart:
    """One bar per row, from zero."""

    title: str
    about: str
    rows: Sequence[ChartBar]
    x: Axis

    def svg(self) -> Markup:
        """The chart as SVG."""
        low = min([0.0, *(row.value for row in self.rows)])
        x = replace(self.x, low=low).fitted(row.value for row in self.rows)
        plot = _Plot(x, Axis("", 0.0, 1.0), _TOP, left=_RIGHT + 4, height=_ROW * len(self.rows))
        parts = [plot.rows_frame()]
        for index, row in enumerate(self.rows):
            middle = plot.top + index * _ROW + 32
            start, end = sorted((plot.x(0.0), plot.x(row.value)))
            parts.append(_row_names(plot, middle - 14, row.name, row.text))
            parts.append(Markup('<g class="s1"><rect class="solid" x="{:.1f}" y="{}" width="{:.1f}" height="12" '
                                'rx="2"/></g>').format(start, middle - 8, max(end - start, 1.0)))
        return drawing(self.title, self.about, plot.height, parts)

    def text(self) -> list[tuple[str, str]]:
        """Names and values."""
        return [(row.name, row.text) for row in self.rows]


class Chart(Protocol):
    """What a figure shows: LineChart, IntervalChart, BarChart, PlanView."""

    def svg(self) -> Markup:
        """It as SVG."""

    def text(self) -> list[tuple[str, str]]:
        """It as rows of a name and characters, for a terminal."""


def cumulative(title: str, about: str, samples: Mapping[str, Sequence[float]], x: Axis) -> LineChart:
    """The share of values up to x, a line for each sample; what is empty is left out."""
    series = []
    for name, values in samples.items():
        ordered = np.sort(np.asarray(values, np.float64))
        ordered = ordered[np.isfinite(ordered)]
        if len(ordered):
            shares = np.arange(1, len(ordered) + 1) / len(ordered)
            series.append(Series(name, [float(ordered[0]), *ordered.tolist()], [0.0, *shares.tolist()]))
    share = Axis("share of requests", 0.0, 1.0, words=lambda value: f"{100 * value:.0f} %", num_ticks=4)
    return LineChart(title, about, series, x, share)


def spark(path: Sequence[float], width: int = 80) -> str:
    """The path on a logarithmic scale from 0.01 to 100, as blocks."""
    chosen = [path[at * len(path) // min(width, len(path))] for at in range(min(width, len(path)))]
    return "".join(_BLOCKS[min(int(len(_BLOCKS) * _height(value)), len(_BLOCKS) - 1)] for value in chosen)


def _height(value: float) -> float:
    return min(max((math.log10(max(value, 1e-9)) + 2) / 4, 0.0), 1.0)


class _Plot:
    """The rectangle in which data are drawn, and what stands around it."""

    def __init__(self, x: Axis, y: Axis, top: float, left: float = _LEFT, height: float = _HEIGHT - _TOP - _BOTTOM
                 ) -> None:
        self._x, self._y = x, y
        self.left, self.right = left, WIDTH - _RIGHT - (4 if left < _LEFT else 0)
        self.top, self.bottom = top, top + height
        self.width, self.height = self.right - self.left, top + height + _BOTTOM

    def x(self, value: float) -> float:
        return self.left + self._x.place(value) * self.width

    def y(self, value: float) -> float:
        return self.bottom - self._y.place(value) * (self.bottom - self.top)

    def frame(self) -> Markup:
        """Grid, ticks and names of both axes."""
        across = Markup("").join(
            Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
                   '<text class="soft" x="{3}" y="{4:.1f}" text-anchor="end">{5}</text>').format(
                       self.left, self.right, self.y(value), self.left - 6, self.y(value) + 4.5, words)
            for value, words in self._y.ticks())
        name = Markup('<text class="soft" transform="translate(11 {:.1f}) rotate(-90)" text-anchor="middle">{}</text>'
                      ).format((self.top + self.bottom) / 2, self._y.name)
        return across + name + self._x_axis(grid=False)

    def rows_frame(self) -> Markup:
        """Grid, ticks and name of the x axis alone."""
        return self._x_axis(grid=True)

    def _x_axis(self, *, grid: bool) -> Markup:
        end = self.top if grid else self.bottom - 4
        ticks = Markup("").join(
            Markup('<line class="{0}" x1="{1:.1f}" x2="{1:.1f}" y1="{2}" y2="{3}"/>'
                   '<text class="soft" x="{1:.1f}" y="{4}" text-anchor="{5}">{6}</text>').format(
                       "grid" if grid else "axis", self.x(value), self.bottom, end, self.bottom + 16,
                       self._anchor(self.x(value)), words)
            for value, words in self._x.ticks())
        name = Markup('<text class="soft" x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (self.left + self.right) / 2, self.bottom + 34, self._x.name)
        return ticks + name + Markup('<line class="axis" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/>').format(
            self.left, self.right, self.bottom)

    def _anchor(self, x: float) -> str:
        """Text at the edge stays within the chart."""
        return "start" if x < self.left + 12 and self.left < _LEFT else "end" if x > self.right - 12 else "middle"

    def references(self, references: Sequence[Reference]) -> list[Markup]:
        """Lines across, each with its name above it; below it at the top, and where another's name is too near."""
        out, highest = list[Markup](), self.top
        for reference in sorted(references, key=lambda reference: self.y(reference.value)):
            y = self.y(reference.value)
            words = y - 6 if y - 6 - _LETTERS >= highest else max(y, highest) + _LETTERS + 1
            highest = words + 3
            out.append(self._reference(reference, y, words))
        return out

    def _reference(self, reference: Reference, y: float, words: float) -> Markup:
        return Markup('<line class="reference" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>'
                      '<text class="halo strong" x="{3}" y="{4:.1f}">{5}</text>').format(
                          self.left, self.right, y, self.left + 6, words, reference.name)

    def upright(self, reference: Reference, index: int) -> Markup:
        """An upright line, with its name in a line of its own above the plot."""
        x, y = self.x(reference.value), _TOP + 22 * index
        to_left = x > WIDTH / 2
        return Markup('<line class="reference" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>'
                      '<text class="halo strong" x="{3:.1f}" y="{4}" text-anchor="{5}">{6}</text>').format(
                          x, y, self.bottom, x - 6 if to_left else x + 6, y + 10, "end" if to_left else "start",
                          reference.name)


def _path(plot: _Plot, line: Series) -> str:
    points = [(plot.x(x), plot.y(y)) for x, y in _thinned(line.xs, line.ys)]
    commands = []
    is_down = False  # a value that is no number leaves a gap
    for x, y in points:
        if math.isnan(x) or math.isnan(y):
            is_down = False
            continue
        commands.append(f"{'L' if is_down else 'M'}{x:.1f} {y:.1f}")
        is_down = True
    return "".join(commands)


def _thinned(xs: Sequence[float], ys: Sequence[float]) -> Iterable[tuple[float, float]]:
    """At most a few points for each column of the picture, with every peak and every valley among them."""
    if len(xs) <= 2 * _MOST_POINTS:
        return zip(xs, ys, strict=True)
    values = np.asarray(ys, np.float64)
    kept: set[int] = {0, len(xs) - 1}
    for part in np.array_split(np.arange(len(xs)), _MOST_POINTS):
        known = part[~np.isnan(values[part])]
        kept.update((int(part[0]), int(part[-1])))
        if len(known):
            kept.update((int(known[values[known].argmin()]), int(known[values[known].argmax()])))
    return [(xs[index], ys[index]) for index in sorted(kept)]


def _legend_entry(index: int, name: str) -> Markup:
    x, y = (_LEFT if index % 2 == 0 else WIDTH / 2 + 10), _TOP + 22 * (index // 2)
    return Markup('<g class="s{}"><path class="curve" d="M{} {}h28" {}/></g><text x="{}" y="{}">{}</text>').format(
        index % 5 + 1, x, y, _dashes(index), x + 36, y + 4.5, name)


def _dashes(index: int) -> Markup:
    dashes = _DASHES[index % len(_DASHES)]
    return Markup('stroke-dasharray="{}"').format(dashes) if dashes else Markup("")


def _row_names(plot: _Plot, y: float, name: str, text: str) -> Markup:
    return Markup('<text class="halo" x="{0}" y="{2}">{3}</text>'
                  '<text class="halo strong" x="{1}" y="{2}" text-anchor="end">{4}</text>').format(
                      plot.left, plot.right, y, name, text)


def _whisker(plot: _Plot, y: float, dot: Dot, index: int) -> Markup:
    """A filled mark on a line with ends; an open mark where nobody knows the interval."""
    x = plot.x(dot.estimate)
    if math.isnan(x):
        return Markup("")
    if dot.low is None or dot.high is None:
        return Markup('<g class="s{}"><circle class="open" cx="{:.1f}" cy="{}" r="5"/></g>').format(
            index % 5 + 1, x, y)
    low, high = plot.x(dot.low), plot.x(dot.high)
    return Markup('<g class="s{0}"><path class="rule" fill="none" '
                  'd="M{1:.1f} {3}H{2:.1f}M{1:.1f} {4}v10M{2:.1f} {4}v10"/>'
                  '<circle class="solid" cx="{5:.1f}" cy="{3}" r="5"/></g>').format(
                      index % 5 + 1, low, high, y, y - 5, x)


def drawing(title: str, about: str, height: float, parts: Iterable[Markup]) -> Markup:
    """An SVG, WIDTH units wide, with its title and what it shows."""
    body = Markup("").join(parts)
    # Ids must differ within a page: two charts that are the same to the last letter may share them.
    key = hashlib.sha256(f"{title}{about}{body}".encode()).hexdigest()[:10]
    return Markup('<svg viewBox="0 0 {0} {1:.0f}" role="img" aria-labelledby="t{2} d{2}" '
                  'xmlns="http://www.w3.org/2000/svg"><title id="t{2}">{3}</title><desc id="d{2}">{4}</desc>{5}</svg>'
                  ).format(WIDTH, height, key, title, about, body)


def _steps(low: float, high: float, count: int) -> Sequence[float]:
    raw = (high - low) / max(count, 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _decades(low: float, high: float, count: int) -> Sequence[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first < 2:
        return [digit * 10.0**power for power in range(first - 1, last + 1) for digit in (1, 2, 5)
                if low * (1 - 1e-9) <= digit * 10.0**power <= high * (1 + 1e-9)]
    every = math.ceil((last - first + 1) / (count + 1))
    return [10.0**power for power in range(first, last + 1) if power % every == 0]
