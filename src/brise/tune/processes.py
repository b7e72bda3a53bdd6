"""The processes of one run: a single one, or those that torchrun started. The first decides, all of them train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import torch
import torch.distributed

from brise.errors import UnsupportedError
from brise.tune.adapters import Trained
from brise.tune.options import TuneOptions
from brise.tune.process_group import Alone, Ranks
from brise.tune.recipe import Recipe
from brise.tune.session import Folder
from brise.tune.train import Trainer

if TYPE_CHECKING:  # as in `joined`
    from brise.tune.fsdp import ProcessGroup

T = TypeVar("T")


class Processes(Protocol):
    """Every process makes the same calls in the same order."""

    @property
    def count(self) -> int: ...

    @property
    def local_count(self) -> int:
        """On this machine."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that prints and writes."""

    def check(self, options: TuneOptions, recipe: Recipe) -> None:
        """UnsupportedError for what these processes cannot do."""

    def device(self, asked: torch.device) -> torch.device:
        """The device of this process."""

    def first(self, make: Callable[[], T]) -> T:
        """The result of `make`, which is called in the first process only."""

    def folder(self, own: Folder | None) -> Folder:
        """The run's folder, which only the first process has."""

    def around(self, trained: Trained) -> tuple[Trained, Ranks]:
        """What each process trains in place of `trained`, which the caller must release."""

    def gather(self, trainer: Trainer) -> None:
        """Gives the trainer of the first process the whole model."""


class Single:
    """One process."""

    count = local_count = 1
    is_first = True

    def check(self, options: TuneOptions, recipe: Recipe) -> None:
        """See Processes."""

    def device(self, asked: torch.device) -> torch.device:
        return asked

    def first(self, make: Callable[[], T]) -> T:
        return make()

    def folder(self, own: Folder | None) -> Folder:
        assert own is not None
        return own

    def around(self, trained: Trained) -> tuple[Trained, Ranks]:
        return trained, Alone()

    def gather(self, trainer: Trainer) -> None:
        """See Processes."""


@dataclass
class Launched:
    """The processes of torchrun, once they are connected."""

    group: ProcessGroup
    local_count: int

    @property
    def count(self) -> int:
        return self.group.count

    @property
    def is_first(self) -> bool:
        return self.group.rank == 0

    def check(self, options: TuneOptions, recipe: Recipe) -> None:
        from brise.tune import fsdp  # noqa: PLC0415 - as in `joined`

        if options.teacher is not None:
            raise UnsupportedError("--teacher and torchrun do not go together",
                                   hint="train on one machine, or on the teacher's texts")
        if options.offload == "all":
            raise UnsupportedError("--offload all and torchrun do not go together",
                                   hint="several GPUs share the weights already")
        fsdp.check(recipe)

    def device(self, asked: torch.device) -> torch.device:
        return self.group.device

    def first(self, make: Callable[[], T]) -> T:
        from brise.tune import fsdp  # noqa: PLC0415

        return fsdp.first(make)

    def folder(self, own: Folder | None) -> Folder:
        from brise.tune import fsdp  # noqa: PLC0415

        return fsdp.SharedFolder(own)

    def around(self, trained: Trained) -> tuple[Trained, Ranks]:
        from brise.tune import fsdp  # noqa: PLC0415

        ranks = fsdp.Spread(trained, self.group)
        return ranks.trained, ranks

    def gather(self, trainer: Trainer) -> None:
        from brise.tune import fsdp  # noqa: PLC0415

        ranks = trainer.ranks
        assert isinstance(ranks, fsdp.Spread)
        whole = ranks.gathered()
        if whole is not None:
            trainer.trained, trainer.ranks = whole, Alone()


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Connects to the other processes, if there are any, and disconnects in the end."""
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        yield Single()
        return
    # A second of imports, which only runs of several processes pay.
    from brise.tune import fsdp  # noqa: PLC0415

    wants_gpu = device == "auto" or device.startswith("cuda")
    group = fsdp.ProcessGroup(torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu"))
    try:
        yield Launched(group, fsdp.on_this_machine())
    finally:
        group.leave()
