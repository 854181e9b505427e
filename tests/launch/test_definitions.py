"""cluster/: every file is what the program that reads it takes, and says the same as the code that wrote it."""

from __future__ import annotations

import copy
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from jsonschema import ValidationError

from ray_mm.config.cluster import load_cluster
from ray_mm.config.load import load_job
from ray_mm.launch.manifests.parts import Call
from ray_mm.launch.manifests.render import render
from tests.launch.schemas import require_valid
from tests.launch.shell import require_clean_dockerfile, require_clean_shell, require_valid_units, unit_settings

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
JOB = ROOT / "jobs" / "avdigits" / "train.yaml"
NIGHTLY = {"schedule": {"cron": "0 4 * * *", "timezone": "Europe/Berlin"}}
SCRIPTS = sorted(CLUSTER.rglob("*.sh"))
RAY_UP = sorted((CLUSTER / "ray-up").glob("*.yaml"))
RENDERED = {
    "kuberay/avdigits.raycluster.yaml": ("kuberay", "raycluster", "kuberay", {}),
    "kuberay/avdigits.rayjob.yaml": ("kuberay", "rayjob", "kuberay", {}),
    "kuberay/avdigits.raycronjob.yaml": ("kuberay", "raycronjob", "kuberay", NIGHTLY),
    "kuberay/avdigits.cronjob.yaml": ("kuberay", "cronjob", "kuberay", NIGHTLY),
    "kuberay/avdigits-gpu.rayjob.yaml": ("kuberay", "rayjob", "kuberay-gpu", {"name": "avdigits-gpu"}),
    "slurm/avdigits.slurm": ("slurm", None, "slurm", {}),
}


def relative(path: Path) -> str:
    return str(path.relative_to(CLUSTER))


def test_the_page_names_every_file() -> None:
    page = (CLUSTER / "README.md").read_text()
    files = [path for path in CLUSTER.rglob("*") if path.is_file() and path.name != "README.md"]
    assert [relative(path) for path in files if relative(path) not in page and path.name not in page] == []


@pytest.mark.parametrize("path", sorted(CLUSTER.glob("*.yaml")), ids=relative)
def test_a_profile_is_valid(path: Path) -> None:
    assert load_cluster(path).address.startswith("http")


@pytest.mark.parametrize("name", RENDERED)
def test_a_manifest_is_what_render_writes_of_the_job(name: str) -> None:
    target, form, profile, overrides = RENDERED[name]
    call = Call(load_job(JOB, overrides), JOB, profile=load_cluster(CLUSTER / f"{profile}.yaml"), cluster=profile)
    ((file, content),) = render(target, call, form).items()
    assert file == Path(name).name
    assert (CLUSTER / name).read_text() == content, "render it again; how stands in cluster/README.md"


@pytest.mark.parametrize("path", sorted((CLUSTER / "kuberay").glob("*.yaml")), ids=relative)
def test_kubernetes_takes_a_manifest(path: Path) -> None:
    manifests = list(yaml.safe_load_all(path.read_text()))
    assert manifests
    for manifest in manifests:
        require_valid(manifest)


@pytest.mark.parametrize("path", [*SCRIPTS, CLUSTER / "slurm" / "avdigits.slurm"], ids=relative)
def test_a_script_is_clean_and_can_be_run(path: Path) -> None:
    require_clean_shell(path)
    assert path.suffix == ".slurm" or os.access(path, os.X_OK)


def ray_up(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def validated(content: dict[str, Any]) -> dict[str, Any]:
    """As ``ray up`` completes it, and holds it against its schema."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    logging.disable(logging.WARNING)
    try:
        prepared: dict[str, Any] = prepare_config(copy.deepcopy(content))
        validate_config(prepared)
    finally:
        logging.disable(logging.NOTSET)
    return prepared


@pytest.mark.parametrize("path", RAY_UP, ids=relative)
def test_ray_up_takes_a_file_and_refuses_what_it_does_not_know(path: Path, tmp_path: Path) -> None:
    content = ray_up(path)
    prepared = validated(content)
    with pytest.raises(ValidationError):
        validated({**content, "max_worker": 3})
    # What is copied is there; and every command is one that a shell reads, in whole.
    assert [
        source
        for source in content["file_mounts"].values()
        if not source.startswith("~") and not (ROOT / source).exists()
    ] == []
    commands = [text for key, texts in prepared.items() if key.endswith("_commands") for text in texts]
    assert any("pip install" in command and "constraints.txt" in command for command in commands)
    for number, command in enumerate(commands):
        (tmp_path / f"{number}.sh").write_text(f"#!/bin/bash\n{command}\n")
        require_clean_shell(tmp_path / f"{number}.sh", "SC2016", "SC2086")  # Ray puts $RAY_HEAD_IP in
    starts = [command for command in commands if " start --" in command]
    assert len(starts) == 2 and all("RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=" in command for command in starts)
    assert all("--dashboard-host=127.0.0.1" in command for command in starts if "--head" in command)


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_cloud_trains_on_gpus_and_reads_beside_them(cloud: str) -> None:
    content = ray_up(CLUSTER / "ray-up" / f"{cloud}.yaml")
    nodes = content["available_node_types"]
    assert {name: node["labels"]["ray-mm/role"] for name, node in nodes.items()} == {name: name for name in nodes}
    assert nodes["head"]["resources"] == {"CPU": 0} and nodes["data"]["min_workers"] == 1
    assert nodes["train"]["resources"] == {"CPU": 4, "GPU": 1} and "GPU" not in nodes["data"]["resources"]
    spot = {name for name, node in nodes.items() if re.search(r"spot|preemptible", str(node["node_config"]))}
    assert spot == {"data", "train"}
    assert any(
        f" {load_cluster(CLUSTER / f'{cloud}.yaml').storage} " in command for command in content["setup_commands"]
    )
    assert any("watch-preemption.sh" in command for command in content["worker_start_ray_commands"])


def test_systemd_takes_the_units_of_a_lan() -> None:
    units = sorted((CLUSTER / "lan").glob("*.service"))
    for unit in units:
        service = unit_settings(unit.read_text())["Service"]
        script = service["ExecStart"][0].split()[1].removeprefix("/opt/ray-mm/")
        assert (ROOT / script).is_file() and service["User"] == ["ray"] and service["NoNewPrivileges"] == ["true"]
        assert "RAY_AUTH_TOKEN=" not in unit.read_text()
    require_valid_units(units)


def test_images_are_pinned_and_do_not_run_as_root() -> None:
    path = CLUSTER / "docker" / "Dockerfile"
    require_clean_dockerfile(path)
    text = path.read_text()
    steps = [
        line.split(maxsplit=1) for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line and line[0] not in "# "
    ]
    (python,) = [rest for step, rest in steps if step == "ARG" and rest.startswith("PYTHON=")]
    assert re.fullmatch(r"PYTHON=3\.11\.\d+-slim-bookworm", python)
    stages = [rest.split() for step, rest in steps if step == "FROM"]
    assert [stage[-1] for stage in stages] == ["build", "cpu", "cuda"]
    assert {stage[0] for stage in stages} == {"python:${PYTHON}", "cpu"}
    assert [rest for step, rest in steps if step == "USER"] == ["1000:1000", "0", "1000:1000"] and steps[-1][
        0
    ] == "USER"
    (install,) = [rest for step, rest in steps if "pip install" in rest]
    assert "-c constraints.txt" in install
    optional = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    extras = re.search(r"\.\[([\w,]+)\]", install)
    assert extras is not None and set(extras[1].split(",")) == set(
        re.findall(r"^(\w+) = \[", optional, re.MULTILINE)
    ) - {"dev"}
    # Everything that is copied is there, and let through.
    ignore = (CLUSTER / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    copied = {name for step, rest in steps if step == "COPY" and "--from" not in rest for name in rest.split()[:-1]}
    assert copied == {line[1:] for line in ignore if line.startswith("!")} and all(
        (ROOT / name).exists() for name in copied
    )


class _Metadata(BaseHTTPRequestHandler):
    """A cloud's metadata service, that takes the machine back at the third look."""

    looks = 0

    def do_PUT(self) -> None:
        self._answer(200, b"session")

    def do_GET(self) -> None:
        type(self).looks += 1
        late = type(self).looks >= 3
        if self.path.startswith("/latest"):
            assert self.headers["X-aws-ec2-metadata-token"] == "session"
            self._answer(200 if late else 404, b"{}")
        else:
            assert self.headers["Metadata-Flavor"] == "Google"
            self._answer(200, b"TRUE" if late else b"FALSE")

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[str]:
    _Metadata.looks = 0
    with HTTPServer(("127.0.0.1", 0), _Metadata) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("cloud", "seconds"), [("aws", "120"), ("gcp", "30")])
def test_a_spot_machine_says_when_it_is_taken_back(tmp_path: Path, metadata: str, cloud: str, seconds: str) -> None:
    (tmp_path / "ray").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "ray").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RAY_MM_METADATA": metadata,
        "RAY_MM_WATCH_EVERY": "0.05",
    }
    command = ["bash", CLUSTER / "cloud" / "watch-preemption.sh", cloud, "head:6379"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=240)
    assert _Metadata.looks >= 3, "not before there is a notice"
    assert done.stdout.splitlines()[1:] == [
        "drain-node",
        "--address=head:6379",
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=the cloud takes this machine back",
        f"--deadline-remaining-seconds={seconds}",
    ]


@pytest.mark.parametrize(
    ("script", "arguments", "status", "reason"),
    [
        ("lan/worker.sh", [], 2, "takes the address of the head"),
        ("lan/worker.sh", ["head"], 2, "takes the address of the head"),
        ("lan/worker.sh", ["head:6379"], 1, "there is no token in"),
        ("lan/leave.sh", ["head:6379", "soon"], 2, "after how many seconds"),
        ("cloud/watch-preemption.sh", ["azure", "head:6379"], 2, "takes aws or gcp"),
    ],
)
def test_a_script_that_is_called_wrongly_says_so(
    tmp_path: Path, script: str, arguments: list[str], status: int, reason: str
) -> None:
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", CLUSTER / script, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert (done.returncode, done.stdout) == (status, "") and reason in done.stderr


@pytest.mark.parametrize("script", ["head.sh", "worker.sh"])
def test_a_token_that_others_can_read_starts_nothing(tmp_path: Path, script: str) -> None:
    (tmp_path / "token").write_text("0123456789abcdef" * 4)
    (tmp_path / "token").chmod(0o644)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "RAY_MM_TOKEN": str(tmp_path / "token"),
    }
    done = subprocess.run(
        ["bash", CLUSTER / "lan" / script, "head:6379"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 1 and "can be read by others (mode 644)" in done.stderr
