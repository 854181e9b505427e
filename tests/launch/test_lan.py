"""The scripts for a LAN, for real: a head and a worker on this machine, with a token, told to end by their own process ids."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO

import pytest

from tests.launch.cluster import free_ports, started, wait_for_dashboard

SCRIPTS = Path(__file__).parents[2] / "cluster" / "lan"
_DRIVER = """
import json, os, sys, time, ray
from ray_mm.config.base import Resources
from ray_mm.placement import place
ray.init(sys.argv[1], log_to_driver=False, configure_logging=False)
placement = place(Resources(cpus_per_worker=1))
found = [(node["NodeID"], node["Alive"], node["Labels"].get("ray-mm/role"), node["Resources"].get("CPU")) for node in ray.nodes()]
@ray.remote(num_cpus=1, label_selector={"ray-mm/role": "data"})
def work(begun, done):
    open(begun, "w").close()
    while not os.path.exists(done):
        time.sleep(0.1)

begun, done = sys.argv[2:]
working = work.remote(begun, done)
while not os.path.exists(begun):
    time.sleep(0.1)
print(json.dumps([placement.workers, found]), flush=True)
ray.get(working)
"""
"""A job that needs two CPUs where there is one, in a cluster whose head says that it grows; then something runs on the second."""


def read_until(stream: IO[str] | None, text: str) -> str:
    """The line that holds a text."""
    assert stream is not None
    lines = []
    for line in stream:
        lines.append(line)
        if text in line:
            return line
    raise AssertionError(f"{text!r} was not said:\n{''.join(lines)}")


def script(name: str) -> list[str]:
    return ["bash", str(SCRIPTS / name)]


def ports(*names: str) -> list[str]:
    return [f"--{name}={port}" for name, port in zip(names, free_ports(len(names)), strict=True)]


def status(url: str, token: str | None) -> int:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=120) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


@pytest.mark.cluster
def test_a_head_and_a_worker_find_each_other_by_the_token_and_a_job_waits_for_the_second() -> None:
    port, dashboard = free_ports(2)
    own = ("node-manager-port", "object-manager-port", "metrics-export-port", "runtime-env-agent-port")
    agents = ("dashboard-agent-listen-port", "dashboard-agent-grpc-port")
    small = ["--num-cpus=1", "--object-store-memory=80000000"]
    with tempfile.TemporaryDirectory(prefix="ray_mm_", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": name,
            "RAY_MM_ADDRESS": "127.0.0.1",
            "RAY_MM_PORT": str(port),
        }
        given = [
            f"--dashboard-port={dashboard}",
            f"--temp-dir={name}/ray",
            "--labels=ray-mm/role=head,ray-mm/grows-within-s=500",
            *small,
            *ports(*own, *agents, "ray-client-server-port"),
        ]
        with contextlib.ExitStack() as stack:
            head = stack.enter_context(started([*script("head.sh"), *given], environment, folder / "head.log"))
            token = folder / ".ray" / "auth_token"
            assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64
            assert f"cluster/lan/worker.sh 127.0.0.1:{port}" in (folder / "head.log").read_text()
            wait_for_dashboard(f"http://127.0.0.1:{dashboard}", token)
            url = f"http://127.0.0.1:{dashboard}/api/jobs/"
            assert (status(url, None), status(url, "wrong" * 8), status(url, token.read_text())) == (401, 403, 200)
            worker = [f"127.0.0.1:{port}", *small, *ports(*own, *agents)]
            joining = environment | {
                "PYTHONPATH": str(SCRIPTS.parents[1]),
                "RAY_AUTH_MODE": "token",
                "RAY_AUTH_TOKEN_PATH": str(token),
            }
            address = f"127.0.0.1:{port}"
            driver = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _DRIVER, address, f"{name}/begun", f"{name}/done"],
                    env=joining,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            stack.callback(driver.kill)
            read_until(driver.stderr, "waits for machines, which were asked for")
            as_reader = environment | {"RAY_MM_ROLE": "data"}
            with started([*script("worker.sh"), *worker], as_reader, folder / "worker.log") as second:
                workers, found = json.loads(read_until(driver.stdout, "["))
                assert workers == 1
                assert sorted(node[1:] for node in found) == [[True, "data", 1], [True, "head", 1]]
                (leaving,) = [node for node, _, role, _ in found if role == "data"]
                leave = [*script("leave.sh"), address, "300", leaving]
                with_code = environment | {"PYTHONPATH": joining["PYTHONPATH"]}
                with subprocess.Popen(leave, env=with_code, stderr=subprocess.PIPE, text=True) as waiting:
                    # It stays while something runs there, and no longer.
                    read_until(waiting.stderr, "something runs on this node")
                    assert waiting.poll() is None
                    (folder / "done").touch()
                    assert driver.wait(120) == 0
                    read_until(waiting.stderr, "nothing runs on this node any more")
                    assert waiting.wait(120) == 0
                second.send_signal(signal.SIGTERM)
                second.wait(120)
            head.send_signal(signal.SIGTERM)
            head.wait(120)
        with pytest.raises(OSError, match="refused"):
            urllib.request.urlopen(url, timeout=5)
