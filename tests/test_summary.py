"""Results as tables: what a terminal shows of them."""

from __future__ import annotations

import io

from rich.console import Console

from ray_mm.summary import titled_table


def test_a_title_stays_in_one_line_above_a_narrow_table() -> None:
    sink = io.StringIO()
    title = "label of_a_long_name, in 1,000 of the samples"
    Console(file=sink, width=80).print(titled_table(title, ("value", "samples"), [("a", "7")]))
    assert [line.rstrip() for line in sink.getvalue().splitlines()] == [title, "value  samples", "a            7"]
