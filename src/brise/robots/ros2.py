"""A bridge to ROS 2 through Zenoh, without ROS on this machine: geometry_msgs/Twist out, nav_msgs/Odometry in.

Messages are CDR, as ROS 2 has them on every transport. On `rmw_zenoh` a topic's key has the domain, the type and its
hash, and each message has an attachment that says who sent it when (rmw_zenoh's docs/design.md); behind
zenoh-bridge-ros2dds a key is the topic's name alone.

CDR: 4 bytes of header (0, then 0 for big or 1 for little endian, then two of options), then the fields in their order,
each at a multiple of its size, counted from the end of the header; a string is its length with its final zero, then
its bytes.
"""

from __future__ import annotations

import json
import math
import struct
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from brise.errors import AnswerError, MissingExtraError, NetworkError, UnsupportedError
from brise.robots.command_queue import SentCommand
from brise.robots.vehicle import SetPoint, SetPoints, VehicleState, along_heading
from brise.text.action_space import ActionSpace

TWIST = ("geometry_msgs::msg::dds_::Twist_",
         "RIHS01_9c45bf16fe0983d80e3cfe750d6835843d265a9a6c46bd2e609fcddde6fb8d2a")  # the hash that ROS 2 has of it
ODOMETRY = ("nav_msgs::msg::dds_::Odometry_", "*")
LITTLE_ENDIAN = b"\0\1\0\0"
COVARIANCE = 36  # numbers, after a pose and after a twist
MAX_STRING = 4096

RosPeer = Literal["rmw_zenoh", "ros2dds"]


@dataclass(frozen=True)
class RosOptions:
    """The topics, and what stands on the other side."""

    command_topic: str = "cmd_vel"
    odometry_topic: str = "odom"
    peer: RosPeer = "rmw_zenoh"
    domain: int = 0  # ROS_DOMAIN_ID, which rmw_zenoh has in its keys

    def __post_init__(self) -> None:
        if self.peer not in ("rmw_zenoh", "ros2dds"):
            raise UnsupportedError(f"the peer is {self.peer!r}, allowed is 'rmw_zenoh' or 'ros2dds'")
        if not 0 <= self.domain <= 232:
            raise UnsupportedError(f"the ROS domain is {self.domain}, allowed is 0 to 232")
        for topic in (self.command_topic, self.odometry_topic):
            if not topic.strip("/") or any(not part.replace("_", "").isalnum() for part in topic.strip("/").split("/")):
                raise UnsupportedError(f"{topic!r} is no topic of ROS 2: letters, digits and '_', with '/' between")

    def key(self, topic: str, kind: tuple[str, str]) -> str:
        """The key of a topic."""
        name = topic.strip("/")
        return name if self.peer == "ros2dds" else "/".join((str(self.domain), name, *kind))


class RosLink:
    """A robot behind a Zenoh router at an endpoint, such as "tcp/127.0.0.1:7447".

    `send` is what a pilot sends by, `state` what its observations are made of; each may have a thread of its own.
    NetworkError if no router is there.
    """

    def __init__(self, endpoint: str, space: ActionSpace, options: RosOptions = RosOptions(),
                 clock: Callable[[], float] = time.monotonic) -> None:
        try:
            import zenoh  # noqa: PLC0415 - an extra
            from zenoh import ext  # noqa: PLC0415
        except ModuleNotFoundError:
            raise MissingExtraError("eclipse-zenoh", "zenoh", "a bridge to ROS 2") from None
        self._clock, self._ext, self._set_points = clock, ext, SetPoints(space)
        self._error: type[Exception] = zenoh.ZError
        self._is_rmw = options.peer == "rmw_zenoh"
        self._gid, self._num_sent, self.num_unsent = uuid.uuid4().bytes, 0, 0
        self._state: tuple[float, VehicleState] | None = None
        self.num_unreadable = 0  # messages that are no odometry
        try:
            self._session = zenoh.open(_config(zenoh, endpoint))
            # A command is of no use later: it is sent at once, alone, and dropped where the network is full.
            self._publisher = self._session.declare_publisher(
                options.key(options.command_topic, TWIST), express=True, priority=zenoh.Priority.REAL_TIME,
                congestion_control=zenoh.CongestionControl.DROP)
            self._subscriber = self._session.declare_subscriber(
                options.key(options.odometry_topic, ODOMETRY), zenoh.handlers.RingChannel(1))  # the newest is enough
        except zenoh.ZError as error:
            raise NetworkError(f"no Zenoh router at {endpoint}: {error}",
                               hint="start one: ros2 run rmw_zenoh_cpp rmw_zenohd") from error

    def send(self, command: SentCommand) -> None:
        """Publishes a command. What cannot be sent is counted, not raised: the loop goes on."""
        self._num_sent += 1
        attachment = None
        if self._is_rmw:
            whole = self._ext.Int64
            attachment = self._ext.z_serialize(("sequence_number", whole(self._num_sent), "source_timestamp",
                                                whole(time.time_ns()), "source_gid", self._gid))
        try:
            self._publisher.put(twist_bytes(self._set_points.of(command.values)), attachment=attachment)
        except self._error:
            self.num_unsent += 1

    def state(self) -> VehicleState | None:
        """What the newest odometry says; None before there is one."""
        if (sample := self._subscriber.try_recv()) is not None:
            try:
                self._state = (self._clock(), read_odometry(sample.payload.to_bytes()))
            except AnswerError:
                self.num_unreadable += 1
        if self._state is None:
            return None
        heard, state = self._state
        return VehicleState(state.position, state.velocity, state.yaw, self._clock() - heard)

    def close(self) -> None:
        """Leaves the network."""
        self._session.close()


def twist_bytes(wanted: SetPoint) -> bytes:
    """geometry_msgs/Twist: linear x, y, z, then angular x, y, z."""
    return LITTLE_ENDIAN + struct.pack("<6d", wanted.forward, wanted.left, wanted.up, 0.0, 0.0, wanted.yaw_rate)


def read_odometry(data: bytes) -> VehicleState:
    """nav_msgs/Odometry as a state of age 0; AnswerError for bytes that are none, or numbers that are not finite."""
    try:
        fields = _Cdr(data)
        fields.skip(8, 4)  # the stamp: seconds and nanoseconds
        fields.string()
        fields.string()
        pose = fields.doubles(7)
        fields.doubles(COVARIANCE)
        linear = fields.doubles(3)
    except (struct.error, IndexError, ValueError) as error:
        raise AnswerError(f"{len(data)} bytes are no nav_msgs/Odometry: {error}") from error
    x, y, z, w = pose[3:]
    norm = math.sqrt(x * x + y * y + z * z + w * w)
    if not (all(map(math.isfinite, (*pose, *linear))) and norm > 0.5):
        raise AnswerError("an odometry has a number that is not finite, or no rotation")
    x, y, z, w = x / norm, y / norm, z / norm, w / norm
    rotation = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                         [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                         [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
    yaw = math.atan2(rotation[1, 0], rotation[0, 0])
    return VehicleState(np.array(pose[:3]), along_heading(rotation @ np.array(linear), yaw), yaw, 0.0)


class _Cdr:
    """The fields of a message, one after the other."""

    def __init__(self, data: bytes) -> None:
        if len(data) < 4 or data[0] != 0 or data[1] not in (0, 1):
            raise ValueError("it does not begin with a header of plain CDR")
        self._data, self._at, self._order = data[4:], 0, "<>"[data[1] == 0]

    def skip(self, size: int, alignment: int) -> None:
        """Goes on after a field of this size."""
        self._at += -self._at % alignment + size

    def doubles(self, count: int) -> tuple[float, ...]:
        """Numbers of 8 bytes."""
        self.skip(8 * count, 8)
        return struct.unpack_from(f"{self._order}{count}d", self._data, self._at - 8 * count)

    def string(self) -> None:
        """A string, which nobody needs here."""
        self.skip(4, 4)
        length, = struct.unpack_from(f"{self._order}I", self._data, self._at - 4)
        if length > MAX_STRING:
            raise ValueError(f"a string has {length} bytes, at most {MAX_STRING} are read")
        self.skip(length, 1)


def _config(zenoh: Any, endpoint: str) -> Any:
    """A client of one router, which looks for nobody else."""
    config = zenoh.Config()
    for name, value in (("mode", "client"), ("connect/endpoints", [endpoint]), ("scouting/multicast/enabled", False)):
        config.insert_json5(name, json.dumps(value))
    return config
