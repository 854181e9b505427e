"""What a long step shows on stderr: a bar on a terminal, a plain line now and then in a log.

    with progress("evaluate", total=6000, unit="samples") as bar:
        bar.advance(64, accuracy=0.981)

The rate, and the time left that follows from it, come from the last half minute only: an average since the start would
promise too much after a fast beginning and too little after a slow one. The clock starts with the first step: what comes
before it, such as starting processes, says nothing about the steps.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console

_WINDOW_S = 30.0
_MAX_MARKS = 512
_LEAST_S = 0.5
"""Less time than this tells how results arrive, several at once, and not how fast they are made."""
_MIN_BAR, _MAX_BAR = 6, 40
_BESIDE = 90
"""Columns that a bar leaves to the text beside it, as far as there are so many."""
_IDLE_S = 60.0
"""Seconds without a step after which that is told."""
_MAX_EVERY_S, _SHARE = 60.0, 1 / 30
"""A log of days needs no line every ten seconds: the interval is a thirtieth of the time so far, up to a minute."""

Shown = float | int | str


class Progress:
    """How far a step is. Not for use by several threads.

    Args:
        description: what is being done, in a word or two.
        total: units to do, or None where nobody knows.
        unit: what is counted, in the plural.
        done: units that an earlier run did already; they don't count into the rate.
        waiting: what is going on before the first step, in a few words.
        clock: seconds, monotonic.

    Attributes:
        details: texts that stand behind the values beside the bar as far as there is room, what matters most first.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        unit: str,
        done: int = 0,
        waiting: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self.done = done
        self.shown: dict[str, Shown] = {}
        self.details: tuple[str, ...] = ()
        self.waiting = waiting
        self.on_advance: Callable[[], None] | None = None
        self.on_tick: Callable[[], None] | None = None
        self.on_note: Callable[[str], None] | None = None
        self.foretell: Callable[[], float | None] | None = None
        """Seconds left, where the caller knows better than the rate of half a minute."""
        self.tells_rate = True
        self._clock = clock
        self._began = clock()
        self._marks: deque[tuple[float, int]] = deque()

    def advance(self, n: int = 1, **shown: Shown) -> None:
        """Counts ``n`` units more; ``shown`` values stand beside the bar until they are given again."""
        self.done += n
        self.waiting = ""
        self.shown.update(shown)
        now = self._clock()
        # Many small steps would otherwise fill the window with marks that tell nothing more.
        if len(self._marks) < 3 or now - self._marks[-2][0] > _WINDOW_S / _MAX_MARKS:
            self._marks.append((now, self.done))
        else:
            self._marks[-1] = (now, self.done)
        self._forget(now)
        if self.on_advance is not None:
            self.on_advance()

    def tick(self) -> None:
        """Lets a log say, now and then, that nothing is going on."""
        if self.on_tick is not None:
            self.on_tick()

    def note(self, text: str) -> None:
        """A line that stays, above the bar or between the lines of a log."""
        if self.on_note is not None:
            self.on_note(text)

    def rate(self) -> float | None:
        """Units per second over the last half minute; None before there is a second step, and enough time, to go by."""
        if not self._marks:
            return None
        now = self._clock()
        self._forget(now)
        started, before = self._marks[0]
        done = self.done - before
        # Time since the last step counts too: a stall must show.
        return done / (now - started) if done > 0 and now - started >= _LEAST_S else None

    def _forget(self, now: float) -> None:
        # The mark before the window stays, so that the window is always covered.
        while len(self._marks) > 2 and self._marks[1][0] <= now - _WINDOW_S:
            self._marks.popleft()

    def seconds_left(self) -> float | None:
        """At the recent rate; None where the rate or the total is not known."""
        if self.foretell is not None:
            return self.foretell()
        rate = self.rate()
        return None if self.total is None or not rate else max(self.total - self.done, 0) / rate

    def count_text(self) -> str:
        """Such as ``128/6,000 samples``."""
        return f"{self.done:,}{'' if self.total is None else f'/{self.total:,}'} {self.unit}"

    def rate_text(self) -> str:
        """Such as ``312 samples/s``, or nothing."""
        rate = self.rate() if self.tells_rate else None
        if rate is None:
            return ""
        return f"{rate:,.0f} {self.unit}/s" if rate >= 100 else f"{rate:.3g} {self.unit}/s"

    def shown_text(self) -> str:
        """The values beside the bar, such as ``loss 0.3121  lr 0.0010``."""
        return "  ".join(self._shown_parts())

    def _shown_parts(self) -> list[str]:
        return [f"{name.replace('_', ' ')} {_value(value)}" for name, value in self.shown.items()]

    def left_text(self) -> str:
        """Such as ``1:05 left``, or nothing."""
        left = self.seconds_left()
        return "" if left is None or self.done == self.total else f"{duration(left)} left"

    def idle_text(self) -> str:
        """Such as ``nothing new for 1:05``, or nothing where something is."""
        idle = self._clock() - (self._marks[-1][0] if self._marks else self._began)
        return f"nothing new for {duration(idle)}" if idle >= _IDLE_S else ""

    def line(self) -> str:
        """Everything in one line, for a log."""
        percent = f" ({100 * self.done // self.total}%)" if self.total else ""
        parts = [f"{self.count_text()}{percent}", self.shown_text(), *self.details, self.rate_text(), self.left_text()]
        told = [*([self.waiting] if self.waiting else parts), self.idle_text()]
        return f"{self.description}: {', '.join(part for part in told if part)}"

    def beside_text(self, width: int = 10_000) -> str:
        """What stands beside the bar: what matters most comes first, and what there is no room for is left out as a whole.

        Args:
            width: columns that there are.
        """
        if self.waiting:
            return self.waiting
        text = ""
        parts = [self.idle_text(), *self._shown_parts(), self.left_text(), self.count_text(), *self.details]
        for part in [*parts, self.rate_text()]:
            longer = f"{text}  {part}" if text and part else text or part
            # A number that is cut is another number.
            text = longer if len(longer) <= width or not text else text
        return text


class _Lasting:
    """A stream whose terminal may be closed, or whose reader may go: what is shown does not end what is done."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def notice(text: str, stream: TextIO | None = None) -> None:
    """Says on stderr what one should know although nothing failed: a paragraph, above whatever bar is shown there."""
    stream = cast(TextIO, _Lasting(stream or sys.stderr))
    stream.write(f"ray-mm: {text}\n")
    stream.flush()


@contextlib.contextmanager
def progress(
    description: str,
    total: int | None,
    unit: str,
    *,
    done: int = 0,
    waiting: str = "",
    stream: TextIO | None = None,
    every_s: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Progress]:
    """Shows how far a step is while the block runs.

    Args:
        description: what is being done, in a word or two.
        total: units to do, or None where nobody knows.
        unit: what is counted, in the plural.
        done: units that an earlier run did already.
        waiting: what is going on before the first step, in a few words; a log gets it as its first line.
        stream: where to; stderr by default.
        every_s: where it is not a terminal, at most one line in so many seconds, and one at the end.
        clock: seconds, monotonic.
    """
    from rich.console import Console

    stream = cast(TextIO, _Lasting(stream or sys.stderr))
    bar = Progress(description, total, unit, done, waiting, clock)
    console = Console(file=stream)
    if console.is_terminal and not console.is_dumb_terminal and not console.is_jupyter:
        with _terminal(bar, console):
            yield bar
    else:
        with _plain(bar, stream, every_s, clock):
            yield bar


@contextlib.contextmanager
def _plain(bar: Progress, stream: TextIO, every_s: float, clock: Callable[[], float]) -> Iterator[None]:
    started = written_at = clock()
    written = ""

    def put(text: str) -> None:
        stream.write(text + "\n")
        stream.flush()

    def write() -> None:
        nonlocal written_at, written
        written_at, written = clock(), bar.line()
        put(written)

    def on_advance() -> None:
        now = clock()
        if now - written_at >= max(every_s, min(_MAX_EVERY_S, (now - started) * _SHARE)):
            write()

    def on_tick() -> None:
        if clock() - written_at >= _IDLE_S and bar.idle_text():
            write()

    bar.on_advance, bar.on_note, bar.on_tick = on_advance, put, on_tick
    if bar.waiting:
        write()
    try:
        yield
    finally:
        if bar.line() != written:
            write()


@contextlib.contextmanager
def _terminal(bar: Progress, console: Console) -> Iterator[None]:
    from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class Live(ProgressColumn):
        """A text that is asked for at every refresh, so that the time left goes on while nothing arrives."""

        def __init__(self, text: Callable[[], str], style: str) -> None:
            super().__init__()
            self.text, self.style = text, style

        def render(self, task: Task) -> Text:
            return Text(self.text(), style=self.style, no_wrap=True, overflow="ellipsis")

    bar_width = max(_MIN_BAR, min(_MAX_BAR, console.width - _BESIDE))
    # A column lies between two of them.
    beside = console.width - len(bar.description) - bar_width - 2
    columns = (
        TextColumn("{task.description}", style="bold"),
        BarColumn(bar_width=bar_width),
        Live(lambda: bar.beside_text(beside), "green"),
    )
    with RichProgress(*columns, console=console, refresh_per_second=5) as live:
        task = live.add_task(bar.description, total=bar.total, completed=bar.done)
        bar.on_advance = lambda: live.update(task, completed=bar.done)
        bar.on_note = lambda text: live.console.print(text, highlight=False, markup=False)
        yield


def _value(value: Shown) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:#.4g}"


def duration(seconds: float) -> str:
    """Such as ``1:05`` (minutes and seconds), or ``2:00:31`` with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
