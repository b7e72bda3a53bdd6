"""transformers + PEFT as a measured trainer, for tune_peft.py: a plain loop over padded batches, float32.

A batch that does not fit into memory is cut into microbatches; the loss stays the mean over the whole batch's targets.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from tune_work import TARGETS, Settings, Work, first_a, read
from worker import answer, peak_bytes


class Peer:
    """The model with its adapter, the optimiser, and how far the work is done."""

    def __init__(self, folder: Path, work: Work, settings: Settings, microbatch: int) -> None:
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        base.config.use_cache = False
        self.model: Any = peft.get_peft_model(base, peft.LoraConfig(
            r=settings.rank, lora_alpha=int(settings.alpha), lora_dropout=0.0, target_modules=list(TARGETS),
            task_type="CAUSAL_LM"))
        for name, parameter in self.model.named_parameters():
            if ".lora_A." in name:
                parts = name.split(".")
                layer, target = int(parts[parts.index("layers") + 1]), parts[parts.index("lora_A") - 1]
                parameter.data = torch.from_numpy(first_a(layer, target, *parameter.shape))
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, betas=settings.betas,
                                           eps=settings.eps, weight_decay=0.0)
        self.work, self.done, self.microbatch = work, 0, microbatch
        self.model.train()

    def train(self, steps: int) -> dict[str, object]:
        losses: list[float] = []
        tokens = padded = 0
        start, cpu_start = time.perf_counter(), time.process_time()
        for chosen in self.work.order[self.done:self.done + steps]:
            rows = [self.work.rows[index] for index in chosen]
            num_targets = sum(int(is_target.sum()) for _, is_target in rows)
            losses.append(0.0)
            for first in range(0, len(rows), self.microbatch):
                part = rows[first:first + self.microbatch]
                batch = self._batch(part)
                loss = self.model(**batch).loss * (sum(int(is_target.sum()) for _, is_target in part) / num_targets)
                loss.backward()
                losses[-1] += float(loss.detach())
                tokens += int(batch["attention_mask"].sum())
                padded += batch["attention_mask"].numel()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.done += steps
        return {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start,
                "tokens": tokens, "padded": padded, "examples": steps * self.work.order.shape[1],
                "losses": losses, "peak_bytes": peak_bytes()}

    @staticmethod
    def _batch(rows: list[Any]) -> dict[str, torch.Tensor]:
        longest = max(len(tokens) for tokens, _ in rows)
        ids = np.zeros((len(rows), longest), np.int64)
        labels, mask = np.full_like(ids, -100), np.zeros_like(ids)
        for index, (tokens, is_target) in enumerate(rows):
            ids[index, :len(tokens)], mask[index, :len(tokens)] = tokens, 1
            labels[index, :len(tokens)] = np.where(is_target, tokens, -100)
        return {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask),
                "labels": torch.from_numpy(labels)}


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("model", type=Path)
    arguments.add_argument("work", type=Path)
    arguments.add_argument("--threads", type=int, required=True)
    arguments.add_argument("--microbatch", type=int, default=1 << 16, help="rows at a time")
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    peer = Peer(given.model, read(given.work), Settings(), given.microbatch)
    answer({"ready": True, "version": f"{transformers.__version__} + peft {peft.__version__}",
            "loaded_bytes": peak_bytes()})
    for line in sys.stdin:
        answer(peer.train(int(line)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
