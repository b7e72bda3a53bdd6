"""The demo as a benchmark: `brise demo` once, stage by stage, its seconds and figures as a line of JSON.

    python bench/demo.py --quick            # two or three minutes on two idle cores
    python bench/demo.py --keep ./demo      # the whole of it

Run it on a machine that does nothing else: a stage's seconds are the point.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

STAGE = re.compile(r"^│ (\w+) +│ (\w*) +│ +(\d+) │$", re.MULTILINE)


def main() -> int:
    """The exit status of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the short demo")
    parser.add_argument("--keep", type=Path, help="where everything is kept (default: nowhere)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = args.keep or Path(name) / "demo"
        words = ["demo", "--keep", str(folder), *(["--quick"] if args.quick else [])]
        done = subprocess.run([sys.executable, "-m", "brise", *words], stdout=subprocess.PIPE, text=True, check=False)
        sys.stderr.write(done.stdout)
        home = {**os.environ, "BRISE_HOME": str(folder / "home")}
        report = subprocess.run([sys.executable, "-m", "brise", "report", "--store", str(folder / "traffic.sqlite"),
                                 "--prices", str(folder / "prices.toml"), "--json"], stdout=subprocess.PIPE, text=True,
                                check=False, env=home)
    found = json.loads(report.stdout) if report.returncode == 0 else {}
    systems = found.get("quality", {}).get("systems", {})
    print(json.dumps({
        "status": done.returncode,
        "stages": {stage: {"ending": ending, "seconds": int(seconds)}
                   for stage, ending, seconds in STAGE.findall(done.stdout)},
        "quality": {system: values["estimate"] for system, values in systems.items()},
        "advice": found.get("advice", {}).get("choice"), "reliability": found.get("reliability", {}).get("answered")}))
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
