"""Imports modules, then forks a process that has them for each worker that Ray asks for.

Called as ``server.py`` with an order on stdin (see ``Order``). It ends when stdin does: when the process that started it has
ended, however that came. Only the standard library is imported before the modules that are ordered.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import gc
import importlib
import json
import marshal
import os
import random
import selectors
import signal
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NUM_FILES = 3
_SETUP, _WORKER = "setup_worker.py", "default_worker.py"
"""Scripts of Ray's: the first sets up an environment and then executes the second."""
_HOME = ("RAY_JOB_ID", "RAY_RAYLET_PID")
_NO_JOB = (None, "", "ffffffff")
"""Of processes that Ray starts ahead."""


@dataclass(frozen=True)
class Order:
    """What the server is told when it is started.

    Attributes:
        folder: of the socket and the executable; the server removes it when it ends.
        listener: file descriptor of a socket that listens.
        path: where modules are looked for: ``sys.path`` of the process that starts it.
        modules: to import at once. One that can't be is left to the processes that need it.
        ray_modules: to import when the first worker is asked for.
    """

    folder: str
    listener: int
    path: list[str]
    modules: list[str]
    ray_modules: list[str]


@dataclass(frozen=True)
class Worker:
    """A process that is asked for.

    Attributes:
        argv: of Python: a script of Ray's and its arguments.
        environ: its environment.
        folder: in which it runs.
        mask: numbers of the signals that are blocked in it.
        files: its stdin, stdout and stderr.
    """

    argv: list[str]
    environ: dict[str, str]
    folder: str
    mask: list[int]
    files: list[int]


def main() -> None:
    """Serves until stdin ends; in a process that it has forked, runs what was asked for."""
    line = _first_line(0)
    if not line:
        return
    order = Order(**json.loads(line))
    sys.path[:] = order.path
    _import(order.modules)
    worker = Server(socket.socket(fileno=order.listener), order.ray_modules).serve()
    if worker is not None:
        become(worker)
        return
    # The process that started it may have been killed.
    with contextlib.suppress(OSError):
        for path in Path(order.folder).iterdir():
            path.unlink()
        Path(order.folder).rmdir()


def _first_line(descriptor: int) -> bytes:
    """Nothing where the stream ends before. Read without a buffer, for its end is waited for later."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(descriptor, 1 << 16)
        if not part:
            return b""
        line += part
    return line


def _import(names: list[str]) -> None:
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # else the first collection of each process would write to all that they share


class Server:
    """Takes orders of launchers and forks.

    Args:
        listener: to which launchers connect.
        ray_modules: to import when the first worker is asked for: Ray's library takes its job and its raylet, once and for all,
            from the environment that it is loaded in.
    """

    def __init__(self, listener: socket.socket, ray_modules: list[str]) -> None:
        self._listener = listener
        self._ray_modules = ray_modules
        self._home: list[str | None] | None = None
        self._is_fit = False
        self._launchers: dict[int, socket.socket] = {}  # by the process that each stands for
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = os.pipe()

    def serve(self) -> Worker | None:
        """None when stdin ends; in a process that was forked, what it is to become."""
        os.set_blocking(self._waker, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker)
        for watched in (0, self._woken, self._listener):
            self._selector.register(watched, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj == 0:
                    return None
                if key.fileobj == self._woken:
                    os.read(self._woken, 1 << 10)
                    self._reap()
                elif key.fileobj is self._listener:
                    worker = self._answer()
                    if worker is not None:
                        return worker
                else:
                    self._lose(key.data)

    def _answer(self) -> Worker | None:
        """Forks; in the new process, what it is to become."""
        launcher, _ = self._listener.accept()
        worker = None
        with contextlib.suppress(OSError, EOFError, ValueError):
            worker = _receive(launcher)
        if worker is None:
            launcher.close()
            return None
        child = -1
        # A fork has only one of a process's threads; another one might hold a lock.
        if self._is_at_home(worker) and _num_threads() == 1:
            with contextlib.suppress(OSError):  # no room for more processes
                child = os.fork()
        if child == 0:
            self._leave(launcher)
            return worker
        for number in worker.files:
            os.close(number)
        if child < 0:
            launcher.close()
            return None
        self._launchers[child] = launcher
        self._selector.register(launcher, selectors.EVENT_READ, child)
        with contextlib.suppress(OSError):
            launcher.sendall(b"+")
        return None

    def _is_at_home(self, worker: Worker) -> bool:
        """Whether a worker is one of the job that the first one was of."""
        home = [worker.environ.get(name) for name in _HOME]
        if self._home is None and home[0] not in _NO_JOB:
            self._home = home
            os.environ.update(worker.environ)
            with contextlib.suppress(ImportError), _class_ids_of_the_system():
                _import(self._ray_modules)
            self._is_fit = _draw_apart()
        return self._is_fit and home == self._home

    def _leave(self, launcher: socket.socket) -> None:
        """Closes in a new process what is the server's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for left in (self._listener, launcher, *self._launchers.values()):
            left.close()
        for number in (self._woken, self._waker):
            os.close(number)

    def _reap(self) -> None:
        """Tells the launchers of processes that have ended how they did."""
        with contextlib.suppress(ChildProcessError):
            while True:
                child, status = os.waitpid(-1, os.WNOHANG)
                if child == 0:
                    return
                launcher = self._launchers.pop(child, None)
                if launcher is None:  # it was killed because of its launcher
                    continue
                self._selector.unregister(launcher)
                with contextlib.suppress(OSError):
                    launcher.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
                launcher.close()

    def _lose(self, child: int) -> None:
        """Ray has killed a launcher, which says nothing of its own, and means the process that it stands for."""
        launcher = self._launchers.pop(child, None)
        if launcher is None:  # it has just ended
            return
        self._selector.unregister(launcher)
        launcher.close()
        os.kill(child, signal.SIGKILL)


def _receive(launcher: socket.socket) -> Worker:
    """What a launcher asks for.

    Raises:
        OSError, EOFError, ValueError: it does not ask as it should.
    """
    files = array.array("i")
    head, ancillary, _, _ = launcher.recvmsg(8, socket.CMSG_SPACE(_NUM_FILES * files.itemsize))
    for _, _, data in ancillary:
        files.frombytes(data)
    size, order = int.from_bytes(head, "little"), b""
    while len(order) < size:
        part = launcher.recv(size - len(order))
        if not part:
            raise EOFError
        order += part
    argv, environ, folder, mask = marshal.loads(order)
    return Worker(argv, environ, folder, mask, list(files))


@contextlib.contextmanager
def _class_ids_of_the_system() -> Iterator[None]:
    """Has the random ids of actor classes, which some modules make when they are imported, come from the system.

    Ray's library would seed its generator for them, once for this process and all that are forked from it: they would give the
    same ids to different objects.
    """
    import ray.actor

    class FromSystem(ray.actor.ActorClassID):  # type: ignore[misc]
        @classmethod
        def from_random(cls) -> Any:
            return ids(os.urandom(ids.size()))

    ids, ray.actor.ActorClassID = ray.actor.ActorClassID, FromSystem
    try:
        yield
    finally:
        ray.actor.ActorClassID = ids


def _draw_apart() -> bool:
    """Whether two processes that are forked now draw different ids of objects. If not, nothing may be forked."""
    if "ray" not in sys.modules:
        return True
    drawn = []
    for _ in range(2):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writer, sys.modules["ray"].ObjectRef.from_random().binary())
            os._exit(0)
        os.close(writer)
        drawn.append(os.read(reader, 1 << 10))
        os.close(reader)
        os.waitpid(child, 0)
    return all(drawn) and drawn[0] != drawn[1]


def _num_threads() -> int:
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def become(worker: Worker) -> None:
    """Turns this process, which was just forked, into a worker of Ray: it does what its command would do in a new Python."""
    # Ray starts each in a group of its own, and ends the whole group with it.
    os.setpgid(0, 0)
    for number, given in enumerate(worker.files):
        os.dup2(given, number)
        os.close(given)
    os.chdir(worker.folder)
    os.environ.clear()
    os.environ.update(worker.environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, worker.mask)
    _reseed()
    _reconfigure()
    script, *arguments = worker.argv
    if Path(script).name == _SETUP:
        script, arguments = _set_up(worker, arguments)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).parent)
    # For good, and not only while it runs: what Ray unpickles may look for the module.
    module = type(sys)("__main__")
    module.__file__ = script
    sys.modules["__main__"] = module
    exec(compile(Path(script).read_bytes(), script, "exec"), module.__dict__)


def _set_up(worker: Worker, arguments: list[str]) -> tuple[str, list[str]]:
    """Sets up the environment as Ray's script does. Returns the script that comes after it, and its arguments."""
    from ray._private.runtime_env.context import RuntimeEnvContext

    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context")
    parser.add_argument("--language")
    known, left = parser.parse_known_args(arguments)
    context = RuntimeEnvContext.deserialize(known.serialized_runtime_env_context or "{}")
    is_plain = not context.command_prefix and not context.override_worker_entrypoint
    if not is_plain or context.py_executable != sys.executable or Path(left[0]).name != _WORKER:
        os.execv(sys.executable, [sys.executable, *worker.argv])
    from ray._private.utils import update_envs

    update_envs(context.env_vars)
    return left[0], left[1:]


def _reconfigure() -> None:
    """Ray has read its variables (``RAY_…``) when it was imported, before the ones of this process were there."""
    if "ray" in sys.modules:
        sys.modules["ray"]._raylet.Config.initialize("")


def _reseed() -> None:
    """Processes that are forked would else all draw the same."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


if __name__ == "__main__":
    main()
