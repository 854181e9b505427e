"""Processes of a private Ray that are forked instead of started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ray_mm.forking.start import forked_workers, in_place_of_python

ROOT = Path(__file__).parents[1]
JOB = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "1"}
_SAYS = """
import json, os, random, signal, sys
print(json.dumps({
    "argv": sys.argv[1:], "name": __name__, "main": sys.modules["__main__"].__file__, "folder": os.getcwd(),
    "job": os.environ.get("RAY_JOB_ID"), "given": os.environ.get("GIVEN"), "threads": os.environ.get("OMP_NUM_THREADS"),
    "imported": "numpy" in sys.modules, "drawn": random.random(), "parent": os.getppid(), "group": os.getpgid(0) == os.getpid(),
    "read": sys.stdin.read(), "blocked": signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()),
}), flush=True)
sys.exit(7)
"""


@pytest.fixture(scope="module")
def running() -> Iterator[tuple[Path, int]]:
    """An executable, and the process of the server behind it; the Ray that tests share may have one, too."""
    before = set(psutil.Process().children())
    with forked_workers() as found:
        assert found is not None
        (server,) = set(psutil.Process().children()) - before
        yield found, server.pid


@pytest.fixture
def executable(running: tuple[Path, int]) -> Path:
    return running[0]


@pytest.fixture
def server(running: tuple[Path, int]) -> int:
    return running[1]


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    """A script in the place of Ray's."""
    path = tmp_path / "default_worker.py"
    path.write_text(_SAYS)
    return path


def _run(executable: Path, script: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(executable), str(script), *arguments],
        env=os.environ | JOB | environ,
        cwd=script.parent,
        input="from stdin",
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def _said(executable: Path, script: Path, *arguments: str, **environ: str) -> dict[str, Any]:
    done = _run(executable, script, *arguments, **environ)
    assert done.returncode == 7, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_a_forked_process_is_what_a_started_one_would_be(executable: Path, server: int, worker: Path) -> None:
    forked = [_said(executable, worker, "a", "b c", GIVEN="yes") for _ in range(2)]
    started = _said(Path(sys.executable), worker, "a", "b c", GIVEN="yes")
    assert [said.pop("parent") for said in forked] == [server, server] and started.pop("parent") == os.getpid()
    assert forked[0].pop("drawn") != forked[1].pop("drawn") != started.pop("drawn")
    assert all(said.pop("imported") for said in forked) and not started.pop("imported")
    assert all(said.pop("group") for said in forked) and not started.pop("group"), "as Ray groups its processes"
    assert forked == [started, started]


def test_blocked_signals_stay_blocked(executable: Path, worker: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        assert _said(executable, worker)["blocked"]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert not _said(executable, worker)["blocked"]


def test_what_belongs_to_another_job_or_is_no_worker_is_started(executable: Path, server: int, worker: Path) -> None:
    assert _said(executable, worker)["parent"] == server
    for other in ({"RAY_JOB_ID": "02000000"}, {"RAY_JOB_ID": "ffffffff"}, {"RAY_RAYLET_PID": "2"}):
        assert _said(executable, worker, **other)["parent"] == os.getpid()
    agent = worker.rename(worker.with_name("agent.py"))
    assert _said(executable, agent)["parent"] == os.getpid()


def test_an_environment_of_its_own_is_set_up_as_ray_does(executable: Path, server: int, worker: Path) -> None:
    def said(**context: Any) -> dict[str, Any]:
        arguments = [str(worker), "x", "--language=PYTHON", f"--serialized-runtime-env-context={json.dumps(context)}"]
        return _said(executable, _setup_worker(), *arguments)

    plain = said(env_vars={"GIVEN": "here", "OMP_NUM_THREADS": "3"})
    assert (plain["given"], plain["threads"], plain["argv"]) == ("here", "3", ["x"])
    assert plain["parent"] == server and plain["main"] == str(worker)
    # Another Python, or something before it: then Ray's own script does it.
    other = said(env_vars={"GIVEN": "here"}, command_prefix=["GIVEN=there"])
    assert other["given"] == "there" and not other["imported"]


def _setup_worker() -> Path:
    import ray._private.workers

    return Path(ray._private.workers.__path__[0]) / "setup_worker.py"


def test_a_process_and_the_one_that_stands_for_it_end_together(
    executable: Path, tmp_path: Path, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    script = tmp_path / "default_worker.py"
    script.write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n")
    for killed in ("process", "launcher"):
        launcher = subprocess.Popen(
            [str(executable), str(script)], env=os.environ | JOB, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert launcher.stdout is not None
        with launcher.stdout:
            process = psutil.Process(int(launcher.stdout.readline()))
            (process if killed == "process" else launcher).kill()
            assert launcher.wait(60) != 0
            wait_for(lambda process=process: not process.is_running())


def test_where_processes_would_draw_the_same_ids_none_is_forked(worker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (worker.parent / "draws_when_imported.py").write_text("import ray\nray.ObjectRef.from_random()\n")
    monkeypatch.syspath_prepend(worker.parent)
    with forked_workers(ray_modules=["draws_when_imported"]) as executable:
        assert executable is not None
        assert [_said(executable, worker)["parent"] for _ in range(2)] == [os.getpid(), os.getpid()]


def test_without_the_server_processes_are_started(worker: Path) -> None:
    with forked_workers() as executable:
        assert executable is not None
        server = psutil.Process(_said(executable, worker)["parent"])
        assert server.pid != os.getpid()
        server.kill()
        server.wait(60)
        assert _said(executable, worker)["parent"] == os.getpid()
    assert not executable.exists()


@pytest.mark.parametrize("how", ["variable", "long path", "no room", "other system"])
def test_it_can_be_turned_off_and_is_where_it_does_not_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    if how == "variable":
        monkeypatch.setenv("RAY_MM_FORK", "0")
    elif how == "long path":
        (tmp_path / ("x" * 100)).mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    elif how == "no room":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    else:
        monkeypatch.setattr("ray_mm.forking.start.sys.platform", "darwin")
    python = sys.executable
    with forked_workers() as executable, in_place_of_python(executable):
        assert executable is None and sys.executable == python


_THROUGH_RAY = """
import os, sys
import ray
from ray_mm.session import ray_session
with ray_session(with_models=False):
    assert sys.executable == {python!r}
    @ray.remote(num_cpus=0, runtime_env={{"env_vars": {{"GIVEN": "yes"}}}})
    class Actor:
        def given(self):
            import psutil, threading
            ids = [ray.ObjectRef.from_random().hex()]
            thread = threading.Thread(target=lambda: ids.append(ray.ObjectRef.from_random().hex()))
            thread.start()
            thread.join()
            return psutil.Process(os.getppid()).cmdline(), os.environ["GIVEN"], ids, os.getpid()
    actors = [Actor.remote() for _ in range(3)]
    told = ray.get([actor.given.remote() for actor in actors])
    print(all(any("forking/server.py" in word for word in parent) for parent, *_ in told))
    print(all(given == "yes" for _, given, *_ in told))
    # From a generator that was seeded before the fork all would draw the same, and Ray would take their objects for each other.
    print(len(set(sum((ids for *_, ids, _ in told), []))))
    import psutil
    # Ray's own agents take their time when all else is gone.
    children = psutil.Process().children(recursive=True)
    ours = [child.pid for child in children if "ray_mm/forking/" in " ".join(child.cmdline())]
    print(ours + [pid for *_, pid in told])
    ray.kill(actors[0])
    if {killed}:
        os.kill(os.getpid(), 9)
"""


@pytest.mark.ray
@pytest.mark.parametrize("killed", [False, True])
def test_tasks_and_actors_of_a_private_ray_are_forked_and_none_is_left(
    killed: bool, wait_for: Callable[[Callable[[], bool]], None]
) -> None:
    folder = tempfile.mkdtemp(dir="/tmp")  # paths of sockets are short
    done = subprocess.run(
        [sys.executable, "-c", _THROUGH_RAY.format(python=sys.executable, killed=killed)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": folder},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == (-9 if killed else 0)
    forked, given, different, pids = done.stdout.splitlines()
    assert (forked, given, different) == ("True", "True", "6")
    wait_for(lambda: not any(_runs(pid) for pid in json.loads(pids)))
    wait_for(lambda: not list(Path(folder).glob("ray-mm-*")))
    shutil.rmtree(folder)


def _runs(pid: int) -> bool:
    """One that has ended, and that nobody has asked how, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
