"""The doctor tells what it found, how bad it is, and what to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ray_mm import doctor
from ray_mm.config.base import TrainResources, WorkerRange
from ray_mm.config.load import load_job
from ray_mm.config.train import TrainJob
from ray_mm.doctor import Finding, Level
from ray_mm.errors import DatasetError, UsageError
from ray_mm.placement import Node
from ray_mm.training.explain import Examined
from tests.config.jobs import SMALLEST
from tests.factories import make_dataset
from tests.launch.cluster import Head, ray_head

GIB = 2**30


class Usage(NamedTuple):
    """What ``shutil.disk_usage`` returns."""

    total: int
    used: int
    free: int


def test_a_finding_is_a_line_with_what_to_do() -> None:
    assert Finding(Level.OK, "GPU", "none").line() == "ok    GPU: none"
    assert Finding(Level.FAIL, "disk", "0 GiB free", "make room").line() == "fail  disk: 0 GiB free → make room"


def train_job(**overrides: Any) -> TrainJob:
    job = load_job(SMALLEST["train"], overrides)
    assert isinstance(job, TrainJob)
    return job


@pytest.mark.ray
def test_everything_is_looked_at_and_a_training_is_measured(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data" / "small" / "train", 6)
    # Ray runs in another folder than the test.
    job = train_job(**{"train.epochs": 3, "data.train": str(tmp_path / "data" / "small" / "train")})
    *findings, last = doctor.examine(job, 0.2)
    assert isinstance(last, Examined) and last.name == "fit" and last.diagnosis.predicted > 0
    found = [finding for finding in findings if isinstance(finding, Finding)]
    names = [finding.name for finding in found]
    assert names[:8] == ["job", "job", "job", "job", "CPUs", "memory", "disk", "shared memory"]
    assert found[2].found == "train: 3 steps: 3 epochs of 1 step, 128 samples each", "as it was overridden"
    assert found[3].level is Level.WARN and "is more than the 6 samples" in found[3].found
    assert names[-4:] == ["access token", "GPU", "Ray", "resources"]
    assert found[-1].found == "1 worker(s) with 1 CPUs and 0 GPUs each; 1 CPUs read data"
    assert all(finding.advice for finding in found if finding.level is not Level.OK)
    content = json.loads(json.dumps(doctor.as_json([*found, last])))
    assert content["format"] == "ray_mm.doctor" and content["findings"][0]["level"] == "ok"
    assert content["training"]["limit"] == last.diagnosis.limit
    assert not (tmp_path / "runs").exists(), "nothing is written"


@pytest.mark.cluster
def test_on_a_cluster_its_resources_are_told_and_its_processes_measure(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 40, ("image", "label"))
    # As a user writes it: relative to the folder where the command is given, in which the cluster's processes are not.
    content = SMALLEST["train"] | {"data": {"train": "train", "batch_size": 8}, "train": {"epochs": 2}}
    (tmp_path / "job.yaml").write_text(json.dumps(content))
    with ray_head(num_cpus=3) as head:
        measured = ray_mm(tmp_path, head, "job.yaml", "--seconds", "0.3", "--json")
        assert measured.returncode == 0, measured.stderr
        told = json.loads(measured.stdout)
        findings = {finding["name"]: finding for finding in told["findings"]}
        assert f"at {head.address} answers in " in findings["Ray"]["found"]
        assert " with 3 CPUs, 0 GPUs and " in findings["Ray"]["found"]
        assert findings["resources"]["found"] == "1 worker(s) with 1 CPUs and 0 GPUs each; 2 CPUs read data"
        stages = {stage["stage"]: stage["samples_per_s"] for stage in told["training"]["stages"]}
        assert {"read", "decode", "hand over", "train step"} <= stages.keys()
        assert all(rate > 0 for rate in stages.values() if rate is not None)
        assert told["training"]["samples_per_s"] > 0 and told["training"]["limit"] in stages
        too_large = ray_mm(tmp_path, head, "job.yaml", "--set", "resources.gpus_per_worker=1")
        assert too_large.returncode == 1 and "fail  resources: " in too_large.stdout
    assert not (tmp_path / "runs").exists(), "nothing is written"
    gone = ray_mm(tmp_path, head)
    assert gone.returncode == 2 and f"--address {head.address}: nothing answers there" in gone.stderr


def ray_mm(folder: Path, head: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(head.token),
    }
    command = [sys.executable, "-m", "ray_mm", "doctor", *arguments, "--address", head.address]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=580)


@pytest.mark.ray
def test_without_a_job_only_the_machine_is_looked_at(local_ray: None) -> None:
    found = list(doctor.examine())
    assert all(isinstance(finding, Finding) for finding in found)
    assert [finding.name for finding in found if isinstance(finding, Finding)][-1] == "Ray"
    assert doctor.as_json(found)["training"] is None


@pytest.mark.ray
def test_a_job_that_finds_no_room_is_not_measured(
    local_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data" / "small" / "train", 6)
    last = list(doctor.examine(train_job(**{"resources.gpus_per_worker": 1}), 0.2))[-1]
    assert isinstance(last, Finding) and last.level is Level.FAIL and "--address" in last.advice


def test_what_a_job_names_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match="data/small/train"):
        next(iter(doctor.examine(train_job())))
    make_dataset(tmp_path / "data" / "small" / "train", 6)
    with pytest.raises(UsageError, match="sound"):
        next(iter(doctor.examine(train_job(**{"model.fields.sound": {}}))))


def test_an_output_that_a_run_would_refuse_is_only_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_dataset(tmp_path / "data" / "small" / "train", 6)
    (tmp_path / "runs" / "fit").mkdir(parents=True)
    (tmp_path / "runs" / "fit" / "other").touch()
    findings = doctor.examine(train_job())
    found = next(finding for finding in findings if isinstance(finding, Finding) and finding.name == "output")
    assert found.level is Level.WARN and found.advice == "choose another output."


@pytest.mark.parametrize(
    ("free", "total", "level"),
    [
        (50 * GIB, 100 * GIB, Level.OK),
        (5 * GIB, 100 * GIB, Level.WARN),
        (20 * GIB, 900 * GIB, Level.WARN),
        (1, 9, Level.FAIL),
    ],
)
def test_a_full_disk_is_a_warning_and_then_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, total: int, level: Level
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage(total, total - free, free))
    finding = doctor._disk(tmp_path / "not" / "there" / "yet")
    assert finding.level is level
    assert finding.found.endswith(f"free at {tmp_path}"), "the folder above is asked"


@pytest.mark.parametrize(
    ("meminfo", "limit", "used", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:    2048 kB\n", None, None, 2 * 2**20),
        ("MemAvailable: 2048 kB\n", "max", "5", 2 * 2**20),
        ("MemAvailable: 2048 kB\n", "1000", "400", 600),
        (None, "1000", "400", 600),
        (None, None, None, None),
    ],
)
def test_available_memory_is_what_the_machine_and_the_container_leave(
    tmp_path: Path, meminfo: str | None, limit: str | None, used: str | None, expected: int | None
) -> None:
    for name, content in (("meminfo", meminfo), ("memory.max", limit), ("memory.current", used)):
        if content is not None:
            (tmp_path / name).write_text(content)
    assert doctor.available_memory(tmp_path, tmp_path) == expected


@pytest.mark.parametrize(("free", "level"), [(None, Level.WARN), (GIB, Level.WARN), (9 * GIB, Level.OK)])
def test_little_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch, free: int | None, level: Level) -> None:
    monkeypatch.setattr(doctor, "available_memory", lambda: free)
    assert doctor._memory().level is level


def test_little_shared_memory_is_a_warning_that_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: Usage(GIB, 0, 64 * 2**20))
    finding = doctor._shared_memory(tmp_path)
    assert finding.level is Level.WARN and "--shm-size=4g" in finding.advice
    assert doctor._shared_memory(tmp_path / "absent").level is Level.OK


def test_a_token_that_others_can_read_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    assert doctor.token().level is Level.OK
    path.touch(0o644)
    assert doctor.token() == Finding(
        Level.WARN, "access token", f"others can read {path} (mode 644)", f"chmod 600 {path}"
    )
    path.chmod(0o600)
    assert doctor.token().level is Level.OK
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert doctor.token().level is Level.WARN
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert "secret" not in doctor.token().line()


@pytest.mark.parametrize(
    ("resources", "gpus", "level"),
    [
        (TrainResources(workers=2), 0, Level.OK),
        (TrainResources(workers=1), 1, Level.WARN),
        (TrainResources(workers=1, gpus_per_worker=1), 1, Level.OK),
        (TrainResources(workers=2, gpus_per_worker=1), 1, Level.FAIL),
        (TrainResources(workers=4, cpus_per_worker=1), 0, Level.FAIL),
        (TrainResources(workers=WorkerRange(min=1, max=8)), 0, Level.OK),
    ],
)
def test_what_a_job_asks_for_is_compared_with_what_ray_has(
    resources: TrainResources, gpus: float, level: Level
) -> None:
    assert doctor.placement(resources, [Node(4, gpus)]).level is level


def write_distribution(folder: Path, *requirements: str) -> None:
    (folder / "made_up-1.0.dist-info").mkdir()
    lines = ["Metadata-Version: 2.1", "Name: made_up", "Version: 1.0", "Requires-Python: >=3.10"]
    lines += [f"Requires-Dist: {requirement}" for requirement in requirements]
    (folder / "made_up-1.0.dist-info" / "METADATA").write_text("\n".join(lines) + "\n")


def test_versions_that_are_missing_or_out_of_range_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write_distribution(
        tmp_path,
        "numpy>=1",
        "pyyaml<1",
        "no-such-thing>=2",
        'other-thing; extra == "onnx"',
        'dev-thing; extra == "dev"',
    )
    found = {finding.name: finding for finding in doctor.versions("made_up")}
    assert {name: finding.level for name, finding in found.items()} == {
        "Python": Level.OK,
        "pyyaml": Level.FAIL,
        "no-such-thing": Level.FAIL,
        "other-thing": Level.WARN,
    }
    assert found["no-such-thing"].advice == "pip install 'no-such-thing>=2'"
    assert found["other-thing"].advice == "compressing needs it: pip install made_up[onnx]"


def test_versions_that_fit_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    write_distribution(tmp_path, "numpy>=1", 'dev-thing; extra == "dev"')
    assert [finding.level for finding in doctor.versions("made_up")] == [Level.OK, Level.OK]


def test_a_package_that_is_not_installed_can_not_be_compared() -> None:
    (finding,) = doctor.versions("never-installed")
    assert finding.level is Level.WARN
