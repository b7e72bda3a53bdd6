"""A pytest plugin (-p tests.native.sanitized) that runs tests with another build of the native module.

BRISE_SANITIZED is its path. scripts/sanitize builds it with AddressSanitizer or ThreadSanitizer.
"""

from __future__ import annotations

import importlib.util
import os
import sys

import brise

_spec = importlib.util.spec_from_file_location("brise._native", os.environ["BRISE_SANITIZED"])
assert _spec is not None and _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["brise._native"] = _module
_spec.loader.exec_module(_module)
brise._native = _module  # type: ignore[attr-defined]
