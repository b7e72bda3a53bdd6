"""How far a number may lie from the reference, each with its derivation. Widening one needs a new derivation.

u is float32's unit roundoff: one correctly rounded operation is off by at most u times its result.
The expected value is always the reference computed in float64 on the same inputs.
"""

from __future__ import annotations

import numpy as np

from brise.models.weights import Array

U = 2.0**-24

# One rounding (x + y, x + bias): u, doubled because float32 inputs may also be summed as fused operations.
ONE_ROUNDING = 2 * U

# rope_table: cos and sin of a float64 angle rounded once, times magnitude rounded once; a vector polynomial
# for cos and sin is good to 2 u more. Relative to the magnitude, not to the cosine, which may be near 0.
ROPE_TABLE = 4 * U

# rope: a*cos - b*sin has two products and a difference, each off by u of |a| + |b|; the table is given.
ROPE = 3 * U

# scale_queries: log1p and the factor in float64, rounded to float32 once, then one product; 1 u spare.
SCALE_QUERIES = 3 * U

# silu_mul: exp by polynomial 4 u, 1 + e, a division and a product 1 u each; doubled.
SILU_MUL = 14 * U
# Below a gate of -87, e^gate is subnormal: a kernel may clamp it to e^-87 = 1.6e-38 or flush it to 0.
# Relative to |gate * up|.
SILU_MUL_CLAMP = 2e-38

# route: logits are given. exp of a difference in float32 or float64 (2 u), summed (u for each of up to 128, but each
# sum is of numbers over 0: relative to itself), two divisions and a product: relative to the gate.
ROUTE = (128 + 8) * U

# gelu: the argument of erf is off by 2 u of itself, which moves erf by at most 2 u * 2 z exp(-z^2) / sqrt(pi) < u;
# erf itself 2 u, 1 + erf u of at most 2, two products u each: 7 u of |x| / 2 * 2. Relative to |x|, not to gelu, which
# vanishes.
GELU = 7 * U
# gelu_tanh as x / (1 + exp(-2 z)): 2 z is off by 4 u of itself, which moves the exponential by at most
# 4 u * 2 z exp(-2 z) <= 1.5 u; exp by polynomial 4 u, 1 + e, a division and a product 1 u each, doubled. As
# 1 + tanh(z): 2 u less. Relative to |x|, as for gelu.
GELU_TANH = 14 * U

# A product of numbers this small loses bits, or all of them.
SUBNORMAL = 2.0**-126

# embed: d * q + m has two roundings of terms that are at most 4 times the largest number of the row
# (random blocks use the whole range of q); relative to that largest number.
EMBED = 8 * U

# Quantised linears against tests/backends/emulate.py, relative to sum |x w|: integer dots are exact; a group adds
# d * s * dot (3 roundings) and an offset term up to 4 times as large (Q4_1 and the K formats subtract minima
# from products of like size): 12 u; 24 groups of 768 numbers are summed one after the other: 24 u at worst.
# Together 2.2e-6; the rest is for block formats whose numbers cancel more than that.
QUANTISED_LINEAR = 1e-5

# Six and a half standard deviations: one of 10^10 normal numbers lies further out, and we test about 10^6.
SIGMAS = 6.5

# Logits of the tiny goldens (largest about 6) in float32. transformers keeps softmax, norms and cosines in
# float32 even in a float64 model, so its own error is like ours: about 20 operations in a row, each off by
# sqrt(80) u = 5e-7 of its result, scores (up to 20) in the exponent: sqrt(20) * 20 * 5e-7 = 5e-5 as errors
# differ in sign (measured with the reference: 1.7e-5). A wrong rope layout is off by more than 1.
GOLDEN_LOGITS = 5e-5

# Features of the tiny vision encoder (largest about 20) in float32: two blocks and four linears in a row, about 24
# operations, sums of up to 256 products off by sqrt(256) u = 1e-6 of a result of up to 20, errors of both signs:
# sqrt(24) * 20 * 1e-6 = 1e-4 (measured with the reference: 1.6e-5).
VISION_FEATURES = 1e-4

# Logits of a prompt in which those features stand: their error of 1e-4 is divided by the norm and multiplied by
# matrices of a like gain in each of two layers, so it comes out about as large, beside that of the text model
# (measured: 6e-5 with features off by 2.5e-5).
VISION_LOGITS = VISION_FEATURES + GOLDEN_LOGITS

# Features of the tiny audio encoder (largest about 8) in float32: two convolutions, two blocks and two linears, about
# 26 operations, sums of up to 256 products off by sqrt(256) u = 1e-6 of a result of up to 8, errors of both signs:
# sqrt(26) * 8 * 1e-6 = 4e-5 (measured with the reference: 7e-6).
AUDIO_FEATURES = 4e-5
AUDIO_LOGITS = AUDIO_FEATURES + GOLDEN_LOGITS  # as VISION_LOGITS

# Features of the tiny SigLIP (largest about 3): two blocks with sums of up to 40 products, off by sqrt(40) u = 4e-7 of
# a result of up to 3, about 20 operations, errors of both signs: sqrt(20) * 3 * 4e-7 = 5e-6; a norm of means over few
# patches may enlarge it, and both sides err: 3e-5 (measured with the reference: 7e-7).
SIGLIP_FEATURES = 3e-5

# Logits of a prompt in which those stand, as for the encoder above: six layers enlarge the features' error no more than
# the text model's own.
SIGLIP_LOGITS = SIGLIP_FEATURES + GOLDEN_LOGITS

# The same through a float16 cache: keys and values are off by 2^-12 of themselves in the mean, 16 products a
# score of up to 20: 20 * 2^-12 / sqrt(16) * 2 = 2.4e-3 of every attention output; two layers, and logits
# of up to 6: 6 * sqrt(2) * 2.4e-3 = 0.02 at the very worst.
GOLDEN_LOGITS_F16 = 2e-2

# The same through an 8-bit cache: max / 254 in place of 2^-12, where max is 2 deviations: 32 times as much.
# It only says that the pages are right; the op cases hold q8 to the rounding of float32.
GOLDEN_LOGITS_Q8 = 6e-1

# The same through a 4-bit cache: steps of (max - min) / 15, about 3.5 deviations of 16 numbers / 15, are off by
# 1 / sqrt(12) of that in the mean square: 0.07 deviations, nine times what q8 is off by. It, too, only says that the
# pages are right; a test of its own holds q4 to its definition, bit for bit.
GOLDEN_LOGITS_Q4 = 9 * GOLDEN_LOGITS_Q8

# SmolLM2 (30 layers, logits up to 27) in float32 against transformers in float32: 7 operations a layer, sums
# of 576 in 16 lanes off by sqrt(576 / 16) u = 3.6e-7, 210 of them at random: 5e-6 of 27 is 1.4e-4; doubled as
# both sides err (measured: 6e-5).
SMOLLM2_LOGITS = 3e-4

# Native SmolLM2 against float32 logits: quantised activations decide. Their error is measured with the
# emulation (reference ops, activations rounded), less the mean of each position, as softmax does it.
# Which way single numbers round is luck: inputs changed by 1e-6 gave 0.127 to 0.165 in the root mean square,
# a spread of 12 %; the ratio of two such numbers stays under 1 + 6 * sqrt(2) * 0.12 = 2.
SMOLLM2_NATIVE_OVER_EMULATED = 2.0


def rms_norm(width: int) -> float:
    """Relative: `width` squares summed in any order are off by width u, halved by the root; 6 u else."""
    return (width / 2 + 6) * U


def layer_norm(x: Array, w: Array, expected: Array, scaled: Array, eps: float) -> Array:
    """Absolute (T, D); `scaled` is the result without its bias. The mean of `width` numbers, summed in any order, is
    off by (width + 1) u times the largest, and so is every difference from it, by one rounding more. That moves the
    result itself, and the root of the variance by as much of itself over the deviation; its squares are summed as in
    rms_norm."""
    width = x.shape[-1]
    deviation = np.sqrt(np.var(x, axis=-1, keepdims=True) + eps)
    shift = (width + 4) * U * np.abs(x).max(axis=-1, keepdims=True) / deviation
    bound: Array = shift * (np.abs(w) + np.abs(scaled)) + (width / 2 + 8) * U * np.abs(scaled) + U * np.abs(expected)
    return bound


def float_linear(width: int) -> float:
    """Relative to sum |x w|: each product rounded, then summed in any order."""
    return (width + 1) * U


def expert(x: Array, w1: Array, w2: Array, w3: Array, terms: int) -> Array:
    """Absolute (T, D), for plain weights: gate and up are off as float_linear has them. silu's slope is at most 1.1, so
    h is off by 1.1 |up| of gate's error, |silu| of up's, and its own rounding; w2 sums that; then `terms` experts are
    summed."""
    g, u = x @ w1.T, x @ w3.T
    silu = g / (1 + np.exp(-g))
    off_g, off_u = (float_linear(x.shape[1]) * (np.abs(x) @ np.abs(w).T) for w in (w1, w3))
    off_h = 1.1 * (np.abs(u) + off_u) * off_g + np.abs(silu) * off_u + SILU_MUL * np.abs(silu * u)
    size = np.abs(silu * u) @ np.abs(w2).T
    bound: Array = off_h @ np.abs(w2).T + (float_linear(w1.shape[0]) + (terms + 1) * U) * size
    return bound


def attend(q: Array, k: Array, v: Array, scale: float) -> float:
    """Absolute. A score off by d changes every softmax weight by a factor within exp(2 d).

    d = (E + 2) u times the largest possible sum of |q k| scaled. exp by polynomial 4 u, the sum over C keys
    C u, the weighing of values C u, merging chunks 8 u. The output is a mean of values: within max |v|.
    """
    head_dim, num_keys = int(q.shape[-1]), len(k)
    largest_q = float(np.sqrt((q.astype(np.float64) ** 2).sum(-1)).max())
    largest_k = float(np.sqrt((k.astype(np.float64) ** 2).sum(-1)).max())
    score_error = (head_dim + 2) * U * largest_q * largest_k * scale
    return float(np.abs(v).max()) * (2 * score_error + (2 * num_keys + 12) * U)


def attend_whole(q: Array, k: Array, v: Array, scale: float, format: str) -> float:
    """Absolute, beside `attend`: kernels multiply a cache of whole numbers as integers (native/attend.h).

    A query's numbers are off by up to half a unit of max(norm / 46300, largest / 32767), evenly: their sum with a key
    by unit / sqrt(12) times the key's norm, SIGMAS times that at the most. Weights are off by half of 2^-12 of the
    chunk's largest in f16 (2^-14 in q8 and q4), evenly. In f16 the kernels store numbers in such units (keys), or
    those of largest / 8191 (values), where the reference has float16's, off by up to 2^-11 of themselves.
    """
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    longest = float(np.linalg.norm(k, axis=-1).max())
    unit = _unit(q)
    moved = unit / np.sqrt(12) * longest
    stored = 0.0
    if format == "f16":
        size = float(np.linalg.norm(q, axis=-1).max())
        moved = np.hypot(moved, size * np.hypot(_unit(k) / np.sqrt(12), 2.0**-11 / np.sqrt(3) * float(np.abs(k).max())))
        stored = 2.0**-11 + 0.5 / 8191
    weights = min(len(k) / 2, SIGMAS * np.sqrt(len(k) / 12)) * 2.0**(-12 if format == "f16" else -14)
    return float(np.abs(v).max() * (2 * SIGMAS * moved * scale + weights + stored))


def _unit(x: Array) -> float:
    """Of the integers that a query or a key in f16 is rounded to; the largest of all rows."""
    return max(float(np.linalg.norm(x, axis=-1).max()) / 46300, float(np.abs(x).max()) / 32767)


def rounded_activations(w: Array, steps: Array, group: int) -> Array:
    """Absolute (T, O): what rounding x to int8 may change in x w.

    x is off by up to half a step in every group, and by step / sqrt(12) in the root mean square (a number
    rounded at random is off evenly); the worst case holds always, SIGMAS deviations hold where sums are long.
    """
    grouped = np.abs(w.astype(np.float64)).reshape(len(w), -1, group)
    worst = np.einsum("tg,og->to", steps / 2, grouped.sum(-1))
    variance = np.einsum("tg,og->to", steps**2 / 12, (grouped**2).sum(-1))
    return np.minimum(worst, SIGMAS * np.sqrt(variance))


def low_rank(x: Array, a: Array, b: Array, scale: float, y: Array) -> Array:
    """Absolute (T, O), before the gain: what scale * B (A x), added to y, may be off by. A sum over the width, then one
    over the rank of numbers so made; the product with scale and the addition round once or twice, and so does the
    gain: 3 u of the result."""
    size = abs(scale) * (np.abs(x) @ np.abs(a).T @ np.abs(b).T)
    bound: Array = (float_linear(a.shape[1]) + float_linear(a.shape[0])) * size + 3 * U * (np.abs(y) + size)
    return bound
