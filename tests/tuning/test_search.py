"""What a search decides while its trials run, without a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_mm.progress import Progress
from ray_mm.training.stopping import StopSign
from ray_mm.tuning.search import Search
from ray_mm.tuning.table import State, Table
from tests.tuning.searches import make_table, tune_job, validation


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def search_of(table: Table, clock: Clock | None = None) -> tuple[Search, Progress]:
    bar = Progress("tune", 3, "trials")
    return Search(table.job, table, StopSign(table.folder), bar, clock or Clock()), bar


def test_trials_that_were_interrupted_go_on_first_and_others_follow(tmp_path: Path) -> None:
    states = [State.DONE, State.BEGUN, State.FAILED, State.DIVERGED]
    table = make_table(tune_job(tmp_path, trials=6), [[0.5] * 4, [0.5], [0.5], []], states)
    search, _ = search_of(table)
    assert search.num_left == 4
    handed_out = [search.next_trial() for _ in range(5)]
    assert [trial and trial.number for trial in handed_out] == [2, 3, 5, 6, None]
    assert Table(table.job, table.folder).trial(6).state is State.BEGUN, "on disk before it starts"
    assert table.trial(3).state is State.BEGUN


def test_a_trial_that_is_behind_is_asked_to_end_and_told_why(tmp_path: Path) -> None:
    table = make_table(tune_job(tmp_path, method="asha"), [[0.8, 0.9, 0.9, 0.9]])
    search, bar = search_of(table)
    notes: list[str] = []
    bar.on_note = notes.append
    trial = search.next_trial()
    assert trial is not None
    run = table.run(trial)
    search.validated(trial.number, validation(1, 0.6))
    search.keep_signs()
    assert not run.exists(), "it has not begun to write: nothing may stand in its way"
    run.mkdir(parents=True)
    search.keep_signs()
    (run / ".stop").unlink()
    search.keep_signs()
    assert (run / ".stop").exists(), "a training that was just starting has taken the first one away"
    # It may finish an epoch more before it sees the sign.
    search.validated(trial.number, validation(2, 0.7))
    search.ended(trial.number, None)
    stopped = table.trial(trial.number)
    assert (stopped.state, stopped.epoch) == (State.STOPPED, 1)
    assert stopped.reason == (
        "after epoch 1 its accuracy of 60.0% was number 2 of the 2 trials that had come as far; the best goes on, which took "
        "80.0%"
    )
    assert notes == [f"trial 2 was stopped: {stopped.reason}"]
    assert bar.done == 1 and "stopped 1" in bar.shown_text() and "best 90.0% (trial 1)" in bar.shown_text()


def test_a_trial_that_is_ahead_goes_on_and_failed_ones_are_not_compared_with(tmp_path: Path) -> None:
    table = make_table(tune_job(tmp_path, method="asha"), [[0.9], [0.5]], [State.DIVERGED, State.DONE])
    search, _ = search_of(table)
    trial = search.next_trial()
    assert trial is not None
    search.validated(trial.number, validation(1, 0.6))
    table.run(trial).mkdir(parents=True)
    search.keep_signs()
    assert not (table.run(trial) / ".stop").exists()
    search.ended(trial.number, State.DONE)
    assert table.trial(trial.number).state is State.DONE


def test_a_trial_that_was_told_to_stop_and_came_to_its_end_before_is_done(tmp_path: Path) -> None:
    table = make_table(tune_job(tmp_path, method="asha"), [[0.8] * 4])
    search, _ = search_of(table)
    trial = search.next_trial()
    assert trial is not None
    for epoch in (1, 2, 3, 4):
        search.validated(trial.number, validation(epoch, 0.1))
    search.ended(trial.number, State.DONE)
    assert table.trial(trial.number).state is State.DONE


def test_failures_are_kept_with_their_reason_and_too_many_end_the_search(tmp_path: Path) -> None:
    table = make_table(tune_job(tmp_path, max_failed_trials=1, trials=5), [])
    search, bar = search_of(table)
    numbers = [trial.number for trial in (search.next_trial(), search.next_trial(), search.next_trial()) if trial]
    search.ended(numbers[0], State.DIVERGED, "the loss at step 3 is nan")
    assert not search.has_failed and search.num_left == 2
    search.ended(numbers[1], State.FAILED, "OSError: gone")
    assert search.has_failed and search.next_trial() is None
    table.run(table.trial(3)).mkdir(parents=True)
    search.keep_signs()
    assert (table.run(table.trial(3)) / ".stop").exists(), "those that run are saved"
    search.ended(3, None)
    again = Table(table.job, table.folder)
    assert [trial.state for trial in again.trials] == [State.DIVERGED, State.FAILED, State.BEGUN]
    assert again.trial(2).reason == "OSError: gone"
    assert bar.done == 2
    # The next command tries the one again that may do better, and ends if it does not.
    search, _ = search_of(again)
    assert not search.has_failed
    assert [trial.number for trial in (search.next_trial(), search.next_trial()) if trial] == [2, 3]
    search.ended(2, State.FAILED, "OSError: gone")
    assert search.has_failed


def test_asked_to_end_it_starts_no_trial_and_keeps_those_that_run(tmp_path: Path) -> None:
    table = make_table(tune_job(tmp_path), [])
    search, bar = search_of(table)
    trial = search.next_trial()
    assert trial is not None
    table.run(trial).mkdir(parents=True)
    (table.folder / ".stop").touch()
    search, bar = search_of(table)
    assert search.next_trial() is None and search.was_asked_to_end
    search._running.add(trial.number)
    search.keep_signs()
    assert (table.run(trial) / ".stop").exists()
    search.ended(trial.number, None)
    assert table.trial(trial.number).state is State.BEGUN and bar.done == 0


def test_the_time_left_follows_from_starts_and_epochs_and_short_trials_shorten_it(tmp_path: Path) -> None:
    clock = Clock()
    table = make_table(tune_job(tmp_path, trials=4), [])
    search, bar = search_of(table, clock)
    first = search.next_trial()
    assert first is not None
    clock.now = 20.0
    search.validated(first.number, validation(1, 0.5))
    assert search.seconds_left() is None, "nobody knows yet how long an epoch takes"
    clock.now = 22.0
    search.validated(first.number, validation(2, 0.5))
    # Two epochs of this one; of three others the start with the first epoch, and three more.
    assert bar.seconds_left() == pytest.approx(2 * 2 + 3 * (20 + 3 * 2))
    for epoch in (3, 4):
        clock.now += 2
        search.validated(first.number, validation(epoch, 0.5))
    search.ended(first.number, State.DONE)
    second = search.next_trial()
    assert second is not None
    assert search.seconds_left() == pytest.approx(3 * (20 + 3 * 2))
    clock.now += 10
    search.validated(second.number, validation(1, 0.1))
    (table.run(second)).mkdir(parents=True)
    search._stopping[second.number] = (1, "behind")
    search.ended(second.number, None)
    # Trials took 2.5 epochs on average, and a start 15 seconds.
    assert search.seconds_left() == pytest.approx(2 * (15 + 1.5 * 2))
    assert bar.rate_text() == ""


def test_two_trials_at_once_take_half_the_time(tmp_path: Path) -> None:
    clock = Clock()
    search, _ = search_of(make_table(tune_job(tmp_path, trials=4, **{"job.train.epochs": 1}), []), clock)
    numbers = [trial.number for trial in (search.next_trial(), search.next_trial(), search.next_trial()) if trial]
    clock.now = 30.0
    search.validated(numbers[0], validation(1, 0.5))
    search.ended(numbers[0], State.DONE)
    assert search.seconds_left() == pytest.approx(3 * 30 / 2)
