"""The validation layers have nothing to say of a model's steps, synchronization validation included."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from brise import _native
from tests.backends.vulkan.driver import require_validation
from tests.backends.vulkan.on_device import OnDevice, parts
from tests.goldens.golden import read

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
    environment = {**os.environ, "VK_INSTANCE_LAYERS": "VK_LAYER_KHRONOS_validation",
                   "VK_LAYER_SETTINGS_PATH": str(tmp_path)}
    run = subprocess.run([sys.executable, "-m", __name__, format], cwd=_ROOT, env=environment, capture_output=True,
                         text=True, timeout=300)
    assert (run.returncode, run.stdout) == (0, "ran\n"), run.stderr
    assert log.read_text() == "", "the layer makes the file when it is loaded"


def _run(format: str) -> None:
    device = _native.VulkanDevice("")
    for name in ("mistral_window", "qwen3", "gemma3"):
        golden = read(name, "interleaved")
        model = OnDevice(device, golden.config, golden.weights, format)  # type: ignore[arg-type]
        model.logits(parts((golden.tokens[:30], 0, (3, 1, 4)), (golden.tokens[:2], 0, (7, 9, 2))))
        for at in range(30, 34):
            model.logits(parts((golden.tokens[at:at + 1], at, (3, 1, 4))))
    print("ran")


if __name__ == "__main__":
    _run(sys.argv[1])
