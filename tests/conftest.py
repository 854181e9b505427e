"""What several folders of tests share: one Ray for the whole run, the real archives."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
from hypothesis import HealthCheck, settings

from tests import shared_ray
from tests.fuzzing import DAMAGED, REAL_DATA
from tests.object_store import ENVIRONMENT, Proxy, faulty_proxy, make_bucket, s3_server
from tests.watch import Watch

# Ray's processes and a busy machine make single examples slow now and then; that is no failure.
settings.register_profile("ray_mm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ray_mm")

_BUCKETS = itertools.count()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Only the process that leads the run speaks."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Watch(reporter), "watch")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For ``--dist loadfile``, one that survives the death of a process."""
    from tests.by_file import ByFile

    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that none of them is begun when all else is done and one core has nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("cluster")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where tests run in several processes, each tells the first one how many inputs it damaged."""
    told = getattr(session.config, "workeroutput", None)
    if told is not None:
        told["damaged"] = dict(DAMAGED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Adds up what the processes told."""
    DAMAGED.update(getattr(node, "workeroutput", {}).get("damaged", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many inputs were damaged."""
    if DAMAGED:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in DAMAGED.items())
        terminalreporter.write_line(f"damaged {DAMAGED.total():,} inputs: {kinds}")


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A private Ray with two CPUs, started once for all tests that ask for it."""
    shared_ray.start()
    yield
    shared_ray.stop()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """An S3 server for all tests that ask for it."""
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty bucket of a test's own; the environment leads to its server."""
    for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": s3_endpoint}.items():
        monkeypatch.setenv(name, value)
    name = f"bucket{next(_BUCKETS)}"
    make_bucket(s3_endpoint, name)
    return name


@pytest.fixture
def proxy(s3_endpoint: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before the S3 server; the environment leads to it."""
    with faulty_proxy(s3_endpoint) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def wait_for() -> Callable[[Callable[[], bool]], None]:
    """Waits until something is so; fails after a minute."""

    def wait(is_so: Callable[[], bool]) -> None:
        give_up = time.monotonic() + 60
        while not is_so():
            assert time.monotonic() < give_up
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of archives that ``RAY_MM_REAL_DATA`` or ``../shared/data`` names."""
    folder = REAL_DATA
    if not any(folder.glob("*.tar.gz")):
        missing(
            f"real data: {folder} holds no archives (*.tar.gz); name the folder that does in RAY_MM_REAL_DATA",
            required="RAY_MM_REQUIRE_REAL_DATA",
        )
    return folder


def missing(what: str, required: str) -> NoReturn:
    """Skips a test for want of something; fails it where CI, or the variable ``required``, says that it must be there."""
    if os.environ.get("CI") or os.environ.get(required):
        pytest.fail(f"{what} (required, because CI or {required} is set)")
    pytest.skip(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, headless."""
    playwright = pytest.importorskip("playwright.sync_api")
    executable = os.environ.get("RAY_MM_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        missing("no Chromium on the PATH; install it or name it in RAY_MM_CHROMIUM", required="RAY_MM_REQUIRE_BROWSER")
    before = set(psutil.Process().children(recursive=True))
    with contextlib.ExitStack() as stack:
        started = stack.enter_context(playwright.sync_playwright())
        chromium = started.chromium.launch(
            executable_path=executable,
            # Shared memory may be as small as 64 MB in a container.
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"],
        )
        processes = set(psutil.Process().children(recursive=True)) - before
        yield chromium
        # Nothing in Playwright limits how long a browser that does not close is waited for.
        patience = threading.Timer(60.0, _kill, [processes])
        patience.start()
        stack.callback(patience.cancel)
        with contextlib.suppress(playwright.Error):
            chromium.close()


def _kill(processes: set[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
