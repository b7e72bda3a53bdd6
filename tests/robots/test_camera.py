"""The drone's camera: things stand where a pin-hole puts them, pictures are PNGs, a still one is encoded once."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.cli.main import main
from brise.engine.engine import EngineSettings
from brise.engine.model import load
from brise.robots import camera, camera_encoder
from brise.robots.camera import RGB, View
from brise.robots.camera_encoder import CameraModelOptions
from brise.robots.gate_course import SPACE, Course
from brise.text.action_space import with_rarest_tokens
from brise.tune.vision_encoder import EncoderOptions
from tests.checkpoint import make_gguf
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_vision_model import write_seeing
from tests.serve.live import live

AHEAD = np.array([0.0, 0.0, 2.0])  # in the middle of the hall, as high as the middle of a gate
SQUARE = View(64, 64)


def course(cylinders: tuple[tuple[float, float, float], ...] = (), **gates: tuple[float, float]) -> Course:
    return Course(gates, cylinders, (0.0, 0.0, 0.0), (0.0, 0.0), 100.0)


def near(picture: camera.Picture, color: str) -> np.ndarray:
    """Rows and columns of the pixels that are nearer to a gate's color than haze can bring the wall to it; the tape of
    bearings aside."""
    is_near = np.abs(picture.astype(int) - RGB[color]).sum(-1) < 110
    is_near[[0, -1]] = False
    return np.argwhere(is_near)


def taken(course: Course, yaw: float = 0.0) -> camera.Picture:
    return camera.painted(course, AHEAD, yaw, view=SQUARE).pixels


def test_a_gate_stands_where_a_pin_hole_puts_it() -> None:
    # 4 m ahead a metre is 32 / 4 = 8 pixels: a gate of 1 m by 3.8 m (0.2 to 4.0) is 8 by 30.4, from row 16 to 46.
    places = near(taken(course(red=(4.0, 0.0))), "red")
    assert tuple(places.min(0)) == (16, 28) and tuple(places.max(0)) == (45, 35)
    assert not (places == [32, 32]).all(1).any()  # a frame


def test_left_is_left_and_far_is_small() -> None:
    one, far = (near(taken(course(blue=place)), "blue") for place in ((3.0, 1.5), (6.0, 3.0)))
    assert one[:, 1].max() < SQUARE.width / 2 and abs(one[:, 1].mean() - far[:, 1].mean()) < 1.5
    assert len(far) < len(one) / 2


@pytest.mark.parametrize("yaw", [0.0, 1.0, -2.5])
def test_bearing_and_range_are_those_of_the_place(yaw: float) -> None:
    x, y = 4 * np.cos(yaw + 0.3), 4 * np.sin(yaw + 0.3)
    (thing,) = camera.seen(course(green=(x, y)), AHEAD, yaw, SQUARE)
    assert (thing.bearing, thing.range) == (pytest.approx(0.3), pytest.approx(4.0))
    middle = (thing.box[0] + thing.box[2]) / 2
    assert middle == pytest.approx(SQUARE.width / 2 * (1 - np.tan(0.3)))


def test_what_is_behind_or_beside_is_not_seen_and_what_is_nearer_hides() -> None:
    assert camera.seen(course(red=(-3.0, 0.0), blue=(1.0, 4.0)), AHEAD, 0.0) == []
    picture = taken(course(((2.0, 0.0, 0.4),), white=(5.0, 0.0)))
    assert len(near(picture, "white")) == 0 and tuple(picture[32, 32]) != RGB["white"]


def test_the_walls_close_the_hall() -> None:
    picture = taken(course())
    # The wall is 8 m ahead: 4 pixels a metre, from 2 m under to 3 m over the camera.
    assert (picture[21:39, 32] == picture[30, 32]).all()
    assert (picture[1:19, 32] == camera.SKY).all() and (picture[41:-1, 32] == camera.FLOOR).all()


def test_a_thin_frame_far_away_is_not_lost_between_pixels() -> None:
    # 14 m away a side of a gate would be 0.4 pixels wide; it is drawn as wide as a pixel.
    for left in np.linspace(-0.2, 0.2, 9):
        place = (7.0, float(left))
        at = np.array([-7.0, 0.0, 2.0])
        with_gate, without = (camera.painted(each, at, 0.0, view=SQUARE).pixels.astype(int)
                              for each in (course(green=place), course()))
        assert (np.abs(with_gate - without).sum(-1) > 20).sum() >= 8


@pytest.mark.parametrize("yaw", [0.0, 0.7, -2.0])
def test_the_ring_is_one_camera_turned(yaw: float) -> None:
    hall = course(((1.0, -3.0, 0.4),), red=(4.0, 1.0), blue=(-3.0, 2.0), green=(0.5, 5.0), white=(0.0, -5.0))
    ring = camera.ring(hall, AHEAD, yaw)
    parts = np.split(ring.pixels, 4, axis=1)
    for part, bearing in zip(parts, (90, 0, -90, 180), strict=True):
        alone = camera.painted(hall, AHEAD, yaw + np.radians(bearing)).pixels
        assert np.abs(part[1:-1].astype(int) - alone[1:-1]).max() <= 1  # but for the tape of bearings
    assert set(ring.gates) == {"red", "blue", "green", "white"}
    for color, bearing in ring.gates.items():
        x, y = hall.gates[color]
        assert np.isclose(np.exp(1j * (bearing + yaw)), np.exp(1j * np.arctan2(y, x)))


def test_the_tape_says_each_bearing_once() -> None:
    tape = camera.ring(course(), AHEAD, 0.3).pixels[0].astype(float)
    assert (tape == camera.ring(course(red=(4.0, 1.0)), AHEAD, -1.0).pixels[-1]).all()
    width = camera.STRIP.width
    bearings = np.degrees(np.arctan2(tape[:, 1] - 127.5, tape[:, 0] - 127.5))
    # A picture is denser at its rim, and a byte says a bearing to a quarter of a degree.
    assert np.allclose(np.diff(np.unwrap(bearings, period=360)), -90 / width, atol=0.75)
    ahead = width + width // 2  # in the middle of the second picture
    assert bearings[ahead - 1] > 0 > bearings[ahead]


def test_words_say_the_color_at_its_sector_and_a_dash_elsewhere() -> None:
    ring = camera.ring(course(red=(4.0, 0.0), blue=(-4.0, 0.1), green=(5.0, 0.2)), AHEAD, 0.0)
    said = dict(zip(*[iter(reversed(camera_encoder.drawn(ring).cells))] * 2, strict=True))
    assert list(sorted(said)) == list("abcdefghijklmnopqrstuvwx")
    # Red and green are both ahead; less shows of green, which lies behind and a little to the left.
    assert (said["a"], said["m"], said["b"]) == ("red", "blue", "green")
    assert sum(color != "-" for color in said.values()) == 3


def test_a_picture_is_the_same_bytes_and_a_png_that_others_read() -> None:
    pillow = pytest.importorskip("PIL.Image")
    picture = camera.ring(course(orange=(3.0, 1.0)), AHEAD, 0.2).pixels
    assert camera.png(picture) == camera.png(camera.ring(course(orange=(3.0, 1.0)), AHEAD, 0.2).pixels)
    assert (np.asarray(pillow.open(io.BytesIO(camera.png(picture)))) == picture).all()


def test_ticks_with_the_same_picture_encode_it_once(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    model = load(write_seeing(tmp_path), threads=1)
    config = open_checkpoint(model.path).config
    settings = {**LINEAGE.settings, **with_rarest_tokens(SPACE, model.tokenizer).settings()}
    write_adapter(tmp_path / "drone", AdapterFile(random_low_ranks(config, 1), 3, 6.0),
                  replace(LINEAGE, settings=settings), config)
    with live(model, engine_settings=EngineSettings(num_pages=512, max_adapters=1, max_rank=8)) as server:
        server.worker.add_adapter("drone", tmp_path / "drone", any_base=True)
        counts = []
        for tick, x in enumerate((4.0, 4.0, 4.0, 3.9)):  # the drone waits, and then has moved
            part = camera.image_part(taken(course(red=(x, 0.0))))
            content = [part, {"type": "text", "text": f"go red, tick {tick}"}]
            answer = server.post("/v1/actions", {"model": "drone", "messages": [{"role": "user", "content": content}]})
            assert answer.status_code == 200, answer.text
            counts.append(server.engine.stats().images)
        server.wait_idle()
    assert counts == [1, 1, 1, 2]


def test_a_model_that_sees_is_made_of_one_that_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(make_gguf, "CONTROL", (*make_gguf.CONTROL, "<one>", "<two>", "<three>"))
    text = make_gguf.write_tiny(tmp_path / "tiny.gguf", "llama", vocab=make_gguf.VOCAB_SIZE + 3)
    small = EncoderOptions(width=32, num_layers=1, num_heads=2, ffn_width=32, steps=60, batch_size=8, threads=1)
    made = camera_encoder.make(CameraModelOptions(tmp_path / "seeing", str(text), small))
    assert made.gates > 500 and made.loss < 1.0  # better than to say nothing
    checkpoint, before = open_checkpoint(made.path), open_checkpoint(text)
    assert checkpoint.vision is not None and checkpoint.config == before.config
    config, _ = checkpoint.vision
    assert (config.width, config.patch_size, config.image_size) == (32, 32, 768)
    part = camera.image_part(camera.ring(course(red=(4.0, 0.0)), AHEAD, 0.0).pixels)
    with live(load(made.path, threads=1), engine_settings=EngineSettings(num_pages=256)) as server:
        answer = server.post("/v1/chat/completions", {"model": "stub", "max_tokens": 2, "messages": [
            {"role": "user", "content": [part, {"type": "text", "text": "what is it"}]}]})
        assert answer.status_code == 200, answer.text
        server.wait_idle()
    assert main(["act", "camera", str(tmp_path / "seeing"), "--model", str(text)]) == 1
    assert "there already" in capsys.readouterr().err
