"""The adapter of a bundle: in bf16, half of its bytes, and how far that changed what the model says.

`brise tune` writes float32. Each number of A and B is rounded to 8 bits of mantissa, a relative error of 2^-9 at most;
what that does to the predictions is measured on the gate prompts and their answers, over the full vocabulary, before
anything is signed.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from brise.backends import num_cores, open_planner
from brise.checkpoint.adapters.lineage import FILE as LINEAGE_FILE
from brise.checkpoint.adapters.peft import WEIGHTS_FILE
from brise.checkpoint.adapters.peft_settings import CONFIG_FILE
from brise.checkpoint.gguf.write_file import Outgoing
from brise.checkpoint.read_original import Original, open_original
from brise.checkpoint.safetensors.file import SafetensorsFile, TensorEntry, open_safetensors
from brise.checkpoint.safetensors.write_file import write_file
from brise.convert.merge_adapter import with_adapter
from brise.data.ngrams import FILE as NGRAMS_FILE
from brise.data.ngrams import SEALED
from brise.engine.scoring import WINDOW, Machine, ScoringModel, compare
from brise.errors import FleetError, UnsupportedError
from brise.files.digests import Located
from brise.fleet.bundle import AdapterParity
from brise.fleet.gate_prompts import GatePrompt
from brise.models.weights import Array, Dense
from brise.quant.quality import QuantQuality
from brise.quant.rows import encode_rows, float_rows
from brise.watch import Watcher

BESIDE = (CONFIG_FILE, LINEAGE_FILE)
_BLOCK_NUMBERS = 1 << 22  # that are converted at a time


@dataclass(frozen=True)
class ParityLimits:
    """How far the adapter in bf16 may be from the one that was trained. `kl` is the mean over tokens in nats, `logprob`
    the largest difference of the log-probability of a token of an answer. `same` is the least share of answers that
    are equal, or part at two tokens of which the trained adapter finds the other one less likely by `logprob` at most.

    The native kernels multiply 8-bit integers, so any change of a weight is noise: of SmolLM2-135M as Q4_1 with an
    adapter that changes next to nothing, 0.007 nats on prompts of one word, whose answers could be anything, and
    0.00002 on the calls that an adapter was tuned for, with log-probabilities within 0.28 (docs/dev/LOG.md). The
    limits are three times that; `brise parity` allows 0.0185 nats.
    """

    kl: float = 0.02
    logprob: float = 0.8
    same: float = 0.9


@dataclass(frozen=True)
class ConvertedAdapter:
    """The folder of the adapter as it is shipped; `is_changed` unless it was in bf16 already."""

    folder: Path
    is_changed: bool
    left_out: tuple[str, ...] = ()


def convert(adapter: Path, folder: Path) -> ConvertedAdapter:
    """Writes the adapter in bf16 into a new folder, with its settings, its lineage and its table of n-grams.

    A table that is sealed stays behind: it is made of captured traffic, and only its store's keys open it.
    """
    folder.mkdir()
    source = open_safetensors(adapter / WEIGHTS_FILE)
    try:
        is_changed = any(tensor.dtype != "BF16" for tensor in source.tensors.values())
        if is_changed:
            write_file(folder / WEIGHTS_FILE, [_outgoing(source, tensor) for tensor in source.tensors.values()])
    finally:
        source.close()
    for name in (*BESIDE, *(() if is_changed else (WEIGHTS_FILE,))):
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, folder / name)
    return ConvertedAdapter(folder, is_changed, _copy_table(adapter / NGRAMS_FILE, folder))


def divergence(located: Located, trained: Path, shipped: Path, windows: Sequence[Array], threads: int | None,
               watcher: Watcher, *, any_base: bool) -> QuantQuality:
    """How the predictions with the shipped adapter differ from those with the trained one, token by token over the
    full vocabulary. Both are merged into the base, one weight at a time."""
    original = open_original(located.path)
    before, after = (_scored(with_adapter(original, located, folder, any_base=any_base))
                     for folder in (trained, shipped))
    backend = open_planner(threads or num_cores())
    with watcher.progress("comparing bf16 with what was trained", sum(map(len, windows)), "tokens") as advance:
        return compare(Machine(backend, backend.ops()), before, after, windows, advance)


def windows_of(prompts: Sequence[Sequence[int]]) -> list[Array]:
    """Prompts with their answers, in tokens, as windows; the end of a long one."""
    return [np.array(tokens[-WINDOW:], np.int32) for tokens in prompts if len(tokens) > 1]


def parity_of(quality: QuantQuality, trained: Sequence[GatePrompt], shipped: Sequence[GatePrompt],
              limits: ParityLimits) -> AdapterParity:
    """The figures that go into the manifest; FleetError if the shipped adapter is another one than the trained one.

    Log-probabilities are compared as far as the answers are the same.
    """
    largest, alike, same = 0.0, 0, 0
    for before, after in zip(trained, shipped, strict=True):
        apart = 0.0  # how much less likely what came was, where the answers part
        for one, other in zip(before.tokens, after.tokens, strict=False):
            if one.text != other.text:
                likely = {choice.text: choice.logprob for choice in one.top}
                apart = one.logprob - likely.get(other.text, -math.inf)
                break
            largest = max(largest, abs(one.logprob - other.logprob))
        is_same = [token.text for token in before.tokens] == [token.text for token in after.tokens]
        same, alike = same + is_same, alike + (is_same or 0.0 < apart <= limits.logprob)
    parity = AdapterParity(len(shipped), quality.num_tokens, quality.kl_mean, quality.kl_max, largest, same)
    _check(parity, alike, limits)
    return parity


def _check(parity: AdapterParity, alike: int, limits: ParityLimits) -> None:
    wrong = []
    if parity.kl_mean > limits.kl:
        wrong.append(f"its predictions diverge by {parity.kl_mean:.2g} nats a token, {limits.kl:g} are allowed")
    if parity.logprob_max > limits.logprob:
        wrong.append(f"a token's log-probability differs by {parity.logprob_max:.2g}, {limits.logprob:g} is allowed")
    if alike < limits.same * parity.prompts:
        wrong.append(f"{alike} of {parity.prompts} answers are the same or as likely, {limits.same:.0%} are needed")
    if wrong:
        raise FleetError(f"in bf16 the adapter is another one than was trained: {'; '.join(wrong)}",
                         hint="nothing was signed. Train it so that its numbers survive rounding (a smaller learning "
                              "rate, fewer steps), or look at the gate prompts")


def _outgoing(source: SafetensorsFile, tensor: TensorEntry) -> Outgoing:
    if tensor.dtype not in ("F32", "F16", "BF16"):
        raise UnsupportedError(f"tensor {tensor.name} has the dtype {tensor.dtype}, allowed are F32, F16 and BF16")

    def pieces() -> Iterator[Array]:
        flat = source.array(tensor.name).reshape(1, -1)
        for first in range(0, flat.shape[1], _BLOCK_NUMBERS):
            part = np.ascontiguousarray(flat[:, first:first + _BLOCK_NUMBERS])
            numbers = np.asarray(float_rows(Dense(tensor.dtype, part.shape, part), 0, 1), np.float32)
            yield encode_rows(tensor.name, "BF16", numbers)

    return Outgoing(tensor.name, "BF16", tensor.shape, pieces)


def _copy_table(path: Path, folder: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    with path.open("rb") as file:
        if file.read(len(SEALED)) == SEALED:
            return (path.name,)
    shutil.copyfile(path, folder / path.name)
    return ()


def _scored(original: Original) -> ScoringModel:
    return ScoringModel(original.config, original.weights, original.forget)
