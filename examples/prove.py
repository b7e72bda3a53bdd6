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

result = brise.prove(rows, margin=margin)
proof = result.proof
assert proof is not None, "only a plan has none"
print(f"{len(rows)} pairs, {proof.discordance:.1%} of them with different answers")
print(f"small {proof.small.estimate:.1%}, large {proof.large.estimate:.1%}; difference "
      f"{proof.difference.estimate:+.1%} ({proof.difference.low:+.1%} to {proof.difference.high:+.1%})")
print(f"verdict at a margin of {margin:.0%}: {result.verdict} ({proof.reason})")
