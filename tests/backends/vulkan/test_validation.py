"""Steps of models in processes of their own: no message of the validation layers, and the same bits at every width.

Synchronization validation is on. The width of the software device's subgroups is fixed when the driver starts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import cast

import pytest

from brise import _native
from brise.backends.native.backend import NativeBackend
from brise.backends.vulkan.backend import VulkanBackend
from brise.engine.experts import put_on_demand
from brise.engine.vision import open_vision
from brise.models.ops import CacheFormat
from brise.models.weights import place
from tests.backends.vulkan.driver import require_driver, require_validation
from tests.backends.vulkan.lavapipe import VECTOR_WIDTHS
from tests.backends.vulkan.on_device import OnDevice, one_expert, parts
from tests.goldens.golden import read
from tests.goldens.vision import read_vision

_ROOT = Path(__file__).resolve().parents[3]
_SETTINGS = """khronos_validation.enables = VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT
khronos_validation.debug_action = VK_DBG_LAYER_ACTION_LOG_MSG
khronos_validation.report_flags = error,warn,perf
khronos_validation.log_filename = {log}
"""


@pytest.mark.parametrize("format", ["f32", "f16", "q8", "q4"])
def test_steps_of_a_model_have_no_message(tmp_path: Path, format: str) -> None:
    require_validation()
    log = tmp_path / "log.txt"
    (tmp_path / "vk_layer_settings.txt").write_text(_SETTINGS.format(log=log))
    digest_of(format, {"VK_INSTANCE_LAYERS": "VK_LAYER_KHRONOS_validation", "VK_LAYER_SETTINGS_PATH": str(tmp_path)})
    assert log.read_text() == "", "the layer makes the file when it is loaded"


def test_steps_have_the_same_bits_at_subgroups_of_4_8_and_16() -> None:
    require_driver()
    digests = {digest_of("f16", {"LP_NATIVE_VECTOR_WIDTH": str(width)}) for width in VECTOR_WIDTHS}
    assert len(digests) == 1


def digest_of(format: str, environment: Mapping[str, str]) -> str:
    """The digest of the logits that such a process computes."""
    run = subprocess.run([sys.executable, "-m", __name__, format], cwd=_ROOT, env={**os.environ, **environment},
                         capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    return run.stdout


def _run(format: CacheFormat) -> None:
    device, digest = _native.VulkanDevice(""), sha256()
    for name in ("mistral_window", "qwen3", "gemma3", "large3", "mixtral"):
        golden = read(name, "interleaved")
        model = OnDevice(device, golden.config, golden.weights, format)
        digest.update(model.logits(parts((golden.tokens[:30], 0, (3, 1, 4)), (golden.tokens[:2], 0, (7, 9, 2)))))
        for at in range(30, 34):
            digest.update(model.logits(parts((golden.tokens[at:at + 1], at, (3, 1, 4)))))
    for name in ("large3", "mixtral"):  # with experts that stay in the file
        golden, backend = read(name, "interleaved"), VulkanBackend("", NativeBackend(1))
        put = put_on_demand(golden.weights, backend, one_expert(golden), lambda matrix: None)
        runner = backend.runner(golden.config, place(golden.weights, put), 64)
        cache = backend.new_cache(golden.config, 8, 16, format)
        for first, end in ((0, 30), (30, 31), (31, 32)):
            digest.update(runner.logits(parts((golden.tokens[first:end], first, (3, 1, 4))), cache))
    seeing, images = read_vision(), VulkanBackend("", NativeBackend(1))
    for features in open_vision(seeing.config, seeing.weights, images).encode(seeing.images):
        digest.update(features)
    print(digest.hexdigest())


if __name__ == "__main__":
    _run(cast(CacheFormat, sys.argv[1]))
