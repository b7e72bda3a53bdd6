"""The shaders as AMD's compiler makes them: no register is spilled, and quantized linears use the int8 dot product."""

from __future__ import annotations

import pytest

from tests.backends.inputs import BLOCKS
from tests.backends.vulkan.radv import Variant, compile_for
from tests.backends.vulkan.spirv import MODULES

FAMILIES = ("vega20", "navi14", "navi21", "gfx1100")  # the oldest with the dot product, and three later ones
# As native/vulkan/program.cpp dispatches linears: one token, a few, many.
SPLITS = ((128, 8, 1), (128, 8, 4), (128, 1, 16))
# Rows of queries, numbers of a key and of a value: SmolLM2 in decode, Mistral in prefill, latents of Mistral Large 3.
ATTENTIONS = ((3, 64, 64), (8, 128, 128), (6, 576, 512))


def variants() -> list[Variant]:
    out: list[Variant] = []
    for name in sorted(module.stem for module in MODULES):
        is_linear = name.startswith(("linear_", "stack_", "low_rank_"))
        is_attention = name.startswith("attend_") and name != "attend_merge"
        out += [(name, constants) for constants in (SPLITS if is_linear else ATTENTIONS if is_attention else ((),))]
    return out


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_spilled_and_linears_use_the_dot_product(family: str) -> None:
    compiled = compile_for(family, variants())
    spilled = {variant: code for variant, code in compiled.items() if code.spilled_vgprs or code.scratch_bytes}
    assert not spilled
    quantized = [code for (name, _), code in compiled.items()
                 if name.removeprefix("linear_").removeprefix("stack_").upper() in BLOCKS]
    assert len(quantized) == 2 * len(SPLITS) * len(BLOCKS) and all(code.num_dots for code in quantized)
