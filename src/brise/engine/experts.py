"""Experts that stay in the file, so that a model that is larger than the memory runs, slowly."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from brise.errors import UnsupportedError
from brise.models.ops import Backend
from brise.models.weights import Mixture, Stack, Weight, Weights

Put = Callable[[str, Weight], Weight]


def put_on_demand(weights: Weights, target: Backend, expert_bytes: int, on_read: Callable[[Weight], None]) -> Put:
    """`target.place`, except that experts are packed when a token needs them, and at most `expert_bytes` are kept.

    `on_read` is called with every matrix that was read, so that the file's pages can be released.
    """
    stacks = {id(stack) for stack in routed(weights)}
    if not stacks:
        raise UnsupportedError(f"expert_bytes is {expert_bytes}, and the model has no experts: every token needs "
                               "all of it")
    store = target.new_expert_store(expert_bytes)

    def put(name: str, weight: Weight) -> Weight:
        if isinstance(weight, Stack) and id(weight) in stacks:
            return target.place_experts(name, weight, store, on_read)
        return target.place(name, weight)

    return put


def routed(weights: Weights) -> Iterator[Stack]:
    """The stacks of experts that a router picks from, without shared experts."""
    for layer in weights.layers:
        if isinstance(layer.feed_forward, Mixture):
            for stack in (layer.feed_forward.w1, layer.feed_forward.w2, layer.feed_forward.w3):
                assert isinstance(stack, Stack), "placed already"
                yield stack


def check_room(placed: Weights, backend: Backend, expert_bytes: int) -> None:
    """Refuses a budget that does not hold one whole expert of each layer."""
    for index, layer in enumerate(placed.layers):
        if not isinstance(layer.feed_forward, Mixture):
            continue
        parts = (layer.feed_forward.w1, layer.feed_forward.w2, layer.feed_forward.w3)
        one = sum(backend.expert_bytes(part) for part in parts)
        if one > expert_bytes:
            raise UnsupportedError(f"expert_bytes is {expert_bytes}, an expert of layers.{index} takes {one}",
                                   hint=f"give at least {one} bytes; with more, experts are read less often")
