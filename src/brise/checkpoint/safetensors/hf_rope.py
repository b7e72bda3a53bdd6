"""The rotary positions of a config.json: `rope_parameters`, or `rope_theta` and `rope_scaling` of older files."""

from __future__ import annotations

from brise.checkpoint.config_fields import ConfigFields
from brise.models.config import QueryTemperature
from brise.models.rope import Layout, Linear, Llama3, Rope, Scaling, Yarn


def read_rope(fields: ConfigFields, dim: int, head_dim: int, layout: Layout, max_context: int, *,
              has_temperature: bool) -> tuple[Rope, QueryTemperature | None]:
    """Rotation of the first `dim` numbers of a head, and the temperature of queries where the family has one."""
    is_set = fields.has("rope_parameters") or fields.has("rope_scaling")
    rope = fields.section("rope_parameters", "rope_scaling") if is_set else ConfigFields({}, "rope_parameters")
    default = fields.number("rope_theta", default=10000.0)
    theta = rope.number("rope_theta", default=default)
    if theta <= 1:
        raise rope.wrong("rope_theta", "a number over 1")
    temperature = _temperature(rope) if has_temperature else None
    share = rope.number("partial_rotary_factor", default=dim / head_dim)
    if abs(share * head_dim - dim) > 1e-3:
        raise rope.refused("partial_rotary_factor", dim / head_dim)
    scaling = _scaling(rope, max_context)
    rope.refuse_rest({"llama_4_scaling_beta": (0,), "truncate": (True,)}, {"max_position_embeddings"})
    return Rope(theta, dim, layout, scaling), temperature


def _temperature(rope: ConfigFields) -> QueryTemperature | None:
    beta = rope.number("llama_4_scaling_beta", default=0.0, may_be_zero=True)
    return QueryTemperature(beta, rope.integer("original_max_position_embeddings")) if beta else None


def _scaling(rope: ConfigFields, max_context: int) -> Scaling:
    match rope.text("rope_type", "type", default="default"):
        case "default":
            rope.value("original_max_position_embeddings")  # the temperature's
            return None
        case "linear":
            return Linear(rope.number("factor"))
        case "llama3":
            return _llama3(rope, max_context)
        case "yarn":
            return _yarn(rope, max_context)
    raise rope.refused("rope_type" if rope.has("rope_type") else "type", "'default', 'linear', 'llama3' or 'yarn'")


def _llama3(rope: ConfigFields, max_context: int) -> Llama3:
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    if high <= low:
        raise rope.wrong("high_freq_factor", f"over {low}, the low_freq_factor")
    return Llama3(rope.number("factor"), rope.integer("original_max_position_embeddings", default=max_context),
                  low, high)


def _yarn(rope: ConfigFields, max_context: int) -> Yarn:
    factor = rope.number("factor")
    if factor < 1:
        raise rope.wrong("factor", "at least 1")
    return Yarn(
        factor, rope.integer("original_max_position_embeddings", default=max_context),
        rope.number("beta_fast", default=32.0), rope.number("beta_slow", default=1.0),
        mscale=rope.number("mscale", default=1.0, may_be_zero=True),
        mscale_all_dim=rope.number("mscale_all_dim", default=0.0, may_be_zero=True),
        attention_factor=rope.number("attention_factor") if rope.has("attention_factor") else None)
