"""What a submission is made of: words for a shell, an environment without secrets, a package of a bearable size."""

from __future__ import annotations

import json
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobDetails, JobStatus
from ray.runtime_env import RuntimeEnv

from ray_mm import travel
from ray_mm.config.cluster import ClusterProfile
from ray_mm.errors import UsageError
from ray_mm.launch.dashboard import Dashboard
from ray_mm.launch.jobs import Jobs, _status
from ray_mm.launch.runtime import entrypoint, module_command, runtime_env
from ray_mm.references import SETUP_HOOK, VARIABLE
from ray_mm.travel import PACKAGE, with_the_job
from ray_mm.version import __version__


def profile(**content: Any) -> ClusterProfile:
    return ClusterProfile.model_validate_json(json.dumps(content))


@pytest.mark.parametrize(
    "given", ["", "../x", "a/b", "a b", "x?y", "x#y", "%2e%2e", "-x", ".x", "x\n", "\x1b[31m", "x" * 300, "ü", "a;b"]
)
def test_an_id_that_is_none_is_refused(given: str) -> None:
    jobs = Jobs(ClusterProfile(), Dashboard("http://127.0.0.1:9", {}), client=None)  # which is not asked
    with pytest.raises(UsageError, match="is no id of a job") as caught:
        jobs.status(given)
    assert str(caught.value).isprintable()


def test_what_others_wrote_does_not_steer_the_terminal() -> None:
    status = _status(
        JobDetails(
            type="SUBMISSION",
            submission_id="x\x1b[2J",
            status=JobStatus.FAILED,
            entrypoint="x",
            message="\x1b]0;owned\x07\nmore",
            start_time=int(datetime(2026, 1, 1).timestamp() * 1000),
        )
    )
    assert (status.id, status.message) == ("x?[2J", "?]0;owned?")


def test_the_command_of_a_job_is_only_words() -> None:
    cluster = profile(retries=2, time_limit="90m", stop_grace=30, runtime={"python": "/opt/venv/bin/python"})
    assert entrypoint(cluster) == (
        "exec /opt/venv/bin/python -m ray_mm.launch.attempts job.json --retries 2 --time-limit 5400 --grace 30 --submitted-by "
        f"{__version__}"
    )
    evil = "$(reboot); `x` 'y' \"z\" && a | b > c\nd"
    assert shlex.split(module_command(cluster, "m", [evil])) == ["exec", "/opt/venv/bin/python", "-m", "m", evil]


def test_a_runtime_environment_says_where_a_secret_is_and_that_a_stop_may_take_its_time() -> None:
    env = {"PLAIN": "text", "KEY": {"file": "/run/secrets/key"}, "OTHER": {"env": "NODE_OTHER"}}
    found = runtime_env(profile(stop_grace=30, runtime={"env": env, "pip": ["timm==1.0.9"]}))
    RuntimeEnv(**found)  # as Ray checks it
    assert found["env_vars"] == {
        "PLAIN": "text",
        "PYTHONUNBUFFERED": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "40",
        VARIABLE: json.dumps({"KEY": {"file": "/run/secrets/key"}, "OTHER": {"env": "NODE_OTHER"}}),
    }
    assert found["worker_process_setup_hook"] == SETUP_HOOK
    assert found["py_modules"] == [str(PACKAGE)] and found["pip"] == ["timm==1.0.9"]


def test_an_image_that_has_ray_mm_gets_nothing_to_carry() -> None:
    assert set(runtime_env(profile(runtime={"ships": "image"}))) == {"env_vars"}


def test_what_travels_is_weighed_without_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "my_encoder"
    for name in ("__init__.py", "__pycache__/x.pyc", ".git/pack", ".venv/lib/big"):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_bytes(b"x" * (10 if name == "__init__.py" else 10_000_000))
    assert with_the_job([package])["py_modules"] == [str(PACKAGE), str(package)]
    (package / "weights.bin").write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(travel, "MOST_BYTES", 4 << 20)
    with pytest.raises(UsageError, match=rf"at most 4 MiB may; the largest are {package / 'weights.bin'} \(3 MiB\)"):
        with_the_job([package, package, package])
    (tmp_path / "not-a-name").mkdir()
    for wrong in (tmp_path / "absent", tmp_path / "not-a-name", package / "__init__.py"):
        with pytest.raises(UsageError, match="expected the folder of a Python package"):
            with_the_job([wrong])
