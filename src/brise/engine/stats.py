"""What an engine says of itself, for metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from brise.engine.request import DraftCounts


@dataclass(frozen=True)
class EngineStats:
    """The state of an engine; totals count from its start."""

    running: int
    waiting: int
    pages: int
    pages_free: int  # idle ones with a cached prefix included
    pages_cached: int
    cache_bytes: int
    steps: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    preemptions: int
    failures: int
    images: int = 0  # encoded; those taken from the cache do not count
    audio_chunks: int = 0  # likewise
    adapters: int = 0  # in memory
    adapter_bytes: int = 0
    background: int = 0  # of the answers that run or wait: those of background requests
    drafts: Mapping[str, DraftCounts] = field(default_factory=dict)  # by source
