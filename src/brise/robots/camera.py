"""What a camera on the drone sees of the gate course: small pin-hole pictures, and what is in them.

The camera looks along the heading and is kept level by a gimbal. Gates are frames of their color that turn to whoever
comes, as high as a gate counts; cylinders are dark, from the floor to the ceiling; walls, floor and ceiling are grey.
Farther things are nearer to the grey of the walls. Deterministic: the same place gives the same bytes.

Legend: S pixels of a side; pictures are (S, S, 3) uint8, rows from the top. X right, Y down, as in pictures.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from brise.robots.gate_course import CEILING, HALL, HEIGHTS, NEAR, RING, Course
from brise.robots.quadrotor import Floats

Picture = NDArray[np.uint8]

SIZE = 64
FOCAL = 0.5  # of the picture's side: a field of view of 90 degrees, both ways
NEAREST = 0.2  # metres before the camera from which on things are drawn
RGB: Mapping[str, tuple[int, int, int]] = MappingProxyType({
    "red": (220, 30, 30), "blue": (40, 60, 230), "green": (30, 180, 50), "yellow": (235, 220, 40),
    "white": (250, 250, 250), "orange": (245, 130, 20)})
CYLINDER, WALL, FLOOR, SKY = (25, 25, 25), (120, 120, 125), (90, 85, 80), (150, 150, 160)
HAZE_M = 24.0  # at which half of a color is the wall's
FRAME = 0.18  # of a gate's width, on each side
# From the lowest to the highest place at which a mission can pass a gate.
GATE_BOTTOM, GATE_TOP = min(HEIGHTS.values()) - RING, max(HEIGHTS.values()) + RING


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


def seen(course: Course, position_3: Floats, yaw: float, size: int = SIZE) -> list[SeenThing]:
    """What is before the camera and at least partly within the picture, the farthest first."""
    x, y, z = (float(each) for each in position_3)
    things = [(color, place, NEAR, GATE_BOTTOM, GATE_TOP) for color, place in course.gates.items()]
    things += [("cylinder", (cx, cy), radius, 0.0, CEILING) for cx, cy, radius in course.cylinders]
    found = []
    for name, place, half, bottom, top in things:
        dx, dy = place[0] - x, place[1] - y
        forward, left = math.cos(yaw) * dx + math.sin(yaw) * dy, -math.sin(yaw) * dx + math.cos(yaw) * dy
        if forward < NEAREST:
            continue
        scale = FOCAL * size / forward
        box = (size / 2 + scale * (-left - half), size / 2 + scale * (z - top),
               size / 2 + scale * (-left + half), size / 2 + scale * (z - bottom))
        if box[2] > 0 and box[0] < size and box[3] > 0 and box[1] < size:
            found.append(SeenThing(name, forward, left, box))
    return sorted(found, key=lambda thing: -thing.forward)


def picture(course: Course, position_3: Floats, yaw: float, size: int = SIZE) -> Picture:
    """The camera's picture, (S, S, 3)."""
    return painted(course, position_3, yaw, size)[0]


def painted(course: Course, position_3: Floats, yaw: float, size: int = SIZE,
            ) -> tuple[Picture, NDArray[np.int64], list[SeenThing]]:
    """The picture, what is seen, and which of it each pixel shows: its number, or -1 for the hall, (S, S)."""
    pixels, shown, things = _hall(position_3, yaw, size), np.full((size, size), -1), seen(course, position_3, yaw, size)
    rows, columns = np.mgrid[0:size, 0:size] + 0.5  # middles of pixels
    for number, thing in enumerate(things):
        left, top, right, bottom = thing.box
        is_inside = (columns >= left) & (columns < right) & (rows >= top) & (rows < bottom)
        if thing.name != "cylinder":
            frame = FRAME * (right - left)
            is_inside &= ~((columns >= left + frame) & (columns < right - frame)
                           & (rows >= top + frame) & (rows < bottom - frame))
        pixels[is_inside] = _hazed(RGB.get(thing.name, CYLINDER), thing.forward)
        shown[is_inside] = number
    return pixels, shown, things


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


def _hall(position_3: Floats, yaw: float, size: int) -> Picture:
    """Walls, floor and ceiling: each column's ray meets a wall, which stands between the floor and the ceiling."""
    x, y, z = (float(each) for each in position_3)
    across = (np.arange(size) + 0.5 - size / 2) / (FOCAL * size)  # to the right, for a metre forward
    cos, sin = math.cos(yaw), math.sin(yaw)
    ways = np.stack([cos + sin * across, sin - cos * across], 1)  # of a ray, for a metre forward
    with np.errstate(divide="ignore"):
        forward = np.min((np.sign(ways) * HALL - np.array([x, y])) / ways, 1, where=ways != 0, initial=4 * HALL)
    scale = FOCAL * size / np.maximum(forward, NEAREST)
    rows = np.arange(size)[:, None] + 0.5
    top, bottom = size / 2 + scale * (z - CEILING), size / 2 + scale * z
    pixels = np.empty((size, size, 3), np.uint8)
    shade = np.where(np.abs(ways[:, 0] * forward + x) > HALL - 1e-6, 1.0, 0.9)  # the walls at the sides are darker
    pixels[:] = (np.array(WALL) * shade[:, None]).astype(np.uint8)
    pixels[np.broadcast_to(rows < top, (size, size))] = SKY
    pixels[np.broadcast_to(rows >= bottom, (size, size))] = FLOOR
    return pixels


def _hazed(color: tuple[int, int, int], forward: float) -> NDArray[np.uint8]:
    share = forward / (forward + HAZE_M)
    return np.rint((1 - share) * np.array(color) + share * np.array(WALL)).astype(np.uint8)
