"""Error responses have the format of the path's API: OpenAI's {"error": {"message", "type", "param", "code"}},
Anthropic's {"type": "error", "error": {"type", "message"}}, or Ollama's {"error": message}."""

from __future__ import annotations

import math
from collections.abc import Mapping

from starlette.responses import JSONResponse

from brise.dialects import ollama
from brise.dialects.table import MESSAGES
from brise.engine.adapters import AdaptersBusyError
from brise.errors import ContextLengthError, QueueFullError, RequestError

RETRY_AFTER_S = 1
ANTHROPIC_KINDS: Mapping[int, str] = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
    429: "rate_limit_error"}
LIMITS: Mapping[str, str] = {  # in words
    "requests_per_minute": "requests of this minute", "tokens_per_minute": "tokens of this minute",
    "usd_per_day": "budget of this day in UTC", "usd_per_month": "budget of this month in UTC"}


class UnknownModelError(RequestError):
    """The request names a model that this server does not have."""

    status = 404

    def __init__(self, name: str, known: Mapping[str, object], hint: str | None = None) -> None:
        names = ", ".join(map(repr, known)) or "none"
        super().__init__(f"the model {name[:128]!r} does not exist here; there is {names}",
                         param="model", code="model_not_found", hint=hint)


class NotServedHereError(RequestError):
    """The request names a model of this server in a way that its routes do not answer; it may not go elsewhere."""

    status = 404

    def __init__(self, name: str, served: str, where: str) -> None:
        super().__init__(f"{where} names the model {name[:128]!r}; {served!r} is served here and answers chat "
                         "completions, completions, embeddings, messages, responses and Ollama's API: this goes "
                         "nowhere else",
                         param="model", code="not_served_here")


class NotFoundError(RequestError):
    """The path does not exist."""

    status = 404

    def __init__(self, message: str) -> None:
        super().__init__(message, code="unknown_url")


class MethodError(RequestError):
    """The path does not support the method."""

    status = 405

    def __init__(self, message: str) -> None:
        super().__init__(message, code="method_not_allowed")


class UnauthorizedError(RequestError):
    """The API key is missing or wrong."""

    status = 401

    def __init__(self) -> None:
        super().__init__("the API key is missing or wrong", code="invalid_api_key",
                         hint="send it as 'Authorization: Bearer KEY'")


class KeyEndedError(RequestError):
    """The virtual key is known, but is not good any more."""

    status = 401

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"the API key {name!r} is {why}", code="invalid_api_key")


class KeyForbiddenError(RequestError):
    """The virtual key is good, but not for this."""

    status = 403


class KeyLimitError(RequestError):
    """A limit of the virtual key stands against the request."""

    status = 429

    def __init__(self, name: str, limit: str, retry_after_s: float, *, is_used_up: bool) -> None:
        self.retry_after_s = max(math.ceil(retry_after_s), 1)
        state = "nothing is left" if is_used_up else "requests that run have reserved what is left"
        super().__init__(f"the API key {name!r} has a limit: {state} of its {LIMITS[limit]}",
                         code="insufficient_quota" if limit.startswith("usd") and is_used_up else "rate_limit_exceeded",
                         hint=f"try again in {self.retry_after_s} s")


class KeyStoreError(RequestError):
    """The store fails in which the virtual keys and what they have used are."""

    status = 503

    def __init__(self) -> None:
        super().__init__("the server cannot read the limits of API keys at this time", code="key_store_unavailable")


class ForeignHostError(RequestError):
    """The Host header is not this machine's: a browser may be the victim of DNS rebinding."""

    status = 421

    def __init__(self, host: str) -> None:
        super().__init__(f"this server answers to localhost, not to {host[:128]!r}", code="wrong_host",
                         hint="with API keys it answers to every name; mounted in a program, with any_host=True, too")


class CrossSiteError(RequestError):
    """Another site's web page makes a browser send the request, and the server would work or pay for it."""

    status = 403

    def __init__(self, cost: str = "spend the gateway's own key") -> None:
        super().__init__(f"requests from another site's web page are refused: they would {cost}",
                         code="cross_site", hint="with --api-keys a page that has a key may send requests")


class UnavailableError(RequestError):
    """The server is shutting down, or its engine has failed."""

    status = 503


class GenerationError(RequestError):
    """The engine accepted the request and then failed."""

    status = 500


def error_body(error: RequestError, param: str | None = None) -> dict[str, object]:
    """The body of an error response; `param` is the endpoint's name for the field if it differs."""
    shown_param = error.param if param is None else param
    return {"error": {"message": str(error), "type": _kind(error), "param": shown_param, "code": error.code}}


def respond(error: RequestError, path: str = "") -> JSONResponse:
    """The error response with the headers that its status needs, in the format of the path's API."""
    headers: dict[str, str] = {}
    if isinstance(error, KeyLimitError):
        headers["Retry-After"] = str(error.retry_after_s)
        if error.code == "insufficient_quota":
            headers["X-Should-Retry"] = "false"  # OpenAI's and Anthropic's clients repeat a 429 otherwise
    elif isinstance(error, QueueFullError | AdaptersBusyError):
        headers["Retry-After"] = str(error.retry_after_s)
    elif error.status == 503:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    elif error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.code == "unsupported_encoding":
        headers["Accept-Encoding"] = "gzip, deflate"  # RFC 9110, 15.5.16
    if error.status in (408, 413, 415):
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse(_body_for(path, error), error.status, headers)


def _body_for(path: str, error: RequestError) -> Mapping[str, object]:
    if ollama.is_path(path):
        return ollama.error_body(str(error))
    is_anthropic = path == MESSAGES.path or path.startswith(f"{MESSAGES.path}/")
    return anthropic_body(error) if is_anthropic else error_body(error)


def anthropic_body(error: RequestError) -> dict[str, object]:
    """The body of an error response, or the event that ends a stream, in Anthropic's form."""
    kind = ANTHROPIC_KINDS.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    message = str(error)
    if isinstance(error, ContextLengthError) and error.prompt_tokens >= error.limit:
        # Claude Code reads the numbers from these words, and then makes the conversation shorter.
        message = f"prompt is too long: {error.prompt_tokens} tokens > {error.limit} maximum"
    return {"type": "error", "error": {"type": kind, "message": message}}


def _kind(error: RequestError) -> str:
    if error.code == "insufficient_quota":
        return "insufficient_quota"
    match error.status:
        case 401:
            return "authentication_error"
        case 429:
            return "rate_limit_error"
        case _:
            return "server_error" if error.status >= 500 else "invalid_request_error"
