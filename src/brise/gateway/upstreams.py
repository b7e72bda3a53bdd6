"""Several upstreams: which one a request is for, and the large models behind all of them.

`NAME/MODEL` names an upstream, and goes there as MODEL. Otherwise a table of models decides, otherwise the default.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from starlette.types import Send

from brise.errors import RequestError, UnsupportedError
from brise.gateway.exchange import priced
from brise.gateway.failure import Delivery
from brise.gateway.interfaces import RequestOutcome
from brise.gateway.large_model import LargeModel
from brise.gateway.request import ClientRequest, Headers, with_model
from brise.traffic.prices import Prices

MAX_LISTED = 20  # names in an error
CHOICE = b"x-brise-upstream"  # a request's header
ONLY = ""  # the name of an upstream that was given none: it takes every model, and no prefix
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class UnknownUpstreamError(RequestError):
    """The request names a model of an upstream that does not exist."""

    status = 404


@dataclass(frozen=True)
class Routes:
    """Which upstream has which models. `models` holds patterns such as `gpt-*`: exact names count first, then the
    first pattern that fits. `default` takes every other model that names no upstream."""

    names: Sequence[str] = (ONLY,)
    models: Sequence[tuple[str, str]] = ()  # pattern and upstream
    default: str = ONLY

    def __post_init__(self) -> None:
        for name in {self.default, *(name for _, name in self.models)}:
            if name not in self.names:
                raise UnsupportedError(f"there is no upstream {name!r}; there is {_listed(self.names)}")

    def find(self, model: str) -> tuple[str, str]:
        """The upstream of a model, and the model's name there; UnknownUpstreamError if it names another upstream."""
        prefix, slash, rest = model.partition("/")
        if slash and prefix and prefix in self.names:
            return prefix, rest
        if len(self.names) == 1:
            return self.default, model
        by_table = dict(reversed(self.models)).get(model) or next(
            (name for pattern, name in self.models if fnmatchcase(model, pattern)), None)
        if by_table is not None:
            return by_table, model
        if slash:
            raise UnknownUpstreamError(
                f"the model {model[:128]!r} names the upstream {prefix[:64]!r}, which does not exist; there is "
                f"{_listed(self.names)}", param="model", code="model_not_found",
                hint="NAME/MODEL asks an upstream for MODEL")
        return self.default, model

    def name_of(self, upstream: str, model: str) -> str:
        """The name that a request gives for an upstream's model: the model's own if that leads there."""
        try:
            is_plain = self.find(model) == (upstream, model)
        except UnknownUpstreamError:
            is_plain = False
        return model if is_plain else f"{upstream}/{model}"


class Upstreams:
    """The large models of all upstreams, by the upstream's name. It belongs to the event loop's thread."""

    def __init__(self, each: Mapping[str, LargeModel], routes: Routes, prices: Prices | None = None) -> None:
        self.each, self.routes, self._prices = each, routes, prices

    @classmethod
    def only(cls, large: LargeModel) -> Upstreams:
        """The set of one, which has no name."""
        return cls({ONLY: large}, Routes())

    @property
    def places(self) -> list[str]:
        """Names and URLs, to be shown."""
        return [f"{name}={large.upstream.settings.url}" if name else large.upstream.settings.url
                for name, large in self.each.items()]

    @property
    def has_own_key(self) -> bool:
        """Whether a request may be paid with a key of the gateway's own."""
        return any(large.upstream.settings.key is not None for large in self.each.values())

    def pays(self, upstream: str | None) -> bool:
        """Whether there is an upstream of this name with a key of the gateway's own."""
        large = self.each.get(upstream or ONLY)
        return large is not None and large.upstream.settings.key is not None

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no record may hold (see UpstreamSettings.secrets)."""
        return tuple(secret for large in self.each.values() for secret in large.upstream.settings.secrets)

    def of(self, request: ClientRequest) -> LargeModel:
        """The large model that a request is for."""
        return self.each[request.upstream]

    def chosen(self, request: ClientRequest) -> ClientRequest:
        """A request whose header names its upstream, as one whose model does: so the same rules hold for both."""
        named, names = request.header(CHOICE), self.routes.names
        if named is None:
            return request
        if not named or named not in names:
            raise UnknownUpstreamError(f"the upstream {named[:64]!r} does not exist; there is {_listed(names)}",
                                       param=CHOICE.decode(), code="upstream_not_found")
        is_named = not request.model or request.model.startswith(f"{named}/")
        return request if is_named else replace(request, model=f"{named}/{request.model}")

    def routed(self, request: ClientRequest) -> ClientRequest:
        """The request as its upstream gets it; UnknownUpstreamError if it names one that does not exist."""
        named = request.header(CHOICE)
        upstream, model = (named, "") if named is not None and not request.model else self.routes.find(request.model)
        routed = request if upstream == request.upstream else replace(request, upstream=upstream)
        return routed if model == request.model else with_model(routed, model)

    async def answer(self, request: ClientRequest, send: Send, added: Headers, *,
                     stops_at_faults: bool = False) -> Delivery:
        """As `LargeModel.answer`, by the request's upstream."""
        return await self.of(request).answer(request, send, added, stops_at_faults=stops_at_faults)

    async def ask(self, request: ClientRequest) -> RequestOutcome:
        """As `LargeModel.ask`, by the request's upstream; with what it cost."""
        return priced(await self.of(request).ask(request), request, self._prices)

    def close(self) -> None:
        """Ends idle connections."""
        for large in self.each.values():
            large.upstream.close()


def is_upstream_name(text: str) -> bool:
    """Whether an upstream may have this name."""
    return _NAME.fullmatch(text) is not None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:MAX_LISTED]))
