"""The fork server as seen from the process that starts Ray."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

_HERE = Path(__file__).parent
_SWITCH = "RAY_MM_FORK"
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""Keeps libraries from starting threads when they are imported: only a process without others can be forked."""

_MODULES = (
    "numpy",
    "pandas",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pyarrow.compute",
    "pydantic",
    "jsonschema",
    "requests",
)
"""What all processes of Ray Data import, without Ray."""
_RAY_MODULES = (
    "ray._private.runtime_env.context",
    "ray.data",
    "ray.data._internal.execution.streaming_executor",
    "ray.data._internal.iterator.stream_split_iterator",
    "ray.data._internal.stats",
)

_SCRIPT = """#!/bin/sh
case "$1" in
  */setup_worker.py | */default_worker.py) exec {python} -IS {launcher} {socket} {python} "$@" ;;
  *) exec {python} "$@" ;;
esac
"""


@contextlib.contextmanager
def forked_workers(modules: Sequence[str] = (), ray_modules: Sequence[str] = ()) -> Iterator[Path | None]:
    """Starts a fork server for the block, in which one Ray may be started.

    Args:
        modules: that it imports besides those that all processes need.
        ray_modules: that it imports too, and that import Ray.

    Returns:
        An executable that takes the place of Python for Ray's worker processes (see ``in_place_of_python``); None where there are
        no fork servers: elsewhere than on Linux, where RAY_MM_FORK is 0, and where none could be started.
    """
    if not sys.platform.startswith("linux") or os.environ.get(_SWITCH) == "0":
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            executable = stack.enter_context(_server([*_MODULES, *modules], [*_RAY_MODULES, *ray_modules]))
        except OSError:
            # No room, a path too long for a socket, a folder for temporary files in which nothing may be executed.
            executable = None
        yield executable


@contextlib.contextmanager
def _server(modules: list[str], ray_modules: list[str]) -> Iterator[Path]:
    with (
        tempfile.TemporaryDirectory(prefix="ray-mm-", ignore_cleanup_errors=True) as name,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        folder = Path(name)
        listener.bind(str(folder / "socket"))
        listener.listen(128)
        executable = folder / "python"
        words = {"python": sys.executable, "launcher": _HERE / "launcher.py", "socket": folder / "socket"}
        executable.write_text(_SCRIPT.format(**{key: shlex.quote(str(word)) for key, word in words.items()}))
        executable.chmod(0o700)
        if not os.access(executable, os.X_OK):
            raise PermissionError(f"{executable} can not be executed; is it on a noexec file system?")
        server = subprocess.Popen(
            [sys.executable, str(_HERE / "server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # what modules say when they are imported; processes have streams of their own
            env=os.environ | _ONE_THREAD,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for the process that started it
        )
        assert server.stdin is not None
        order = {
            "folder": name,
            "listener": listener.fileno(),
            "path": sys.path,
            "modules": modules,
            "ray_modules": ray_modules,
        }
        try:
            server.stdin.write(json.dumps(order).encode() + b"\n")
            server.stdin.flush()
            listener.close()
            yield executable
        finally:
            server.kill()  # Ray has ended its processes; this one may still import
            server.wait()
            server.stdin.close()


@contextlib.contextmanager
def in_place_of_python(executable: Path | None) -> Iterator[None]:
    """Has Ray, where it is started in the block, start its worker processes with an executable; None changes nothing."""
    python = sys.executable
    if executable is not None:
        sys.executable = str(executable)
    try:
        yield
    finally:
        sys.executable = python
