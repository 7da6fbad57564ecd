"""What ``fedge doctor`` found, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fedge.report.tables import table


def doctor_table(findings: Sequence[dict[str, Any]]) -> None:
    """A line for each mechanism, then what to do about those that do not work."""
    shown = [
        {
            **row,
            "error": None if row["error"] is None else f"{row['error']:+.1%}",
            "state": ("used" if row["used"] else "works") if row["works"] else "no",
        }
        for row in findings
    ]
    headings = {"limit": "limit", "mechanism": "mechanism", "state": "here", "asked": "asked", "seen": "seen"}
    table(shown, {**headings, "error": "error"})
    said = [row for row in findings if row["detail"]]
    if said:
        print()
    for row in said:
        print(f"{row['mechanism']}: {row['detail']}")
    if not any(row["limit"] == "memory" and row["used"] and row["error"] is not None for row in findings):
        print("\nno memory wall works here: runs stop with exit code 4 unless --best-effort is given")
