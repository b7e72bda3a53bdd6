"""The committed SPIR-V: what the compiler makes of the sources, valid, with no rounding left to the device."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.vulkan.driver import require_compiler, require_program
from tests.backends.vulkan.spirv import MODULES, OP_DECORATE, ROOT, instructions

# Numbers of the SPIR-V specification.
OP_EXT_INST, OP_CAPABILITY, NO_CONTRACTION = 12, 17, 42
# Shader, and the dot product of four bytes in a word: what native/vulkan/loader.cpp asks of a device.
CAPABILITIES = {1, 6018, 6019}
ROUNDED = {129: "OpFAdd", 131: "OpFSub", 133: "OpFMul", 136: "OpFDiv"}
# Of GLSL.std.450, those that are exact: whole numbers, signs, least and most, bits. All others may err, as a device
# likes, and float16 to float (62) counts numbers below 6e-5 as 0 on some; the roots of norms may, too, by 2 ULP, which
# their tolerance allows.
EXACT = {*range(2, 10), *range(37, 46), 73, 74, 75, 79, 80, 81}
ROOTS = {31, 32}


def test_there_is_a_module_for_each_variant() -> None:
    lines = [line.split() for line in (ROOT / "native/vulkan/shaders/variants.txt").read_text().splitlines()]
    assert {line[0] for line in lines if line and line[0] != "#"} == {module.stem for module in MODULES}


def test_the_compiler_makes_the_same_bytes(tmp_path: Path) -> None:
    require_compiler()
    subprocess.run([sys.executable, ROOT / "scripts" / "shaders", tmp_path], check=True)
    other = [module.name for module in MODULES if (tmp_path / module.name).read_bytes() != module.read_bytes()]
    assert not other, "run scripts/shaders"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_is_valid(module: Path) -> None:
    validator = require_program("spirv-val", "spirv-tools")
    run = subprocess.run([validator, "--target-env", "vulkan1.2", module], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_module_needs_no_more_than_a_device_is_asked_for(module: Path) -> None:
    assert {int(line[1]) for line in instructions(module) if line[0] & 0xffff == OP_CAPABILITY} <= CAPABILITIES


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_a_device_may_not_round_as_it_likes(module: Path) -> None:
    """Products and sums are rounded apart, and no built-in function has an error of its own."""
    code = instructions(module)
    kept = {int(line[1]) for line in code if line[0] & 0xffff == OP_DECORATE and line[2] == NO_CONTRACTION}
    free = [ROUNDED[int(line[0]) & 0xffff] for line in code
            if int(line[0]) & 0xffff in ROUNDED and int(line[2]) not in kept]
    assert not free, f"without NoContraction: {free}; declare the results precise"
    functions = {int(line[4]) for line in code if line[0] & 0xffff == OP_EXT_INST}
    assert functions <= EXACT | ROOTS, functions - EXACT - ROOTS
