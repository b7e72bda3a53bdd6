"""The plan of a model under two limits, `--memory vram=4GB,ram=8GB`: how many layers lie on the GPU.

As many as fit into the GPU's memory with context and work space; what is left must fit into the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from brise.backends import split_planner
from brise.errors import UnsupportedError
from brise.memory import serving_plan
from brise.memory.model_header import ModelHeader
from brise.memory.serving_plan import DEFAULT_CONTEXT, MemoryRequest, ServingPlan
from brise.models.ops import LayerSplit, Planner

_LEAST_CONTEXT = 512


def make(header: ModelHeader, request: MemoryRequest, backend: Planner) -> ServingPlan:
    """The plan of a request, with one limit or two; UnsupportedError for two on a device whose memory is the host's.

    Without a context the layers are chosen for the usual one, or a short one; what is then left is for a longer one.
    """
    if request.ram is None:
        return serving_plan.make(header, request, backend)
    _check(backend)
    contexts = (request.context,) if request.context else (
        min(request.usual_context or DEFAULT_CONTEXT, header.config.max_context),
        min(_LEAST_CONTEXT, header.config.max_context))
    for context in contexts:
        at = _planner(header, replace(request, context=context), backend)
        num_on_device = _most(at, header.config.num_layers)
        if num_on_device:
            break
    return _planner(header, request, backend)(num_on_device or 1)


def _check(backend: Planner) -> None:
    if backend.device is None:
        raise UnsupportedError("there are limits for a GPU and for the host (vram=, ram=), and the model runs on the "
                               "CPU", hint="take --device vulkan, or one limit: --memory 8GB")
    if backend.device.is_shared:
        raise UnsupportedError(f"{backend.device.label} shares the host's memory, so that one limit bounds both; two "
                               "(vram=, ram=) were given", hint="take one limit: --memory 8GB")


def _planner(header: ModelHeader, request: MemoryRequest, backend: Planner) -> Callable[[int], ServingPlan]:
    """Gives the plan with so many layers on the GPU."""
    num_layers, is_tied = header.config.num_layers, header.weights.output is header.weights.tok_embeddings

    def at(num_on_device: int) -> ServingPlan:
        split = LayerSplit(num_layers, num_on_device, is_tied)
        planner = backend if num_on_device >= num_layers else split_planner(backend, split)
        return serving_plan.make(header, request, planner)

    return at


def _most(at: Callable[[int], ServingPlan], num_layers: int) -> int:
    """The most layers whose plan fits into the GPU's memory; 0 if not even one does."""
    def fits(num_on_device: int) -> bool:
        plan = at(num_on_device)
        return plan.limit is None or plan.total_bytes <= plan.limit

    if fits(num_layers):
        return num_layers
    low, high = 0, num_layers  # the largest known to fit, and the smallest known not to
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
