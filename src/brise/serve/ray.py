"""brise under Ray Serve: one deployment for each model, whose replicas start brise's own engine and server.

    serve run brise.serve.ray:app model=smollm2 memory=2GB max_replicas=4

Ray places the replicas, routes to them and starts more of them while requests wait; each answers the same HTTP API as
`brise serve`. Several models are several applications of Ray's configuration file. Needs the extra `ray`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brise.errors import BriseError, MissingExtraError, UnsupportedError

if TYPE_CHECKING:
    from starlette.types import ASGIApp


@dataclass(frozen=True)
class RayOptions:
    """What one application serves, and how far it grows. The arguments of `serve run` have the same names.

    `memory` bounds each replica; Ray reserves `cpus` cores for it. While replicas have more than `ongoing` requests
    each, Ray starts another one, up to `max_replicas`.
    """

    model: str
    name: str | None = None  # what requests call the model; None: what the store calls it, or its file
    memory: str | None = None
    api_keys: str | None = None  # a file with one key a line, on every machine
    min_replicas: int = 1
    max_replicas: int = 1
    ongoing: int = 8
    cpus: float = 1.0
    drain_seconds: float = 60.0

    @classmethod
    def read(cls, arguments: Mapping[str, object]) -> RayOptions:
        """From the words of `serve run`, which are texts, or the values of a configuration file."""
        known = {field.name: str(field.type) for field in fields(cls)}
        unknown = sorted(set(arguments) - set(known))
        if unknown:
            raise UnsupportedError(f"{unknown[0]!r} is no argument of brise.serve.ray:app, allowed are "
                                   f"{', '.join(known)}")
        if "model" not in arguments:
            raise UnsupportedError("the argument model is missing", hint="serve run brise.serve.ray:app model=smollm2")
        options = cls(**{name: _value(name, value, known[name])  # type: ignore[arg-type]
                         for name, value in arguments.items()})
        if not 1 <= options.min_replicas <= options.max_replicas:
            raise UnsupportedError(f"min_replicas is {options.min_replicas} and max_replicas {options.max_replicas}; "
                                   "allowed are 1 to max_replicas")
        if options.ongoing < 1 or options.cpus <= 0 or options.drain_seconds < 0:
            raise UnsupportedError("ongoing must be 1 or more, cpus over 0 and drain_seconds 0 or more")
        return options


def app(arguments: Mapping[str, object]) -> Any:
    """The application of Ray Serve for one model; see `RayOptions` for its arguments."""
    options = RayOptions.read(arguments)
    try:
        # Seventy distributions: only who runs Ray has them.
        from ray import serve  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise MissingExtraError("ray[serve]", "ray", "brise.serve.ray") from error
    servers: list[Any] = []  # of this replica: pickled with the class, empty

    def build() -> ASGIApp:
        servers.append(_server(options))
        return servers[0]  # type: ignore[no-any-return]

    class Replica:
        """One engine. Ray asks after its health, and replaces it when the engine has ended."""

        def check_health(self) -> None:
            """Raises if the engine's thread has ended."""
            if not all(server.is_alive for server in servers):
                raise BriseError("the engine has ended")

    deployment = serve.deployment(
        name=_name(options), ray_actor_options={"num_cpus": options.cpus},
        max_ongoing_requests=4 * options.ongoing, graceful_shutdown_timeout_s=options.drain_seconds,
        autoscaling_config={"min_replicas": options.min_replicas, "max_replicas": options.max_replicas,
                            "target_ongoing_requests": options.ongoing})
    return deployment(serve.ingress(build)(Replica)).bind()


def _server(options: RayOptions) -> Any:
    """The server of one replica, by the public API: a program of brise's like any other. It is open to every host,
    since Ray's proxy is in front of it."""
    import brise  # noqa: PLC0415

    keys = None if options.api_keys is None else Path(options.api_keys)
    return brise.serve({_name(options): options.model}, memory=options.memory, api_keys=keys, any_host=True)


def _name(options: RayOptions) -> str:
    return options.name or Path(options.model).stem


def _value(name: str, value: object, kind: str) -> object:
    """A text of the command line as the number that the argument is."""
    if "str" in kind:
        return None if value is None else str(value)
    if value is None and "None" in kind:
        return None
    try:
        return float(str(value)) if kind == "float" else int(str(value))
    except ValueError:
        raise UnsupportedError(f"{name} is {value!r}, a number is allowed") from None
