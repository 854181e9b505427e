"""Where ray_mm's log goes: to stderr, one line per record, in words that ``grep`` can take apart.

    time=2026-11-03T12:03:11 level=warning logger=ray_mm.data.source quarantined shard=shards/000002.tar key=000417

Modules log with ``logging.getLogger(__name__)`` and put what varies into ``key=value``.
"""

from __future__ import annotations

import logging
import sys
import warnings
from typing import TYPE_CHECKING, TextIO

_PACKAGE = "ray_mm"
_THIRD_PARTIES = ("ray", "torch", "torch.onnx", "onnxruntime", "matplotlib", "fontTools", "PIL", "asyncio", "urllib3")


if TYPE_CHECKING:
    _TextHandler = logging.StreamHandler[TextIO]
else:  # Python 3.10 can't subscript it
    _TextHandler = logging.StreamHandler


class _Stderr(_TextHandler):
    """Looks up ``sys.stderr`` at every record: a progress bar puts itself in its place while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _KeyValueFormatter(logging.Formatter):
    """``time= level= logger=`` and the message; a traceback only when asked for."""

    def __init__(self, tracebacks: bool) -> None:
        super().__init__("time=%(asctime)s level=%(level)s logger=%(name)s %(message)s", "%Y-%m-%dT%H:%M:%S")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        return super().format(record)

    def formatException(self, ei: object) -> str:  # noqa: N802 - the name is logging's
        return super().formatException(ei) if self._tracebacks else ""  # type: ignore[arg-type]


def configure_logging(debug: bool = False) -> None:
    """Sends the package's log to stderr and keeps other libraries quiet. Calling it again replaces the earlier setting.

    Args:
        debug: everything that ray_mm says, with tracebacks, and the warnings of other libraries. Otherwise ray_mm's
            warnings and errors only, because progress and results are shown in other ways.
    """
    logger = logging.getLogger(_PACKAGE)
    for handler in list(logger.handlers):
        if isinstance(handler, _Stderr):
            logger.removeHandler(handler)
    handler = _Stderr()
    handler.setFormatter(_KeyValueFormatter(debug))
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    for name in _THIRD_PARTIES:
        logging.getLogger(name).setLevel(logging.WARNING if debug else logging.ERROR)
    # What the user asked for with -W or PYTHONWARNINGS stands.
    if not debug and not sys.warnoptions:
        warnings.simplefilter("ignore")
