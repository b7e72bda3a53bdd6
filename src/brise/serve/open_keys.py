"""The virtual keys of a store are opened here for a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from brise.serve.key_admission import KeyAdmission
from brise.serve.key_guard import KeyGuard, KeyOptions
from brise.traffic.stores import open_virtual_keys, shared_prices

# auto: requests need a key as soon as the store has one. on: they always do. off: the store's keys are not read.
KeyMode = Literal["auto", "on", "off"]


@dataclass(frozen=True)
class VirtualKeyOptions:
    """Virtual keys of a server: each has its own budget, limits and models.

    Attributes:
        mode: "auto": requests need a key as soon as the store has one. "on": always. "off": its keys are not read.
        store: The store that has them, a path or a postgresql:// URL. None: that of the gateway, by default the one in
            BRISE_HOME.
        prices: The file with what tokens cost. None: that of the gateway, by default the one in BRISE_HOME.
        grace_s: Seconds for which keys go on while the store fails, within what was left of their limits.
        unknown_usd: What a request counts in a budget if its cost is not known. None: its tokens at the highest price.
    """

    mode: KeyMode = "auto"
    store: str | Path | None = None
    prices: Path | None = None
    grace_s: float = KeyOptions().grace_s
    unknown_usd: float | None = None


@contextmanager
def open_keys(options: VirtualKeyOptions, home: Path,
              clock: Callable[[], float] = time.time) -> Iterator[KeyAdmission | None]:
    """Who is let in by a virtual key, and for how much; None if keys are off. What was used is written at the end."""
    if options.mode == "off":
        yield None
        return
    prices = shared_prices(options.prices, options.store, home)
    keys, budgets = open_virtual_keys(options.store, home)
    try:
        guard = KeyGuard(keys, budgets, KeyOptions(options.grace_s, options.unknown_usd), clock)
    except BaseException:
        keys.close()
        raise
    try:
        yield KeyAdmission(guard, prices, is_required=options.mode == "on")
    finally:
        guard.close()
