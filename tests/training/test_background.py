"""What is written in the background: in order, one at a time, and nothing that goes wrong is lost."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from ray_mm.training.background import BackgroundWriter


def _fails() -> None:
    raise OSError("no space")


def test_the_caller_goes_on_and_the_next_write_waits_for_the_one_before() -> None:
    gate, done = threading.Event(), list[int]()

    def first() -> None:
        gate.wait(10)
        done.append(1)

    with BackgroundWriter() as writer:
        writer.start(first)
        assert done == []
        writer.check()
        gate.set()
        writer.start(lambda: done.append(2))
        assert done[0] == 1
    assert done == [1, 2]


@pytest.mark.parametrize("how", ["start", "wait", "exit", "check"])
def test_what_went_wrong_is_raised_once_by_whoever_comes_next(how: str) -> None:
    with pytest.raises(OSError, match="no space"), BackgroundWriter() as writer:
        writer.start(_fails)
        if how == "start":
            writer.start(lambda: None)
        elif how == "wait":
            writer.wait()
        elif how == "check":
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                writer.check()
    writer.check()


def test_an_error_that_is_on_its_way_is_not_replaced(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(KeyError), BackgroundWriter() as writer:
        writer.start(_fails)
        raise KeyError
    assert "no space" in caplog.text
