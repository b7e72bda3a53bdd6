"""The refusals of a fleet by name: why something that was offered is not read, not trusted or not installed.

FleetError
├── BundleError          a file of the fleet is not in its form: `field` has `value`, allowed is `limit`
├── SourceError          a repository cannot be reached, or has no such file
│   ├── TooSlowError         it sends, and so slowly that the file would never end
│   └── TooLongError         it sends more bytes than the signed length or the limit
├── UntrustedError        what was offered is not to be trusted
│   ├── ExpiredError         metadata are older than they may be: frozen, or a stick that lay too long
│   ├── RolledBackError      metadata are older than those that were seen already
│   ├── MixedVersionsError   metadata of different days are put together
│   ├── WrongKeyError        too few signatures of the keys that may sign this
│   ├── WrongDigestError     the bytes are not those whose digest was signed
│   ├── UnsafePathError      a link, `..`, or a name that leads out of its folder
│   ├── MalformedError       metadata are not in the form that TUF has
│   └── NotOfferedError      no signed target has this name or digest
├── NoRoomError          the disk has not the room that a download needs
└── UnfitError           the bundle is genuine, and this machine or this build cannot run it
"""

from __future__ import annotations

from brise.errors import FleetError


class BundleError(FleetError):
    """A manifest or another file of the fleet is not in its form: `field` has `value`, allowed is `limit`."""

    def __init__(self, field: str, value: object, limit: object, *, hint: str | None = None) -> None:
        shown = repr(value) if isinstance(value, str | bytes) else str(value)
        super().__init__(f"{field} is {shown[:100]}{'...' * (len(shown) > 100)}, allowed is {limit}", hint=hint)
        self.field, self.value, self.limit = field, value, limit


class SourceError(FleetError):
    """A repository cannot be reached, or it has no such file (`is_missing`)."""

    def __init__(self, message: str, *, is_missing: bool = False, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.is_missing = is_missing


class TooSlowError(SourceError):
    """A source sends so slowly that the file would never end."""


class TooLongError(SourceError):
    """A source sends more bytes than the signed length, or than the limit."""


class UntrustedError(FleetError):
    """Something that was offered is not to be trusted. Nothing of it was kept; what runs goes on."""


class ExpiredError(UntrustedError):
    """Metadata are older than they may be: a frozen repository, or a stick that lay too long."""


class RolledBackError(UntrustedError):
    """Metadata are older than those that this device has seen already."""


class MixedVersionsError(UntrustedError):
    """Metadata of different days are put together."""


class WrongKeyError(UntrustedError):
    """Too few signatures of the keys that may sign this."""


class WrongDigestError(UntrustedError):
    """The bytes are not those whose digest was signed."""


class UnsafePathError(UntrustedError):
    """A link, `..`, or a name that leads out of its folder."""


class MalformedError(UntrustedError):
    """Metadata are not in the form that TUF has."""


class NotOfferedError(UntrustedError):
    """No signed target has this name or digest."""


class NoRoomError(FleetError):
    """The disk has not the room that a download needs; nothing was fetched."""


class UnfitError(FleetError):
    """The bundle is genuine, and this machine or this build of brise cannot run it."""
