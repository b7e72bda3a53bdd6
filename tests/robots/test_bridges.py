"""Bridges to vehicles on loopback: what they send is read by the protocols' own libraries, and the other way."""

from __future__ import annotations

import math
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from brise.errors import AnswerError, NetworkError, UnsupportedError
from brise.robots.command_queue import SentCommand
from brise.robots.mavlink import MavlinkLink, MavlinkOptions
from brise.robots.ros2 import TWIST, RosLink, RosOptions, read_odometry, twist_bytes
from brise.robots.vehicle import SetPoint, SetPoints
from brise.text.action_space import ActionSpace, ActionValue

SPACE = ActionSpace("drone", (
    ActionValue("gate", 0, 1, 2, words=("red", "blue")),  # a word, which moves nothing
    ActionValue("vx", -3, 3, 21, "m/s"), ActionValue("vy", -3, 3, 21, "m/s"), ActionValue("vz", -2, 2, 21, "m/s"),
    ActionValue("yaw_rate", -2, 2, 21, "rad/s")))
COMMAND = SentCommand(0, np.array([1.0, 1.5, -0.5, 0.25, 0.75]), "model", 0)  # forward, right, up, counter-clockwise
WAIT_S = 10.0


class MavlinkEcho:
    """An autopilot of pymavlink on loopback, with a clock that a test sets."""

    def __init__(self) -> None:
        self.messages = pytest.importorskip("pymavlink.dialects.v20.common")
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(WAIT_S)
        self.mav, self.now = self.messages.MAVLink(None, 1, 1), 0.0
        self.address = "{}:{}".format(*self.socket.getsockname())

    def heard(self, count: int) -> list[Any]:
        """The next messages, in their order."""
        found: list[Any] = []
        while len(found) < count:
            data, self.peer = self.socket.recvfrom(2048)
            found += self.mav.parse_buffer(data)
        return found

    def say(self, message: Any, to: Any = None) -> None:
        self.socket.sendto(message.pack(self.mav), to or self.peer)


@pytest.fixture
def echo() -> Iterator[MavlinkEcho]:
    echo = MavlinkEcho()
    yield echo
    echo.socket.close()


@pytest.fixture
def link(echo: MavlinkEcho) -> Iterator[MavlinkLink]:
    link = MavlinkLink(f"udpout:{echo.address}", SPACE, clock=lambda: echo.now)
    yield link
    link.close()


def test_a_command_is_a_velocity_set_point_of_mavlink(echo: MavlinkEcho, link: MavlinkLink) -> None:
    echo.now = 2.5
    link.send(COMMAND)
    heartbeat, target = echo.heard(2)
    assert heartbeat.get_type() == "HEARTBEAT" and heartbeat.get_srcComponent() == 191
    assert target.get_type() == "SET_POSITION_TARGET_LOCAL_NED" and target.time_boot_ms == 2500
    assert (target.vx, target.vy, target.vz, target.yaw_rate) == (1.5, 0.5, -0.25, -0.75)
    assert target.coordinate_frame == echo.messages.MAV_FRAME_BODY_NED
    mask = echo.messages
    used = mask.POSITION_TARGET_TYPEMASK_VX_IGNORE | mask.POSITION_TARGET_TYPEMASK_VY_IGNORE \
        | mask.POSITION_TARGET_TYPEMASK_VZ_IGNORE | mask.POSITION_TARGET_TYPEMASK_YAW_RATE_IGNORE
    assert target.type_mask & used == 0 and target.type_mask | used == 0xFFF - mask.POSITION_TARGET_TYPEMASK_FORCE_SET


def test_a_heartbeat_goes_out_every_second(echo: MavlinkEcho, link: MavlinkLink) -> None:
    kinds = []
    for echo.now, count in ((0.0, 2), (0.5, 1), (0.99, 1), (1.0, 2)):
        link.send(COMMAND)
        kinds.append([message.get_type() == "HEARTBEAT" for message in echo.heard(count)])
    assert kinds == [[True, False], [False], [False], [True, False]]


def test_what_an_autopilot_says_is_the_state(echo: MavlinkEcho, link: MavlinkLink) -> None:
    link.send(COMMAND)
    echo.heard(2)
    assert link.state() is None
    mav = echo.mav
    echo.say(mav.local_position_ned_encode(0, 3.0, 4.0, -2.0, 1.0, 0.0, -0.5))  # 4 m east, 2 m up, flying north
    echo.say(mav.attitude_encode(0, 0, 0, math.pi / 2, 0, 0, 0))  # its nose is east
    echo.say(mav.heartbeat_encode(2, 3, echo.messages.MAV_MODE_FLAG_SAFETY_ARMED, 0, 4))
    echo.say(mav.sys_status_encode(0, 0, 0, 0, 0, 0, 71, 0, 0, 0, 0, 0, 0))
    state = link.state()
    assert state is not None and np.allclose(state.position, [3, -4, 2])
    assert np.allclose(state.velocity, [0, 1, 0.5], atol=1e-6)  # north lies to the left of east
    assert state.yaw == pytest.approx(-math.pi / 2) and state.battery == 0.71 and state.is_armed is True
    echo.now += 3
    late = link.state()
    assert late is not None and late.age_s == 3


def test_who_listens_follows_the_first_vehicle_and_nobody_else(echo: MavlinkEcho) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    with closing(MavlinkLink("udpin:{}:{}".format(*address), SPACE)) as link:
        link.send(COMMAND)
        assert link.num_unsent == 2  # the command and its heartbeat: no vehicle is there
        echo.socket.sendto(b"\xfdnot a message", address)
        echo.say(echo.mav.attitude_encode(0, 0, 0, 1.0, 0, 0, 0), address)
        link.state()
        link.send(COMMAND)
        assert echo.heard(1)[0].vx == 1.5


def test_a_dead_vehicle_is_counted_and_stops_no_loop(echo: MavlinkEcho, link: MavlinkLink) -> None:
    echo.socket.close()
    for _ in range(4):
        link.send(COMMAND)
    assert link.num_unsent > 0 and link.state() is None


def test_numbers_that_are_not_finite_change_nothing(echo: MavlinkEcho, link: MavlinkLink) -> None:
    link.send(COMMAND)
    echo.heard(2)
    echo.say(echo.mav.attitude_encode(0, 0, 0, 0.5, 0, 0, 0))
    echo.say(echo.mav.local_position_ned_encode(0, 1, 2, 3, 0, 0, 0))
    echo.say(echo.mav.local_position_ned_encode(0, math.nan, 2, 3, 0, 0, 0))
    state = link.state()
    assert state is not None and np.allclose(state.position, [1, -2, -3])


def test_what_is_no_velocity_is_refused() -> None:
    space = ActionSpace("arm", (ActionValue("grip", 0, 1, 2),))
    with pytest.raises(UnsupportedError, match="'grip'"):
        SetPoints(space)
    with pytest.raises(UnsupportedError, match="'km/h'"):
        SetPoints(ActionSpace("car", (ActionValue("vx", 0, 1, 2, "km/h"),)))
    with pytest.raises(UnsupportedError, match="system"):
        MavlinkOptions(system=0)
    with pytest.raises(UnsupportedError, match="no topic"):
        RosOptions(command_topic="a b")


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:1", "udpout:1", "udpin:127.0.0.1:port"])
def test_another_address_is_refused(address: str) -> None:
    pytest.importorskip("pymavlink")
    with pytest.raises(UnsupportedError, match="udpout"):
        MavlinkLink(address, SPACE)


def test_a_space_without_a_height_commands_none() -> None:
    space = ActionSpace("rover", (ActionValue("yaw_rate", -1, 1, 3, "rad/s"), ActionValue("vx", -1, 1, 3, "m/s")))
    assert SetPoints(space).of([0.5, 1.0]) == SetPoint(1.0, 0.0, 0.0, 0.5)


@pytest.fixture
def router() -> Iterator[tuple[str, Any]]:
    """The endpoint of a Zenoh router on loopback, and its session."""
    zenoh = pytest.importorskip("zenoh")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = "tcp/{}:{}".format(*free.getsockname())
    config = zenoh.Config()
    for name, value in (("mode", '"router"'), ("listen/endpoints", f'["{endpoint}"]'),
                        ("scouting/multicast/enabled", "false")):
        config.insert_json5(name, value)
    session = zenoh.open(config)
    yield endpoint, session
    session.close()


def test_a_command_is_a_twist_on_the_topic_of_rmw_zenoh(router: tuple[str, Any]) -> None:
    ext = pytest.importorskip("zenoh.ext")
    endpoint, session = router
    heard = session.declare_subscriber("3/robot/cmd_vel/geometry_msgs::msg::dds_::Twist_/" + TWIST[1])
    link = RosLink(endpoint, SPACE, RosOptions(command_topic="/robot/cmd_vel", domain=3))
    link.send(COMMAND)
    sample = heard.recv()
    assert struct.unpack("<4s6d", sample.payload.to_bytes()) == (b"\0\1\0\0", 1.5, -0.5, 0.25, 0, 0, 0.75)
    read = ext.z_deserialize(tuple[str, ext.Int64, str, ext.Int64, str, bytes], sample.attachment)
    assert read[0::2] == ("sequence_number", "source_timestamp", "source_gid") and read[1] == 1 and len(read[5]) == 16
    link.close()


def test_an_odometry_is_the_state(router: tuple[str, Any]) -> None:
    endpoint, session = router
    link = RosLink(endpoint, SPACE, RosOptions(peer="ros2dds"))
    assert link.state() is None
    while link.num_unreadable == 0:  # until the subscription has come to the router
        session.put("odom", b"\0\1\0\0 no odometry")
        link.state()
    while (state := link.state()) is None:
        session.put("odom", odometry())
    assert np.allclose(state.position, [1, 2, 3]) and state.yaw == pytest.approx(math.pi / 2)
    link.close()


def test_no_router_is_an_error_that_names_the_endpoint() -> None:
    pytest.importorskip("zenoh")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = "tcp/{}:{}".format(*free.getsockname())
    with pytest.raises(NetworkError, match=endpoint):
        RosLink(endpoint, SPACE)


@pytest.mark.parametrize("order", ["<", ">"])
def test_odometry_is_read_in_either_byte_order(order: str) -> None:
    state = read_odometry(odometry(order))
    assert np.allclose(state.position, [1, 2, 3]) and state.yaw == pytest.approx(math.pi / 2)
    assert np.allclose(state.velocity, [0.5, 0.25, -0.125])


def test_messages_are_those_of_rosbags() -> None:
    rosbags = pytest.importorskip("rosbags.typesys")
    store = rosbags.get_typestore(rosbags.Stores.ROS2_JAZZY)
    vector, twist = store.types["geometry_msgs/msg/Vector3"], store.types["geometry_msgs/msg/Twist"]
    message = twist(vector(1.5, -0.5, 0.25), vector(0.0, 0.0, 0.75))
    ours = twist_bytes(SetPoints(SPACE).of(COMMAND.values))
    assert bytes(store.serialize_cdr(message, "geometry_msgs/msg/Twist")) == ours
    assert store.hash_rihs01("geometry_msgs/msg/Twist") == TWIST[1]
    read = store.deserialize_cdr(odometry(), "nav_msgs/msg/Odometry")
    assert (read.pose.pose.position.z, read.twist.twist.linear.y, read.child_frame_id) == (3.0, 0.25, "base_link")


@pytest.mark.parametrize("data", [b"", b"\0\1\0\0", b"\0\3\0\0" + bytes(800), b"\0\1\0\0" + b"\xff" * 800],
                         ids=["empty", "header", "parameter list", "long string"])
def test_bytes_that_are_no_odometry_are_refused(data: bytes) -> None:
    with pytest.raises(AnswerError):
        read_odometry(data)


def test_an_odometry_that_was_cut_is_refused() -> None:
    for length in range(0, 4 + 8 + 9 + 10 + 56 + 288 + 24, 7):
        with pytest.raises(AnswerError):
            read_odometry(odometry()[:length])


def odometry(order: str = "<") -> bytes:
    """An odometry at (1, 2, 3) that looks left, as the layout of CDR has it: strings end with a zero, and numbers of
    8 bytes begin at a multiple of 8."""
    names = b"".join(struct.pack(f"{order}I", len(name) + 1) + name + b"\0" + bytes(-(len(name) + 1) % 4)
                     for name in (b"odom", b"base_link"))
    head = struct.pack(f"{order}iI", 12, 34) + names
    half = math.sqrt(0.5)
    numbers = (1, 2, 3, 0, 0, half, half, *[0] * 36, 0.5, 0.25, -0.125, 0, 0, 0, *[0] * 36)
    body = struct.pack(f"{order}{len(numbers)}d", *numbers)
    return bytes([0, order == "<", 0, 0]) + head + bytes(-len(head) % 8) + body
