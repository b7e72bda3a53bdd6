"""Which format each tensor gets."""

from __future__ import annotations

import pytest

from brise.errors import UnsupportedError
from brise.quant.recipe import MIXES, choose, fitting

WIDE = (512, 256)


@pytest.mark.parametrize(("mix", "name", "expected"), [
    ("Q4_K_M", "blk.9.attn_q.weight", "Q4_K"), ("Q4_K_M", "output.weight", "Q6_K"),
    ("Q4_K_M", "token_embd.weight", "Q4_K"), ("Q8_0", "output.weight", "Q8_0"), ("Q4_0", "output.weight", "Q6_K"),
    ("Q5_K_M", "blk.0.attn_v.weight", "Q6_K"), ("Q5_K_M", "blk.0.ffn_up.weight", "Q5_K"),
    ("Q4_K_S", "blk.3.attn_v.weight", "Q5_K"), ("Q4_K_S", "blk.4.attn_v.weight", "Q4_K"),
    ("IQ4_XS", "blk.3.ffn_down.weight", "Q5_K"), ("IQ4_XS", "blk.4.ffn_down.weight", "IQ4_XS"),
    ("IQ4_NL", "blk.4.attn_v.weight", "IQ4_NL"), ("IQ4_XS", "token_embd.weight", "IQ4_XS"),
    ("Q4_K_M", "blk.3.ffn_gate_inp.weight", "F32"), ("BF16", "output.weight", "BF16"),
    ("Q4_K_M", "v.blk.0.attn_q.weight", "F16"), ("Q4_K_M", "blk.0.ffn_down_exps.weight", "Q6_K")])
def test_formats(mix: str, name: str, expected: str) -> None:
    assert choose(mix, name, WIDE, "F16", 32, tied=False) == expected


def test_values_that_many_queries_share_have_more_bits() -> None:
    assert choose("IQ4_XS", "blk.9.attn_v.weight", WIDE, "F16", 32, tied=False, queries_per_kv=4) == "Q5_K"
    assert choose("IQ4_XS", "blk.9.attn_v.weight", WIDE, "F16", 32, tied=False, queries_per_kv=3) == "IQ4_XS"


def test_a_tied_embedding_is_the_output() -> None:
    assert choose("Q4_K_M", "token_embd.weight", WIDE, "F16", 32, tied=True) == "Q6_K"


def test_half_of_the_layers_have_more_bits() -> None:
    formats = [choose("Q4_K_M", f"blk.{layer}.ffn_down.weight", WIDE, "F16", 32, tied=False) for layer in range(32)]
    better = [layer for layer, format in enumerate(formats) if format == "Q6_K"]
    assert better == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]


@pytest.mark.parametrize("mix", MIXES)
def test_vectors_stay(mix: str) -> None:
    assert choose(mix, "blk.0.attn_norm.weight", (256,), "BF16", 32, tied=False) == "F32"


@pytest.mark.parametrize(("format", "cols", "expected"), [
    ("Q4_K", 256, "Q4_K"), ("Q4_K", 576, "Q5_0"), ("Q5_K", 96, "Q5_1"), ("Q6_K", 128, "Q8_0"), ("Q4_K", 48, "F16"),
    ("Q4_0", 40, "F16"), ("IQ4_XS", 576, "IQ4_NL")])
def test_rows_that_do_not_divide_get_another_format(format: str, cols: int, expected: str) -> None:
    assert fitting(format, cols) == expected


def test_an_unknown_mix_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="'Q3_X', allowed are"):
        choose("Q3_X", "output.weight", WIDE, "F16", 32, tied=False)
