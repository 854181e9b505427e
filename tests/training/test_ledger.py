"""What was trained on can be counted afterwards, whatever was started how often."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ray_mm.data.plan import Schedule, rank_slice
from ray_mm.training.ledger import Entry, Ledger, audit, read_entries

SCHEDULE = Schedule(train_samples=23, validation_samples=5, batch_size=6, epochs=2)


def _train(
    folder: Path, attempt: int, first: int, last: int, world_size: int = 1, bad: frozenset[int] = frozenset()
) -> None:
    """Writes what the ranks of an attempt write that is killed before item ``last``; ``bad`` positions are quarantined."""
    for rank in range(world_size):
        ledger = Ledger(folder, attempt, rank)
        for number in range(first, last):
            item = SCHEDULE.item(number)
            if item.phase == "train":
                start, stop = rank_slice(item, SCHEDULE.batch_size, rank, world_size)
                ledger.write(Entry(number, start, stop, tuple(p for p in range(start, stop) if p in bad)))
        ledger.close()


def test_entries_are_on_file_at_once_and_come_back(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", 3, 1)
    entries = [Entry(0, 0, 4, ()), Entry(1, 4, 8, (5, 7))]
    for entry in entries:
        ledger.write(entry)
    path = tmp_path / "ledger" / "attempt-0003-rank-0001.jsonl"
    assert list(read_entries(path)) == entries, "before it is closed"
    ledger.close()
    path.write_text(path.read_text() + "[2, 8, 1")
    assert list(read_entries(path)) == entries, "a line that was cut short does not count"


def test_an_uninterrupted_training_is_exact(tmp_path: Path) -> None:
    _train(tmp_path, 1, 0, SCHEDULE.num_items, world_size=4, bad=frozenset({0, 22}))
    epochs = audit(tmp_path, SCHEDULE, {1: 0})
    assert len(epochs) == 2
    for epoch in epochs:
        assert epoch.exact
        assert epoch.quarantined.nonzero()[0].tolist() == [0, 22]
        assert epoch.trained.sum() == 21


def test_a_sample_that_is_missing_or_met_twice_is_found(tmp_path: Path) -> None:
    _train(tmp_path / "short", 1, 0, SCHEDULE.num_items - 2)
    assert [epoch.exact for epoch in audit(tmp_path / "short", SCHEDULE, {1: 0})] == [True, False]
    _train(tmp_path / "twice", 1, 0, SCHEDULE.num_items)
    _train(tmp_path / "twice", 2, 0, 2)
    repeated = audit(tmp_path / "twice", SCHEDULE, {1: 0, 2: SCHEDULE.num_items})
    assert [epoch.exact for epoch in repeated] == [False, True]


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, int]]:
    """(first item, item before which it was killed) of every attempt; each resumes at or before where one stopped."""
    attempts = [(0, draw(st.integers(0, SCHEDULE.num_items)))]
    for _ in range(draw(st.integers(0, 4))):
        first = draw(st.integers(0, attempts[-1][1]))
        attempts.append((first, draw(st.integers(first, SCHEDULE.num_items))))
    first = draw(st.integers(0, attempts[-1][1]))
    return [*attempts, (first, SCHEDULE.num_items)]


@given(history=histories(), world_sizes=st.lists(st.integers(1, 4), min_size=6, max_size=6))
def test_a_training_that_was_interrupted_anywhere_is_exact_whatever_checkpoint_it_went_back_to(
    tmp_path_factory: object, history: list[tuple[int, int]], world_sizes: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("ledger")  # type: ignore[attr-defined]
    for number, ((first, last), world_size) in enumerate(zip(history, world_sizes, strict=False), start=1):
        _train(folder, number, first, last, world_size, bad=frozenset({3}))
    starts = {number: first for number, (first, _) in enumerate(history, start=1)}
    for epoch in audit(folder, SCHEDULE, starts):
        assert epoch.exact and epoch.quarantined.sum() == 1
