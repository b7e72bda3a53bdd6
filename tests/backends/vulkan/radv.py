"""AMD's compiler without a card: RADV's null device compiles the shaders and prints their code and registers.

`python -m tests.backends.vulkan.radv NAME,CONSTANT,...` compiles modules with specialization constants, each after a
line of its own on the error output, where the driver prints.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brise import _native
from tests.backends.vulkan.driver import require_amd_driver

_ROOT = Path(__file__).resolve().parents[3]
_MARK = "compiling "

Variant = tuple[str, tuple[int, ...]]  # a module and its constants


@dataclass(frozen=True)
class Compiled:
    """What the compiler printed of one shader."""

    vgprs: int
    spilled_vgprs: int
    scratch_bytes: int
    num_dots: int


def compile_for(family: str, variants: Sequence[Variant]) -> Mapping[Variant, Compiled]:
    """The modules with those constants as code of a family of AMD's devices, such as navi21."""
    icd = require_amd_driver()
    environment = {**os.environ, "RADV_FORCE_FAMILY": family, "RADV_DEBUG": "shaders,shaderstats,nocache",
                   "VK_ICD_FILENAMES": icd, "VK_DRIVER_FILES": icd, "MESA_SHADER_CACHE_DISABLE": "1"}
    names = [",".join([name, *map(str, constants)]) for name, constants in variants]
    run = subprocess.run([sys.executable, "-m", __name__, *names], cwd=_ROOT, env=environment, capture_output=True,
                         text=True, errors="replace", timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    texts = run.stderr.split(_MARK)[1:]
    assert len(texts) == len(variants)
    return {variant: _read(text) for variant, text in zip(variants, texts, strict=True)}


def _read(text: str) -> Compiled:
    def number(label: str) -> int:
        match = re.search(rf"^{label}: (\d+)", text, re.MULTILINE)
        assert match, f"the driver printed no {label!r}"
        return int(match[1])

    return Compiled(number("VGPRs"), number("Spilled VGPRs"), number("Scratch size"), text.count("v_dot4"))


def _compile(names: Sequence[str]) -> None:
    device = _native.VulkanDevice("")
    for name in names:
        shader, *constants = name.split(",")
        print(_MARK + name, file=sys.stderr, flush=True)
        device.compile(shader, [int(value) for value in constants])
    os._exit(0)  # closing waits until the device is idle, and of the null device that crashes in Mesa 22.3


if __name__ == "__main__":
    _compile(sys.argv[1:])
