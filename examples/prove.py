"""May the small model take over? From a CSV with the answers of both to the same requests.

    python examples/prove.py [CSV] [MARGIN]

The CSV has the columns prompt, small and large; and reference, the right answer, where it is known. MARGIN is how much
worse the small model may be, as a share: 0.05 is 5 points.
"""

import csv
import sys
from pathlib import Path

import brise

path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("answers.csv")
margin = float(sys.argv[2]) if len(sys.argv) > 2 else 0.05
with path.open(encoding="utf-8", newline="") as file:
    rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]

found = brise.prove(rows, margin=margin)
assert found.proof is not None
small, large, worse = found.proof.small, found.proof.large, found.proof.difference
print(f"{len(rows)} pairs, {found.proof.discordance:.1%} of them with different answers")
print(f"small {small.estimate:.1%}, large {large.estimate:.1%}; "
      f"difference {worse.estimate:+.1%} ({worse.low:+.1%} to {worse.high:+.1%})")
print(f"verdict at a margin of {margin:.0%}: {found.verdict} ({found.proof.reason})")
