"""Random adapters, and folders of them, without PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from brise.checkpoint.adapters.lineage import Lineage
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.models.config import Config
from brise.models.lora import targets
from brise.models.weights import LowRank

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LINEAGE = Lineage(
    base_name="smollm2", base_digest="a" * 64, data_digest="0f" * 32,
    settings={"rank": 8, "learning_rate": 2e-4, "method": "lora", "packed": True, "stop_after": None},
    versions={"brise": "0.1.0", "torch": "2.13.0"}, seed=(1 << 63) + 5,
    metrics={"held_out_loss": 0.25, "steps": 300}, rights={"openai": "contract of 2026-01-01"},
    created="2026-11-24T00:00:00+00:00")


def written(folder: Path, config: Config) -> Path:
    """An adapter of rank 3 on q_proj, with a lineage."""
    low_ranks = random_low_ranks(config, 7, modules=("q_proj",))
    write_adapter(folder, AdapterFile(low_ranks, 3, 6.0), LINEAGE, config)
    return folder


def random_low_ranks(config: Config, seed: int, *, rank: int = 3, dora: bool = False,
                     modules: tuple[str, ...] = MODULES) -> dict[str, LowRank]:
    random = np.random.default_rng(seed)
    out = {}
    for path, (rows, cols) in targets(config, modules).items():
        magnitude = random.uniform(0.5, 1.5, rows).astype(np.float32) if dora else None
        out[path] = LowRank(random.normal(0, 0.2, (rank, cols)).astype(np.float32),
                            random.normal(0, 0.2, (rows, rank)).astype(np.float32), 2.0, magnitude)
    return out


def edit(folder: Path, **values: Any) -> None:
    """Overwrites keys of adapter_config.json."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
