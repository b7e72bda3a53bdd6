"""What tokens and hours cost: prices.toml, a file that its user edits.

    [models."gpt-4o"]      # as the model calls itself in its answers, or as requests name it
    input = 2.50           # USD a million tokens
    cached_input = 1.25    # optional: of tokens that its cache had (default: as input)
    output = 10.00

    [models."claude-sonnet-4-5"]
    input = 3.00
    cached_input = 0.30
    cache_write = 3.75     # of tokens that were written into its cache (unknown without it)
    cache_write_1h = 6.00  # of those that it keeps for an hour (unknown without it)
    output = 15.00
    audio_input = 40.00    # of audio (unknown without them)
    audio_output = 80.00
    [models."claude-sonnet-4-5".long]
    over = 200_000         # tokens of a prompt from which on these prices hold
    input = 6.00
    cached_input = 0.60
    cache_write = 7.50
    cache_write_1h = 12.00
    output = 22.50

    [hardware]             # the machine that the small model runs on
    price = 1400           # USD, when it was bought
    years = 4              # over which that is spread
    watts = 65             # while it works
    usd_per_kwh = 0.30
    utilisation = 0.25     # optional: share of those years in which it works at all (default: 1)
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from brise.dialects.bodies import Usage
from brise.errors import UnsupportedError

FILE = "prices.toml"
_HINT = "see docs/guides/report.md, Prices"
_TOKENS = 1e6  # prices are for so many
_HOUR_S = 3600.0
_YEAR_S = 365.25 * 24 * _HOUR_S
_LARGEST = 1e9
_OPTIONAL = ("cached_input", "cache_write", "cache_write_1h", "audio_input", "audio_output")


@dataclass(frozen=True)
class Price:
    """USD a million tokens. `long` holds for the whole of an answer to a prompt of more than `over` tokens.

    A price that is missing is not known, and not zero: without one for audio or for writing into the cache, what has
    such tokens has no cost. Tokens from the cache cost as much as others unless a price says less.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    cache_write_1h: float | None = None
    audio_input: float | None = None
    audio_output: float | None = None
    over: int = 0
    long: Price | None = None

    def of(self, usage: Usage) -> float | None:
        """USD for one answer; None if a number of tokens or its price is not known."""
        prompt, completion = usage.prompt_tokens, usage.completion_tokens
        if prompt is None or completion is None:
            return None
        if self.long is not None and prompt > self.over:
            return self.long.of(usage)
        hour, audio = usage.cache_write_1h_tokens, usage.audio_completion_tokens
        if self.cache_write == self.cache_write_1h:  # then it does not matter for how long
            hour = 0
        parts = ((usage.plain_prompt_tokens, self.input),
                 (usage.cached_tokens, self.input if self.cached_input is None else self.cached_input),
                 (_less(usage.cache_write_tokens, hour), self.cache_write), (hour, self.cache_write_1h),
                 (usage.audio_prompt_tokens, self.audio_input), (_less(completion, audio), self.output),
                 (audio, self.audio_output))
        total = 0.0
        for tokens, price in parts:
            if tokens is None or tokens < 0 or (tokens and price is None):
                return None
            total += tokens * (price or 0.0)
        return total / _TOKENS


@dataclass(frozen=True)
class Hardware:
    """The machine that the small model runs on."""

    price: float
    years: float
    watts: float
    usd_per_kwh: float
    utilisation: float = 1.0

    @property
    def usd_per_busy_s(self) -> float:
        """The price of the machine, spread over the seconds in which it works."""
        return self.price / (self.years * _YEAR_S * self.utilisation)

    @property
    def usd_of_power_s(self) -> float:
        """The cost of electricity for a second in which it works."""
        return self.watts / 1000 / _HOUR_S * self.usd_per_kwh


@dataclass(frozen=True)
class Prices:
    """All prices of a file; without a file there are none."""

    models: Mapping[str, Price] = field(default_factory=dict)
    hardware: Hardware | None = None
    path: Path | None = None

    def price(self, served_by: str | None, requested: str, upstream: str | None = None) -> Price | None:
        """By the name that the model gives itself, else by the one in the request; first by either at this upstream,
        as in "azure/gpt-4o". Nothing is guessed."""
        at_upstream = f"{upstream}/" if upstream else ""
        bare = requested.removeprefix(at_upstream)
        names = [name for name in (served_by, requested, bare) if name]
        return next((self.models[name] for name in (*(at_upstream + name for name in names), *names)
                     if name in self.models), None)

    def cost(self, served_by: str | None, requested: str, usage: Usage | None,
             upstream: str | None = None) -> float | None:
        """USD for an answer; None if price or tokens are unknown."""
        price = self.price(served_by, requested, upstream)
        return None if price is None or usage is None else price.of(usage)


def default_place(home: Path) -> Path:
    """The file that is read unless the user names another."""
    return home / "gateway" / FILE


def read_if_there(path: Path | None, home: Path) -> Prices | None:
    """The prices in the given file, or in the default file if it exists."""
    if path is None:
        path = default_place(home)
        if not path.exists():
            return None
    return read_prices(path)


def read_prices(path: Path) -> Prices:
    """Reads the file and checks each field; UnsupportedError names what is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UnsupportedError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UnsupportedError(f"{path} is not TOML: {error}", hint=_HINT) from None
    return parse_prices(text, path)


def parse_prices(text: str, path: Path) -> Prices:
    """The same of a file's text; `path` is where it comes from."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UnsupportedError(f"{path} is not TOML: {error}", hint=_HINT) from None
    _only(document, ("models", "hardware"), str(path))
    models = _table(document.get("models", {}), f"{path}, models")
    hardware = document.get("hardware")
    return Prices({name: _price(_table(entry, f"{path}, {name}"), f"{path}, models.{name}")
                   for name, entry in models.items()},
                  None if hardware is None else _hardware(_table(hardware, f"{path}, hardware"), f"{path}, hardware"),
                  path)


def _price(entry: Mapping[str, object], where: str) -> Price:
    _only(entry, ("input", "output", *_OPTIONAL, "long"), where)
    longer = _table(entry.get("long", {}), f"{where}.long")
    if not longer:
        return _rates(entry, where)
    _only(longer, ("over", "input", "output", *_OPTIONAL), f"{where}.long")
    return replace(_rates(entry, where), over=int(_number(longer, "over", f"{where}.long", above=0.0)),
                   long=_rates(longer, f"{where}.long"))


def _rates(entry: Mapping[str, object], where: str) -> Price:
    cached, written, written_1h, audio_in, audio_out = (
        _number(entry, name, where) if name in entry else None for name in _OPTIONAL)
    return Price(_number(entry, "input", where), _number(entry, "output", where), cached, written, written_1h,
                 audio_in, audio_out)


def _hardware(entry: Mapping[str, object], where: str) -> Hardware:
    _only(entry, ("price", "years", "watts", "usd_per_kwh", "utilisation"), where)
    share = _number(entry, "utilisation", where, above=0.0, most=1.0) if "utilisation" in entry else 1.0
    return Hardware(_number(entry, "price", where), _number(entry, "years", where, above=0.0, most=100.0),
                    _number(entry, "watts", where), _number(entry, "usd_per_kwh", where), share)


def _only(entry: Mapping[str, object], allowed: tuple[str, ...], where: str) -> None:
    unknown = next((name for name in entry if name not in allowed), None)
    if unknown is not None:
        raise UnsupportedError(f"{where}: unknown field {unknown[:64]!r}; allowed are {', '.join(allowed)}", hint=_HINT)


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise UnsupportedError(f"{where} is {str(value)[:64]!r}, it must be a table", hint=_HINT)
    return value


def _number(entry: Mapping[str, object], name: str, where: str, *, above: float | None = None, most: float = _LARGEST
            ) -> float:
    value = entry.get(name)
    if value is None:
        raise UnsupportedError(f"{where}: {name!r} is missing", hint=_HINT)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    low = "0" if above is None else f"over {above:g}"
    if not is_number or not 0 <= float(str(value)) <= most or (above is not None and float(str(value)) <= above):
        raise UnsupportedError(f"{where}: {name!r} is {str(value)[:64]!r}, allowed is {low} to {most:g}", hint=_HINT)
    return float(str(value))


def _less(tokens: int | None, part: int | None) -> int | None:
    return None if tokens is None or part is None else tokens - part
