"""Ray is started or joined quietly, and left as it was found."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ray_mm import session
from ray_mm.errors import QuarantineBudgetError, RayMMError, SampleError, UsageError
from ray_mm.session import cause_of, local_cpus, own_errors, ray_session, use_address
from ray_mm.travel import code_digest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({}, None),
    ],
)
def test_the_cpu_quota_of_a_container_is_read(tmp_path: Path, files: dict[str, str], cpus: float | None) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert session._container_cpus(tmp_path) == cpus


def test_a_private_ray_has_at_least_two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_container_cpus", lambda: 0.5)
    assert local_cpus() == 2


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://head:8265", r"expected auto or HOST:PORT .* use: ray-mm submit"),
        ("ray://head:10001", "expected auto or HOST:PORT"),
        ("head", "expected auto or HOST:PORT"),
        (":6379", "expected auto or HOST:PORT"),
        ("127.0.0.1:99999", "nothing answers there"),
    ],
)
def test_an_address_that_ray_can_not_join_is_refused(address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        session._require_reachable(address)


def test_an_address_where_nothing_answers_is_told_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: a connection is refused
        port = taken.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(UsageError, match=f"--address 127.0.0.1:{port}: nothing answers there"):
            session._require_reachable(f"127.0.0.1:{port}")
        assert time.monotonic() - started < 60, "Ray itself would try for minutes"


def test_our_error_is_found_inside_what_wraps_it() -> None:
    ours = SampleError("shards/0.tar", "k", "image", "damaged")
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = ValueError("between")
    wrapped.__cause__.__context__ = ours
    assert cause_of(wrapped) is ours


def test_the_innermost_error_stands_for_what_is_not_ours() -> None:
    class GroupError(Exception):
        worker_failures = {1: RuntimeError("worker")}  # noqa: RUF012

    GroupError.worker_failures[1].__cause__ = ZeroDivisionError("inside")
    assert str(cause_of(GroupError("group"))) == "inside"


def test_a_context_that_was_put_away_is_no_cause() -> None:
    error = ValueError("told")
    error.__context__, error.__suppress_context__ = KeyError("hidden"), True
    assert cause_of(error) is error


def test_a_circle_of_causes_ends() -> None:
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert cause_of(one) in (one, other)


def over_budget(batch: dict[str, Any]) -> dict[str, Any]:
    raise QuarantineBudgetError("12 bad samples, 3 allowed")


@pytest.mark.ray
def test_an_error_of_ours_survives_ray_data_and_is_not_told_twice(
    local_ray: None, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray.data

    with ray_session():
        with pytest.raises(Exception) as caught:
            ray.data.range(8).map_batches(over_budget).materialize()
        cause = cause_of(caught.value)
    assert type(cause) is QuarantineBudgetError
    assert str(cause) == "12 bad samples, 3 allowed"
    assert "Traceback" not in capfd.readouterr().err


def test_other_errors_become_ours_where_it_is_said_what_failed() -> None:
    with (
        pytest.raises(RayMMError, match=r"^the work failed: ZeroDivisionError: division by zero$"),
        own_errors("the work"),
    ):
        1 / 0  # noqa: B018
    with pytest.raises(ZeroDivisionError), own_errors():
        1 / 0  # noqa: B018
    with pytest.raises(QuarantineBudgetError, match=r"^too many$"), own_errors("the work"):
        raise QuarantineBudgetError("too many")


@pytest.mark.ray
def test_a_session_inside_a_running_ray_leaves_it_as_it_was(local_ray: None) -> None:
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    handlers = logging.getLogger("ray.data").handlers
    before = state(context, handlers)
    with ray_session():
        within = state(context, handlers)
        assert within != before
        with ray_session():
            pass
        assert state(context, handlers) == within, "the inner session does not end the outer one's silence"
    assert state(context, handlers) == before
    assert ray.is_initialized()


def state(context: Any, handlers: list[logging.Handler]) -> object:
    filters = [list(handler.filters) for handler in handlers]
    return context.enable_progress_bars, context.raise_original_map_exception, filters


@pytest.mark.ray
def test_ctrl_c_stays_an_interrupt_whatever_ray_train_makes_of_it(local_ray: None) -> None:
    def as_ray_train_does(number: int, frame: object) -> None:
        sys.exit(0)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), ray_session():
        signal.signal(signal.SIGINT, as_ray_train_does)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(SystemExit), ray_session():
        sys.exit(3)


PRIVATE = """
import sys
from ray_mm.session import local_cpus, ray_session
with ray_session():
    import ray
    assert ray.cluster_resources()["CPU"] == local_cpus()
    assert not ray._private.worker.get_dashboard_url()
    class Double:
        def __call__(self, batch):
            return {"id": 2 * batch["id"]}
    assert ray.data.range(20).map_batches(Double, compute=ray.data.ActorPoolStrategy(size=1)).sum("id") == 380
assert not ray.is_initialized()
print("done")
"""


@pytest.mark.ray
def test_a_private_ray_says_nothing_and_protects_its_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(
        [sys.executable, "-c", PRIVATE], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "done\n", "")
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


UNREACHABLE = """
import sys
from ray_mm.errors import UsageError
from ray_mm.session import ray_session, use_address
try:
    with use_address("127.0.0.1:9"), ray_session():
        pass
except UsageError as error:
    print(error)
"""


@pytest.mark.ray
def test_a_private_ray_keeps_its_processes_for_the_next_stage(tmp_path: Path) -> None:
    script = """
import os, time, ray
from pathlib import Path
from ray_mm.session import ray_session

def work(folder, number, at_once):
    (folder / str(number)).touch()
    while len(os.listdir(folder)) < at_once:  # each in a process of its own
        time.sleep(0.05)
    return os.getpid()

with ray_session():
    at_once = 3 * int(ray.cluster_resources()["CPU"])
    stages = []
    for name in "ab":
        folder = Path(name).absolute()
        folder.mkdir()
        tasks = [ray.remote(num_cpus=0)(work).remote(folder, number, at_once) for number in range(at_once)]
        stages.append(set(ray.get(tasks)))
        time.sleep(4)  # Ray ends what has idled for one second
    print(len(stages[0]), len(stages[0] - stages[1]))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    num_processes, num_gone = map(int, done.stdout.split())
    assert num_processes > local_cpus() and num_gone == 0, done.stderr


@pytest.mark.ray
def test_a_session_at_an_address_never_starts_a_private_ray_instead(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", UNREACHABLE], cwd=REPOSITORY, capture_output=True, text=True, timeout=240
    )
    assert ran.stdout.startswith("--address 127.0.0.1:9: nothing answers there")


LATE = """
import os
import sys
import psutil
from ray_mm import session
from ray_mm.errors import RayMMError

os.environ["RAY_gcs_server_port_wait_time_s"] = "0"  # which no Ray keeps to
told = []

def heard(text):
    told.append(text)
    if sys.argv[1] == "later":
        os.environ["RAY_gcs_server_port_wait_time_s"] = "120"

session.notice = heard
try:
    with session.ray_session():
        import ray
        print(ray.is_initialized())
except RayMMError as error:
    print(error)
(text,) = told
print(text)
print(sorted(process.name() for process in psutil.Process().children(recursive=True)))
"""


@pytest.mark.ray
@pytest.mark.parametrize("when", ["later", "never"])
def test_a_ray_that_is_late_is_started_once_more_and_then_told_of(when: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(
        [sys.executable, "-c", LATE, when], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    ended, told, left = ran.stdout.splitlines()
    assert told.startswith("Ray did not start in time (Timed out waiting for file ") and told.endswith("; once more.")
    assert left == "[]", "what the late ones had started has ended"
    if when == "later":
        assert ended == "True"
    else:
        assert ended.startswith("Ray did not start on this machine in 2 tries (Timed out waiting for ")
        assert "run the same command again" in ended


BRINGS = """
import sys
from pathlib import Path
from ray.cluster_utils import Cluster
from ray_mm import travel
from ray_mm.session import ray_session
from ray_mm.travel import code_digest

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
for package in (travel.PACKAGE, Path(sys.argv[1])):
    travel.PACKAGE = package
    with ray_session(str(cluster.address)):
        import ray
        print("py_modules" in ray.get_runtime_context().runtime_env, ray.get(ray.remote(code_digest).remote()))
cluster.shutdown()
"""


@pytest.mark.ray
def test_code_travels_to_a_cluster_only_where_it_has_other_code(tmp_path: Path) -> None:
    package = tmp_path / "ray_mm"
    shutil.copytree(REPOSITORY / "ray_mm", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "version.py").write_text('__version__ = "another"')
    ran = subprocess.run(
        [sys.executable, "-c", BRINGS, str(package)], cwd=REPOSITORY, capture_output=True, text=True, timeout=240
    )
    same, other = ran.stdout.splitlines()
    assert same == f"False {code_digest()}" and other.startswith("True "), ran.stderr


def test_the_address_of_a_block_ends_with_it() -> None:
    with use_address("head:6379"):
        assert session._address.get() == "head:6379"
        with use_address(None):
            assert session._address.get() is None
    assert session._address.get() is None


RAYLET = """
import threading
from ray_mm.session import ray_session
with ray_session(announce=True):
    import ray
    from ray._private import worker
    from ray._private.utils import publish_error_to_driver
    client = worker.global_worker.gcs_client
    shown, came = worker.print_to_stdstream, threading.Event()

    def show(data, *more, **named):
        shown(data, *more, **named)
        if "too many" in str(data):
            came.set()

    worker.print_to_stdstream = show
    publish_error_to_driver("worker_pool_large", "WARNING: too many\\nprocesses", gcs_client=client)
    print("done" if came.wait(60) else "it did not come")
"""


@pytest.mark.ray
def test_what_the_raylet_reports_is_not_among_the_results(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    debug = "from ray_mm.logs import configure_logging; configure_logging(True)\n"
    for code in (RAYLET, debug + RAYLET):
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240
        )
        assert (ran.returncode, ran.stdout) == (0, "done\n")
        assert "ray-mm: starting Ray" in ran.stderr
        assert ("WARNING: too many processes" in ran.stderr) is (code != RAYLET), "it is in the log"
