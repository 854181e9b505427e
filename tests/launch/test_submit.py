"""Jobs go to a real Ray head, started by these tests, and come back with the status that they would have here."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus

from ray_mm.config.cluster import ClusterProfile, ClusterResources
from ray_mm.config.load import load_job
from ray_mm.config.retrain import RetrainJob
from ray_mm.errors import UsageError
from ray_mm.launch.jobs import _Once, _status, _without_variables
from ray_mm.launch.placed import placed
from ray_mm.launch.submit import id_of, numbered
from ray_mm.training.state import attempt_starts, latest_checkpoint, read_state
from tests.config.jobs import SMALLEST
from tests.factories import make_dataset
from tests.launch.cluster import Head, command, environment, free_ports, lab, ray_mm
from tests.launch.proxy import cutting
from tests.preprocessing.tables import make_rows, write_csv
from tests.training.inprocess import make_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, head: Head) -> Path:
    """A preprocess job over a small table in the cluster's storage, with relative paths, beside the cluster's profile."""
    folder = tmp_path_factory.mktemp("submitted")
    (folder / "shared").mkdir()
    settings: dict[str, Any] = {"storage": str(folder / "shared"), "stop_grace": 60, "time_limit": "1h"}
    lab(head, folder, **settings)
    lab(head, folder, "image", runtime={"ships": "image"}, **settings)
    write_csv(folder / "shared" / "table.csv", make_rows(folder / "shared", num_rows=9))
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


@pytest.mark.cluster
def test_a_job_submitted_twice_runs_once_and_ends_with_its_own_status(head: Head, job: Path) -> None:
    first = ray_mm(job.parent, "submit", "job.yaml", "--cluster", "lab")
    assert (first.returncode, first.stderr) == (0, "")
    submission, text = first.stdout.splitlines()[0].split(": ", 1)
    assert re.fullmatch(r"tiny-[0-9a-f]{10}", submission)
    assert text == f"submitted to {head.url}"
    assert first.stdout.endswith(f"its log: ray-mm logs {submission} --follow --cluster lab\n")

    # Whoever follows loses the connection every half second, and misses and repeats nothing.
    with cutting(int(head.url.rpartition(":")[2]), b"/logs/tail", after_s=0.5) as (url, cut):
        token = {"RAY_AUTH_TOKEN_PATH": str(head.token)}
        profile = json.loads((job.parent / "cluster" / "lab.yaml").read_text()) | {"address": url}
        (job.parent / "cluster" / "cut.yaml").write_text(json.dumps(profile))
        again = ray_mm(job.parent, "submit", "job.yaml", "--follow", "--cluster", "cut")
        assert again.stdout.startswith(f"{submission}: already runs on {url}\n")
        assert cut, "at least once"
    assert again.stdout.rstrip().endswith(f"{submission}: succeeded")
    assert "preprocess tiny: done" in again.stdout, "the log of the run is shown"
    assert (again.returncode, again.stderr) == (0, "")
    output = job.parent / "shared" / "out"
    assert (output / "train" / "dataset.json").is_file(), "relative paths are meant from the cluster's storage"

    log = ray_mm(job.parent, "logs", submission, "--cluster", head.url, **token)
    assert again.stdout.split("\n", 1)[1].rpartition(f"{submission}: ")[0] == log.stdout
    status = ray_mm(job.parent, "status", submission, "--cluster", "lab")
    assert "succeeded" in status.stdout and submission in status.stdout

    fetched = ray_mm(job.parent, "fetch", submission, "--cluster", "lab")
    here = job.parent / "runs" / submission
    assert (fetched.returncode, fetched.stdout.splitlines()[0]) == (0, f"runs/{submission}: 3 files")
    assert (here / "result.json").read_bytes() == (output / "result.json").read_bytes()
    second = ray_mm(job.parent, "submit", "job.yaml", "--cluster", "lab").stdout.split(":", 1)[0]
    assert second == f"{submission}.2", "it has ended, so it may run again"
    assert ray_mm(job.parent, "stop", second, "--cluster", "lab").returncode == 0
    refused = ray_mm(job.parent, "fetch", submission, "--cluster", "lab", "--into", "shared")
    assert refused.returncode == 2 and "--into shared: holds something else" in refused.stderr


@pytest.mark.cluster
def test_a_job_that_is_wrong_ends_with_status_2_there_as_here(head: Head, job: Path) -> None:
    ran = ray_mm(
        job.parent, "submit", "job.yaml", "--cluster", "lab", "--set", "table=absent.csv", "--follow", "--retries", "3"
    )
    assert ran.returncode == 2
    assert f"table: {job.parent / 'shared' / 'absent.csv'}: no such file." in ran.stdout
    assert ran.stdout.rstrip().endswith("failed (Job entrypoint command failed with exit code 2)")
    assert "follows in" not in ran.stdout, "another start would not change it"


@pytest.mark.cluster
def test_a_training_is_started_again_left_alone_by_ctrl_c_and_saves_when_it_is_stopped(head: Head, job: Path) -> None:
    shared = job.parent / "shared"
    make_dataset(shared / "train", 96, ("vector", "label"), num_shards=2)
    training = make_job(shared, "fit", **{"train.epochs": 10_000, "train.checkpoints.every_steps": 5})
    (job.parent / "fit.json").write_text(training.model_dump_json())
    following = subprocess.Popen(
        command("submit", "fit.json", "--cluster", "image", "--retries", "2", "--follow"),
        cwd=job.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert following.stdout is not None
    submission = following.stdout.readline().split(":", 1)[0]
    run = shared / "fit"

    # Its process is killed, as one is by a kernel that is short of memory.
    wait_until(lambda: latest_checkpoint(run) is not None, following)
    lock = re.search(r"process (\d+)", (run / ".lock").read_text())
    assert lock is not None
    os.kill(int(lock[1]), signal.SIGKILL)
    wait_until(lambda: len(attempt_starts(run)) == 2, following)
    starts = attempt_starts(run)
    assert starts[min(starts)] == 0 < starts[max(starts)], "it goes on from what is there"
    wait_until(lambda: last_step(run) > 5, following)

    following.send_signal(signal.SIGINT)
    told, error = following.communicate(timeout=240)
    assert following.returncode == 130
    assert error == (
        f"ray-mm: the job goes on; to see its log again: ray-mm logs {submission} --follow --cluster image\n"
    )
    assert "failed (signal 9); start 2 of at most 3 follows in 5 s" in told
    assert "running" in ray_mm(job.parent, "list", "--cluster", "image").stdout

    stopped = ray_mm(job.parent, "stop", submission, "--cluster", "image")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, f"{submission}: stopped\n", "")
    log = ray_mm(job.parent, "logs", submission, "--follow", "--cluster", "image")
    saved = re.search(r"is saved at step ([\d,]+) of", log.stdout)
    assert saved is not None and log.returncode == 143
    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None and read_state(checkpoint).step == int(saved[1].replace(",", ""))
    assert ray_mm(job.parent, "stop", submission, "--cluster", "image").stdout == f"{submission}: stopped\n"


def wait_until(is_so: Any, process: subprocess.Popen[str]) -> None:
    give_up = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < give_up and process.poll() is None
        time.sleep(0.1)


def last_step(run: Path) -> int:
    checkpoint = latest_checkpoint(run)
    return -1 if checkpoint is None else read_state(checkpoint).step


@pytest.mark.cluster
@pytest.mark.parametrize("verb", ["status", "fetch"])
def test_an_unknown_id_is_told_with_the_cluster_that_was_asked(head: Head, job: Path, verb: str) -> None:
    ran = ray_mm(job.parent, verb, "nobody", "--cluster", "lab")
    assert ran.returncode == 2
    assert ran.stderr.startswith(f"ray-mm: nobody: the cluster at {head.url} knows no such job; it knows ")


@pytest.mark.cluster
def test_a_cluster_that_wants_a_token_says_how_to_give_it(head: Head, tmp_path: Path) -> None:
    ran = ray_mm(tmp_path, "list", "--cluster", head.url)
    assert ran.returncode == 2
    assert "it wants an access token; name the file that holds it" in ran.stderr


@pytest.mark.cluster
def test_a_job_runs_on_a_cluster_that_this_machine_is_part_of(head: Head, job: Path) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(head.token)}
    folder = job.parent / "shared"
    ran = ray_mm(folder, "run", "../job.yaml", "--set", "output=joined", "--address", head.address, **token)
    assert ran.returncode == 0, ran.stderr
    joining, *progress = ran.stderr.splitlines()
    assert joining == f"ray-mm: joining Ray at {head.address}"
    assert progress and all(line.startswith("preprocess: ") for line in progress), "and nothing of Ray's"
    assert (folder / "joined" / "train" / "dataset.json").is_file()


def test_an_address_on_the_command_line_wins_over_the_environment(tmp_path: Path) -> None:
    first, second = free_ports(2)
    ran = ray_mm(
        tmp_path, "list", "--cluster", f"127.0.0.1:{first}", RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{second}"
    )
    assert ran.returncode == 2
    assert f"--cluster http://127.0.0.1:{first}: nothing answers there" in ran.stderr


def test_a_job_that_does_not_load_is_refused_before_the_cluster_is_asked(tmp_path: Path) -> None:
    ran = ray_mm(tmp_path, "submit", "absent.yaml", "--cluster", "127.0.0.1:9")
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
        (JobStatus.FAILED, 143, 143),
        (JobStatus.STOPPED, None, 143),
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
    assert [numbered("fit-01", number) for number in (1, 2, 10)] == ["fit-01", "fit-01.2", "fit-01.10"]


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with _without_variables("RAY_ADDRESS", "RAY_NOT_SET"):
        assert "RAY_ADDRESS" not in os.environ
    assert os.environ["RAY_ADDRESS"] == "head:6379"


def test_jobs_of_the_same_content_have_the_same_digest_whatever_is_left_out() -> None:
    left_out = load_job(SMALLEST["train"])
    assert load_job(left_out.model_dump(mode="json")).model_dump(mode="json") == left_out.model_dump(mode="json")


def test_the_id_follows_from_what_lies_in_the_runs_folder() -> None:
    content = load_job(SMALLEST["train"]).model_dump(mode="json")
    assert re.fullmatch(r"fit-[0-9a-f]{10}", id_of(content))
    assert id_of(json.loads(json.dumps(content))) == id_of(dict(reversed(content.items())))
    assert id_of({**content, "seed": 7}) != id_of(content)


def test_a_log_that_is_told_from_its_beginning_again_is_shown_once() -> None:
    shown: list[str] = []
    once = _Once(shown.append)
    for told in (["ab", "c"], ["a"], ["abc", "de"], [], ["abcdef"]):
        once.begin()
        for text in told:
            once(text)
    assert "".join(shown) == "abcdef"


def test_a_cluster_gives_resources_to_jobs_that_do_not_say_what_they_need() -> None:
    cluster = ClusterProfile(storage="/mnt/shared", resources=ClusterResources(workers=4, gpus_per_worker=1))
    silent = placed(load_job(SMALLEST["train"]), cluster)
    assert (silent.resources.workers, silent.resources.gpus_per_worker) == (4, 1)  # type: ignore[union-attr]
    said = placed(load_job({**SMALLEST["train"], "resources": {"workers": 1, "cpus_per_worker": 2}}), cluster)
    assert (said.resources.workers, said.resources.gpus_per_worker) == (1, 1)  # type: ignore[union-attr]
    assert placed(load_job(SMALLEST["train"]), ClusterProfile(storage="/mnt/shared")).output == "/mnt/shared/runs/fit"


def test_a_retraining_travels_with_its_train_job_and_all_places_in_full() -> None:
    arrivals = {"shards": ["in/*.tar", "s3://b/in"], "by": "manifest", "manifest": "in/list.jsonl"}
    named = {"champion": "registry:runs/models#x@2", "registry": "runs/models", "frozen_test": {"path": "data/t"}}
    cluster = ClusterProfile(storage="/mnt/shared", resources=ClusterResources(workers=4, gpus_per_worker=1))
    job = placed(load_job({**SMALLEST["retrain"], **named, "arrivals": arrivals}), cluster)
    assert isinstance(job, RetrainJob) and load_job(job.model_dump(mode="json")) == job
    assert job.incoming.shards == ("/mnt/shared/in/*.tar", "s3://b/in")
    assert (job.incoming.manifest, job.registry) == ("/mnt/shared/in/list.jsonl", "/mnt/shared/runs/models")
    assert job.champion == "registry:/mnt/shared/runs/models#x@2"
    assert (job.train.data.train, job.output) == ("/mnt/shared/data/small/train", "/mnt/shared/runs/again")
    assert (job.train.resources.workers, job.train.resources.gpus_per_worker) == (4, 1)


def test_a_runs_folder_in_an_object_store_is_refused() -> None:
    with pytest.raises(UsageError, match=r"output: s3://bucket/runs/fit: a run's folder can't be in an object store"):
        placed(load_job(SMALLEST["train"]), ClusterProfile(storage="s3://bucket"))
