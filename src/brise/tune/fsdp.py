"""Training on several processes under torchrun: every rank keeps a part of each weight (FSDP2) and trains on its rows.

Each layer is a module that owns the layer's tensors. They are gathered before the layer's body runs and freed after it,
and gathered again for its gradient. Frozen quantised weights are gathered as bytes. A step's loss is divided by the
learned tokens of all ranks, and gradients are summed: the result is that of one process, up to rounding.
"""

from __future__ import annotations

import atexit
import gc
import math
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from brise.backends.torch.ops import LayerRunner
from brise.backends.torch.weights import Packed
from brise.errors import UnsupportedError
from brise.models.lora import ENDS, MODULES
from brise.models.weights import Layer, Lora, LowRank, Placed, Weight, Weights, place
from brise.tune.adapters import Trained
from brise.tune.optimizer import clip_gradients
from brise.tune.recipe import Recipe
from brise.tune.run_folder import Plain, TrainingCheckpoint
from brise.tune.session import Folder
from brise.tune.watch import FirstFailedError

Tensor = torch.Tensor
T = TypeVar("T")


def is_launched() -> bool:
    """Whether torchrun started this process as one of several."""
    return dist.is_torchelastic_launched()


class ProcessGroup:
    """The connected ranks of torchrun: gloo on CPUs, nccl on CUDA devices. `device` belongs to this rank."""

    def __init__(self, asked: torch.device) -> None:
        self.device = asked
        if asked.type == "cuda":
            self.device = torch.device("cuda", dist.get_node_local_rank())
            if self.device.index >= torch.cuda.device_count():
                raise UnsupportedError(f"torchrun started rank {self.device.index} on a machine with "
                                       f"{torch.cuda.device_count()} GPUs", hint="give --nproc-per-node that number")
            torch.cuda.set_device(self.device)
        dist.init_process_group("nccl" if asked.type == "cuda" else "gloo")
        atexit.register(gc.collect)  # after an error the traceback keeps the model alive, and the model its group
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.mesh = init_device_mesh(asked.type, (self.count,))

    def leave(self) -> None:
        """Disconnects from the other ranks.

        The threads of gloo end with the last reference to their group: a thread that releases a tensor after Python has
        ended aborts the process ("terminate called without an active exception"). DTensor's caches keep every mesh
        forever, and a mesh keeps its groups.
        """
        dist.destroy_process_group()
        self.mesh._pg_registry.clear()
        gc.collect()


def on_this_machine() -> int:
    """The number of ranks on this machine."""
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, socket.gethostname())
    return names.count(socket.gethostname())


def first(make: Callable[[], T]) -> T:
    """The result of `make` on every rank; it is called on rank 0 only.

    Its exception is raised on rank 0, and FirstFailedError on the others, so that none is left waiting.
    """
    if not dist.is_initialized():
        return make()
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    given: list[Any] = [None, False]
    try:
        if dist.get_rank() == 0:
            given = [make(), True]
    finally:
        dist.broadcast_object_list(given, src=0, device=device)
    if not given[1]:
        raise FirstFailedError("rank 0 has failed")
    return cast(T, given[0])


def check(recipe: Recipe) -> None:
    """Raises UnsupportedError for a recipe that needs a single process."""
    if recipe.optimizer != "adamw":
        raise UnsupportedError(f"the optimiser is {recipe.optimizer}, under torchrun allowed is adamw",
                               hint="its state is spread over the ranks, which takes less memory than 8 bits on one")
    for name in ENDS:
        if recipe.method != "full" and name in recipe.targets:
            raise UnsupportedError(f"the target module is {name!r}, under torchrun allowed are {', '.join(MODULES)}")


class Spread:
    """The ranks of torchrun around one model. `trained` replaces the given one, which the caller must release.

    Its parameters are this rank's rows of each tensor; its weights are shape-only, the numbers are in the modules.
    """

    def __init__(self, trained: Trained, group: ProcessGroup) -> None:
        self.rank, self.count, self._device = group.rank, group.count, group.device
        self._root = _Root(trained.weights)
        for module in (*self._root.layers, self._root):
            sharded = cast(FSDPModule, fully_shard(module, mesh=group.mesh))
            # A sum, because each rank's loss is already divided by the tokens of all ranks.
            sharded.set_gradient_divide_factor(1.0)
            sharded.set_force_sum_reduction_for_comms(True)  # gloo knows sums only
        self._sharded = {name: parameter for name, parameter in _named(self._root) if name in trained.parameters}
        assert self._sharded.keys() == trained.parameters.keys()
        self.trained = Trained(self._root.weights, {name: nn.Parameter(_local(self._sharded[name]).detach())
                                                    for name in trained.parameters})
        self._modules = {id(layer): module for layer, module in
                         zip(self.trained.weights.layers, self._root.layers, strict=True)}

    def gathered(self) -> Trained | None:
        """The whole model with its trained weights, as before it was spread; None except on rank 0."""
        whole: dict[str, nn.Parameter] = {}
        for name, parameter in _named(self._root):
            sharded: Tensor = parameter
            assert isinstance(sharded, DTensor)
            tensor = cast(DTensor, sharded.detach()).full_tensor()  # every rank takes part
            if self.rank == 0:
                whole[name] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        if self.rank:
            return None
        return Trained(self._root.with_tensors(whole), {name: whole[name] for name in self.trained.parameters})

    def own(self, items: Sequence[T]) -> Sequence[T]:
        return items[self.rank::self.count]

    def even(self, packs: Iterable[T], spare: Callable[[], T]) -> Iterator[tuple[T, bool]]:
        own = list(packs)
        count = torch.tensor(len(own), device=self._device)
        dist.all_reduce(count, dist.ReduceOp.MAX)
        yield from ((pack, True) for pack in own)
        for _ in range(int(count) - len(own)):
            yield own[0] if own else spare(), False

    def loss(self, weights: Weights, compute: Callable[[Weights], Tensor]) -> Tensor:
        assert weights is self.trained.weights
        loss: Tensor = self._root(compute)
        if not torch.is_grad_enabled():
            cast(FSDPModule, self._root).reshard()  # which otherwise a backward pass does
        return loss

    def runner(self, run: LayerRunner) -> LayerRunner:
        def gathered(body: Callable[[Tensor, Layer], Tensor], x: Tensor, layer: Layer) -> Tensor:
            out: Tensor = self._modules[id(layer)](run, body, x)
            return out
        return gathered

    def clip(self, parameters: Mapping[str, nn.Parameter], max_norm: float) -> float:
        for name, parameter in parameters.items():
            grad = self._sharded[name].grad
            parameter.grad = None if grad is None else _local(grad)
            self._sharded[name].grad = None
        (squares,) = self.total(clip_gradients(parameters.values(), 0.0) ** 2)
        norm = math.sqrt(squares)
        if math.isfinite(norm) and 0 < max_norm < norm:
            torch._foreach_mul_([parameter.grad for parameter in parameters.values() if parameter.grad is not None],
                                max_norm / norm)
        return norm

    def total(self, *numbers: float) -> tuple[float, ...]:
        summed = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        dist.all_reduce(summed)
        return tuple(summed.tolist())

    def whole(self, share: Tensor) -> Tensor:
        lengths = self._lengths(share)
        padded = share.new_zeros(max(lengths), *share.shape[1:])
        padded[:len(share)] = share
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def share(self, whole: Tensor, like: Tensor) -> Tensor:
        lengths = self._lengths(like)
        first = sum(lengths[:self.rank])
        return whole[first:first + len(like)]

    def _lengths(self, share: Tensor) -> list[int]:
        lengths = torch.zeros(self.count, dtype=torch.int64, device=self._device)
        lengths[self.rank] = len(share)
        dist.all_reduce(lengths)
        return [int(length) for length in lengths]


class SharedFolder:
    """The folder of a run, which rank 0 has; the other ranks give None, read through rank 0 and write nothing."""

    def __init__(self, folder: Folder | None) -> None:
        self._folder = folder

    def newest(self) -> TrainingCheckpoint | None:
        return first(lambda: self._own().newest())

    def read(self, step: int) -> TrainingCheckpoint:
        return first(lambda: self._own().read(step))

    def save(self, checkpoint: TrainingCheckpoint, best_step: int | None = None) -> None:
        if self._folder is not None:
            self._folder.save(checkpoint, best_step)

    def begin_log(self, step: int) -> None:
        if self._folder is not None:
            self._folder.begin_log(step)

    def log(self, line: Mapping[str, Plain]) -> None:
        if self._folder is not None:
            self._folder.log(line)

    def _own(self) -> Folder:
        assert self._folder is not None, "only rank 0 reads"
        return self._folder


@dataclass(frozen=True)
class _Slot:
    """A placeholder for a tensor that is a parameter of a module."""

    name: str


class _Owner(nn.Module):
    """A module that owns the tensors of a tree of weights; `skeleton` is the tree with slots in their place."""

    def __init__(self, tree: Any) -> None:
        super().__init__()
        self.skeleton = place(tree, self._emptied)

    def filled(self) -> Any:
        """The tree with the current tensors, which are gathered while the module runs."""
        return _filled(self.skeleton, lambda name: self._parameters[name])

    def _emptied(self, name: str, weight: Weight) -> Weight:
        return _mapped(weight, name, self._keep)

    def _keep(self, path: str, tensor: Tensor) -> _Slot:
        name = path.replace(".", "/")  # torch has no dots in the names of parameters
        self.register_parameter(name, tensor if isinstance(tensor, nn.Parameter)
                                else nn.Parameter(tensor, requires_grad=False))
        return _Slot(name)


class _Layer(_Owner):
    """One decoder block."""

    def forward(self, run: LayerRunner, body: Callable[[Tensor, Layer], Tensor], x: Tensor) -> Tensor:
        return run(body, x, self.filled())


class _Root(_Owner):
    """The whole model: its layers, and the weights outside of them."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(replace(weights, layers=()))
        owners = [_Layer(layer) for layer in weights.layers]
        self.layers = nn.ModuleList(owners)
        self._skeletons: tuple[Layer, ...] = tuple(owner.skeleton for owner in owners)

    @property
    def weights(self) -> Weights:
        """The tree without numbers; `Spread.runner` finds modules by its layers."""
        return self._with_layers(self.skeleton)

    def forward(self, compute: Callable[[Weights], Tensor]) -> Tensor:
        return compute(self._with_layers(self.filled()))

    def with_tensors(self, tensors: Mapping[str, nn.Parameter]) -> Weights:
        """The tree with tensors by the path of their weight."""
        def under(prefix: str) -> Callable[[str], Any]:
            return lambda name: tensors[prefix + name.replace("/", ".")]

        outside: Weights = _filled(self.skeleton, under(""))
        return replace(outside, layers=tuple(_filled(skeleton, under(f"layers.{index}."))
                                             for index, skeleton in enumerate(self._skeletons)))

    def _with_layers(self, tree: Weights) -> Weights:
        return replace(tree, layers=self._skeletons)


def _filled(skeleton: Any, tensor: Callable[[str], Any]) -> Any:
    """The tree with `tensor(name)` in place of each slot."""
    return place(skeleton, lambda path, weight: _mapped(weight, path, lambda _, slot: tensor(slot.name)))


def _mapped(weight: Weight, path: str, change: Callable[[str, Any], Any]) -> Weight:
    """The weight with every tensor replaced by `change(path, tensor)`."""
    def handle(path: str, given: Any) -> Any:
        match given:
            case Packed():
                return replace(given, data=change(path, given.data))
            case tuple():
                return tuple(handle(f"{path}.{index}", part) for index, part in enumerate(given))
        return change(path, given)

    match weight:
        case Placed(shape, given):
            return Placed(shape, handle(path, given))
        case Lora(Placed(shape, given), (LowRank(a, b, scale, magnitude),)):
            low_rank = LowRank(change(f"{path}.a", a), change(f"{path}.b", b), scale,
                               None if magnitude is None else change(f"{path}.magnitude", magnitude))
            return Lora(Placed(shape, handle(f"{path}.base", given)), (low_rank,))
    raise UnsupportedError(f"{path} is a {type(weight).__name__}, which cannot be spread over several processes")


def _named(root: _Root) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters by the path of their weight: layers.3.attention.wq.a."""
    return ((name.replace("/", "."), parameter) for name, parameter in root.named_parameters())


def _local(tensor: Tensor) -> Tensor:
    assert isinstance(tensor, DTensor)
    local: Tensor = tensor.to_local()
    return local
