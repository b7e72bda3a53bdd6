"""Causal attention over packed sequences, some of which share a prompt, in torch.

Sequences of equal parent are padded to their longest and go through one call: few calls, little padding, and the
shared prompt's keys are not copied into the computation of anybody else.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from brise.models.batch import Batch
from brise.models.weights import Array

Tensor = torch.Tensor


def attend(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, batch: Batch, scale: float, window: int | None) -> Tensor:
    """(T, H * E): see Ops.attend without a cache."""
    starts = np.asarray(batch.query_starts)
    parents = np.full(len(starts) - 1, -1) if batch.parents is None else np.asarray(batch.parents)
    outs: list[Tensor] = []
    order: list[Array] = []
    for parent in np.unique(parents):
        members = np.flatnonzero(parents == parent)
        lengths = starts[members + 1] - starts[members]
        longest = int(lengths.max())
        places = starts[members][:, None] + np.arange(longest)[None, :]
        is_own = np.arange(longest)[None, :] < lengths[:, None]
        places = np.where(is_own, places, starts[members][:, None])
        prefix = np.zeros((len(members), 0), np.int64)
        if parent >= 0:
            prefix = np.tile(np.arange(starts[parent], starts[parent + 1]), (len(members), 1))
        keys = np.concatenate([prefix, places], axis=1)
        out = _one(q_THE, k_TKE, v_TKE, places, keys, prefix.shape[1], scale)
        outs.append(out.reshape(-1, q_THE.shape[1] * q_THE.shape[2])[torch.from_numpy(np.flatnonzero(is_own))])
        order.append(places[is_own])
    whole = outs[0] if len(outs) == 1 else torch.cat(outs)
    back = np.argsort(np.concatenate(order))
    return whole[torch.from_numpy(back)]


def _one(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, places: Array, keys: Array, num_prefix: int,
         scale: float) -> Tensor:
    q = q_THE[torch.from_numpy(places)].transpose(1, 2)
    index = torch.from_numpy(keys)
    k, v = k_TKE[index].transpose(1, 2), v_TKE[index].transpose(1, 2)
    length = places.shape[1]
    mask = torch.ones(length, num_prefix + length, dtype=torch.bool).tril(num_prefix)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale,
                                                  enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)
