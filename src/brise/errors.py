"""Errors meant for users: what failed, the value, what is allowed, and if we know it a hint.

BriseError
├── CheckpointError      a file lies, is cut short, or is of a kind we do not read
├── UnsupportedError     a model, weight format or option that this build does not run
├── MemoryLimitError     a model does not fit into the memory that was stated
├── DeviceError          a GPU that is not used: there is none, or the driver refused
│   ├── DeviceLacksError     it is too old, or has not what brise needs
│   ├── DeviceMemoryError    its memory does not hold what was asked for
│   └── DeviceLostError      it stopped answering: every request that ran on it has ended
├── StoreError           the model store: a name unknown, a digest wrong, a disk full
├── OutputError          a file or folder cannot be written: it is there already, or the disk is full
├── MissingExtraError    an optional dependency is not installed
├── NetworkError         a download failed
├── EvidenceError        data that cannot carry the claim asked of them
│   └── CertificateError     a file or a ledger's line that is no certificate, or not in the form that is signed
├── FleetError           a device, a hub or a signed bundle: fleet/refusals.py names each kind
├── AnswerError          an answer broke off, or is not what was asked for
├── ClosedError          a model or server of this program was closed
└── RequestError         one request is wrong; the server answers 4xx
    ├── ContextLengthError   prompt and max_tokens do not fit
    ├── QueueFullError       try again later
    └── PreemptedError       an answer that nobody waits for made room
"""

from __future__ import annotations


class BriseError(Exception):
    """Base of all errors for users; `hint` says what to do about it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\nhint: {self.hint}" if self.hint else message


class CheckpointError(BriseError):
    """A model file is damaged or lies: `field` has `value`, allowed is `limit`."""

    def __init__(self, message: str, *, field: str = "", value: object = None, limit: object = None,
                 hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.field, self.value, self.limit = field, value, limit


class EvidenceError(BriseError):
    """Data, or a promise asked of them, that no statistics can carry: too few units, a margin of zero."""


class CertificateError(EvidenceError):
    """This is no certificate, or it is not in the form that is signed."""


class FleetError(BriseError):
    """A bundle that is not installed, a repository that is not trusted, a device or a hub that cannot do what it is to.
    """


class AnswerError(BriseError):
    """An answer broke off, or is not what was asked for: JSON that is cut short, a call without its end."""


class ClosedError(BriseError):
    """A model or server of this program was closed, and is used."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is closed", hint="load it again, or keep it open for as long as it is used")


class UnsupportedError(BriseError):
    """A model, weight format or option that this build does not run."""


class MemoryLimitError(BriseError):
    """The process would take `needed` bytes, more than its memory limit; `numbers` says what they are for."""

    def __init__(self, needed: int, limit: int, numbers: str, *, hint: str | None = None) -> None:
        super().__init__(f"this takes {needed / 1e6:.1f} MB, {(needed - limit) / 1e6:.1f} MB more than the "
                         f"limit of {limit / 1e6:.1f} MB: {numbers}", hint=hint)
        self.needed, self.limit = needed, limit


class DeviceError(BriseError):
    """A GPU cannot be used: no Vulkan loader, no such device, or a call that the driver refused."""


class DeviceLacksError(DeviceError):
    """A GPU is too old for brise: `device` lacks `missing`, such as "shaderIntegerDotProduct" or "Vulkan 1.2"."""

    def __init__(self, message: str, device: str, missing: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.device, self.missing = device, missing


class DeviceMemoryError(DeviceError):
    """A GPU's memory does not hold `asked` bytes: `free` are free of a budget of `budget`."""

    def __init__(self, message: str, asked: int, free: int, budget: int, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.asked, self.free, self.budget = asked, free, budget


class DeviceLostError(DeviceError):
    """A GPU stopped answering: it was reset, unplugged, or its driver gave up. Nothing runs on it any more."""


class StoreError(BriseError):
    """The local model store cannot do what was asked."""


class OutputError(BriseError):
    """A file or folder cannot be written: it is there already, the disk is full, the folder is not ours."""


class MissingExtraError(BriseError):
    """An optional dependency is missing."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed",
                         hint=f"pip install 'brise[{extra}]'")


class NetworkError(BriseError):
    """A download failed."""


class RequestError(BriseError):
    """One request is wrong: `param` names the field, `code` is the machine-readable reason."""

    status = 400

    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value",
                 hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.param, self.code = param, code


class ContextLengthError(RequestError):
    """Prompt and answer do not fit into the context."""

    def __init__(self, prompt_tokens: int, max_tokens: int | None, limit: int) -> None:
        asked = (", which leaves no room for an answer" if max_tokens is None else "" if max_tokens == 0 else
                 f" and the answer asks for {max_tokens}, together {prompt_tokens + max_tokens}")
        # LiteLLM, dspy and Pydantic AI look for the first words, LangChain for the last.
        super().__init__(f"this model's maximum context length is {limit} tokens, but the prompt has {prompt_tokens} "
                         f"tokens{asked}: prompt is too long", param="messages", code="context_length_exceeded")
        self.prompt_tokens, self.max_tokens, self.limit = prompt_tokens, max_tokens, limit


class QueueFullError(RequestError):
    """Too many requests wait already."""

    status = 429

    def __init__(self, waiting: int, limit: int, retry_after_s: int = 1) -> None:
        super().__init__(f"{waiting} requests are waiting, the queue holds {limit}", code="queue_full")
        self.retry_after_s = retry_after_s


class PreemptedError(RequestError):
    """A request in the background made room for one that somebody waits for."""

    status = 503

    def __init__(self) -> None:
        super().__init__("the model has an answer to write that somebody waits for", code="preempted")


def bad_value(field: str, value: object, limit: object, *, hint: str | None = None) -> CheckpointError:
    """The error that says which field lies, its value, and what is allowed."""
    shown = repr(value) if isinstance(value, str | bytes) else str(value)
    if len(shown) > 100:
        shown = f"{shown[:100]}..."
    return CheckpointError(f"{field} is {shown}, allowed is {limit}",
                           field=field, value=value, limit=limit, hint=hint)
