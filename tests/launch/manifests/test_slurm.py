"""The script for Slurm is run, with programs in the place of Slurm's and Ray's that write down how they were called."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ray_mm.config.load import load_job
from ray_mm.launch.manifests.parts import Call, placed_job
from ray_mm.launch.manifests.render import render
from tests.launch.manifests.calls import AT_HOME, HOSTILE, PLAIN, called
from tests.launch.shell import require_clean_shell

_RAY = """#!/bin/sh
for argument; do printf '%s\\0' "$argument"; done >> "$CALLS/ray"
while [ "$1" != -- ]; do shift; done
shift
"$@"
"""
_PYTHON = f"""#!/bin/sh
if [ "$1" != -m ]; then exec {shlex.quote(sys.executable)} "$@"; fi
cp "$4" "$CALLS/job.json"
env -0 > "$CALLS/env"
if [ -n "$WAITS" ]; then
  trap 'exit 143' TERM
  echo at work
  while :; do sleep 0.05; done
fi
exit "${{STATUS:-0}}"
"""
_STUBS = {
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nexec "$@"\n',
    "scontrol": '#!/bin/sh\n[ "$1" = show ] && echo node1 || echo "$@" > "$CALLS/scontrol"\n',
    "hostname": "#!/bin/sh\necho 'fe80::1 10.0.0.1'\n",
    "ray": _RAY,
    "python": _PYTHON,
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
    call = called(profile=AT_HOME, output=HOSTILE)
    command, environment = slurm_script(tmp_path, call)
    # That $(…) and quotes in quotes do nothing is what is wanted.
    require_clean_shell(tmp_path / "job.slurm", "SC2016", "SC2089", "SC2090")
    (tmp_path / "plain.slurm").write_text(next(iter(render("slurm", called(profile=PLAIN)).values())))
    require_clean_shell(tmp_path / "plain.slurm")
    assert "#SBATCH --time=" not in (tmp_path / "plain.slurm").read_text(), "the site's, where the profile has none"
    text = (tmp_path / "job.slurm").read_text()
    assert "aws secret" not in text and "hf_secret" not in text
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2] for line in text.splitlines() if line.startswith("#SBATCH")
    )
    assert (options["time"], options["signal"], options["nodes"]) == ("0-12:00:00", "B:TERM@90", "1")
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert (done.returncode, done.stderr) == (0, "")
    arguments = (tmp_path / "ray").read_text().split("\0")[:-1]
    assert arguments[:5] == ["symmetric-run", "--address", "10.0.0.1:24711", "--min-nodes", "2"]
    split = arguments.index("--")
    # Every node gets them: what is for a head alone would end the others.
    assert arguments[5:split] == ["--num-cpus=4", "--num-gpus=0"]
    assert arguments[split + 3 : split + 7] == ["python", "-m", "ray_mm", "run"] and arguments[-1] == "10.0.0.1:24711"
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
    command, environment = slurm_script(tmp_path, called(profile=AT_HOME))
    environment |= {"STATUS": status, "SLURM_RESTART_COUNT": restarts}
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == int(status), done.stderr
    assert (tmp_path / "scontrol").exists() == requeued


def test_a_slurm_job_that_is_asked_to_end_tells_its_run_and_waits_for_it(tmp_path: Path) -> None:
    command, environment = slurm_script(tmp_path, called(profile=AT_HOME))
    environment |= {"WAITS": "until it is told"}
    with subprocess.Popen(command, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(240) == 143
    assert not (tmp_path / "scontrol").exists()
