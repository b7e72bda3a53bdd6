"""An update that is cut by SIGKILL at its writes: the old bundle or the new one answers again, never a mix of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from brise.fleet import kill_points
from tests.waiting import LIMIT_S

ROOT = Path(__file__).parents[2]


def test_a_kill_at_a_write_of_an_update_leaves_one_whole_bundle() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.fleet.kills", "8"], cwd=ROOT, capture_output=True, text=True,
                          timeout=4 * LIMIT_S, check=True)
    cuts = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cuts) >= 8
    assert [cut["was_killed"] for cut in cuts] == [True] * (len(cuts) - 1) + [False]
    assert (cuts[0]["version"], cuts[-1]["version"]) == (1, 2)
    assert {cut["version"] for cut in cuts} == {1, 2}
    assert all(cut["is_committed"] for cut in cuts)


@pytest.mark.parametrize(("event", "arguments", "is_change"), [
    ("open", ("/device/a", "w", os.O_WRONLY), True), ("open", ("/device/a", "r", os.O_RDONLY), False),
    ("open", ("/other/a", "w", os.O_WRONLY), False), ("os.rename", ("/device/a", "/device/b", -1, -1), True),
    ("os.remove", ("/device/a", -1), True), ("os.listdir", ("/device",), False), ("open", (3, "w", 0), False)])
def test_changes_below_the_folder_count(event: str, arguments: tuple[object, ...], is_change: bool) -> None:
    assert kill_points.is_change(event, arguments, "/device") is is_change
