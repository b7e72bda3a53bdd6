"""An encoder of images on the device: the CPU's features, the same bits in any company, exact memory, a typed end."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest

from brise.backends.native.backend import NativeBackend
from brise.backends.vulkan.backend import HostPlaced, VulkanBackend
from brise.backends.vulkan.encoder import VulkanEncoder
from brise.engine import vision
from brise.engine.vision import open_vision
from brise.errors import DeviceLostError
from brise.models import pixtral
from brise.models.pixtral import VisionWeights
from brise.models.weights import Array, Weight, place, weights_with_paths
from tests import tolerances
from tests.backends.inputs import weight
from tests.backends.vulkan.driver import require_driver
from tests.goldens.vision import read_vision

# The golden's encoder, whose images may be larger than its own. 608 patches run in two passes of 512 rows and less.
CONFIG = replace(read_vision().config, image_size=160)
LARGE = (16, 38)


@pytest.fixture(scope="module")
def backend() -> VulkanBackend:
    require_driver()
    return VulkanBackend("", NativeBackend(1))


def weights_of(kind: str) -> VisionWeights:
    """The golden's, or its shapes with random layers in Q8_0, whose activations are int8."""
    rng = np.random.default_rng(1)

    def drawn(path: str, given: Weight) -> Weight:
        is_matrix = path.startswith("layers.") and len(given.shape) == 2
        return weight(rng, "Q8_0", *given.shape) if kind == "Q8_0" and is_matrix else given

    return place(read_vision().weights, drawn)


def image(rows: int, columns: int, seed: int = 0) -> Array:
    """An image of rows x columns patches."""
    shape = (3, rows * CONFIG.patch_size, columns * CONFIG.patch_size)
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def test_an_image_of_several_passes_has_the_features_of_the_cpu(backend: VulkanBackend) -> None:
    images = [image(*LARGE), image(4, 6, 1)]
    on_device = open_vision(CONFIG, weights_of("F32"), backend).encode(images)
    expected = open_vision(CONFIG, weights_of("F32"), NativeBackend(1)).encode(images)
    for one, other in zip(on_device, expected, strict=True):
        assert one.shape == other.shape and np.abs(one - other).max() < tolerances.VISION_FEATURES


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_an_image_has_the_same_bits_alone_and_beside_others(backend: VulkanBackend, kind: str) -> None:
    seeing = open_vision(CONFIG, weights_of(kind), backend)
    images = [image(4, 6, 1), image(*LARGE), image(2, 2, 2)]
    together = seeing.encode(images)
    for each, features in zip(images, together, strict=True):
        assert np.array_equal(seeing.encode([each])[0], features)
    assert np.abs(together[0]).max() > 0.1


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_the_largest_image_takes_the_memory_that_was_planned(backend: VulkanBackend, kind: str) -> None:
    weights, patches = weights_of(kind), vision.largest(CONFIG)
    planned = backend.encoder_room(pixtral.steps, CONFIG, place(weights, backend.shape_only), patches, 0)
    gc.collect()  # models of other tests
    before = taken(backend)
    seeing = open_vision(CONFIG, weights, backend)
    placed = sum(backend.nbytes(each).device for _, each in weights_with_paths(seeing.weights))
    assert taken(backend) == before + placed
    seeing.encode([image(4, 4)])
    seeing.encode([image(40, 40)])
    encoder = seeing.encoder
    assert isinstance(encoder, VulkanEncoder)
    assert encoder.work_bytes.device == planned.device == taken(backend) - before - placed
    assert encoder.work_bytes.host < planned.host


def taken(backend: VulkanBackend) -> int:
    return backend.handle.allocated - backend.handle.allocated_for_host


def test_an_encoder_ends_between_two_steps_and_encodes_the_next_image(backend: VulkanBackend) -> None:
    seeing = open_vision(CONFIG, weights_of("F32"), backend)
    whole = seeing.encode([image(*LARGE)])[0]
    steps = list(seeing.steps(image(*LARGE)))
    assert steps[:-1] == [None] * (len(steps) - 1) and np.array_equal(steps[-1], whole)
    left = seeing.steps(image(*LARGE))
    next(left)
    small = seeing.encode([image(4, 6)])[0]
    assert np.array_equal(seeing.encode([image(*LARGE)])[0], whole) and small.shape[0] == 6


def test_a_lost_device_ends_an_image_by_a_typed_error() -> None:
    require_driver()
    backend = VulkanBackend("", NativeBackend(1))
    seeing = open_vision(CONFIG, weights_of("F32"), backend)
    seeing.encode([image(4, 6)])
    backend.handle.lose()
    with pytest.raises(DeviceLostError):
        seeing.encode([image(4, 6)])


def test_an_encoder_on_the_host_takes_nothing_on_the_device(backend: VulkanBackend) -> None:
    beside = backend.encoding_on_host()
    gc.collect()
    before = taken(beside)
    seeing = open_vision(CONFIG, weights_of("F32"), beside)
    assert all(isinstance(each, HostPlaced) for _, each in weights_with_paths(seeing.weights))
    expected = open_vision(CONFIG, weights_of("F32"), NativeBackend(1)).encode([image(4, 6)])
    assert np.array_equal(seeing.encode([image(4, 6)])[0], expected[0]) and taken(beside) == before
    assert backend.encodes_on_device and not beside.encodes_on_device
    room = beside.encoder_room(pixtral.steps, CONFIG, seeing.weights, vision.largest(CONFIG), 1234)
    assert (room.host, room.device) == (1234, 0)


@pytest.mark.parametrize(("grids", "what"), [
    ([[4, 5]], "4 x 5 patches, wanted multiples of 2"), ([[4, 8]], "32 patches in a step of 24 and 6 rows")])
def test_a_step_of_other_images_than_patches_is_refused(backend: VulkanBackend, grids: list[list[int]],
                                                        what: str) -> None:
    patches = vision.pack(CONFIG, [image(4, 6)])
    wrong = replace(patches, grids=tuple((rows, columns) for rows, columns in grids))
    with pytest.raises(ValueError, match=what):
        list(open_vision(CONFIG, weights_of("F32"), backend).encoder.steps(wrong))
