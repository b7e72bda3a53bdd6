"""Gateways that ask for virtual keys, with a clock that the test sets, on a store of either kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from brise.gateway.gateway import Components
from brise.serve.key_admission import KeyAdmission
from brise.serve.key_guard import KeyGuard, KeyOptions
from brise.traffic.key_budgets import KeyBudgets, KeyUse
from brise.traffic.prices import Price, Prices
from brise.traffic.stores import open_virtual_keys
from brise.traffic.virtual_keys import KeyLimits, VirtualKeys
from tests.gateway.fake_answers import MODEL, chat_body
from tests.gateway.rig import Rig, rig
from tests.waiting import wait_until

NOON_S = 1_767_268_800.0  # 2026-01-01 12:00:00 UTC
PRICES = Prices({"big": Price(100.0, 1000.0), MODEL: Price(100.0, 1000.0)})


@dataclass
class Clock:
    """Seconds since the epoch, as the test says."""

    now_s: float = NOON_S

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True)
class KeyedRig:
    """A gateway, its keys, and what they have used."""

    rig: Rig
    keys: VirtualKeys
    budgets: KeyBudgets
    clock: Clock
    guard: KeyGuard
    texts: dict[str, str] = field(default_factory=dict)

    def add(self, name: str = "team", **limits: Any) -> str:
        """A new key; its text."""
        self.texts[name] = self.keys.add(name, KeyLimits(**limits)).text
        return self.texts[name]

    def ask(self, key: str, model: str = "big", *, stream: bool = False, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}
        return self.rig.live.post("/v1/chat/completions", body | ({"stream": True} if stream else {}),
                                  headers={"authorization": f"Bearer {key}"})

    def use(self, name: str = "team") -> KeyUse:
        return self.budgets.use(self.keys.named(name).id, self.clock())

    def wait_settled(self, name: str = "team", number: int = 1) -> KeyUse:
        """What is written down, as soon as it is of so many requests of this day."""
        wait_until(lambda: self.use(name).day.used.requests >= number)
        return self.use(name)


@contextmanager
def keyed(place: str | Path, home: Path, *, prices: Prices | None = PRICES, options: KeyOptions | None = None,
          clock: Clock | None = None, is_required: bool = True,
          around: Callable[[KeyBudgets], KeyBudgets] | None = None, **more: Any) -> Iterator[KeyedRig]:
    """One gateway on the store; several may run at once on one."""
    clock = clock or Clock()
    with ExitStack() as stack:
        mine, my_budgets = open_virtual_keys(place, home)
        stack.callback(mine.close)
        keys, budgets = open_virtual_keys(place, home)
        guard = KeyGuard(keys, around(budgets) if around is not None else budgets, options or KeyOptions(), clock)
        stack.callback(guard.close)
        admission = KeyAdmission(guard, prices, is_required=is_required)
        made = stack.enter_context(rig(parts=Components(prices=prices), admission=admission, **more))
        yield KeyedRig(made, mine, my_budgets, clock, guard)


def words(number: int) -> dict[str, Any]:
    """An answer of ten prompt tokens and so many others."""
    return replace_usage(chat_body("ok"), number)


def replace_usage(body: dict[str, Any], number: int) -> dict[str, Any]:
    return {**body, "usage": {"prompt_tokens": 10, "completion_tokens": number, "total_tokens": 10 + number}}
