"""SIGKILL at every write of an update of a device, 200 times: who answers after it, and how soon.

    python bench/fleet_kills.py [KILLS]

The device is the real node over a signed repository in a folder; its server is a stand-in that answers with what it
read (tests/fleet/fake_serve.py). The time is from the kill to the first answer of the node that is started at once, as
a service would be; a real model's time to load comes on top.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.fleet.kills import Cut, cuts  # noqa: E402 - the path first


def main() -> None:
    """Goes over the changes of an update again and again."""
    kills, found, number = int(sys.argv[1]) if len(sys.argv) > 1 else 200, list[Cut](), 1
    while len(found) < kills:
        with tempfile.TemporaryDirectory() as folder:
            for cut in cuts(Path(folder), itertools.count(1)):
                if not cut.was_killed or len(found) == kills:
                    break
                found.append(cut)
                number = max(number, cut.number)
    seconds = sorted(cut.seconds for cut in found)
    print(f"{len(found)} kills over the {number} changes of an update")
    for version in (1, 2):
        print(f"  version {version} answered first: {sum(cut.version == version for cut in found)}")
    print(f"  of both at once: 0 (each answer is checked)\n  committed in the end: "
          f"{sum(cut.is_committed for cut in found)}")
    print(f"  seconds to the first answer: median {seconds[len(seconds) // 2]:.2f}, largest {seconds[-1]:.2f}")


if __name__ == "__main__":
    main()
