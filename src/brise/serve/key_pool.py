"""What one process has of a key's limits: reserved ahead in the store, and left there when it was read last."""

from __future__ import annotations

from dataclasses import dataclass, replace

from brise.traffic import key_budgets
from brise.traffic.key_budgets import DAY_S, MINUTE_S, Amounts, Exceeded, KeyUse
from brise.traffic.virtual_keys import KeyLimits

AHEAD_S = 1.0  # requests are reserved ahead for so long
MOST_AHEAD = 10_000


@dataclass
class KeyPool:
    """Of one key and minute. `free` is reserved and not used yet; `room` was left in the store, and counts where that
    fails; `each` is what a request needs on average."""

    minute: int
    room: Amounts
    free: Amounts = Amounts()
    each: Amounts = Amounts(1)
    num_begun: int = 0  # since `measure`
    per_s: float = 0.0  # requests that began, smoothed
    is_topping_up: bool = False
    used_s: float | None = None  # when the key was used last, if that is not written down yet

    @property
    def ahead(self) -> int:
        """How many requests to reserve ahead."""
        return min(int(self.per_s * AHEAD_S), MOST_AHEAD)

    @property
    def needs_more(self) -> bool:
        """Whether it is time to reserve more."""
        return not self.is_topping_up and self.free.requests < self.ahead // 2

    def take_free(self) -> Amounts:
        """All that is reserved and not used: it goes back to the store."""
        free, self.free = self.free, Amounts()
        return free

    def turn(self, minute: int, limits: KeyLimits) -> None:
        """Goes to another minute, when `take_free` was called. A day begins with its whole budget."""
        whole = key_budgets.room(limits, KeyUse())
        is_new_day = minute * MINUTE_S // DAY_S != self.minute * MINUTE_S // DAY_S
        has_new_money = is_new_day and limits.usd_per_month is None
        self.room = replace(whole, nano_usd=whole.nano_usd if has_new_money else self.room.nano_usd)
        self.minute = minute

    def take_ahead(self, need: Amounts) -> bool:
        """Whether what is reserved ahead suffices for a request; it is taken then."""
        self.num_begun += 1
        self.each = Amounts(1, *(max((7 * mean + now) // 8, 1) for mean, now in (
            (self.each.tokens, need.tokens), (self.each.nano_usd, need.nano_usd))))
        if not self.free.covers(need):
            return False
        self.free -= need
        return True

    def take_local(self, need: Amounts, limits: KeyLimits) -> Exceeded | None:
        """Takes from what was left, without asking the store; or says which limit stands against that."""
        if limits.requests_per_minute is not None and self.room.requests < need.requests:
            return Exceeded("requests_per_minute", True)
        if limits.tokens_per_minute is not None and need.tokens > 0 and self.room.tokens <= 0:
            return Exceeded("tokens_per_minute", True)
        if need.nano_usd > 0 and self.room.nano_usd <= 0:
            return Exceeded("usd_per_day" if limits.usd_per_day is not None else "usd_per_month", False)
        self.room -= need
        return None

    def measure(self, seconds: float) -> bool:
        """Measures how busy the key was for so long; False if it was idle."""
        self.per_s = (self.per_s + self.num_begun / seconds) / 2
        was_busy, self.num_begun = self.num_begun > 0, 0
        return was_busy
