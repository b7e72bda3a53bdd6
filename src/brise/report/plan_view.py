"""A picture from above: a square hall with what stands in it, and the ways that something took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from brise.report.charts import WIDTH, drawing

_MARGIN, _LEGEND = 14, 24
_DASHES: Sequence[str] = ("", "7 4", "2 4")


@dataclass(frozen=True)
class StandingThing:
    """A circle on the floor, at (x, y) metres: a ring that one flies through, or something solid."""

    x: float
    y: float
    radius: float
    name: str = ""
    is_solid: bool = False


@dataclass(frozen=True)
class Track:
    """A way in metres; nan breaks it. Its name stands in the legend."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


@dataclass(frozen=True)
class PlanView:
    """The hall reaches `half` metres from its middle; x goes right and y up. `marks` are words at places."""

    title: str
    about: str
    half: float
    things: Sequence[StandingThing]
    tracks: Sequence[Track]
    marks: Sequence[tuple[str, float, float]] = ()

    def svg(self) -> Markup:
        """The picture as SVG."""
        side = WIDTH - 2 * _MARGIN
        top = _MARGIN + _LEGEND
        scale = side / (2 * self.half)

        def x(value: float) -> float:
            return _MARGIN + (value + self.half) * scale

        def y(value: float) -> float:
            return top + (self.half - value) * scale

        parts = [Markup('<rect class="axis" x="{}" y="{}" width="{}" height="{}" fill="none"/>').format(
            _MARGIN, top, side, side)]
        for one in self.things:
            kind = Markup('class="grid" fill="var(--soft)"') if one.is_solid else Markup('class="rule s4" fill="none"')
            parts.append(Markup('<circle {} cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(
                kind, x(one.x), y(one.y), one.radius * scale))
        for index, track in enumerate(self.tracks):
            at = _MARGIN + index * side / max(len(self.tracks), 1)
            dashes = Markup('stroke-dasharray="{}"').format(_DASHES[index % len(_DASHES)])
            parts.append(Markup('<g class="s{0}"><path class="curve" d="{1}" {2}/>'
                                '<path class="curve" d="M{3:.1f} {4}h28" {2}/></g><text x="{5:.1f}" y="{6}">{7}</text>'
                                ).format(index % 5 + 1, _path([x(each) for each in track.xs],
                                                              [y(each) for each in track.ys]), dashes,
                                         at, _MARGIN, at + 34, _MARGIN + 4.5, track.name))
        named = [*((one.name, one.x, one.y + one.radius) for one in self.things if one.name), *self.marks]
        parts += [Markup('<text class="halo" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
            min(max(x(at), _MARGIN + 24), WIDTH - _MARGIN - 24), max(y(up) - 5, top + 12), name)
            for name, at, up in named]
        return drawing(self.title, self.about, top + side + _MARGIN, parts)

    def text(self) -> list[tuple[str, str]]:
        """How far each track goes, in metres."""
        return [(track.name, f"{_length(track):.1f} m") for track in self.tracks]


def _path(xs: Sequence[float], ys: Sequence[float]) -> str:
    commands, is_down = [], False
    for x, y in zip(xs, ys, strict=True):
        if math.isnan(x) or math.isnan(y):
            is_down = False
            continue
        commands.append(f"{'L' if is_down else 'M'}{x:.1f} {y:.1f}")
        is_down = True
    return "".join(commands)


def _length(track: Track) -> float:
    places = list(zip(track.xs, track.ys, strict=True))
    steps = [math.dist(before, after) for before, after in zip(places, places[1:], strict=False)]
    return sum(step for step in steps if not math.isnan(step))
