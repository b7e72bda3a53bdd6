"""What an examination finds: one line for each thing that was looked at, good or bad."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

FindingVerdict = Literal["PASS", "WARN", "FAIL", "NOTE"]


@dataclass(frozen=True)
class Finding:
    """One thing: FAIL keeps brise from working or is unsafe, WARN may surprise, NOTE is neither good nor bad."""

    area: str
    name: str
    verdict: FindingVerdict
    text: str
    hint: str = ""


@dataclass(frozen=True)
class DoctorReport:
    """All findings, in the order in which they were looked at."""

    findings: Sequence[Finding]

    @property
    def failures(self) -> list[Finding]:
        """Those with FAIL; none: the machine can do its work."""
        return [finding for finding in self.findings if finding.verdict == "FAIL"]

    def to_json(self) -> dict[str, object]:
        """As --json prints it."""
        counts = {verdict: sum(finding.verdict == verdict for finding in self.findings)
                  for verdict in ("PASS", "WARN", "FAIL", "NOTE")}
        return {"passed": not self.failures, "counts": counts,
                "findings": [asdict(finding) for finding in self.findings]}
