"""A real Ray head in processes of its own, as a user would start one with ``ray start``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
_START_TIMEOUT_S = 120
_STARTS = 3
PATIENT = {"RAY_gcs_server_port_wait_time_s": "120"}
"""For Ray's first process, to which it gives half a minute otherwise: too little on a busy machine."""


@dataclass(frozen=True)
class Head:
    """Where a head answers.

    Attributes:
        url: of its dashboard.
        address: HOST:PORT, to join it.
        token: the file with its access token.
        folder: its temporary files.
        ports: all that it listens on, by Ray's names.
    """

    url: str
    address: str
    token: Path
    folder: Path
    ports: dict[str, int]


@contextlib.contextmanager
def ray_head(num_cpus: int = 2) -> Iterator[Head]:
    """Starts a head with a dashboard on free ports, and ends its processes, and only them, afterwards."""
    names = (
        *("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port", "metrics-export-port"),
        *("runtime-env-agent-port", "ray-client-server-port", "node-manager-port", "object-manager-port"),
    )
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    # Unix sockets have short names: pytest's own folders are too long for Ray.
    with tempfile.TemporaryDirectory(prefix="ray_mm_", ignore_cleanup_errors=True) as folder:
        token = Path(folder) / "token"
        token.write_text("0123456789abcdef" * 4)
        token.chmod(0o600)
        start = [
            str(Path(sys.executable).parent / "ray"),
            *("start", "--head", "--block", f"--num-cpus={num_cpus}", "--object-store-memory=200000000"),
            *("--node-ip-address=127.0.0.1", "--include-dashboard=true", "--dashboard-host=127.0.0.1"),
            f"--temp-dir={folder}/ray",
            *(f"--{name}={port}" for name, port in ports.items()),
        ]
        head = Head(
            url=f"http://127.0.0.1:{ports['dashboard-port']}",
            address=f"127.0.0.1:{ports['port']}",
            token=token,
            folder=Path(folder),
            ports=ports,
        )
        with started(start, _ray_environment(token), Path(folder) / "head.log"):
            wait_for_dashboard(head.url, head.token)
            yield head


@contextlib.contextmanager
def ray_node(head: Head, hidden: Path) -> Iterator[None]:
    """Another node of a head's cluster, which sees an empty folder of its own where the others see ``hidden``."""
    names = ("node-manager-port", "object-manager-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    names = (*names, "metrics-export-port", "runtime-env-agent-port")
    ports = zip(names, free_ports(len(names)), strict=True)
    start = [
        *("unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)),
        str(Path(sys.executable).parent / "ray"),
        *("start", f"--address={head.address}", "--block", "--num-cpus=1", "--object-store-memory=100000000"),
        *("--node-ip-address=127.0.0.1", *(f"--{name}={port}" for name, port in ports)),
    ]
    with started(start, _ray_environment(head.token), head.folder / "node.log"):
        yield


@contextlib.contextmanager
def started(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that starts a Ray and stays, once that is up; it ends it when it is told to, and what is left goes after it.

    Args:
        command: such as ``ray start --block``.
        environment: of it.
        log: what it says; it runs in the folder of that file.
    """
    # Ray gives a machine half a minute to start, which is too little on a busy one.
    for start in range(1, _STARTS + 1):
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                env=environment | PATIENT,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
                start_new_session=True,
            )
        if _is_up(process, log):
            break
        _end(process)
        assert start < _STARTS, log.read_text()
    try:
        yield process
    finally:
        _end(process)


def _is_up(process: subprocess.Popen[bytes], log: Path) -> bool:
    give_up = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < give_up:
        if "Ray runtime started" in log.read_text(errors="replace"):
            return True
        time.sleep(0.2)
    return False


def _ray_environment(token: Path) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return found | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),  # its nodes have ray_mm, for jobs that bring none
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def lab(head: Head, folder: Path, name: str = "lab", **more: Any) -> None:
    """Writes a profile of the head to where ``ray-mm`` looks for it."""
    (folder / "cluster").mkdir(parents=True, exist_ok=True)
    content = {"kind": "cluster", "address": head.url, "token": str(head.token), **more}
    (folder / "cluster" / f"{name}.yaml").write_text(json.dumps(content))


def command(*arguments: str) -> list[str]:
    """A call of ``ray-mm``."""
    return [sys.executable, "-m", "ray_mm", *arguments]


def environment(**more: str) -> dict[str, str]:
    """Without what this process knows of a Ray; with a home that holds no token."""
    found = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "XDG_"))}
    return found | {"PYTHONPATH": str(REPOSITORY), "HOME": "/nonexistent"} | more


def ray_mm(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs ``ray-mm`` in a folder, to its end."""
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(**more), capture_output=True, text=True, timeout=500
    )


def free_ports(count: int) -> list[int]:
    """Ports that nothing listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def wait_for_dashboard(url: str, token: Path) -> None:
    """Until it takes jobs: the one or the other may be up first, the node or its dashboard."""
    give_up = time.monotonic() + _START_TIMEOUT_S
    request = urllib.request.Request(f"{url}/api/jobs/", headers={"Authorization": f"Bearer {token.read_text()}"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30):
                return
        except OSError as problem:  # URLError is one
            if isinstance(problem, urllib.error.HTTPError):
                problem.close()
            assert time.monotonic() < give_up, f"the dashboard does not answer ({problem})"
        time.sleep(0.5)


def _end(process: subprocess.Popen[bytes]) -> None:
    """``ray start --block`` stops its processes when it is told to; whatever is left of the group goes after it."""
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)
