"""Functions of the user's own that a command names: FILE.py:FUNCTION, or MODULE:FUNCTION of an installed module."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brise.errors import BriseError


def load_function(spec: str, what: str, failure: type[BriseError]) -> Callable[..., Any]:
    """The function that `spec` names; its file or module is executed. `failure` says what is wrong with `what`."""
    place, _, name = spec.rpartition(":")
    is_file = place.endswith(".py")
    if not name.isidentifier() or not (is_file or all(part.isidentifier() for part in place.split("."))):
        raise failure(f"{what} is {spec!r}, allowed is FILE.py:FUNCTION or MODULE:FUNCTION")
    try:
        found = _of_file(Path(place)) if is_file else vars(importlib.import_module(place))
    except Exception as error:  # whatever the user's own code raises
        raise failure(f"{what}: {place} cannot be run: {type(error).__name__}: {error}") from error
    function = found.get(name)
    if not callable(function):
        has = "has no" if name not in found else f"has {function!r} as"
        raise failure(f"{what}: {place} {has} function {name!r}")
    loaded: Callable[..., Any] = function
    return loaded


def _of_file(path: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "it ends with .py"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)
