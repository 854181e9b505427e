"""Who has no token gets nothing from a real head; a secret that a job uses stands nowhere but where it came from."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from ray_mm.config.cluster import find_cluster
from ray_mm.launch import sending
from ray_mm.launch.errand import run_errand
from ray_mm.launch.jobs import connect
from ray_mm.launch.packing import unpack
from ray_mm.launch.runtime import runtime_env
from tests.launch.cluster import Head, lab, ray_mm, ray_node
from tests.preprocessing.tables import make_rows, write_csv

PLANTED = "hunter2-planted-0123456789"
_ROUTE = re.compile(
    r"\b(?:routes|SubprocessRouteTable|DashboardHeadRouteTable)\.(get|post|put|delete)\(\s*\"([^\"]+)\""
)
_PUBLIC = {
    "/",
    "/favicon.ico",
    "/api/authentication_mode",
    "/api/healthz",
    "/api/gcs_healthz",
    "/api/local_raylet_healthz",
}
"""What Ray answers to everybody: that it is there, and that it wants a token."""
_WORKER = """
import hashlib, os, ray
from ray_mm.references import apply_references
apply_references()
ray.init(address="auto", log_to_driver=False)
there = ray.get(ray.remote(lambda: hashlib.sha256(os.environ["PLANTED"].encode()).hexdigest()).remote())
print("found", there, hashlib.sha256(os.environ["PLANTED"].encode()).hexdigest(), os.environ["PLAIN"])
"""


def routes(which: str) -> set[tuple[str, str]]:
    """Method and path of all routes of Ray's dashboard, or of its agents, as its source has them."""
    found = set()
    for path in (Path(ray.__file__).parent / "dashboard").rglob("*.py"):
        if path.name.endswith(f"_{which}.py"):
            for method, route in _ROUTE.findall(path.read_text()):
                found.add((method.upper(), re.sub(r"\{[^}]*\}", "x", route)))
    return found


def ask(port: int, method: str, path: str, token: str | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    connection.request(method, path, body=b"{}" if method in ("POST", "PUT") else None, headers=headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("which", "port", "least"), [("head", "dashboard-port", 60), ("agent", "dashboard-agent-listen-port", 5)]
)
def test_every_route_wants_the_token(head: Head, which: str, port: str, least: int) -> None:
    wanted = routes(which)
    assert len(wanted) >= least, "as many as Ray has"
    for method, path in sorted(wanted):
        if path in _PUBLIC:
            continue
        assert ask(head.ports[port], method, path)[0] == 401, (method, path)
        assert ask(head.ports[port], method, path, "wrong-wrong-wrong")[0] == 403, (method, path)
    for path in sorted(_PUBLIC):
        status, content = ask(head.ports[port], "GET", path)
        assert head.token.read_bytes() not in content and status < 500, path


@pytest.mark.cluster
def test_nobody_joins_the_cluster_without_the_token(head: Head) -> None:
    keys = "internal_kv_keys(b'', namespace=b'job', timeout=20)"
    code = f"from ray._raylet import GcsClient; GcsClient(address={head.address!r}).{keys}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for mode in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "wrong-wrong-wrong"}):
        ran = subprocess.run(
            [sys.executable, "-c", code], env=environment | mode, capture_output=True, text=True, timeout=240
        )
        assert ran.returncode != 0 and "AuthenticationError" in ran.stderr, ran.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Iterator[Path]:
    """A job, its cluster's storage, and a profile that says where a secret is."""
    folder = tmp_path_factory.mktemp("secrets")
    (folder / "secret").mkdir()
    (folder / "secret" / "key").write_text(PLANTED)
    (folder / "shared").mkdir()
    environment = {"PLANTED": {"file": str(folder / "secret" / "key")}, "PLAIN": "for everybody"}
    lab(head, folder, storage=str(folder / "shared"), runtime={"env": environment})
    write_csv(folder / "shared" / "table.csv", make_rows(folder / "shared", num_rows=3))
    content = {
        "kind": "preprocess",
        "name": "secretive",
        "table": "table.csv",
        "fields": {"image": {"type": "image"}, "label": {"type": "label"}},
        "splits": {"by": "hash", "fractions": {"train": 1.0}},
        "output": "out",
    }
    (folder / "job.yaml").write_text(json.dumps(content))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.cluster
def test_a_secret_is_where_it_is_used_and_nowhere_else(
    head: Head, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = ray_mm(folder, "submit", "job.yaml", "--cluster", "lab", "--follow")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    submission = ran.stdout.split(":", 1)[0]
    monkeypatch.chdir(folder)
    jobs = connect(find_cluster("lab"))
    command = f"python -c {shlex.quote(_WORKER)}"
    jobs.client.submit_job(entrypoint=command, submission_id="worker", runtime_env=runtime_env(jobs.cluster))
    log: list[str] = []
    assert jobs.follow("worker", log.append).exit_status == 0, "".join(log)
    digest = hashlib.sha256(PLANTED.encode()).hexdigest()
    assert f"found {digest} {digest} for everybody" in "".join(log), "in the job's process, and in a worker's"

    # What the cluster sends: the head's own way, as for somebody who does not see its disk.
    sent = unpack(run_errand(jobs, sending.MODULE, ["--", str(folder / "shared" / "out")]), folder / "sent", submission)
    assert set(sent) == {"job.json", "result.json", "train/dataset.json"}
    assert all(not (details.submission_id or "").startswith("sending") for details in jobs.client.list_jobs()), (
        "nothing is left"
    )

    told = ran.stdout + ran.stderr + "".join(log) + repr(jobs.client.list_jobs())
    for path in ("/api/jobs/", "/api/v0/runtime_envs", "/api/v0/actors?detail=1", "/api/v0/jobs?detail=1"):
        told += ask(head.ports["dashboard-port"], "GET", path, head.token.read_text())[1].decode()
    assert "RAY_MM_REFERENCES" in told, "what says where it is"
    assert PLANTED not in told and head.token.read_text() not in told
    looked_at = 0
    for root in (folder / "shared", folder / "sent", folder / "cluster", head.folder):
        for path in root.rglob("*"):
            if stat.S_ISREG(path.lstat().st_mode) and path != head.token:
                content = path.read_bytes()
                assert PLANTED.encode() not in content, path
                assert head.token.read_bytes() not in content, path
                looked_at += 1
    assert looked_at > 50


@pytest.mark.cluster
def test_a_node_that_sees_another_storage_is_told_by_name(head: Head, folder: Path) -> None:
    if subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system gives its users no mount namespaces, so all nodes on it see the same folders")
    profile = json.loads((folder / "cluster" / "lab.yaml").read_text())
    plain = {**profile, "runtime": {}}
    (folder / "cluster" / "plain.yaml").write_text(json.dumps(plain))
    with ray_node(head, folder):
        arguments = ("submit", "job.yaml", "--set", "output=other", "--follow", "--cluster")
        ran = ray_mm(folder, *arguments, "lab")
        assert ran.returncode == 2
        assert "runtime.env.PLANTED: the node" in ran.stdout, "it lacks the secret, too"
        ran = ray_mm(folder, *arguments, "plain")
        assert ran.returncode == 2
        assert "not every node of the cluster has this folder" in ran.stdout
        assert "does not see what is written there" in ran.stdout
        assert not list((folder / "shared").glob(".ray_mm*"))

        examined = ray_mm(folder, "doctor", "--cluster", "lab", "--json")
        assert examined.returncode == 1, examined.stderr
        findings = json.loads(examined.stdout)["findings"]
    found = {(finding["level"], finding["name"]): finding["found"] for finding in findings}
    assert "2, with 3 CPUs and 0 GPUs" in found["ok", "nodes"]
    assert profile["storage"] in found["fail", "storage"]
    assert "runtime.env.PLANTED: the node" in found["fail", "secret"]
    assert {("ok", "token"), ("ok", "versions"), ("ok", "clocks"), ("ok", "dashboard")} <= set(found)
    assert any(name == "network" for _, name in found)
    assert PLANTED not in examined.stdout
