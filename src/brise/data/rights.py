"""The right to train on a hosted model's answers: rights.toml, and which of its entries a run used.

    [[allow]]
    provider = "openai"                       # as the rows name it
    basis = "enterprise contract of 2026, 4.2" # where it is written
    date = 2026-03-01                         # when it was agreed or last checked
    scope = "training"                        # or "evaluation", or both in a list
    expires = 2027-03-01                      # optional: the first day on which it no longer holds

Answers of people and open models, and outcomes, need no entry: their rows name no provider.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from brise.errors import EvidenceError

SCOPES = ("training", "evaluation")
_FIELDS = ("provider", "basis", "date", "scope", "expires")
_HINT = "see docs/guides/tune.md, Teacher's rights"

# Models that are only hosted, by the beginning of their names. Open weights of the same makers do not match.
_HOSTED: Sequence[tuple[str, str]] = (
    ("gpt-[3-9]|chatgpt-|o[1-9](-|$)|text-davinci|davinci-|codex-", "openai"), ("claude", "anthropic"),
    ("gemini", "google"), ("grok-[2-9]", "xai"), ("(mistral|magistral)-medium", "mistral"),
    ("nova-(micro|lite|pro|premier)|titan-text", "amazon"), ("qwen(-|[0-9.]+-)(max|plus|turbo)", "alibaba"))


class RightsError(EvidenceError):
    """Nothing allows training on some rows, or rights.toml is unclear."""


@dataclass(frozen=True)
class Right:
    """One entry of rights.toml."""

    provider: str
    basis: str
    date: datetime.date
    scope: tuple[str, ...]
    expires: datetime.date | None = None


@dataclass(frozen=True)
class Used:
    """An entry that allowed training on rows of a run, for the adapter's lineage."""

    right: Right
    rows: int

    def as_json(self) -> dict[str, object]:
        """For the lineage file."""
        right = self.right
        return {"provider": right.provider, "basis": right.basis, "date": right.date.isoformat(),
                "scope": list(right.scope), "expires": right.expires.isoformat() if right.expires else None,
                "rows": self.rows}


@dataclass(frozen=True)
class Rights:
    """All entries of a file."""

    entries: tuple[Right, ...] = ()
    path: Path | None = None

    def used(self, rows: Mapping[str, int], today: datetime.date) -> tuple[Used, ...]:
        """The entries that allow training on so many rows of each provider (lower case); RightsError if none does."""
        return tuple(Used(self._entry(provider, rows[provider], today), rows[provider]) for provider in sorted(rows))

    def _entry(self, provider: str, rows: int, today: datetime.date) -> Right:
        what = f"{rows} rows hold answers of {provider!r}, a hosted provider"
        where = "no rights file was given" if self.path is None else f"{self.path} has no entry for it"
        known = [entry for entry in self.entries if entry.provider == provider]
        if not known:
            raise RightsError(f"{what}, and {where}",
                              hint=f"record what allows training on them in rights.toml ({_HINT}), or leave them out")
        for entry in known:
            reason = _why_not(entry, today)
            if reason is None:
                return entry
        raise RightsError(f"{what}, and {self.path} does not allow to train on them: {reason}", hint=_HINT)


def read_rights(path: Path) -> Rights:
    """The file's entries, each field checked."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RightsError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RightsError(f"{path} is not TOML: {error}", hint=_HINT) from None
    unknown = [name for name in document if name != "allow"]
    if unknown:
        raise RightsError(f"{path}: unknown name {unknown[0][:64]!r}; allowed is [[allow]]", hint=_HINT)
    entries = document.get("allow", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RightsError(f"{path}: 'allow' must be entries that begin with [[allow]]", hint=_HINT)
    return Rights(tuple(_right(entry, f"{path}, entry {number}") for number, entry in enumerate(entries, 1)), path)


def provider_of_model(name: str) -> str | None:
    """The provider that hosts a model of this name, if it is known; a vendor or "ft:" may precede the name."""
    providers = (provider for pattern, provider in _HOSTED if re.search(f"(^|[/.:])({pattern})", name.lower()))
    return next(providers, None)


def _right(entry: Mapping[str, object], where: str) -> Right:
    unknown = [name for name in entry if name not in _FIELDS]
    if unknown:
        raise RightsError(f"{where}: unknown field {unknown[0][:64]!r}; allowed are {', '.join(_FIELDS)}", hint=_HINT)
    given = _day(entry, "date", where)
    if given is None:
        raise RightsError(f"{where}: 'date' is missing", hint=_HINT)
    return Right(_text(entry, "provider", where).lower(), _text(entry, "basis", where), given, _scope(entry, where),
                 _day(entry, "expires", where))


def _text(entry: Mapping[str, object], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value.strip():
        problem = "is missing" if value is None else f"is {str(value)[:64]!r}, it must be a text that says something"
        raise RightsError(f"{where}: {name!r} {problem}", hint=_HINT)
    return value.strip()


def _day(entry: Mapping[str, object], name: str, where: str) -> datetime.date | None:
    value = entry.get(name)
    if value is not None and (not isinstance(value, datetime.date) or isinstance(value, datetime.datetime)):
        raise RightsError(f"{where}: {name!r} is {str(value)[:64]!r}, it must be a day like 2026-03-01, unquoted",
                          hint=_HINT)
    return value


def _scope(entry: Mapping[str, object], where: str) -> tuple[str, ...]:
    value = entry.get("scope")
    scopes = [value] if isinstance(value, str) else value
    if value is None:
        raise RightsError(f"{where}: 'scope' is missing; allowed are {', '.join(SCOPES)}", hint=_HINT)
    if not isinstance(scopes, list) or not scopes or any(scope not in SCOPES for scope in scopes):
        raise RightsError(f"{where}: 'scope' is {value!r}; allowed are {', '.join(SCOPES)}", hint=_HINT)
    return tuple(scopes)


def _why_not(entry: Right, today: datetime.date) -> str | None:
    if "training" not in entry.scope:
        return f"its scope is {', '.join(entry.scope)}"
    if entry.date > today:
        return f"its date, {entry.date}, is still to come"
    if entry.expires is not None and today >= entry.expires:
        return f"it expired on {entry.expires}"
    return None


