"""What a training shows of itself: the bar, and a line that stays for every epoch."""

from __future__ import annotations

from typing import Any

import pytest

from ray_mm.data.plan import Schedule
from ray_mm.progress import Progress
from ray_mm.training.advice import course, warnings
from ray_mm.training.shown import ShownTraining

Line = dict[str, Any]


def train(step: int, epoch: int, loss: float, data_wait: float = 0.25) -> Line:
    """A line, such that its step may be the last of an epoch whose loss is 0.1 more."""
    return {
        "kind": "train",
        "step": step,
        "time": 2.0 * step,
        "epoch": epoch,
        "loss": loss,
        "samples_per_s": 22.0,
        "data_wait": data_wait,
        "epoch_loss": loss + 0.1,
        "epoch_samples_per_s": 1234.0,
        "epoch_data_wait": data_wait,
    }


def validation(step: int, epoch: int) -> Line:
    return {"kind": "validation", "step": step, "time": 2.0 * step + 9, "epoch": epoch, "loss": 0.5, "accuracy": 0.875}


def bar_with_notes(done: int = 0) -> tuple[Progress, list[str]]:
    bar, notes = Progress("train", 60, "steps", done, "starting"), list[str]()
    bar.on_note = notes.append
    return bar, notes


def test_an_epoch_is_told_once_with_its_validation() -> None:
    bar, notes = bar_with_notes()
    shown = ShownTraining(bar, 3, validation_batches=9)
    shown.show([])
    assert bar.line() == "train: starting"
    lines = [train(10, 1, 0.9), train(20, 1, 0.75)]
    shown.show(lines)
    assert notes == [] and bar.done == 20
    lines += [validation(20, 1)]
    shown.show(lines)
    shown.show(lines)
    told = "epoch 1/3: loss 0.85, validation loss 0.5, accuracy 0.875, 1,234 samples/s, "
    assert notes == [told + "waited for data 25% of the time"]
    shown.show([*lines, train(30, 2, 0.5)])
    told = "loss 0.5000  accuracy 0.8750  epoch 2/3  data wait 25%"
    assert bar.shown_text() == told, "the metric comes before the epoch"
    assert "data wait 25%" in bar.line() and "data wait 25%" in bar.beside_text()
    assert len(notes) == 1


def test_an_epoch_that_hardly_waited_fits_into_a_narrow_terminal() -> None:
    bar, notes = bar_with_notes()
    ShownTraining(bar, 12, validation_batches=9).show([train(20, 1, 0.75123, 0.02), validation(20, 1)])
    assert notes == ["epoch 1/12: loss 0.8512, validation loss 0.5, accuracy 0.875, 1,234 samples/s"]


def test_waiting_for_data_is_shown_while_it_is_worth_it() -> None:
    bar, _ = bar_with_notes()
    shown = ShownTraining(bar, 3, validation_batches=9)
    texts = []
    for step, share in ((1, 0.42), (2, 0.1), (3, 0.0999), (4, 0.0)):
        shown.show([train(step, 1, 0.5, share)])
        texts.append(bar.shown_text())
    waited = ["  data wait 42%", "  data wait 10%", "", ""]
    assert texts == [f"loss 0.5000  epoch 1/3{text}" for text in waited]


def test_a_line_of_a_log_tells_all_that_is_known() -> None:
    bar, _ = bar_with_notes()
    line = train(30, 2, 0.5, 0.0249) | {
        "samples_per_s": 45_120.0,
        "tokens_per_s": 812.3,
        "pixels_per_s": 15_612_345.0,
        "device_memory_bytes": 3_221_225_472,
        "device_memory": 0.0376,
        "flops_per_s": 1e14,
        "mfu": 0.384,
    }
    ShownTraining(bar, 3, validation_batches=9).show([line])
    assert bar.line() == (
        "train: 30/60 steps (50%), loss 0.5000  epoch 2/3, 45.1k samples/s, data wait 2%, MFU 38%, GPU memory 3.2 GB (4%), "
        "812 tokens/s, 15.6M pixels/s"
    )
    del line["mfu"]
    ShownTraining(bar, 3, validation_batches=9).show([line | {"step": 31}])
    assert "MFU unknown" in bar.line()


def test_without_a_validation_an_epoch_is_told_when_the_next_one_begins_and_at_the_end() -> None:
    bar, notes = bar_with_notes()
    shown = ShownTraining(bar, 2, validation_batches=0)
    shown.show([train(10, 1, 0.9), train(20, 1, 0.8)])
    shown.show([train(20, 1, 0.8), train(30, 2, 0.7), train(40, 2, 0.6)])
    shown.end()
    assert [note.split(",")[0] for note in notes] == ["epoch 1/2: loss 0.9", "epoch 2/2: loss 0.7"]


def test_an_epoch_that_was_not_trained_to_its_end_is_not_told() -> None:
    bar, notes = bar_with_notes()
    shown = ShownTraining(bar, epochs=3, validation_batches=0)
    shown.show([train(20, 1, 0.6), within(train(30, 2, 0.4))])
    shown.end()
    assert [note.split(":")[0] for note in notes] == ["epoch 1/3"]


def test_what_an_earlier_run_wrote_is_not_told_again_and_a_restart_goes_back() -> None:
    bar, notes = bar_with_notes(done=20)
    shown = ShownTraining(bar, 3, validation_batches=9)
    shown.show([train(20, 1, 0.8), validation(20, 1)])
    shown.show([train(20, 1, 0.8), validation(20, 1), train(40, 2, 0.6), validation(40, 2)])
    assert [note.split(":")[0] for note in notes] == ["epoch 2/3"] and bar.done == 40
    shown.show([train(30, 2, 0.6)])
    assert bar.done == 30


def within(line: Line) -> Line:
    """A line that is not the last of its epoch."""
    return {key: value for key, value in line.items() if not key.startswith("epoch_")}


def test_the_time_left_counts_steps_and_validations() -> None:
    now = [0.0]
    bar = Progress("train", 60, "steps")
    shown = ShownTraining(bar, 3, validation_batches=6, clock=lambda: now[0])
    assert bar.seconds_left() is None
    lines = [within(train(10, 1, 0.9)), within(train(15, 1, 0.9))]
    shown.show(lines)
    # 45 steps of 2 s; of each batch of the three validations a third of that.
    assert bar.seconds_left() == pytest.approx(45 * 2 + 3 * 6 * 2 / 3)
    lines.append(train(20, 1, 0.8))
    now[0] = lines[-1]["time"] + 3
    shown.show(lines)
    assert bar.seconds_left() == pytest.approx(40 * 2 + 3 * 4 - 3), "it is in the first validation"
    now[0] += 100
    assert bar.seconds_left() == pytest.approx(40 * 2 + 2 * 4)
    lines.append(validation(20, 1))
    shown.show(lines)
    assert bar.seconds_left() == pytest.approx(40 * 2 + 2 * 9), "a validation takes 9 s"
    # The workers were started again: the time without a step is none of the steps'.
    lines.append(within(train(30, 2, 0.7)) | {"time": 1000.0, "first_batch_s": 3.0})
    shown.show(lines)
    assert bar.seconds_left() == pytest.approx(30 * 2 + 2 * 9)


def test_the_course_of_a_training_is_told_in_words() -> None:
    assert course(Schedule(450, 0, 32, 12)) == "180 steps: 12 epochs of 15 steps, 32 samples each"
    assert course(Schedule(4, 0, 32, 1)) == "1 step: 1 epoch of 1 step, 32 samples each"


@pytest.mark.parametrize(
    ("schedule", "same", "told"),
    [
        (Schedule(450, 0, 32, 12), False, []),
        (Schedule(450, 0, 451, 500), False, ["data.batch_size: 451 is more than the 450 samples"]),
        (Schedule(450, 0, 450, 99), False, ["train.epochs: the training has only 99 steps"]),
        (Schedule(450, 0, 32, 12), True, ["data.validation: these are samples that the model is trained on"]),
    ],
)
def test_what_is_hardly_meant_is_told(schedule: Schedule, same: bool, told: list[str]) -> None:
    found = list(warnings(schedule, same))
    assert len(found) == len(told)
    assert all(text.startswith(start) for text, start in zip(found, told, strict=True))
