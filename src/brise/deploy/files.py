"""The files that run several servers, from what one server runs with. Nothing is started, and nothing is contacted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from brise.deploy import compose, containers, haproxy, kubernetes, systemd
from brise.deploy.options import DeployOptions
from brise.errors import OutputError


def files_of(options: DeployOptions) -> Mapping[str, str]:
    """The files by name."""
    match options.kind:
        case "haproxy":
            return {"haproxy.cfg": haproxy.configuration(options.servers, options.bind)}
        case "systemd":
            return {"brise@.service": systemd.unit(options)}
        case "compose":
            balanced = haproxy.configuration(compose.places(options), f":{containers.BALANCER_PORT}")
            return {"compose.yaml": compose.compose_file(options), "haproxy.cfg": balanced}
        case "kubernetes":
            return kubernetes.manifests(options)


def write(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Writes them; none of them may be there already."""
    paths = [folder / name for name in files]
    if there := next((path for path in paths if path.exists()), None):
        raise OutputError(f"{str(there)!r} is there already", hint="name another folder with --out, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, files.values(), strict=True):
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644), "w", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise OutputError(f"cannot write into {str(folder)!r}: {error.strerror}") from None
    return paths
