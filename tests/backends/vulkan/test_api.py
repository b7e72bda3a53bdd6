"""native/vulkan/api.h declares Vulkan's interface anew: every structure, offset and number as in its headers."""

import re
import subprocess
from pathlib import Path

import pytest

from .driver import require_program

_API = Path(__file__).parents[3] / "native" / "vulkan" / "api.h"
# The specification's name of a flag by the prefix of ours, and those that follow no rule.
_FLAGS = {"QUEUE": "VK_QUEUE_{}_BIT", "MEMORY": "VK_MEMORY_PROPERTY_{}_BIT", "HEAP": "VK_MEMORY_HEAP_{}_BIT",
          "BUFFER": "VK_BUFFER_USAGE_{}_BIT", "STAGE": "VK_SHADER_STAGE_{}_BIT", "PIPELINE": "VK_PIPELINE_STAGE_{}_BIT",
          "ACCESS": "VK_ACCESS_{}_BIT"}
_OTHERS = {"BUFFER_STORAGE": "VK_BUFFER_USAGE_STORAGE_BUFFER_BIT",
           "BUFFER_INDIRECT": "VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT",
           "PIPELINE_COMPUTE": "VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT",
           "ACCESS_INDIRECT_READ": "VK_ACCESS_INDIRECT_COMMAND_READ_BIT",
           "COMMAND_POOL_RESET": "VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT",
           "COMMAND_ONE_TIME": "VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT",
           "DESCRIPTOR_STORAGE_BUFFER": "VK_DESCRIPTOR_TYPE_STORAGE_BUFFER",
           "BIND_COMPUTE": "VK_PIPELINE_BIND_POINT_COMPUTE", "SHARING_EXCLUSIVE": "VK_SHARING_MODE_EXCLUSIVE",
           "LEVEL_PRIMARY": "VK_COMMAND_BUFFER_LEVEL_PRIMARY", "API_1_2": "VK_API_VERSION_1_2",
           "WHOLE_SIZE": "VK_WHOLE_SIZE"}


def test_the_interface_is_that_of_vulkans_headers(tmp_path: Path) -> None:
    compiler = require_program("c++", "g++")
    headers = subprocess.run([compiler, "-x", "c++", "-E", "-"], input="#include <vulkan/vulkan.h>\n", text=True,
                             capture_output=True)
    if headers.returncode:
        pytest.skip("needs Vulkan's headers: apt-get install libvulkan-dev")
    text = re.sub(r"//.*", "", _API.read_text())
    checks = [*_structures(text), *_enumerations(text), *_constants(text)]
    assert len(checks) > 300
    source = tmp_path / "same.cpp"
    head = f'#include <cstddef>\n#include <vulkan/vulkan.h>\n#include "{_API}"\nnamespace api = brise::vk::api;\n'
    source.write_text(head + "\n".join(f"static_assert({check});" for check in checks))
    run = subprocess.run([compiler, "-std=c++20", "-fsyntax-only", str(source)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[:4000]


def _structures(text: str) -> list[str]:
    checks = []
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", text, re.DOTALL | re.MULTILINE):
        checks.append(f"sizeof(api::{name}) == sizeof(Vk{name})")
        declared = re.sub(r"=\s*(\{\}|\w+)|\[\d+\]", "", body).replace(";", ",").split(",")
        fields = [part.split()[-1].lstrip("*") for part in declared if part.strip()]
        for field in fields:
            if not field.startswith(("before_", "rest")) and name != "PhysicalDeviceSparseProperties":
                checks.append(f"offsetof(api::{name}, {field}) == offsetof(Vk{name}, {field})")
    return checks


def _enumerations(text: str) -> list[str]:
    prefixes = {"Result": "VK_", "StructureType": "VK_STRUCTURE_TYPE_", "PhysicalDeviceType": "VK_PHYSICAL_DEVICE_"}
    bodies = dict(re.findall(r"enum (\w+) : int32_t \{(.*?)\};", text, re.DOTALL))
    assert set(bodies) == set(prefixes)
    return [f"(int)api::{name} == (int){prefixes[kind]}{name}"
            for kind, body in bodies.items() for name in re.findall(r"(\w+) =", body)]


def _constants(text: str) -> list[str]:
    checks = []
    declarations = r"^constexpr (?:Flags|int32_t|uint32_t|DeviceSize) (.*?);"
    for names in re.findall(declarations, text, re.DOTALL | re.MULTILINE):
        for name in re.findall(r"(\w+) = ", names):
            prefix, rest = name.split("_", 1)
            theirs = _OTHERS.get(name) or _FLAGS[prefix].format(rest)
            checks.append(f"(unsigned long long)api::{name} == (unsigned long long){theirs}")
    return checks
