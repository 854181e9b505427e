"""What a short job answers whoever submitted it: bytes, through its log, which is emptied when they have been read.

ray_mm-answer:begin
…base64…
ray_mm-answer:end 65ac3f…        SHA-256 of the bytes
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import signal
import sys
import threading

from ray_mm.errors import RayMMError

_BEGIN, _END = "ray_mm-answer:begin", "ray_mm-answer:end"
_LINE = 1 << 16
_READ_WITHIN_S = 120.0


def give_answer(content: bytes) -> None:
    """Writes an answer to the log, waits until it has been read, which a SIGTERM says, and takes it away again."""
    was_read = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: was_read.set())
    encoded = base64.b64encode(content).decode()
    lines = [encoded[start : start + _LINE] for start in range(0, len(encoded), _LINE)]
    digest = hashlib.sha256(content).hexdigest()
    sys.stdout.write("\n".join(["", _BEGIN, *lines, f"{_END} {digest}", ""]))
    sys.stdout.flush()
    was_read.wait(_READ_WITHIN_S)
    with contextlib.suppress(OSError):  # a pipe, where somebody calls this by hand
        os.ftruncate(sys.stdout.fileno(), 0)


def find_answer(log: str) -> bytes | None:
    """The answer in a log; None while it is not there in whole.

    Raises:
        RayMMError: it is damaged.
    """
    match = re.search(rf"^{_BEGIN}\n(.*?)^{_END} ([0-9a-f]{{64}})$", log, re.MULTILINE | re.DOTALL)
    if match is None:
        return None
    try:
        content = base64.b64decode("".join(match[1].split()), validate=True)
    except ValueError:
        content = b""
    if hashlib.sha256(content).hexdigest() != match[2]:
        raise RayMMError("what the cluster answered was damaged on its way; try again.")
    return content
