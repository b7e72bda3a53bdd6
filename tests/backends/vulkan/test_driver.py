"""A missing driver skips on a person's machine and fails in continuous integration."""

import pytest

from tests.backends.vulkan import driver


def test_a_device_is_counted_where_a_driver_is() -> None:
    driver.require_driver()
    assert driver._num_devices() >= 1


def test_a_missing_driver_skips_for_a_person(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(driver, "_num_devices", lambda: 0)
    with pytest.raises(pytest.skip.Exception, match="apt-get install libvulkan1 mesa-vulkan-drivers"):
        driver.require_driver()


def test_a_missing_driver_fails_in_continuous_integration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")
    monkeypatch.setattr(driver, "_num_devices", lambda: 0)
    with pytest.raises(pytest.fail.Exception, match="no Vulkan driver"):
        driver.require_driver()


def test_a_loader_without_drivers_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    driver.require_driver()
    monkeypatch.setenv("VK_ICD_FILENAMES", "/nowhere.json")
    monkeypatch.setenv("VK_DRIVER_FILES", "/nowhere.json")
    driver._num_devices.cache_clear()
    try:
        assert driver._num_devices() == 0
    finally:
        driver._num_devices.cache_clear()
