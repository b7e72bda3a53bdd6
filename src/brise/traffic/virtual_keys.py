"""Virtual keys: what clients send in place of the upstream's key, each with limits of its own.

    brise-ID-SECRET     a key as its client has it; it is shown once, when it is made

The store has the ID and the SHA-256 of the whole text: a secret of 256 random bits needs no slower hash. A key that is
removed stays as a row without a digest, so that a server whose last key was removed still asks for one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal, get_args

from brise.errors import StoreError, UnsupportedError
from brise.traffic.schema import Database, Row

PREFIX = "brise-"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:-]{0,63}")
MOST_USD, MOST_COUNT, MOST_MODELS = 1e9, 2**53, 256
LABEL = "key"  # of an exchange: the name of the key that its request came with
State = Literal["active", "disabled", "removed"]
PageScope = Literal["view", "content", "operate"]
_TEXT = re.compile(rf"{PREFIX}([0-9a-f]{{12}})-[A-Za-z0-9_-]{{43}}")
_COLUMNS = "id, name, digest, old_digest, old_until_s, created_s, expires_s, state, limits, last_used_s"


class UnknownKeyError(StoreError):
    """The store has no virtual key of this name."""


@dataclass(frozen=True)
class KeyLimits:
    """What a key may use; None is no limit. Days and months are those of UTC; `models` are names with * and ?.

    `page` is what it may do on the page in the browser: "view" it, read the "content" of requests and answers there,
    and "operate" switches and labels. None is nothing: the page shows what others do.
    """

    usd_per_day: float | None = None
    usd_per_month: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    models: tuple[str, ...] | None = None
    page: tuple[PageScope, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("usd_per_day", "usd_per_month"):
            self._check(name, getattr(self, name), MOST_USD, float)
        for name in ("requests_per_minute", "tokens_per_minute"):
            self._check(name, getattr(self, name), MOST_COUNT, int)
        for model in self.models or ():
            if not model or len(model) > 256 or not model.isprintable():
                raise UnsupportedError(f"models holds {model[:64]!r}, allowed are names of 1 to 256 characters")
        if unknown := next((scope for scope in self.page or () if scope not in get_args(PageScope)), None):
            raise UnsupportedError(f"page holds {str(unknown)[:64]!r}, allowed are {', '.join(get_args(PageScope))}")
        if self.models is not None and not 1 <= len(self.models) <= MOST_MODELS:
            raise UnsupportedError(f"models has {len(self.models)} names, 1 to {MOST_MODELS} are allowed")

    @staticmethod
    def _check(name: str, value: object, most: float, kind: type[float] | type[int]) -> None:
        if value is None:
            return
        is_number = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
        least = 0 if kind is float else 1
        if not is_number or not least <= float(str(value)) <= most:  # NaN is in no range
            raise UnsupportedError(f"{name} is {str(value)[:64]!r}, allowed is {least:g} to {most:g}")

    def allows(self, model: str) -> bool:
        """Whether the key may use a model of this name."""
        return self.models is None or any(fnmatchcase(model, pattern) for pattern in self.models)


@dataclass(frozen=True)
class VirtualKey:
    """A key without its secret."""

    id: str
    name: str
    limits: KeyLimits
    created_s: float
    expires_s: float | None = None
    state: State = "active"
    last_used_s: float | None = None
    digests: Sequence[tuple[str, float | None]] = field(default=(), repr=False)  # each with its end, None: has none

    def refusal(self, now_s: float) -> str | None:
        """Why nobody may use the key at this moment; None if it is good."""
        if self.state != "active":
            return self.state
        return "expired" if self.expires_s is not None and now_s >= self.expires_s else None

    def is_secret(self, text: str, now_s: float) -> bool:
        """Whether this is the text of the key, in constant time."""
        digest, is_one = _digest(text), False
        for known, until_s in self.digests:
            is_one |= hmac.compare_digest(digest, known) and (until_s is None or now_s < until_s)
        return is_one


@dataclass(frozen=True)
class NewKey:
    """A key that was just made, or got a new secret. `text` is stored nowhere."""

    key: VirtualKey
    text: str = field(repr=False)


class VirtualKeys:
    """The virtual keys in a store. Methods that write are durable when they return."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    def add(self, name: str, limits: KeyLimits = KeyLimits(), valid_s: float | None = None) -> NewKey:
        """Makes a key, which ends after `valid_s`. A name is used once; that of a removed key may be used again."""
        if not NAME.fullmatch(name):
            raise UnsupportedError(f"the name of a key is {name[:80]!r}, allowed are 1 to 64 letters, digits and "
                                   "._@:-, a letter or digit first")
        if valid_s is not None and not (math.isfinite(valid_s) and valid_s > 0):
            raise UnsupportedError(f"the key would be valid for {valid_s} seconds, it must be more than 0")
        id, now_s = secrets.token_hex(6), self._clock()
        text = _new_text(id)
        key = VirtualKey(id, name, limits, now_s, None if valid_s is None else now_s + valid_s,
                         digests=((_digest(text), None),))
        with self._database.transaction() as transaction:
            transaction.run("DELETE FROM virtual_keys WHERE name = ? AND state = 'removed'", (name,))
            written = transaction.run(f"INSERT INTO virtual_keys ({_COLUMNS}) VALUES ({', '.join('?' * 10)}) "
                                      "ON CONFLICT DO NOTHING", _row(key))
            if written != 1:
                raise StoreError(f"there is a key {name!r} in {self._database.place} already",
                                 hint="give the new one another name; or rotate the old one: it gets a new secret")
        return NewKey(key, text)

    def all(self) -> list[VirtualKey]:
        """The keys by name, without those that were removed."""
        return [key for key in self.read() if key.state != "removed"]

    def read(self) -> list[VirtualKey]:
        """The keys by name, the removed ones too."""
        return list(map(_key, self._database.rows(f"SELECT {_COLUMNS} FROM virtual_keys ORDER BY name")))

    def named(self, name: str) -> VirtualKey:
        """The key of this name, or UnknownKeyError."""
        keys = {key.name: key for key in self.all()}
        if name not in keys:
            raise UnknownKeyError(f"there is no key {name[:80]!r} in {self._database.place}",
                                  hint="brise keys list" if not keys else f"there are {', '.join(list(keys)[:20])}")
        return keys[name]

    def remove(self, name: str) -> None:
        """Ends a key for good. What it has used stays written down."""
        self._set(self.named(name).id, "state = 'removed', digest = '', old_digest = NULL, old_until_s = NULL")

    def disable(self, name: str) -> None:
        """Refuses a key until `enable`."""
        self._set(self.named(name).id, "state = 'disabled'")

    def enable(self, name: str) -> None:
        """Takes `disable` back."""
        self._set(self.named(name).id, "state = 'active'")

    def rotate(self, name: str, keep_old_s: float = 0.0) -> NewKey:
        """Gives a key a new secret; the old one is good for `keep_old_s` more."""
        key, now_s = self.named(name), self._clock()
        text = _new_text(key.id)
        old = (key.digests[0][0], now_s + keep_old_s) if keep_old_s > 0 else (None, None)
        self._set(key.id, "digest = ?, old_digest = ?, old_until_s = ?", _digest(text), *old)
        return NewKey(replace(key, digests=((_digest(text), None),)), text)

    def change(self, name: str, limits: KeyLimits, expires_s: float | None) -> VirtualKey:
        """Gives a key other limits and another end."""
        key = self.named(name)
        self._set(key.id, "limits = ?, expires_s = ?", _packed(limits), expires_s)
        return replace(key, limits=limits, expires_s=expires_s)

    def close(self) -> None:
        self._database.close()

    def _set(self, id: str, changes: str, *values: object) -> None:
        with self._database.transaction() as transaction:
            transaction.run(f"UPDATE virtual_keys SET {changes} WHERE id = ? AND state <> 'removed'", (*values, id))


def id_of(text: str) -> str | None:
    """The id in the text of a key; None if it is the text of none."""
    matched = _TEXT.fullmatch(text)
    return None if matched is None else matched[1]


def find(keys: Mapping[str, VirtualKey], texts: Iterable[str], now_s: float) -> VirtualKey | None:
    """The key whose text is among `texts`. An unknown id takes as long as a wrong secret."""
    for text in texts:
        key = keys.get(id_of(text) or "")
        if (key or _NOBODY).is_secret(text, now_s) and key is not None:
            return key
    return None


def _new_text(id: str) -> str:
    return f"{PREFIX}{id}-{secrets.token_urlsafe(32)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _packed(limits: KeyLimits) -> str:
    return json.dumps({name: value for name, value in asdict(limits).items() if value is not None}, sort_keys=True)


def _row(key: VirtualKey) -> Row:
    return (key.id, key.name, key.digests[0][0], None, None, key.created_s, key.expires_s, key.state,
            _packed(key.limits), key.last_used_s)


def _key(row: Row) -> VirtualKey:
    id, name, digest, old, old_until_s, created_s, expires_s, state, packed, last_used_s = row
    limits = json.loads(packed)
    models, page = limits.pop("models", None), limits.pop("page", None)
    digests = [(digest, None)] * bool(digest) + [(old, old_until_s)] * (old is not None)
    found = KeyLimits(**limits, models=None if models is None else tuple(models),
                      page=None if page is None else tuple(page))
    return VirtualKey(id, name, found, created_s, expires_s, state, last_used_s, tuple(digests))


_NOBODY = VirtualKey("", "", KeyLimits(), 0.0, digests=(("0" * 64, 0.0),))
