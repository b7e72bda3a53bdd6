"""Formats numbers for people, the same in the terminal and in HTML."""

from __future__ import annotations

import math

UNKNOWN = "not known"


def count(value: float | None) -> str:
    """12345 as '12,345'."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def percent(share: float | None, digits: int = 1) -> str:
    """0.974 as '97.4 %'. Almost all is not rounded to all, nor almost nothing to nothing."""
    if share is None or math.isnan(share):
        return UNKNOWN
    text = f"{100 * share:.{digits}f} %"
    least = 10.0**-digits
    if share < 1 and float(text[:-2]) >= 100:
        return f"over {100 - least:.{digits}f} %"
    if share > 0 and float(text[:-2]) <= 0:
        return f"under {least:.{digits}f} %"
    return text


def points(difference: float | None, digits: int = 1) -> str:
    """A difference of shares, with its sign: -0.013 as '-1.3 points'."""
    if difference is None or math.isnan(difference):
        return UNKNOWN
    return f"{100 * difference + 0.0:+.{digits}f} points"


def interval(low: float | None, high: float | None, digits: int = 1) -> str:
    """Two shares as '[95.1, 98.8]' (percent), or nothing."""
    if low is None or high is None:
        return ""
    return f"[{100 * low:.{digits}f}, {100 * high:.{digits}f}]"


def seconds(value: float | None) -> str:
    """0.0123 as '12.3 ms', 75 as '1 min 15 s'."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if value < 1:
        return f"{1000 * value:.3g} ms"
    if value < 60:
        return f"{value:.3g} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def usd(value: float | None) -> str:
    """Dollars with the digits that matter: '$1,234', '$12.30', '$0.00042'."""
    if value is None or math.isnan(value):
        return UNKNOWN
    sign, size = ("-" if value < 0 else ""), abs(value)
    if size >= 1000:
        return f"{sign}${size:,.0f}"
    if size >= 1 or size == 0:
        return f"{sign}${size:,.2f}"
    digits = 2 - math.floor(math.log10(size)) - 1
    return f"{sign}${size:.{max(digits, 2)}f}"


def at_least(value: float | None, known: int, number: int) -> str:
    """A sum of which a part may be unknown: '$12.30', 'at least $12.30 (known for 93 %)', 'not known'."""
    if value is None or known >= number:
        return usd(value)
    return f"at least {usd(value)} (known for {percent(known / number, 0)})"


def short(value: float) -> str:
    """A number for an axis: 0.001, 20, 1,000, 2M."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:g}M" if size < 1e9 else f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    if size >= 1000:
        return f"{value:,.0f}"
    if 0 < size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    return f"{value:g}"
