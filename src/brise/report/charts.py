"""Charts as SVG within a page: lines, intervals, bars, distributions. They take their colours from page.STYLE.

A chart says what it shows in <title> and <desc>. Series differ in dashes or marks and stand by their names, not by
colour alone. It is drawn 480 units wide and stretched: at a phone's width its letters are still read.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from brise.report.axis import Axis

WIDTH = 480
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 14, 12, 40  # room for labels around the plot
_HEIGHT = 260  # of charts with two axes
_MOST_POINTS = 400  # columns of a line; of what lies in one, the lowest and the highest are kept
_DASHES: Sequence[str] = ("", "7 4", "2 4", "10 3 2 3", "1 6")
_LETTERS = 12  # height of letters
_ROW = 46  # units of height for a row of intervals or bars


@dataclass(frozen=True)
class Series:
    """A line."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class Reference:
    """A value to compare with: a line across, by its name."""

    value: float
    name: str


@dataclass(frozen=True)
class Dot:
    """An estimate with its interval (None: it has none), and how it reads."""

    name: str
    estimate: float
    low: float | None
    high: float | None
    text: str


@dataclass(frozen=True)
class ChartBar:
    """A length, and how it reads."""

    name: str
    value: float
    text: str


def lines(title: str, about: str, series: Sequence[Series], x: Axis, y: Axis,
          references: Sequence[Reference] = ()) -> Markup:
    """Lines over two axes; references lie across, on the y axis."""
    x = x.fitted(value for line in series for value in line.xs)
    y = y.fitted([value for line in series for value in line.ys] + [reference.value for reference in references])
    legend = len(series) > 1
    plot = _Plot(x, y, _TOP + (22 * math.ceil(len(series) / 2) if legend else 0))
    parts = [plot.frame()]
    for index, line in enumerate(series):
        parts.append(Markup('<g class="s{}"><path class="curve" d="{}" {}/></g>').format(
            index % 5 + 1, _path(plot, line), _dashes(index)))
        if legend:
            parts.append(_legend_entry(index, line.name))
    parts += plot.references(references)
    return _svg(title, about, plot.height, parts)


def cumulative(title: str, about: str, samples: Mapping[str, Sequence[float]], x: Axis) -> Markup:
    """The share of values up to x, a line for each sample; what is empty is left out."""
    series = []
    for name, values in samples.items():
        ordered = np.sort(np.asarray(values, np.float64))
        ordered = ordered[np.isfinite(ordered)]
        if len(ordered):
            shares = np.arange(1, len(ordered) + 1) / len(ordered)
            series.append(Series(name, [float(ordered[0]), *ordered.tolist()], [0.0, *shares.tolist()]))
    share = Axis("share of requests", 0.0, 1.0, words=lambda value: f"{100 * value:.0f} %", num_ticks=4)
    return lines(title, about, series, x, share)


def histogram(title: str, about: str, values: Sequence[float], x: Axis, num_bins: int = 30,
              references: Sequence[Reference] = ()) -> Markup:
    """How often values lie where; references stand upright, on the x axis."""
    x = x.fitted([*values, *(reference.value for reference in references)])
    places = [x.place(value) for value in values if not math.isnan(value)]
    counts, _ = np.histogram(places, num_bins, (0.0, 1.0))
    y = Axis("count", 0.0, float(max(counts.max(), 1)) * 1.05)
    plot = _Plot(x, y, _TOP + 22 * len(references))
    width = plot.width / num_bins
    bars = Markup("").join(
        Markup('<rect class="solid" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            plot.left + index * width + 0.5, plot.y(count), width - 1, plot.bottom - plot.y(count))
        for index, count in enumerate(counts.tolist()) if count)
    parts = [plot.frame(), Markup('<g class="s1">{}</g>').format(bars)]
    parts += [plot.upright(reference, index) for index, reference in enumerate(references)]
    return _svg(title, about, plot.height, parts)


def intervals(title: str, about: str, dots: Sequence[Dot], x: Axis, references: Sequence[Reference] = ()) -> Markup:
    """An estimate and its interval a row, on one axis; references stand upright."""
    ends = [value for dot in dots for value in (dot.estimate, dot.low, dot.high) if value is not None]
    x = x.fitted([*ends, *(reference.value for reference in references)])
    y = Axis("", 0.0, 1.0)
    plot = _Plot(x, y, _TOP + 22 * len(references), left=_RIGHT + 4, height=_ROW * len(dots))
    parts = [plot.rows_frame()]
    parts += [plot.upright(reference, index) for index, reference in enumerate(references)]
    for index, dot in enumerate(dots):
        middle = plot.top + index * _ROW + 32
        parts += [_row_names(plot, middle - 14, dot.name, dot.text), _whisker(plot, middle, dot, index)]
    return _svg(title, about, plot.height, parts)


def bars(title: str, about: str, rows: Sequence[ChartBar], x: Axis) -> Markup:
    """A bar a row, from zero."""
    low = min([0.0, *(row.value for row in rows)])
    x = Axis(x.name, low, x.high, words=x.words, num_ticks=x.num_ticks).fitted(row.value for row in rows)
    plot = _Plot(x, Axis("", 0.0, 1.0), _TOP, left=_RIGHT + 4, height=_ROW * len(rows))
    parts = [plot.rows_frame()]
    for index, row in enumerate(rows):
        middle = plot.top + index * _ROW + 32
        start, end = sorted((plot.x(0.0), plot.x(row.value)))
        parts.append(_row_names(plot, middle - 14, row.name, row.text))
        parts.append(Markup('<g class="s1"><rect class="solid" x="{:.1f}" y="{}" width="{:.1f}" height="12" rx="2"/>'
                            '</g>').format(start, middle - 8, max(end - start, 1.0)))
    return _svg(title, about, plot.height, parts)


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
        """Words at the edge stay within the picture."""
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


def _svg(title: str, about: str, height: float, parts: Iterable[Markup]) -> Markup:
    body = Markup("").join(parts)
    # Ids must differ within a page: two charts that are the same to the last letter may share them.
    key = hashlib.sha256(f"{title}{about}{body}".encode()).hexdigest()[:10]
    return Markup('<svg viewBox="0 0 {0} {1:.0f}" role="img" aria-labelledby="t{2} d{2}" '
                  'xmlns="http://www.w3.org/2000/svg"><title id="t{2}">{3}</title><desc id="d{2}">{4}</desc>{5}</svg>'
                  ).format(WIDTH, height, key, title, about, body)
