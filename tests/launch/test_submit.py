"""Jobs go to a real Ray head, started by these tests, and come back with the status that they would have here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus

from ray_mm.config.load import load_job
from ray_mm.launch.submit import _numbered, _status, _without_variables
from tests.config.jobs import SMALLEST
from tests.launch.cluster import Head, free_ports, ray_head
from tests.preprocessing.tables import make_rows, write_csv

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with ray_head() as head:
        yield head


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A preprocess job over a small table, with relative paths."""
    folder = tmp_path_factory.mktemp("submitted")
    write_csv(folder / "table.csv", make_rows(folder, num_rows=9))
    content = {
        "kind": "preprocess",
        "name": "tiny",
        "table": "table.csv",
        "fields": {"image": {"type": "image"}, "label": {"type": "label"}},
        "splits": {"by": "hash", "fractions": {"train": 1.0}},
        "output": "out",
    }
    (folder / "job.yaml").write_text(json.dumps(content))
    return folder / "job.yaml"


def ray_mm(head: Head, folder: Path, *arguments: str, token: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": str(REPOSITORY), "RAY_API_SERVER_ADDRESS": head.url}
    if token:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token)}
    command = [sys.executable, "-m", "ray_mm", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.cluster
def test_a_job_submitted_twice_runs_once_and_ends_with_its_own_status(head: Head, job: Path) -> None:
    first = ray_mm(head, job.parent, "submit", "job.yaml")
    assert (first.returncode, first.stderr) == (0, "")
    submission, text = first.stdout.splitlines()[0].split(": ", 1)
    assert re.fullmatch(r"tiny-[0-9a-f]{10}", submission)
    assert text == f"submitted to {head.url}"

    again = ray_mm(head, job.parent, "submit", "job.yaml", "--follow")
    assert again.stdout.startswith(f"{submission}: already runs on {head.url}\n")
    assert again.stdout.rstrip().endswith(f"{submission}: succeeded")
    assert "preprocess tiny: done" in again.stdout, "the log of the run is shown"
    assert (again.returncode, again.stderr) == (0, "")
    assert (job.parent / "out" / "train" / "dataset.json").is_file(), "paths are meant from where one submits"

    status = ray_mm(head, job.parent, "status", submission)
    assert "succeeded" in status.stdout and submission in status.stdout
    log = ray_mm(head, job.parent, "logs", submission)
    assert "preprocess tiny: done" in log.stdout
    followed = ray_mm(head, job.parent, "logs", submission, "--follow")
    assert followed.stdout.startswith(log.stdout) and followed.returncode == 0


@pytest.mark.cluster
def test_a_job_that_is_wrong_ends_with_status_2_there_as_here(head: Head, job: Path) -> None:
    ran = ray_mm(head, job.parent, "submit", "job.yaml", "--set", "table=absent.csv", "--follow")
    assert ran.returncode == 2
    assert f"table: {job.parent / 'absent.csv'}: no such file." in ran.stdout
    assert ran.stdout.rstrip().endswith("failed (Job entrypoint command failed with exit code 2)")


@pytest.mark.cluster
def test_a_stopped_job_stays_stopped_and_may_be_submitted_again(head: Head, job: Path) -> None:
    arguments = ("submit", "job.yaml", "--set", "output=stopped")
    submission = ray_mm(head, job.parent, *arguments).stdout.split(":", 1)[0]
    for _ in range(2):
        stopped = ray_mm(head, job.parent, "stop", submission)
        assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, f"{submission}: stopped\n", "")
    second = ray_mm(head, job.parent, *arguments).stdout.split(":", 1)[0]
    assert second == f"{submission}.2"
    assert ray_mm(head, job.parent, "stop", second).returncode == 0
    listed = ray_mm(head, job.parent, "status").stdout
    assert submission in listed and second in listed


@pytest.mark.cluster
@pytest.mark.parametrize("verb", ["status", "logs", "stop"])
def test_an_unknown_id_is_told_with_the_cluster_that_was_asked(head: Head, tmp_path: Path, verb: str) -> None:
    ran = ray_mm(head, tmp_path, verb, "nobody")
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"ray-mm: nobody: the cluster at {head.url} knows no such job; it knows ")


@pytest.mark.cluster
def test_a_cluster_that_wants_a_token_says_how_to_give_it(head: Head, tmp_path: Path) -> None:
    ran = ray_mm(head, tmp_path, "status", token=False)
    assert ran.returncode == 2
    assert "it wants an access token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH" in ran.stderr


@pytest.mark.cluster
def test_an_address_on_the_command_line_wins_over_rays_variables(head: Head, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    ran = ray_mm(head, tmp_path, "status", "--address", f"127.0.0.1:{port}")
    assert ran.returncode == 2
    assert f"--address http://127.0.0.1:{port}: nothing answers there" in ran.stderr


@pytest.mark.cluster
def test_a_job_runs_on_a_cluster_that_this_machine_is_part_of(head: Head, job: Path) -> None:
    ran = ray_mm(head, job.parent, "run", "job.yaml", "--set", "output=joined", "--address", head.address)
    assert ran.returncode == 0, ran.stderr
    joining, *progress = ran.stderr.splitlines()
    assert joining == f"ray-mm: joining Ray at {head.address}"
    assert progress and all(line.startswith("preprocess: ") for line in progress), "and nothing of Ray's"
    assert (job.parent / "joined" / "train" / "dataset.json").is_file()


def test_a_job_that_does_not_load_is_refused_before_the_cluster_is_asked(tmp_path: Path) -> None:
    nowhere = Head("http://127.0.0.1:9", "127.0.0.1:9", tmp_path / "token", tmp_path)
    ran = ray_mm(nowhere, tmp_path, "submit", "absent.yaml")
    assert (ran.returncode, ran.stderr) == (2, "ray-mm: absent.yaml: no such job file.\n")


def details(status: JobStatus, exit_code: int | None = None, message: str = "") -> JobDetails:
    return JobDetails(
        type="SUBMISSION",
        submission_id="fit-0123456789",
        status=status,
        entrypoint="python -m ray_mm run job.json",
        message=message,
        start_time=1_000_000,
        end_time=1_090_000,
        driver_exit_code=exit_code,
    )


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 1, 1),
        (JobStatus.FAILED, 2, 2),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, -9, 1),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, 3, 3),
        (JobStatus.STOPPED, None, 1),
        (JobStatus.RUNNING, None, None),
        (JobStatus.PENDING, None, None),
    ],
)
def test_the_exit_status_is_that_of_the_run_on_the_cluster(
    status: JobStatus, exit_code: int | None, expected: int | None
) -> None:
    assert _status(details(status, exit_code)).exit_status == expected


def test_a_status_has_one_line_of_message_and_the_seconds_from_start_to_end() -> None:
    message = "Job entrypoint command failed with exit code 1, last available logs (truncated):\nTraceback"
    status = _status(details(JobStatus.FAILED, 1, message))
    assert status.message == "Job entrypoint command failed with exit code 1"
    assert status.seconds == 90


def test_a_second_submission_of_a_job_has_the_next_number() -> None:
    assert [_numbered("fit-01", number) for number in (1, 2, 10)] == ["fit-01", "fit-01.2", "fit-01.10"]


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with _without_variables("RAY_ADDRESS", "RAY_NOT_SET"):
        assert "RAY_ADDRESS" not in os.environ
    assert os.environ["RAY_ADDRESS"] == "head:6379"


def test_jobs_of_the_same_content_have_the_same_digest_whatever_is_left_out() -> None:
    left_out = load_job(SMALLEST["train"])
    assert load_job(left_out.model_dump(mode="json")).model_dump(mode="json") == left_out.model_dump(mode="json")
