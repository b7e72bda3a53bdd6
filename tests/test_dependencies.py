"""The core install stays small: what holds a company's keys should be few things."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
MOST = 30


def closure(requirements: list[str]) -> set[str]:
    """Names of all distributions that these bring, as they are installed here; extras are left out."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        waiting += [Requirement(text) for text in metadata.requires(name) or []]
    return found


def test_the_core_has_under_thirty_distributions() -> None:
    core = closure(tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"])
    assert len(core | {"brise"}) < MOST, sorted(core)
    assert not core & {"torch", "transformers", "pydantic", "mistral-common", "opencv-python-headless"}
