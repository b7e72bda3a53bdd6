"""Bundles for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from brise.fleet.bundle import Blob, Bundle, BundleBase, BundlePlan, DeviceNeeds, GateLimits

DIGEST = "ab" * 32


def bundle(**changes: Any) -> Bundle:
    """A bundle with one blob of 10 bytes, which need not be anywhere."""
    made = Bundle("tickets", 3, 1.8e9, BundleBase("smollm2", "cd" * 32, 98_000_000),
                  (Blob("adapter/adapter_model.safetensors", DIGEST, 10),), None, None, None, None,
                  GateLimits(0.02, 0.9), BundlePlan(400_000_000, 2048, 4), "0f" * 16, "Apache-2.0",
                  DeviceNeeds(400_000_000, 200_000_000, "0.2.0"))
    return replace(made, **changes)
