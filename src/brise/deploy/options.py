"""What is to be deployed: the words of `brise serve`, what follows from them, and where the servers are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from brise.errors import UnsupportedError

Kind = Literal["haproxy", "systemd", "compose", "kubernetes"]
KINDS: Sequence[Kind] = get_args(Kind)
CONTAINER_PORT = 8080
KEYS_MOUNT = "/run/secrets/brise/api-keys"  # where containers find the file of --api-keys
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,62})")
_LABEL = re.compile(r"[a-z](?:[a-z0-9-]{0,40}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][\w./:@-]{0,200}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MOST_SERVERS = 100


@dataclass(frozen=True)
class ServedCommand:
    """What `brise serve` is to run with: its words without --host, --port, --api-keys and --drain-seconds."""

    words: Sequence[str] = ()
    port: int = CONTAINER_PORT
    drain_s: float = 60.0
    memory_bytes: int | None = None
    api_keys: Path | None = None
    store: str | None = None
    variables: Sequence[str] = ()  # of the environment, with the upstreams' keys

    def __post_init__(self) -> None:
        for word in self.words:
            if not word.isprintable():
                raise UnsupportedError(f"a word of `brise serve` is {word[:60]!r}, only printable text is allowed")
        for name in self.variables:
            if not _VARIABLE.fullmatch(name):
                raise UnsupportedError(f"the environment variable is {name[:60]!r}, allowed are letters, digits and _")
        if self.store is not None and "://" in self.store and urlsplit(self.store).password is not None:
            raise UnsupportedError(
                "the store's URL holds a password, which would stand in the files and in the list of processes",
                hint="leave it out: PGPASSFILE or PGPASSWORD give it to the server, as the files say")

    @property
    def is_shared(self) -> bool:
        """Whether several servers can run with these words: their store is in PostgreSQL."""
        return self.store is not None and self.store.startswith(("postgresql://", "postgres://"))


@dataclass(frozen=True)
class ServerPlace:
    """Where a balancer finds a server."""

    name: str
    host: str
    port: int

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UnsupportedError(f"the server's name is {self.name[:80]!r}, allowed are letters, digits, '.', '_' "
                                   "and '-'")
        if not self.host or not re.fullmatch(r"[\w.:-]+", self.host):
            raise UnsupportedError(f"the server's host is {self.host[:80]!r}, allowed is a name or an address")
        if not 0 < self.port < 65536:
            raise UnsupportedError(f"the server's port is {self.port}, 1 to 65535 is allowed")

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class DeployOptions:
    """The options of `files_of`.

    Attributes:
        kind: What the files are for.
        serve: What each server runs with.
        servers: Where they are, for HAProxy.
        count: How many, for compose and Kubernetes.
        bind: The address that HAProxy listens on.
        image: The container image.
        namespace: The namespace in Kubernetes.
        program: The path of `brise` on the servers, for systemd.
    """

    kind: Kind
    serve: ServedCommand = ServedCommand()
    servers: Sequence[ServerPlace] = ()
    count: int = 3
    bind: str = ":8000"
    image: str = "brise:latest"
    namespace: str = "brise"
    program: str = "/opt/brise/bin/brise"

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_SERVERS:
            raise UnsupportedError(f"the number of servers is {self.count}, 1 to {MOST_SERVERS} is allowed")
        if not _LABEL.fullmatch(self.namespace):
            raise UnsupportedError(f"the namespace is {self.namespace[:60]!r}, allowed are small letters, digits and -")
        if not _IMAGE.fullmatch(self.image):
            raise UnsupportedError(f"the image is {self.image[:80]!r}, allowed is a name such as registry/brise:1.0")
        if not re.fullmatch(r"[\w.:*\[\]-]*:\d{1,5}", self.bind):
            raise UnsupportedError(f"the address to bind is {self.bind[:60]!r}, allowed is HOST:PORT or :PORT")
        if not self.program.startswith("/") or not self.program.isprintable() or " " in self.program:
            raise UnsupportedError(f"the program is {self.program[:80]!r}, an absolute path without spaces is allowed")
        if self.kind in ("compose", "kubernetes") and self.count > 1 and not self.serve.is_shared:
            raise UnsupportedError(f"{self.count} servers need a store that they share, and there is none in "
                                   "PostgreSQL", hint="-- ... --store postgresql://USER@HOST/DATABASE; or --count 1")
        names = [server.name for server in self.servers]
        if len(set(names)) < len(names):
            raise UnsupportedError("two servers have the same name", hint="--server NAME=HOST:PORT")
