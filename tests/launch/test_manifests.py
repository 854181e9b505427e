"""What ``ray-mm render`` writes: held against the schemas and tools of those who read it, and harmless whatever a job says."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from jsonschema import ValidationError

from ray_mm.config.cluster import ClusterProfile
from ray_mm.config.load import JOB_KINDS, load_job
from ray_mm.config.schedule import JobSchedule, times
from ray_mm.errors import UsageError
from ray_mm.launch.manifests.parts import Call, dns_name, layout, local_command, placed_job
from ray_mm.launch.manifests.render import FORMS, render, write_files
from ray_mm.launch.manifests.systemd import on_calendar
from tests.config.jobs import SMALLEST, names
from tests.launch.schemas import require_valid
from tests.launch.shell import require_clean_shell, require_valid_units, unit_settings

HOSTILE = '/mnt/a b/it\'s "$(touch canary)" `touch canary` ${HOME} %n %% {0} {{x}} \\ ; rm -rf / & | < > * ? [a] #: - @ ! ~ é 🎈'
SCHEDULE = {"cron": "30 2 * * mon-fri", "timezone": "Europe/Berlin"}
PROFILE = ClusterProfile.model_validate(
    {
        "storage": "/mnt/shared",
        "image": "ray-mm:0.1-cpu",
        "runtime": {
            "ships": "image",
            "env": {
                "GREETING": HOSTILE,
                "AWS_SECRET_ACCESS_KEY": {"env": "AWS_SECRET_ACCESS_KEY"},
                "HF_TOKEN": {"file": "~/it's secret/hf.token"},
            },
        },
        "retries": 2,
        "time_limit": "12h",
        "stop_grace": 90,
    }
)
GPUS = {"resources": {"workers": {"min": 2, "max": 4}, "gpus_per_worker": 1, "cpus_per_worker": 4}}


def called(kind: str = "train", profile: ClusterProfile | None = PROFILE, **more: Any) -> Call:
    job = load_job({**SMALLEST[kind], "schedule": SCHEDULE, **more})
    return Call(job, Path("/home/me/jobs/job.yaml"), profile=profile)


def manifests(call: Call, form: str) -> list[dict[str, Any]]:
    (text,) = render("kuberay", call, form).values()
    found = list(yaml.safe_load_all(text))
    assert all(found)
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("more", [{}, GPUS, {"output": HOSTILE}], ids=["cpus", "gpus", "hostile"])
def test_kuberay_takes_every_form(form: str, more: dict[str, Any]) -> None:
    for manifest in manifests(called(**more), form):
        require_valid(manifest)


@pytest.mark.parametrize("kind", JOB_KINDS)
@pytest.mark.parametrize("target", ["kuberay", "slurm", "systemd", "cron"])
def test_every_kind_of_job_is_rendered_for_every_target(kind: str, target: str) -> None:
    files = render(target, called(kind))
    assert files and all("ray-mm render" in content[:400] for content in files.values())


def test_the_schemas_refuse_what_they_do_not_know() -> None:
    job = manifests(called(), "rayjob")[1]
    for spoil in ("entryPoint", "shutdownAfterJobFinish"):
        with pytest.raises(ValidationError):
            require_valid({**job, "spec": {**job["spec"], spoil: True}})
    deep = json.loads(json.dumps(job))
    deep["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    with pytest.raises(ValidationError, match="imagePullPolice"):
        require_valid(deep)
    with pytest.raises(ValidationError):
        require_valid({**job, "spec": {**job["spec"], "backoffLimit": "two"}})
    cron = manifests(called(), "cronjob")[1]
    with pytest.raises(ValidationError):
        require_valid({**cron, "spec": {**cron["spec"], "timezone": "UTC"}})


def test_a_ray_job_has_a_cluster_of_its_own_with_a_token_and_readers_beside_the_gpus() -> None:
    config, job = manifests(called(**GPUS), "rayjob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert shlex.split(spec["entrypoint"]) == [
        "python",
        "-m",
        "ray_mm",
        "run",
        "/etc/ray-mm/job.json",
        "--address",
        "auto",
    ]
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"], spec["shutdownAfterJobFinishes"]) == (2, 43200, True)
    assert cluster["authOptions"] == {"mode": "token"} and cluster["rayVersion"] == "2.60.0"
    assert cluster["headGroupSpec"]["labels"] == {"ray-mm/role": "head", "ray-mm/grows-within-s": "1800"}
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert set(groups) == {"train", "data"}
    train, data = groups["train"], groups["data"]
    assert (train["minReplicas"], train["maxReplicas"], train["rayStartParams"]) == (2, 4, {"num-cpus": "4"})
    assert train["labels"] == {"ray-mm/role": "train"} and data["labels"] == {"ray-mm/role": "data"}
    assert data["minReplicas"] >= 1 and data["rayStartParams"] == {}
    pod = train["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert pod["terminationGracePeriodSeconds"] == 90
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["python", "-m", "ray_mm.launch.leave", "90"]
    assert all(
        found["template"]["spec"]["securityContext"]["runAsNonRoot"]
        and found["template"]["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
        for found in (cluster["headGroupSpec"], *groups.values())
    )
    # The job that travels is the one that was rendered.
    travels = load_job(json.loads(config["data"]["job.json"]))
    assert travels == placed_job(called(**GPUS)) and travels.output == "/mnt/shared/runs/fit"


def test_values_reach_kubernetes_as_they_are_and_secrets_not_at_all() -> None:
    _, job = manifests(called(), "rayjob")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    env = {entry["name"]: entry for entry in head["env"]}
    assert env["GREETING"]["value"].replace("$$(", "$(") == HOSTILE and "$$(touch" in env["GREETING"]["value"]
    assert env["AWS_SECRET_ACCESS_KEY"]["valueFrom"]["secretKeyRef"] == {
        "name": "ray-mm-secrets",
        "key": "AWS_SECRET_ACCESS_KEY",
    }
    assert env["HF_TOKEN"]["valueFrom"]["secretKeyRef"]["key"] == "hf.token"


def test_the_schedule_is_the_jobs() -> None:
    cron_job, ray_cron_job = manifests(called(), "cronjob")[1]["spec"], manifests(called(), "raycronjob")[1]["spec"]
    for spec in (cron_job, ray_cron_job):
        assert (spec["schedule"], spec["timeZone"]) == ("30 2 * * 1,2,3,4,5", "Europe/Berlin")
    assert (cron_job["concurrencyPolicy"], cron_job["startingDeadlineSeconds"]) == ("Forbid", 3600)
    never = called(schedule={**SCHEDULE, "catch_up": False})
    assert manifests(never, "cronjob")[1]["spec"]["startingDeadlineSeconds"] == 300
    assert "Persistent=false" in render("systemd", never)["ray-mm-fit.timer"]


@given(name=names)
def test_names_are_those_that_kubernetes_takes_and_tell_jobs_apart(name: str) -> None:
    found = dns_name(name)
    assert len(found) <= 40 and found[0].isalpha() and not found.endswith("-") and found == found.lower()
    assert dns_name(f"{name}_") != dns_name(f"{name}-") != found
    assert dns_name("a" * 64) != dns_name("a" * 63)


# Slurm: the script is run, with programs in the place of Slurm's and Ray's that write down how they were called.

_WRITES_DOWN = """#!/bin/sh
for argument; do printf '%s\\0' "$argument"; done >> "$CALLS/ray"
cp "$(printf '%s\\n' "$@" | grep 'job.json$')" "$CALLS/job.json"
env -0 > "$CALLS/env"
if [ -n "$WAITS" ]; then
  echo at work
  while [ ! -e "$WAITS/.stop" ]; do sleep 0.05; done
  sleep 0.5
  touch "$CALLS/saved"
  exit 143
fi
exit "${STATUS:-0}"
"""
_STUBS = {
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": '#!/bin/sh\n[ "$1" = show ] && echo node1 || echo "$@" > "$CALLS/scontrol"\n',
    "hostname": "#!/bin/sh\necho 'fe80::1 10.0.0.1'\n",
    "ray": _WRITES_DOWN,
}


def slurm_script(folder: Path, call: Call) -> tuple[list[str], dict[str, str]]:
    """The script and the environment in which Slurm would run it."""
    (content,) = render("slurm", call).values()
    script = folder / "job.slurm"
    script.write_text(content)
    (folder / "bin").mkdir()
    for name, text in _STUBS.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    (folder / "it's secret").mkdir()
    (folder / "it's secret" / "hf.token").write_text("hf_secret\n")
    return ["bash", str(script)], {
        "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(folder),
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_SUBMIT_DIR": str(folder),
        "AWS_SECRET_ACCESS_KEY": "aws secret",
        "CALLS": str(folder),
    }


def test_a_slurm_script_is_clean_and_hands_everything_on_as_it_is(tmp_path: Path) -> None:
    call = called(output=HOSTILE)
    command, environment = slurm_script(tmp_path, call)
    # That $(…) and quotes in quotes do nothing is what is wanted.
    require_clean_shell(tmp_path / "job.slurm", "SC2016", "SC2089", "SC2090")
    (tmp_path / "plain.slurm").write_text(
        next(iter(render("slurm", called(profile=ClusterProfile(storage="/x"))).values()))
    )
    require_clean_shell(tmp_path / "plain.slurm")
    text = (tmp_path / "job.slurm").read_text()
    assert "aws secret" not in text and "hf_secret" not in text
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH")
    )
    assert (options["time"], options["signal"], options["nodes"]) == ("0-12:00:00", "B:TERM@90", "1")
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    arguments = (tmp_path / "ray").read_text().split("\0")[:-1]
    assert arguments[:5] == ["symmetric-run", "--address", "10.0.0.1:24711", "--min-nodes", "2"]
    split = arguments.index("--")
    # Every node gets them: what is for a head alone would end the others.
    assert arguments[5:split] == ["--num-cpus=4", "--num-gpus=0"]
    assert arguments[split + 1 : split + 5] == ["python", "-m", "ray_mm", "run"] and arguments[-1] == "10.0.0.1:24711"
    variables = dict(entry.partition("=")[::2] for entry in (tmp_path / "env").read_text().split("\0"))
    assert variables["GREETING"] == HOSTILE and variables["HF_TOKEN"] == "hf_secret"
    assert variables["RAY_AUTH_MODE"] == "token" and len(variables["RAY_AUTH_TOKEN"]) == 64
    assert load_job(json.loads((tmp_path / "job.json").read_text())) == placed_job(call)
    # Neither did anything of it run, nor is anything left.
    assert not list(tmp_path.rglob("canary")) and not list(tmp_path.glob(".ray-mm-*"))


@pytest.mark.parametrize(
    ("status", "restarts", "requeued"), [("1", "0", True), ("1", "2", False), ("2", "0", False), ("3", "0", False)]
)
def test_a_slurm_job_that_failed_goes_back_into_the_queue_as_often_as_the_profile_says(
    tmp_path: Path, status: str, restarts: str, requeued: bool
) -> None:
    command, environment = slurm_script(tmp_path, called(output=str(tmp_path / "run")))
    environment |= {"STATUS": status, "SLURM_RESTART_COUNT": restarts}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == int(status), done.stderr
    assert (tmp_path / "scontrol").exists() == requeued


@pytest.mark.parametrize(("kind", "place"), [("train", "run"), ("retrain", "run/nights/it's 2/train")])
def test_a_slurm_job_that_is_asked_to_end_has_its_run_save_first(tmp_path: Path, kind: str, place: str) -> None:
    done = tmp_path / "run" / "nights" / "1" / "train"
    for folder in (done, tmp_path / place):
        folder.mkdir(parents=True, exist_ok=True)
    (done / "result.json").write_text("{}")
    command, environment = slurm_script(tmp_path, called(kind, output=str(tmp_path / "run")))
    environment |= {"WAITS": str(tmp_path / place)}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 143 and (tmp_path / "saved").exists()
    assert not (tmp_path / "scontrol").exists() and not (done / ".stop").exists()


# systemd and cron


def test_units_are_read_by_systemd_and_start_exactly_the_command(tmp_path: Path) -> None:
    call = Call(load_job({**SMALLEST["train"], "schedule": SCHEDULE}), Path(HOSTILE), overrides=("output='$x %i'",))
    files = render("systemd", call)
    assert set(files) == {"ray-mm-fit.service", "ray-mm-fit.timer"}
    units = {name: unit_settings(content) for name, content in files.items()}
    (start,) = units["ray-mm-fit.service"]["Service"]["ExecStart"]
    assert unquoted(start) == [sys.executable, "-m", "ray_mm", "run", HOSTILE, "--set", "output='$x %i'"]
    assert units["ray-mm-fit.timer"]["Timer"]["OnCalendar"] == ["Mon,Tue,Wed,Thu,Fri *-*-* 02:30:00 Europe/Berlin"]
    assert units["ray-mm-fit.timer"]["Install"] == {"WantedBy": ["timers.target"]}
    require_valid_units(write_files(files, tmp_path))


def unquoted(line: str) -> list[str]:
    """The words of an ExecStart as systemd takes them, which here are all quoted."""
    words, rest = [], line
    while rest:
        assert rest[0] == '"'
        word, i = "", 1
        while rest[i] != '"':
            if rest[i] == "\\":
                i += 1
            elif rest[i] in "%$":
                assert rest[i + 1] == rest[i], line
                i += 1
            word += rest[i]
            i += 1
        words.append(word)
        rest = rest[i + 1 :].lstrip(" ")
    return words


@pytest.mark.parametrize(
    ("line", "zone", "start"),
    [
        ("0 4 * * *", "Europe/Berlin", "2027-03-26 12:00"),
        ("0 4 * * *", "America/New_York", "2027-11-05 12:00"),
        ("*/20 5-7 1,15 * *", "UTC", "2026-12-10 00:00"),
        ("15 0 * feb,mar sun", "Europe/Berlin", "2026-12-10 00:00"),
    ],
)
def test_a_timer_comes_when_the_schedule_does(line: str, zone: str, start: str) -> None:
    schedule = JobSchedule(cron=line, timezone=zone)
    wanted = [
        f"{time.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S}"
        for time in itertools.islice(times(schedule, datetime.fromisoformat(f"{start}+00:00")), 6)
    ]
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not on this machine, and nothing else knows what systemd makes of a time")
    command = [tool, "calendar", "--iterations=6", f"--base-time={start}:00 UTC", on_calendar(schedule)]
    environment = {**os.environ, "TZ": "UTC"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = [text.split()[-3:-1] for text in done.stdout.splitlines() if "Iter." in text or "Next elapse" in text]
    assert [" ".join(parts) for parts in found] == wanted


def test_a_crontab_runs_the_command_as_it_is_and_not_twice_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "it's $(touch canary) 100% here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    job = load_job({**SMALLEST["train"], "schedule": SCHEDULE, "output": "runs/a b"})
    (content,) = render("cron", Call(job, folder / "job.yaml", overrides=("name=a%b",))).values()
    lines = [line for line in content.splitlines() if not line.startswith("#")]
    assert lines[:2] == ["SHELL=/bin/sh", "CRON_TZ=Europe/Berlin"] and len(lines) == 3
    *fields, command = lines[2].split(" ", 5)
    assert " ".join(fields) == "30 2 * * 1,2,3,4,5"
    # cron takes a bare % for a line end, and a \ before it away.
    assert "%" not in command.replace("\\%", "")
    shell = command.replace("\\%", "%").replace(shlex.quote(sys.executable), "printf '%s\\n'")
    done = subprocess.run(["sh", "-c", shell], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "ray_mm", "run", str(folder / "job.yaml"), "--set", "name=a%b"]
    with subprocess.Popen(["flock", folder / "runs" / "a b.schedule.lock", "sleep", "20"]) as holder:
        for _ in range(100):
            done = subprocess.run(["sh", "-c", shell], cwd="/", capture_output=True, text=True, check=True)
            if not done.stdout:
                break
            time.sleep(0.05)
        holder.terminate()
    assert (done.returncode, done.stdout) == (0, "")
    assert not list(tmp_path.rglob("canary"))


@pytest.mark.parametrize("target", ["systemd", "cron"])
def test_a_path_with_a_line_end_is_refused(target: str) -> None:
    job = load_job({**SMALLEST["train"], "schedule": SCHEDULE})
    for evil in ("/x\nExecStart=/bin/rm", "/x\r\n* * * * * rm", "/x\u2028y", "/x\x1b[2J"):
        with pytest.raises(UsageError, match="control character"):
            render(target, Call(job, Path(evil)))


@pytest.mark.parametrize(
    ("target", "form", "change", "reason"),
    [
        ("kuberay", None, {"image": None}, "image: the cluster's profile names none"),
        ("kuberay", None, {"runtime": {"ships": "code"}}, "runtime.ships"),
        ("kuberay", "rayservice", {}, "--form: takes rayjob, raycluster, raycronjob, cronjob; found 'rayservice'"),
        ("slurm", "rayjob", {}, "--form is a choice of kuberay"),
        ("nomad", None, {}, "render: takes kuberay, slurm, systemd, cron; found 'nomad'"),
        (
            "kuberay",
            "rayjob",
            {"runtime": {"ships": "image", "env": {"X": {"file": "/x/it's"}}}},
            "can't be a key of a Kubernetes secret",
        ),
        ("kuberay", None, {"storage": None}, "is a relative path, and it is not known where all nodes see it"),
    ],
)
def test_what_can_not_be_rendered_is_refused_with_the_reason(
    target: str, form: str | None, change: dict[str, Any], reason: str
) -> None:
    profile = ClusterProfile.model_validate(PROFILE.model_dump() | change)
    with pytest.raises(UsageError) as caught:
        render(target, called(profile=profile), form)
    assert reason in str(caught.value)


@pytest.mark.parametrize(("target", "form"), [("cron", None), ("kuberay", "cronjob"), ("kuberay", "raycronjob")])
def test_a_job_without_a_schedule_has_no_times_to_write(target: str, form: str | None) -> None:
    with pytest.raises(UsageError, match="has none; add one"):
        render(target, called(schedule=None), form)
    assert set(render("systemd", called(schedule=None))) == {"ray-mm-fit.service"}


def test_paths_do_not_lead_out_of_the_storage() -> None:
    for path in ("../other", "a/../../etc", "~/x"):
        with pytest.raises(UsageError, match=r"leads out of the cluster's storage|means another folder on the cluster"):
            placed_job(called(output=path))
    with pytest.raises(UsageError, match="can't be in an object store"):
        placed_job(called(output="s3://bucket/run"))


def test_a_job_gets_what_the_cluster_gives_those_that_do_not_say_it() -> None:
    profile = ClusterProfile.model_validate(
        PROFILE.model_dump() | {"resources": {"workers": 4, "gpus_per_worker": 1, "cpus_per_worker": 2}}
    )
    config, job = manifests(called(profile=profile, resources={"cpus_per_worker": 3}), "rayjob")
    assert json.loads(config["data"]["job.json"])["resources"] == {
        "cpus_per_worker": 3,
        "gpus_per_worker": 1,
        "workers": 4,
    }
    (train, _) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (train["minReplicas"], train["rayStartParams"]) == (4, {"num-cpus": "3"})
    assert placed_job(called("tune", profile=profile)).resources == called("tune").job.resources


@pytest.mark.parametrize(
    ("resources", "node", "expected"),
    [
        ({"workers": 4}, {}, (4, 4, 4, 0)),
        ({"workers": 4}, {"node_cpus": 3}, (2, 2, 3, 0)),
        ({"workers": 8, "gpus_per_worker": 1, "cpus_per_worker": 2}, {"node_gpus": 4}, (2, 2, 11, 4)),
        ({"workers": {"min": 1, "max": 5}, "gpus_per_worker": 0.5}, {"node_gpus": 1, "node_cpus": 8}, (1, 3, 8, 1)),
    ],
)
def test_nodes_are_as_many_as_the_workers_need(
    resources: dict[str, Any], node: dict[str, int], expected: tuple[int, int, int, int]
) -> None:
    job = load_job({**SMALLEST["train"], "resources": resources})
    found = layout(Call(job, Path("job.yaml"), **node))
    assert (found.fewest, found.most, found.shape.cpus, found.shape.gpus) == expected


def test_the_command_runs_the_job_here_or_on_the_cluster_that_was_named() -> None:
    call = Call(load_job(SMALLEST["train"]), Path("/jobs/a b.yaml"), overrides=("train.epochs=3",))
    python = [sys.executable, "-m", "ray_mm"]
    assert local_command(call) == [*python, "run", "/jobs/a b.yaml", "--set", "train.epochs=3"]
    there = replace(call, cluster="lab")
    assert local_command(there) == [
        *python,
        *("submit", "/jobs/a b.yaml", "--follow", "--cluster", "lab", "--set", "train.epochs=3"),
    ]


def test_a_worker_that_does_not_fit_on_a_node_is_refused() -> None:
    job = load_job({**SMALLEST["train"], "resources": {"cpus_per_worker": 8}})
    with pytest.raises(UsageError, match="does not fit on a node with 8 CPU"):
        layout(Call(job, Path("job.yaml"), node_cpus=8))


def test_files_are_written_over_their_own_and_no_others(tmp_path: Path) -> None:
    files = render("systemd", called())
    assert write_files(files, tmp_path / "new") == write_files(files, tmp_path / "new")
    (tmp_path / "new" / "ray-mm-fit.timer").write_text("mine")
    with pytest.raises(UsageError, match="was not written by ray-mm render"):
        write_files(files, tmp_path / "new")
    assert (tmp_path / "new" / "ray-mm-fit.timer").read_text() == "mine"


def test_the_command_line_shows_them_or_writes_them(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps({**SMALLEST["train"], "schedule": SCHEDULE}))
    (tmp_path / "lab.yaml").write_text(
        "kind: cluster\nimage: ray-mm:cpu\nstorage: /mnt/shared\nruntime: {ships: image}\n"
    )
    arguments = ["render", "kuberay", "job.yaml", "--cluster", "lab.yaml", "--node-memory", "64GiB"]
    command = [sys.executable, "-m", "ray_mm", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    subprocess.run([*command, "--output", "k8s"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert (tmp_path / "k8s" / "fit.cronjob.yaml").read_text().strip() == shown.strip()
    for manifest in yaml.safe_load_all(shown):
        require_valid(manifest)
