"""Causal attention in torch over packed sequences, some of which share a prompt.

Sequences of similar length and equal parent are computed together, padded to the longest. Scores are computed for one
block of queries at a time, in float32, and computed again for the gradient: nothing of size T x T is kept, and a block
reads only the keys that causality and the window allow.

Legend: T tokens, N sequences of a group, L their padded length, P tokens of their prompt, C = P + L keys,
H query heads, K key/value heads, G = H / K, E and F numbers of a key's and of a value's head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from brise.errors import UnsupportedError
from brise.models.batch import Batch
from brise.models.weights import Array

Tensor = torch.Tensor

# Scores of a block: 16 MiB of float32, so that they are still in cache for softmax and the values.
BLOCK_SCORES = 1 << 22
# Sequences share a group if padding adds at most a quarter and 16 tokens to the shortest: another call costs as much.
PADDING, SLACK = 1.25, 16


@dataclass(frozen=True)
class SequenceGroup:
    """Sequences that are computed in one call."""

    places: Array  # (N, L): tokens; after the end of a sequence, its first one again
    lengths: Array  # (N,)
    prompt: Array  # (P,)


def attend(q_THE: Tensor, k_TKE: Tensor, v_TKF: Tensor, batch: Batch, scale: float, window: int | None) -> Tensor:
    """(T, H * F): Ops.attend without a cache. The positions of a sequence must be consecutive."""
    starts = np.asarray(batch.query_starts)
    if not starts[-1]:
        return q_THE.new_zeros(0, q_THE.shape[1] * v_TKF.shape[2])
    if batch.reach is not None:
        raise UnsupportedError("tokens see others behind them, as those of an image do; the torch backend computes "
                               "causal attention")
    if _are_images(np.asarray(batch.positions), starts):
        return _of_images(q_THE, k_TKE, v_TKF, starts, scale)
    _check_causal(np.asarray(batch.positions), starts)
    parents = np.full(len(starts) - 1, -1) if batch.parents is None else np.asarray(batch.parents)
    groups = list(_groups(starts, parents))
    out: Tensor = _Attend.apply(q_THE, k_TKE, v_TKF, groups, scale, window)  # type: ignore[no-untyped-call]
    return out


def _are_images(positions: Array, starts: Array) -> bool:
    """Whether the tokens are patches of images: all those of one stand at the place of its last one."""
    lengths = np.diff(starts)
    return bool((lengths > 1).any()) and bool((positions == np.repeat(lengths - 1, lengths)).all())


def _of_images(q_THE: Tensor, k_TKE: Tensor, v_TKF: Tensor, starts: Array, scale: float) -> Tensor:
    """Each patch sees all of its image. Images of one size are computed together."""
    lengths, parts = np.diff(starts), [q_THE.new_zeros(0)] * (len(starts) - 1)
    for length in np.unique(lengths):
        members = np.flatnonzero(lengths == length)
        places = torch.from_numpy((starts[members][:, None] + np.arange(length)).ravel())
        q, k, v = (x[places.to(x.device)].reshape(len(members), int(length), *x.shape[1:]).transpose(1, 2)
                   for x in (q_THE, k_TKE, v_TKF))
        seen = functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(2)
        for at, own in zip(members.tolist(), seen, strict=True):
            parts[at] = own
    return torch.cat(parts)


def _check_causal(positions: Array, starts: Array) -> None:
    """Refuses sequences with gaps."""
    steps = np.diff(positions)
    steps[starts[(starts > 0) & (starts < len(positions))] - 1] = 1  # from one sequence to the next
    if (steps != 1).any():
        raise UnsupportedError("the positions of a sequence are not consecutive")


def _groups(starts: Array, parents: Array) -> Iterator[SequenceGroup]:
    """All sequences with tokens, in groups of equal parent and similar length."""
    lengths = np.diff(starts)
    order = np.lexsort((lengths, parents))
    order = order[lengths[order] > 0]
    first = 0
    for index in range(1, len(order) + 1):
        if index < len(order) and parents[order[index]] == parents[order[first]] and (
                lengths[order[index]] <= PADDING * lengths[order[first]] + SLACK):
            continue
        members = np.sort(order[first:index])
        first = index
        steps = np.arange(lengths[members].max())[None, :]
        places = starts[members][:, None] + np.where(steps < lengths[members][:, None], steps, 0)
        parent = int(parents[members[0]])
        prompt = np.arange(starts[parent], starts[parent + 1]) if parent >= 0 else np.zeros(0, np.int64)
        yield SequenceGroup(places, lengths[members], prompt)


class _Attend(torch.autograd.Function):
    """Saves only q, k and v; computes in float32 (or float64).

    In bfloat16 the products would be faster, but oneDNN builds and keeps a kernel for each shape, and here every batch
    has shapes of its own: 0.7 MB each, a gigabyte after a hundred steps.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: list[SequenceGroup], scale: float,
                window: int | None) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.settings = groups, scale, window
        dtype = q.dtype
        q, k, v = _wide(q, k, v)
        outs = [_forward(*_taken(q, k, v, group), scale, window) for group in groups]
        return _put_back([_by_token(out, group) for out, group in zip(outs, groups, strict=True)], groups).to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THF: Tensor) -> tuple[Tensor | None, ...]:
        kept = ctx.saved_tensors
        q, k, v = _wide(*kept)
        groups, scale, window = ctx.settings
        grad = grad_THF.to(q.dtype).view(len(q), q.shape[1], v.shape[2])
        parts: list[list[Tensor]] = [[], [], []]
        shared: list[tuple[Array, Tensor, Tensor]] = []
        for group in groups:
            taken = _taken(q, k, v, group)
            d_out = _by_head(_without_padding(_at(grad, group.places), group), k.shape[1])
            d_q, d_k, d_v = _backward(*taken, d_out, scale, window)
            num_shared = len(group.prompt)
            parts[0].append(_by_token(d_q, group))
            for side, d in zip(parts[1:], (d_k, d_v), strict=True):
                side.append(_by_token(d[..., num_shared:, :], group))
            if num_shared:
                shared.append((group.prompt, *(d[..., :num_shared, :].sum(0).squeeze(1).transpose(0, 1)
                                               for d in (d_k, d_v))))
        whole = [_put_back(side, groups).view(like.shape) for side, like in zip(parts, (q, k, v), strict=True)]
        for prompt, *sums in shared:
            for d, of_prompt in zip(whole[1:], sums, strict=True):
                d[int(prompt[0]):int(prompt[-1]) + 1] += of_prompt
        return *(d.to(like.dtype) for d, like in zip(whole, kept, strict=True)), None, None, None


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _taken(q: Tensor, k: Tensor, v: Tensor, group: SequenceGroup) -> tuple[Tensor, Tensor, Tensor]:
    """q (N, K, G, L, E), k (N, K, 1, C, E), v (N, K, 1, C, F) of a group."""
    num_kv_heads = k.shape[1]
    keys, values = (_by_head(_at(x, group.places), num_kv_heads) for x in (k, v))
    if len(group.prompt):
        first, last, size = int(group.prompt[0]), int(group.prompt[-1]) + 1, len(group.places)
        own = ((k, keys), (v, values))
        keys, values = (torch.cat([x[first:last].transpose(0, 1)[None, :, None].expand(size, -1, -1, -1, -1), part],
                                  dim=3) for x, part in own)
    return _by_head(_at(q, group.places), num_kv_heads), keys, values


def _at(x: Tensor, places: Array) -> Tensor:
    """Rows of x at `places` (N, L): a view where they are all rows in their order."""
    size, length = places.shape
    if _is_in_order(places):
        first = int(places[0, 0])
        return x[first:first + size * length].view(size, length, *x.shape[1:])
    index = torch.from_numpy(places.reshape(-1)).to(x.device)
    return x.index_select(0, index).view(size, length, *x.shape[1:])


def _without_padding(grad_NLHE: Tensor, group: SequenceGroup) -> Tensor:
    """The gradient without padding, which repeats a token whose gradient counts once."""
    length = group.places.shape[1]
    if (group.lengths == length).all():
        return grad_NLHE
    is_padding = torch.from_numpy(np.arange(length) >= group.lengths[:, None]).to(grad_NLHE.device)
    return grad_NLHE.masked_fill(is_padding[:, :, None, None], 0)


def _is_in_order(places: Array) -> bool:
    """Whether there is no padding, and the sequences are consecutive."""
    return bool((places.reshape(-1) == np.arange(places[0, 0], places[0, 0] + places.size)).all())


def _by_head(x_NLHE: Tensor, num_kv_heads: int) -> Tensor:
    """(N, L, H, E) as (N, K, G, L, E), contiguous."""
    return x_NLHE.reshape(*x_NLHE.shape[:2], num_kv_heads, -1, x_NLHE.shape[-1]).permute(0, 2, 3, 1, 4).contiguous()


def _by_token(x_NKGLE: Tensor, group: SequenceGroup) -> Tensor:
    """(N, K, G, L, E) as (N * L, H * E)."""
    return x_NKGLE.permute(0, 3, 1, 2, 4).reshape(group.places.size, -1)


def _put_back(parts: list[Tensor], groups: list[SequenceGroup]) -> Tensor:
    """The tokens of all groups in the batch's order, without padding."""
    if len(groups) == 1 and _is_in_order(groups[0].places):
        return parts[0]
    places = np.concatenate([group.places.reshape(-1) for group in groups])
    _, where = np.unique(places, return_index=True)  # a sequence's first token comes before its repeats
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    return whole.index_select(0, torch.from_numpy(where).to(whole.device))


def _blocks(q: Tensor, k: Tensor, window: int | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """Blocks: queries, the keys that some of them see, and the mask to add to their scores (0 or -inf)."""
    size, kv_heads, group, length, _ = q.shape
    num_keys = k.shape[3]
    past = num_keys - length
    step = max(BLOCK_SCORES // (size * kv_heads * group * num_keys), min(32, length), 1)
    for first in range(0, length, step):
        last = min(first + step, length)
        begin = 0 if window is None else max(0, past + first - window + 1)
        rows = torch.arange(past + first, past + last, device=q.device)[:, None]
        columns = torch.arange(begin, past + last, device=q.device)[None, :]
        hidden = columns > rows if window is None else (columns > rows) | (columns <= rows - window)
        mask = torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)
        yield slice(first, last), slice(begin, past + last), mask


def _rows(x: Tensor, part: slice) -> Tensor:
    """Part of (N, K, G, L, E) as (N * K, G * rows, E)."""
    return x[..., part, :].reshape(x.shape[0] * x.shape[1], -1, x.shape[-1])


def _weights(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Softmax of the scores (N * K, G, rows, keys)."""
    scores = torch.bmm(q * scale, k.transpose(1, 2))
    scores = scores.view(len(scores), -1, *mask.shape).add_(mask)
    return torch.softmax(scores, dim=-1)


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """(N, K, G, L, F)."""
    outs = []
    for queries, keys, mask in _blocks(q, k, window):
        weights = _weights(_rows(q, queries), _rows(k, keys), mask, scale)
        out = torch.bmm(weights.flatten(1, 2), _rows(v, keys))
        outs.append(out.view(*q.shape[:3], -1, v.shape[-1]))
    return outs[0] if len(outs) == 1 else torch.cat(outs, dim=3)


def _backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float,
              window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    d_qs = []
    d_k, d_v = torch.zeros_like(k), torch.zeros_like(v)
    for queries, keys, mask in _blocks(q, k, window):
        q_rows, k_rows, v_rows, d_rows = _rows(q, queries), _rows(k, keys), _rows(v, keys), _rows(grad, queries)
        weights = _weights(q_rows, k_rows, mask, scale)
        flat = weights.flatten(1, 2)
        d_v[..., keys, :] += torch.bmm(flat.transpose(1, 2), d_rows).view(*v.shape[:3], -1, v.shape[-1])
        d_weights = torch.bmm(d_rows, v_rows.transpose(1, 2)).view(weights.shape)
        d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype).mul_(scale).flatten(1, 2)
        d_qs.append(torch.bmm(d_scores, k_rows).view(*q.shape[:3], -1, q.shape[-1]))
        d_k[..., keys, :] += torch.bmm(d_scores.transpose(1, 2), q_rows).view(*k.shape[:3], -1, k.shape[-1])
    d_q = d_qs[0] if len(d_qs) == 1 else torch.cat(d_qs, dim=3)
    return d_q, d_k, d_v
