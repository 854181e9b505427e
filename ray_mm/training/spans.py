"""Names for the parts of a step, in a trace. Where nobody profiles they cost nothing worth measuring."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from torch.profiler import record_function

PREFIX = "ray_mm: "
_NOTHING = nullcontext()
_on = False


def span(name: str) -> AbstractContextManager[object]:
    """The context of a part of a step, such as ``forward``. Spans of one thread do not lie within each other."""
    return record_function(PREFIX + name) if _on else _NOTHING


def use_spans(on: bool) -> None:
    """Turns them on or off in this process."""
    global _on
    _on = on
