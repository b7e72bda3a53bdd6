"""What cameras on the drone see of the gate course: small pin-hole pictures, and what is in them.

Four cameras look left, ahead, right and back, and are kept level by a gimbal; side by side, their pictures are one view
all around. Gates are frames of their color that turn
to whoever comes, as high as a gate counts; cylinders are dark, from the floor to the ceiling; walls, floor and ceiling
are grey. Farther things are nearer to the grey of the walls. The lines at the top and at the bottom are a tape of
bearings, as head-up displays have one: their color says the direction from the heading. An encoder with rotary
positions knows how far two places of a picture are from each other, and not where in the picture they are; the tape
tells it. Deterministic: the same place gives the same bytes.

Legend: W, H pixels of a picture; pictures are (H, W, 3) uint8, rows from the top. X right, Y down, as in pictures.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from brise.robots import gate_course
from brise.robots.gate_course import CEILING, HALL, HEIGHTS, NEAR, SECTORS, Course, in_frame
from brise.robots.quadrotor import Floats

Picture = NDArray[np.uint8]

RING = (math.pi / 2, 0.0, -math.pi / 2, math.pi)  # of the cameras, from the heading: left, ahead, right, back
LEAST_PIXELS = 8  # that show a gate, or it counts as not seen
NEAREST = 0.2  # metres before the camera from which on things are drawn
RGB: Mapping[str, tuple[int, int, int]] = MappingProxyType({
    "red": (220, 30, 30), "blue": (40, 60, 230), "green": (30, 180, 50), "yellow": (235, 220, 40),
    "white": (250, 250, 250), "orange": (245, 130, 20)})
CYLINDER, WALL, FLOOR, SKY = (25, 25, 25), (120, 120, 125), (90, 85, 80), (150, 150, 160)
HALL_COLORS = (WALL, (108, 108, 112), SKY, FLOOR)  # the walls at the sides are darker
HAZE_M = 24.0  # at which half of a color is the wall's
FRAME = 0.18  # of a gate's width, on each side; at least a pixel, so that what is far is not lost between two
# From the lowest to the highest place at which a mission can pass a gate.
GATE_BOTTOM, GATE_TOP = min(HEIGHTS.values()) - gate_course.RING, max(HEIGHTS.values()) + gate_course.RING


@dataclass(frozen=True)
class SeenThing:
    """A gate (its color) or a cylinder in a picture: metres forward and left, and its box in pixels, which may reach
    beyond the picture: left, top, right, bottom."""

    name: str
    forward: float
    left: float
    box: tuple[float, float, float, float]

    @property
    def range(self) -> float:
        """Metres to its middle, along the floor."""
        return math.hypot(self.forward, self.left)

    @property
    def bearing(self) -> float:
        """Radians to its middle, counter-clockwise from ahead."""
        return math.atan2(self.left, self.forward)


@dataclass(frozen=True)
class View:
    """The pixels of a picture, whose width is a field of view of 90 degrees."""

    width: int = 192
    height: int = 64

    @property
    def focal(self) -> float:
        """Pixels between the pin-hole and the picture."""
        return self.width / 2

    @property
    def columns(self) -> Floats:
        """Metres to the right for a metre ahead, of the middle of each column, (W,)."""
        return np.asarray((np.arange(self.width) + 0.5 - self.width / 2) / self.focal, np.float64)


STRIP = View()


@dataclass(frozen=True)
class Painted:
    """A picture, what is seen in it, and which of that each pixel shows: its number, or -1 for the hall, (H, W)."""

    pixels: Picture
    things: list[SeenThing]
    shown: NDArray[np.int64]


def seen(course: Course, position_3: Floats, yaw: float, view: View = STRIP) -> list[SeenThing]:
    """What is before the camera and at least partly within the picture, the farthest first."""
    x, y, z = (float(each) for each in position_3)
    things = [(color, place, NEAR, GATE_BOTTOM, GATE_TOP) for color, place in course.gates.items()]
    things += [("cylinder", (cx, cy), radius, 0.0, CEILING) for cx, cy, radius in course.cylinders]
    found = []
    for name, place, half, bottom, top in things:
        forward, left = in_frame(place, x, y, yaw)
        if forward < NEAREST:
            continue
        scale, middle, horizon = view.focal / forward, view.width / 2, view.height / 2
        box = (middle + scale * (-left - half), horizon + scale * (z - top),
               middle + scale * (-left + half), horizon + scale * (z - bottom))
        if box[2] > 0 and box[0] < view.width and box[3] > 0 and box[1] < view.height:
            found.append(SeenThing(name, forward, left, box))
    return sorted(found, key=lambda thing: -thing.forward)


@dataclass(frozen=True)
class Ring:
    """The pictures of the four cameras, side by side, (H, 4 W, 3), and the gates in them by color, those that most
    pixels show first: the bearing of each from the heading, radians, counter-clockwise."""

    pixels: Picture
    gates: Mapping[str, float]


def ring(course: Course, position_3: Floats, yaw: float, view: View = STRIP) -> Ring:
    """What the four cameras see."""
    pictures: list[Picture] = []
    pixels: Counter[str] = Counter()
    bearings: dict[str, float] = {}
    for bearing in RING:
        part = painted(course, position_3, yaw, bearing, view)
        pictures.append(part.pixels)
        counts = np.bincount(part.shown[part.shown >= 0], minlength=len(part.things))
        for thing, count in zip(part.things, counts.tolist(), strict=True):
            if count and thing.name != "cylinder":
                pixels[thing.name] += count
                bearings[thing.name] = math.remainder(bearing + thing.bearing, 2 * math.pi)
    return Ring(np.concatenate(pictures, axis=1), {color: bearings[color] for color, count in pixels.most_common()
                                                   if count >= LEAST_PIXELS})


def painted(course: Course, position_3: Floats, yaw: float, bearing: float = 0.0, view: View = STRIP) -> Painted:
    """What a camera sees that looks `bearing` to the left of the heading."""
    shown, things = _hall(position_3, yaw + bearing, view), seen(course, position_3, yaw + bearing, view)
    colors = np.array([*HALL_COLORS, *(_hazed(RGB.get(thing.name, CYLINDER), thing.forward) for thing in things)])
    for number, thing in enumerate(things):
        for part in _parts(thing):
            shown[part] = len(HALL_COLORS) + number
    pixels = colors.astype(np.uint8)[shown]
    pixels[[0, -1]] = np.rint(_tape(bearing, view))
    return Painted(pixels, things, np.maximum(shown - len(HALL_COLORS), -1))


def png(pixels: Picture) -> bytes:
    """The picture as a PNG file: 8 bits, red, green and blue, no filter."""
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, 3 * width)], 1)
    parts = ((b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines.tobytes())),
             (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts)


def image_part(pixels: Picture) -> Mapping[str, object]:
    """The picture as a part of a message."""
    url = f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _hall(position_3: Floats, yaw: float, view: View) -> NDArray[np.int64]:
    """Walls, floor and ceiling, as numbers of HALL_COLORS, (H, W): each column's ray meets a wall, which stands between
    the floor and the ceiling."""
    x, y, z = (float(each) for each in position_3)
    cos, sin = math.cos(yaw), math.sin(yaw)
    ways = np.stack([cos + sin * view.columns, sin - cos * view.columns], 1)  # of a ray, for a metre forward
    with np.errstate(divide="ignore"):
        forward = np.min((np.sign(ways) * HALL - np.array([x, y])) / ways, 1, where=ways != 0, initial=4 * HALL)
    scale = view.focal / np.maximum(forward, NEAREST)
    rows = np.arange(view.height)[:, None] + 0.5
    wall = np.where(np.abs(ways[:, 0] * forward + x) > HALL - 1e-6, 0, 1)
    is_sky = rows < view.height / 2 + scale * (z - CEILING)
    return np.where(is_sky, 2, np.where(rows >= view.height / 2 + scale * z, 3, wall))


def _parts(thing: SeenThing) -> list[tuple[slice, slice]]:
    """The rows and columns of a thing: all of a cylinder, and the four sides of a gate."""
    left, top, right, bottom = thing.box
    if thing.name == "cylinder":
        return [(_within(top, bottom), _within(left, right))]
    frame = max(FRAME * (right - left), 1.0)
    return [(_within(top, top + frame), _within(left, right)), (_within(bottom - frame, bottom), _within(left, right)),
            (_within(top, bottom), _within(left, left + frame)), (_within(top, bottom), _within(right - frame, right))]


def _within(low: float, high: float) -> slice:
    """The pixels whose middles lie from low to high."""
    return slice(max(math.ceil(low - 0.5), 0), max(math.ceil(high - 0.5), 0))


def _tape(bearing: float, view: View) -> Floats:
    """The colors that say the bearing of each column, from the heading, (W, 3): its cosine, its sine, and where it lies
    within its sector."""
    bearings = bearing - np.arctan(view.columns)
    waves = np.stack([np.cos(bearings), np.sin(bearings), np.cos(len(SECTORS) * bearings)], 1)
    return np.asarray(127.5 + 127.5 * waves)


def _hazed(color: tuple[int, int, int], forward: float) -> NDArray[np.uint8]:
    share = forward / (forward + HAZE_M)
    return np.rint((1 - share) * np.array(color) + share * np.array(WALL)).astype(np.uint8)
