"""SPIR-V modules as C++ arrays: `embed.py OUT.cpp MODULE.spv...`, called by CMake."""

import struct
import sys
from pathlib import Path


def embed(out: Path, modules: list[Path]) -> None:
    """Writes the table that brise::vk::shaders() returns: words by the module's name."""
    lines = ['#include "vulkan/device.h"', "", "namespace brise::vk {", "", "namespace {", ""]
    for module in modules:
        data = module.read_bytes()
        words = struct.unpack(f"<{len(data) // 4}I", data)
        lines.append(f"const uint32_t words_{module.stem}[] = {{{','.join(map(hex, words))}}};")
    lines += ["", "}  // namespace", "", "const std::map<std::string, std::span<const uint32_t>>& shaders() {",
              "  static const std::map<std::string, std::span<const uint32_t>> table = {"]
    lines += [f'    {{"{module.stem}", words_{module.stem}}},' for module in modules]
    lines += ["  };", "  return table;", "}", "", "}  // namespace brise::vk", ""]
    out.write_text("\n".join(lines))


if __name__ == "__main__":
    embed(Path(sys.argv[1]), sorted(map(Path, sys.argv[2:])))
