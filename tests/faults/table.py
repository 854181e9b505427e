"""All faults of the data plane, and their table in ``docs/reliability.md``.

python -m tests.faults.table          writes the table
"""

from __future__ import annotations

from pathlib import Path

from tests.faults import in_indexes, in_processes, in_shards, in_stores
from tests.faults.lab import Fault, Way

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
FAULTS: tuple[Fault, ...] = (*in_shards.FAULTS, *in_indexes.FAULTS, *in_stores.FAULTS, *in_processes.FAULTS)
_BEGIN, _END = "<!-- faults: begin -->\n", "<!-- faults: end -->\n"
_WAYS: dict[Way, str] = {
    "index": "indexing",
    "open": "opening",
    "reader": "reading",
    "feed": "Ray Data",
    "training": "a training",
}


def table() -> str:
    """The table, as Markdown."""
    lines = ["| what happens | what ray_mm does | tried in | test |", "|---|---|---|---|"]
    for fault in FAULTS:
        does = "; ".join(outcome.value for outcome in fault.outcomes) + (f"; {fault.more}" if fault.more else "")
        ways = ", ".join(_WAYS[way] for way in fault.ways)
        lines.append(f"| {fault.happens} | {does} | {ways} | `{fault.name}` |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the table as it is now."""
    return between(text, _BEGIN, _END, table())


def between(text: str, begin: str, end: str, what: str) -> str:
    """A text with something else between two marks."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{what}\n{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
