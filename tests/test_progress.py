"""Progress: plain lines in a log, a bar on a terminal, and a time left that can be believed."""

from __future__ import annotations

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator

import pytest

from ray_mm.logs import configure_logging
from ray_mm.progress import Progress, notice, progress


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_log_gets_one_line_per_interval_and_one_at_the_end() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress("train", 100, "steps", stream=stream, every_s=10, clock=clock) as bar:
        for step in range(100):
            clock.now += 0.5
            bar.advance(1, loss=1 / (step + 1), epoch=1)
    lines = stream.getvalue().splitlines()
    assert lines == [
        "train: 20/100 steps (20%), loss 0.05000  epoch 1, 2 steps/s, 0:40 left",
        "train: 40/100 steps (40%), loss 0.02500  epoch 1, 2 steps/s, 0:30 left",
        "train: 60/100 steps (60%), loss 0.01667  epoch 1, 2 steps/s, 0:20 left",
        "train: 80/100 steps (80%), loss 0.01250  epoch 1, 2 steps/s, 0:10 left",
        "train: 100/100 steps (100%), loss 0.01000  epoch 1, 2 steps/s",
    ]


def test_a_step_that_fails_still_says_how_far_it_came() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError), progress("index", 9, "shards", stream=stream, clock=Clock()) as bar:
        bar.advance(2)
        raise ValueError
    assert stream.getvalue() == "index: 2/9 shards (22%)\n"


def test_time_left_follows_the_recent_rate_and_not_the_average() -> None:
    clock = Clock()
    bar = Progress("train", 10_000, "steps", clock=clock)
    for _ in range(100):  # 10 s at 100 a second …
        clock.now += 0.1
        bar.advance(10)
    for _ in range(60):  # … then a minute at 1 a second
        clock.now += 1
        bar.advance(1)
    assert bar.rate() == pytest.approx(1, rel=0.05)
    assert bar.seconds_left() == pytest.approx(10_000 - 1060, rel=0.05)


def test_a_stall_lowers_the_rate_although_nothing_arrives() -> None:
    clock = Clock()
    bar = Progress("train", 1000, "steps", clock=clock)
    bar.advance(1)
    clock.now += 1
    bar.advance(100)
    assert bar.rate() == pytest.approx(100)
    clock.now += 99
    assert bar.rate() == pytest.approx(1)


def test_who_knows_better_foretells_and_the_rate_need_not_be_shown() -> None:
    bar = Progress("tune", 10, "trials", clock=lambda: 0.0)
    bar.foretell, bar.tells_rate = lambda: None, False
    bar.advance(1)
    assert (bar.left_text(), bar.rate_text(), bar.seconds_left()) == ("", "", None)
    bar.foretell = lambda: 65.0
    assert (bar.left_text(), bar.rate_text()) == ("1:05 left", "")


def test_what_an_earlier_run_did_counts_as_done_but_not_as_fast() -> None:
    clock = Clock()
    bar = Progress("train", 1000, "steps", done=900, clock=clock)
    assert bar.rate() is None
    assert bar.seconds_left() is None
    clock.now += 10
    bar.advance(10)
    assert bar.line() == "train: 910/1,000 steps (91%)", "what came before the first step says nothing about the steps"
    clock.now += 10
    bar.advance(10)
    assert bar.line() == "train: 920/1,000 steps (92%), 1 steps/s, 1:20 left"


def test_an_unknown_total_shows_the_count_and_the_rate() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress("read", None, "rows", stream=stream, clock=clock) as bar:
        bar.advance(0)
        clock.now += 2
        bar.advance(2500)
    assert stream.getvalue() == "read: 2,500 rows, 1,250 rows/s\n"


def test_what_arrives_all_at_once_tells_no_rate() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress("preprocess", 3000, "samples", stream=stream, clock=clock) as bar:
        clock.now += 15
        for _ in range(3):
            bar.advance(1000)
            clock.now += 0.01
    assert stream.getvalue().splitlines()[-1] == "preprocess: 3,000/3,000 samples (100%)"


def test_many_small_steps_keep_a_bounded_memory() -> None:
    clock = Clock()
    bar = Progress("read", None, "rows", clock=clock)
    for _ in range(100_000):
        clock.now += 0.001
        bar.advance(1)
    assert len(bar._marks) <= 600
    assert bar.rate() == pytest.approx(1000, rel=0.01)


def test_a_terminal_gets_a_bar_with_everything_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    stream, clock = Terminal(), Clock()
    with progress("evaluate", 640, "samples", stream=stream, clock=clock) as bar:
        for _ in range(10):
            clock.now += 1
            bar.advance(64, accuracy=0.9812)
    shown = stream.getvalue()
    for text in ("evaluate", "━", "640/640 samples", "samples/s", "accuracy 0.9812"):
        assert text in shown


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (40, "loss 0.3121  19:57 left"),
        (80, "loss 0.3121  validation accuracy 0.9100  19:57 left  8 samples/s"),
        (120, "loss 0.3121  validation accuracy 0.9100  19:57 left  30/12,000 steps  8 samples/s"),
        (200, "loss 0.3121  validation accuracy 0.9100  19:57 left  30/12,000 steps  8 samples/s  10 steps/s"),
    ],
)
def test_a_narrow_terminal_leaves_out_what_matters_least_and_cuts_no_number(
    monkeypatch: pytest.MonkeyPatch, columns: int, shown: str
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(columns))
    stream, clock = Terminal(), Clock()
    with progress("train", 12_000, "steps", stream=stream, clock=clock) as bar:
        bar.details = ("8 samples/s",)
        for _ in range(3):
            clock.now += 1
            bar.advance(10, **{"loss": 0.3121, "validation accuracy": 0.91})
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue().split("train")[-1]).rstrip("\r\n")
    assert 6 <= last.count("━") <= 40
    assert last.lstrip(" ━").rstrip() == shown
    assert len("train" + last.rstrip()) <= columns


def test_a_log_says_that_nothing_goes_on_once_a_minute() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress("train", 20, "steps", waiting="starting the workers", stream=stream, clock=clock) as bar:
        for _ in range(90):
            clock.now += 1
            bar.tick()
        bar.advance(10)
        for _ in range(130):
            clock.now += 1
            bar.tick()
    assert stream.getvalue().splitlines() == [
        "train: starting the workers",
        "train: starting the workers, nothing new for 1:00",
        "train: 10/20 steps (50%)",
        "train: 10/20 steps (50%), nothing new for 1:00",
        "train: 10/20 steps (50%), nothing new for 2:00",
        "train: 10/20 steps (50%), nothing new for 2:10",
    ]


def test_a_log_of_hours_gets_a_line_a_minute() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress("train", 100_000, "steps", stream=stream, clock=clock) as bar:
        for _ in range(7200):
            clock.now += 1
            bar.advance(1)
    lines = stream.getvalue().splitlines()
    assert 120 < len(lines) < 180
    assert not any(character < " " for line in lines for character in line)


def test_what_comes_before_the_first_step_is_told() -> None:
    clock, stream = Clock(), io.StringIO()
    with progress("train", 20, "steps", waiting="starting the workers", stream=stream, clock=clock) as bar:
        assert stream.getvalue() == "train: starting the workers\n"
        clock.now += 9
        bar.advance(10)
        bar.note("epoch 1/2: loss 0.5")
    assert stream.getvalue().splitlines()[1:] == ["epoch 1/2: loss 0.5", "train: 10/20 steps (50%)"]


def test_a_notice_is_a_paragraph_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    notice("the disk is nearly full.")
    assert capsys.readouterr() == ("", "ray-mm: the disk is nearly full.\n")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_that_is_closed_ends_nothing(is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        tried = 0

        def isatty(self) -> bool:
            return is_terminal

        def write(self, text: str) -> int:
            self.tried += 1
            raise OSError(5, "Input/output error")

        def flush(self) -> None:
            raise OSError(5, "Input/output error")

    monkeypatch.setenv("TERM", "xterm")
    stream = Gone()
    with progress("train", 9, "steps", stream=stream, every_s=0) as bar:
        for _ in range(9):
            bar.advance(1)
            bar.note("half of it is done")
    notice("the end", stream)
    assert bar.done == 9 and stream.tried


def test_a_note_stays_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    with progress("train", 20, "steps", waiting="starting the workers", stream=stream) as bar:
        bar.advance(10)
        bar.note("epoch 1/2: loss 0.5")
    assert "starting the workers" in stream.getvalue() and "epoch 1/2: loss 0.5\n" in stream.getvalue()


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    names = [None, *logging.root.manager.loggerDict]
    levels = {name: logging.getLogger(name).level for name in names}
    handlers = list(logging.getLogger("ray_mm").handlers)
    with warnings.catch_warnings():
        yield
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.getLogger("ray_mm").handlers[:] = handlers


@pytest.mark.usefixtures("_restored_logging")
def test_the_log_goes_to_stderr_once_in_words_and_without_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(debug=False)
    configure_logging(debug=False)
    logger = logging.getLogger("ray_mm.data.source")
    logger.info("silent")
    try:
        raise ValueError("inner")
    except ValueError:
        logger.warning("quarantined key=%s", "000417", exc_info=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.endswith("level=warning logger=ray_mm.data.source quarantined key=000417\n")
    assert not logging.getLogger("ray").isEnabledFor(logging.WARNING)


@pytest.mark.usefixtures("_restored_logging")
def test_debug_shows_everything_with_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(debug=True)
    try:
        raise ValueError("inner")
    except ValueError:
        logging.getLogger("ray_mm").debug("failed", exc_info=True)
    err = capsys.readouterr().err
    assert "level=debug" in err
    assert "ValueError: inner" in err


@pytest.mark.usefixtures("_restored_logging")
def test_the_log_finds_stderr_where_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging(debug=False)
    elsewhere = io.StringIO()
    monkeypatch.setattr(sys, "stderr", elsewhere)
    logging.getLogger("ray_mm").error("here")
    assert "here" in elsewhere.getvalue()
