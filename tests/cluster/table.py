"""The faults of a training, as their table in ``docs/reliability.md``.

python -m tests.cluster.table          writes the table
"""

from __future__ import annotations

from tests.cluster.faults import FAULTS
from tests.faults.table import PAGE, between

_BEGIN, _END = "<!-- trainings: begin -->\n", "<!-- trainings: end -->\n"


def table() -> str:
    """The table, as Markdown."""
    lines = ["| what happens | what ray_mm does | test |", "|---|---|---|"]
    for name, row in ((fault.name, row) for fault in FAULTS for row in fault.rows):
        does = "; ".join(outcome.value for outcome in row.outcomes) + (f"; {row.more}" if row.more else "")
        lines.append(f"| {row.happens} | {does} | `{name}` |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the table as it is now."""
    return between(text, _BEGIN, _END, table())


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
