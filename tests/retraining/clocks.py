"""Clocks that are turned on by hand: nothing waits for real time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class World:
    """The true time, in seconds, and what happens at certain times.

    Attributes:
        now: the true time.
        events: what is done when that time is reached, in order.
    """

    now: float = 0.0
    events: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def pass_by(self, seconds: float) -> None:
        """Lets time pass, and what is due happen."""
        end = self.now + seconds
        while self.events and self.events[0][0] <= end:
            time, event = self.events.pop(0)
            self.now = max(self.now, time)
            event()
        self.now = end


@dataclass
class FakeClock:
    """A machine's clock in a world: it may be wrong by hours, and go too fast or too slow.

    Attributes:
        world: whose time it shows.
        offset: what its wall clock is wrong by, in seconds.
        rate: its seconds per true second.
    """

    world: World
    offset: float = 0.0
    rate: float = 1.0

    def monotonic(self) -> float:
        """Its own seconds."""
        return 1000.0 + self.world.now * self.rate

    def time(self) -> float:
        """What it takes for the time."""
        return 1_790_000_000.0 + self.world.now * self.rate + self.offset

    def sleep(self, seconds: float) -> None:
        """Lets so many of its own seconds pass."""
        self.world.pass_by(seconds / self.rate)
