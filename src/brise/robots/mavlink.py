"""A bridge to a vehicle that speaks MAVLink 2 over UDP: ArduPilot, PX4, or a router in front of them.

Commands go out as SET_POSITION_TARGET_LOCAL_NED with a velocity along the heading and a yaw rate; HEARTBEAT,
LOCAL_POSITION_NED, ATTITUDE and SYS_STATUS come in. The bridge never arms a vehicle and never changes its mode: that
is for whoever is responsible for it, and so is what the autopilot does when set-points stop coming.

MAVLink's frames: x north or forward, y east or right, z down, angles clockwise.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from brise.errors import MissingExtraError, NetworkError, UnsupportedError
from brise.robots.command_queue import SentCommand
from brise.robots.vehicle import SetPoints, VehicleState, along_heading
from brise.text.action_space import ActionSpace

# Of SET_POSITION_TARGET_LOCAL_NED's type_mask: position (1 + 2 + 4), acceleration (64 + 128 + 256), yaw (1024).
IGNORED = 1 + 2 + 4 + 64 + 128 + 256 + 1024
HEARTBEAT_S = 1.0
MAX_DATAGRAM = 65_535
MAX_DATAGRAMS = 1_000  # that are read in one go: a flood must not hold the caller


@dataclass(frozen=True)
class MavlinkOptions:
    """Who speaks to whom. A computer on board has its vehicle's system id, and component 191."""

    system: int = 1  # of the vehicle
    component: int = 1  # of its autopilot
    own_component: int = 191

    def __post_init__(self) -> None:
        for name in ("system", "component", "own_component"):
            if not 1 <= getattr(self, name) <= 255:
                raise UnsupportedError(f"MAVLink's {name} is {getattr(self, name)}, allowed is 1 to 255")


class MavlinkLink:
    """A vehicle at an address: "udpout:HOST:PORT" sends there; "udpin:HOST:PORT" waits until a vehicle has sent.

    `send` is what a pilot sends by, `state` what its observations are made of; each may have a thread of its own.
    """

    def __init__(self, address: str, space: ActionSpace, options: MavlinkOptions = MavlinkOptions(),
                 clock: Callable[[], float] = time.monotonic) -> None:
        try:
            from pymavlink.dialects.v20 import common  # noqa: PLC0415 - an extra
        except ModuleNotFoundError:
            raise MissingExtraError("pymavlink", "mavlink", "a bridge to MAVLink") from None
        self._common, self._options, self._clock = common, options, clock
        self._set_points = SetPoints(space)
        self._out = common.MAVLink(None, options.system, options.own_component)
        self._begin, self._heartbeat = clock(), -math.inf
        self._position: tuple[float, Any] | None = None
        self._attitude: tuple[float, Any] | None = None
        self._battery: float | None = None
        self._is_armed: bool | None = None
        self.num_unsent = 0  # commands and heartbeats that the network did not take
        self._socket, self._has_peer = _opened(address)

    def send(self, command: SentCommand) -> None:
        """Sends a command, and a heartbeat every second. What the network does not take is counted, not raised:
        the loop goes on, and the autopilot has its own answer to set-points that do not come.
        """
        messages, wanted, now = self._common, self._set_points.of(command.values), self._clock()
        if now - self._heartbeat >= HEARTBEAT_S:
            self._heartbeat = now
            self._transmit(self._out.heartbeat_encode(messages.MAV_TYPE_ONBOARD_CONTROLLER,
                                                      messages.MAV_AUTOPILOT_INVALID, 0, 0, messages.MAV_STATE_ACTIVE))
        milliseconds = int(1e3 * (now - self._begin)) & 0xFFFF_FFFF
        self._transmit(self._out.set_position_target_local_ned_encode(
            milliseconds, self._options.system, self._options.component, messages.MAV_FRAME_BODY_NED, IGNORED,
            0, 0, 0, wanted.forward, -wanted.left, -wanted.up, 0, 0, 0, 0, -wanted.yaw_rate))

    def state(self) -> VehicleState | None:
        """What the vehicle said last, after reading all that has come in; None before position and attitude have."""
        for message in self._arrived():
            self._take(message)
        if self._position is None or self._attitude is None:
            return None
        (heard, place), (turned, attitude) = self._position, self._attitude
        yaw = -float(attitude.yaw)
        return VehicleState(np.array([place.x, -place.y, -place.z]),
                            along_heading([place.vx, -place.vy, -place.vz], yaw), yaw,
                            self._clock() - min(heard, turned), self._battery, self._is_armed)

    def close(self) -> None:
        """Closes the socket."""
        self._socket.close()

    def _transmit(self, message: Any) -> None:
        data = message.pack(self._out)
        self._out.seq = (self._out.seq + 1) % 256
        try:
            if not self._has_peer:
                raise OSError("no vehicle has sent yet")
            self._socket.send(data)
        except OSError:
            self.num_unsent += 1

    def _arrived(self) -> Iterator[Any]:
        """The messages of this vehicle that have come in."""
        for _ in range(MAX_DATAGRAMS):
            try:
                data, sender = self._socket.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return
            except OSError:  # the last command found nobody there
                continue
            # A reader of its own: a datagram has whole messages, and one that was cut must not swallow the next.
            reader = self._common.MAVLink(None)
            reader.robust_parsing = True  # what is no message is one of type BAD_DATA, and no exception
            for message in reader.parse_buffer(data) or ():
                if message.get_type() == "BAD_DATA" or message.get_srcSystem() != self._options.system:
                    continue
                if not self._has_peer:  # from here on, nobody else is heard
                    self._socket.connect(sender)
                    self._has_peer = True
                yield message

    def _take(self, message: Any) -> None:
        now, kind = self._clock(), message.get_type()
        if kind == "LOCAL_POSITION_NED" and _is_finite(message, ("x", "y", "z", "vx", "vy", "vz")):
            self._position = (now, message)
        elif kind == "ATTITUDE" and _is_finite(message, ("yaw",)):
            self._attitude = (now, message)
        elif kind == "SYS_STATUS":
            self._battery = message.battery_remaining / 100 if 0 <= message.battery_remaining <= 100 else None
        elif kind == "HEARTBEAT" and message.get_srcComponent() == self._options.component:
            self._is_armed = bool(message.base_mode & self._common.MAV_MODE_FLAG_SAFETY_ARMED)


def _opened(address: str) -> tuple[socket.socket, bool]:
    """The socket of an address, and whether it has a peer from the beginning."""
    kind, _, place = address.partition(":")
    host, _, port = place.rpartition(":")
    if kind not in ("udpin", "udpout") or not host or not port.isdecimal() or not 0 <= int(port) <= 65_535:
        raise UnsupportedError(f"the vehicle's address is {address!r}; it is udpout:HOST:PORT or udpin:HOST:PORT")
    link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        (link.bind if kind == "udpin" else link.connect)((host, int(port)))
    except OSError as error:
        link.close()
        raise NetworkError(f"{address} cannot be opened: {error.strerror or error}") from error
    link.setblocking(False)
    return link, kind == "udpout"


def _is_finite(message: Any, names: tuple[str, ...]) -> bool:
    return all(math.isfinite(getattr(message, name)) for name in names)
