"""Fourteen nights, as their table in ``docs/reliability.md``.

python -m tests.retraining.table          writes the table
"""

from __future__ import annotations

from tests.faults.table import PAGE, between
from tests.retraining.nights import CASES, ENDS

_BEGIN, _END = "<!-- nights: begin -->\n", "<!-- nights: end -->\n"


def table() -> str:
    """The table, as Markdown."""
    lines = ["| night | what happens | what ray_mm does | test |", "|---|---|---|---|"]
    for number, case in enumerate(CASES, 1):
        does = ENDS[case.ends] + (f"; {case.more}" if case.more else "")
        lines.append(f"| {number} | {case.happens} | {does} | `{case.name}` |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the table as it is now."""
    return between(text, _BEGIN, _END, table())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
