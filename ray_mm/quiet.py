"""Ray, turned down: what it says about its own affairs is kept off the terminal, where our progress and errors are.

Nothing is lost by it. What fails reaches us as an exception, and Ray's log files have everything.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def without_token_notice() -> Iterator[None]:
    """Ray announces at every local start that it uses a token. It is the default, and there is nothing to do about it."""
    logger = logging.getLogger("ray._private.authentication.authentication_token_setup")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def quiet_core() -> Iterator[None]:
    """Keeps the C++ core of this process off the terminal while it is set up; it reports an error about every actor pool.

    What really fails reaches us as an exception. Ray's other processes keep their logs: ``os.putenv`` is seen by the core
    of this process, and not by ``os.environ``, which they are started with.
    """
    if "RAY_BACKEND_LOG_LEVEL" in os.environ or _log.isEnabledFor(logging.DEBUG):
        yield
        return
    os.putenv("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        with _without_lines(b"RAY_BACKEND_LOG_LEVEL"):  # the core announces that it was told to be quiet
            yield
    finally:
        os.unsetenv("RAY_BACKEND_LOG_LEVEL")


@contextlib.contextmanager
def _without_lines(mark: bytes) -> Iterator[None]:
    """Holds back what is written to the file descriptor of stderr, and passes it on afterwards without some lines."""
    with tempfile.TemporaryFile() as held:
        sys.stderr.flush()
        terminal = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            held.seek(0)
            for line in held:
                if mark not in line:
                    os.write(2, line)


@contextlib.contextmanager
def quiet_data() -> Iterator[None]:
    """Keeps Ray Data's plans, progress bars and tracebacks off the terminal; its warnings stay.

    Errors reach us as exceptions and are told once, by whoever catches them. Ray Data's log file has them all.
    """
    import ray.data
    from ray.util.debug import log_once

    context = ray.data.DataContext.get_current()
    before = context.enable_progress_bars, context.raise_original_map_exception
    context.enable_progress_bars = False
    # Otherwise the exception itself is lost on its way to the driver, and only its text arrives.
    context.raise_original_map_exception = True
    log_once("ray_data_progress_manager_disabled")  # else Ray warns that the bars are off
    terminals = [
        handler
        for handler in logging.getLogger("ray.data").handlers
        if isinstance(handler, logging.StreamHandler)
        and not isinstance(handler, logging.FileHandler)
        and _is_warning not in handler.filters  # within another quiet block, which goes on after this one
    ]
    for handler in terminals:
        handler.addFilter(_is_warning)
    try:
        yield
    finally:
        context.enable_progress_bars, context.raise_original_map_exception = before
        for handler in terminals:
            handler.removeFilter(_is_warning)


@contextlib.contextmanager
def quiet_raylet() -> Iterator[None]:
    """Sends what the raylet reports, such as many worker processes, to our log: Ray prints it on stdout, among results.

    Ray has no setting for it. Should the function have another name one day, Ray is as loud as it always was.
    """
    from ray._private import worker

    before = getattr(worker, "print_to_stdstream", None)
    if before is None:
        yield
        return

    def log(data: dict[str, Any], *_: object, **__: object) -> None:
        _log.info("ray says: %s", " ".join(" ".join(data["lines"]).split()))

    worker.print_to_stdstream = log
    try:
        yield
    finally:
        worker.print_to_stdstream = before


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno == logging.WARNING


@contextlib.contextmanager
def quiet_tune() -> Iterator[None]:
    """Keeps Ray Tune's tables and files of results off the terminal and the disk; what we need of them we write ourselves."""
    settings = {
        "RAY_AIR_NEW_OUTPUT": "0",  # the older display can be silenced, the newer one can't
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C stays a KeyboardInterrupt
    }
    before = {name: os.environ.get(name) for name in settings}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(settings)
    # Its tracebacks, too: a trial that fails is told by us.
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
