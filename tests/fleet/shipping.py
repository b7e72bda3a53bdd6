"""A tiny model with a chat template, adapters of it, gate prompts, and the keys of a fleet, for tests of shipping."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from brise.checkpoint.adapters.lineage import Lineage, base_digest
from brise.checkpoint.adapters.peft import AdapterFile, write_adapter
from brise.checkpoint.open import open_checkpoint
from brise.files.digests import Located
from brise.fleet.repository import PublicKeys, Repository
from brise.fleet.ship import ShipOptions
from brise.fleet.signing import new_key
from tests.checkpoint.make_adapter import LINEAGE, random_low_ranks
from tests.checkpoint.make_gguf import write_tiny
from tests.fleet.repositories import Clock

PROMPTS = ("one", "two winds", "three", "four")


@dataclass(frozen=True)
class Workshop:
    """Where bundles are made: `folder` holds model, adapters, prompts, keys and repository."""

    folder: Path
    clock: Clock

    @property
    def model(self) -> Path:
        return self.folder / "tiny.gguf"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    @property
    def repository(self) -> Repository:
        return Repository(self.folder / "repository", self.clock)

    def adapter(self, name: str = "adapter", *, scale: float = 0.25, dtype: str = "F32", lineage: bool = True,
                rights: Mapping[str, str] | None = None) -> Path:
        """A random adapter of the model, whose numbers are small enough to answer almost as the base does."""
        config = open_checkpoint(self.model).config
        low_ranks = {path: replace(one, scale=one.scale * scale) for path, one in random_low_ranks(config, 7).items()}
        changed = replace(LINEAGE, base_digest=base_digest(Located("tiny", self.model)),
                          rights={"openai": "contract"} if rights is None else rights)
        made: Lineage | None = changed if lineage else None
        write_adapter(self.folder / name, AdapterFile(low_ranks, 3, 6.0 * scale), made, config, dtype=dtype)
        return self.folder / name

    def options(self, **changes: Any) -> ShipOptions:
        """Options that ship the model with nothing else."""
        return replace(ShipOptions(
            str(self.model), "tickets", self.folder / "gate.jsonl", repository=self.folder / "repository",
            keys=self.keys, gate_tokens=8, context=64, parallel=2, licence="Apache-2.0", threads=2), **changes)


def workshop(folder: Path) -> Workshop:
    """A new one, with keys and an empty repository."""
    made = Workshop(folder, Clock())
    write_tiny(made.model, "llama", vocab=300)
    (folder / "gate.jsonl").write_text("".join(
        json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in PROMPTS))
    made.keys.mkdir()
    keys = {name: new_key(made.keys / f"{name}.key") for name in ("root-1", "root-2", "root-3", "release", "hub")}
    roots = [keys[f"root-{number}"] for number in (1, 2, 3)]
    public = PublicKeys([one.public for one in roots], 2, keys["release"].public, keys["hub"].public)
    Repository.create(folder / "repository", public, roots[:2], keys["release"], keys["hub"], now=made.clock)
    return made
