"""A job → a batch script: a Ray on the nodes that Slurm gives it, with a token of its own, for this job alone."""

from __future__ import annotations

import json
import math
import shlex

from ray_mm.config.cluster import Reference
from ray_mm.launch.manifests.parts import Call, commented, layout, one_line, placed_job, plain_line

_DEFAULT_LIMIT_S = 24 * 3600.0


def render_slurm(call: Call) -> dict[str, str]:
    """File name → content: the script, which holds the job as well.

    Raises:
        UsageError: something in the job can't stand in a script, or its nodes do not fit.
    """
    job, profile = placed_job(call), call.of_cluster
    nodes = layout(call)
    limit = profile.time_limit or _DEFAULT_LIMIT_S
    grace = math.ceil(min(profile.stop_grace, limit / 2))
    options = {
        "job-name": job.name,
        "nodes": str(nodes.most) if nodes.fewest == nodes.most else f"{nodes.fewest}-{nodes.most}",
        "ntasks-per-node": "1",
        "cpus-per-task": str(nodes.shape.cpus),
        **({"gpus-per-node": str(nodes.shape.gpus)} if nodes.shape.gpus else {}),
        "mem": f"{nodes.shape.memory_bytes >> 20}M",
        "time": _slurm_time(limit),
        # The batch script alone gets the signal; Ray's own processes would end at once.
        "signal": f"B:TERM@{grace}",
        "open-mode": "append",
        "output": f"{job.name}-%j.log",
        # ray symmetric-run stops every Ray of its user on a node when it ends.
        "exclusive": None,
        "requeue": None,
    }
    directives = "".join(
        f"#SBATCH --{key}" + ("\n" if value is None else f"={value}\n") for key, value in options.items()
    )
    notes = [
        call.header,
        f"Run it with: sbatch {one_line(job.name)}.slurm",
        "A partition, an account or a constraint of your site: sbatch --partition=… --account=… in front of the file's name.",
    ]
    content = json.dumps(job.model_dump(mode="json"), indent=2, ensure_ascii=True)
    return {
        f"{job.name}.slurm": _SCRIPT.format(
            notes=commented(notes),
            directives=directives,
            job=content,
            output=shlex.quote(plain_line("output", job.output)),
            environment=_environment(call),
            python=shlex.quote(profile.runtime.python),
            cpus=nodes.shape.cpus,
            gpus=nodes.shape.gpus,
            retries=profile.retries,
        )
    }


def _environment(call: Call) -> str:
    """Variables of the job. Of a secret only where it is: in the environment of sbatch, or in a file that the nodes see."""
    lines = []
    for name, value in call.of_cluster.runtime.env.items():
        if not isinstance(value, Reference):
            lines.append(f"export {name}={shlex.quote(plain_line(f'runtime.env.{name}', value))}")
        elif value.env is not None:
            lines.append(f'export {name}="${{{value.env}:?is not set in the environment of sbatch}}"')
        else:
            assert value.file is not None
            file = plain_line(f"runtime.env.{name}", value.file)
            home, rest = ('"$HOME"', file[1:]) if file.startswith("~/") else ("", file)
            lines.append(f'{name}="$(cat {home}{shlex.quote(rest)})"\nexport {name}')
    return "\n".join(lines) + "\n" if lines else ""


def _slurm_time(seconds: float) -> str:
    minutes = max(1, math.ceil(seconds / 60))
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    return f"{days}-{hours:02}:{minutes:02}:00"


_SCRIPT = """#!/usr/bin/env bash
{notes}{directives}
set -euo pipefail
umask 077

python={python}
output={output}
case "$python" in */*) PATH="$(dirname -- "$python"):$PATH" && export PATH ;; esac
{environment}
# Everything of this job that is not its output: on a disk that all nodes see.
work="${{SLURM_SUBMIT_DIR:-$PWD}}/.ray-mm-$SLURM_JOB_ID"
mkdir -p "$work"
trap 'rm -rf -- "$work"' EXIT
cat > "$work/job.json" << 'JOB'
{job}
JOB

# Whoever has the token can run code in this job: it is made here, and srun hands it on in the environment.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN="$("$python" -c 'import secrets; print(secrets.token_hex(32))')"
export RAY_AUTH_MODE RAY_AUTH_TOKEN RAY_USAGE_STATS_ENABLED=0 PYTHONUNBUFFERED=1

head="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
address="$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname -I | tr ' ' '\\n' | grep -v ':' | head -n 1)"
port=$((20000 + SLURM_JOB_ID % 20000))

stopped=0 folder=""
# A training looks for this file, saves its state, and ends; that of a retraining lies below its night.
trap '
  stopped=1
  for folder in "$output" "$output"/nights/*/train; do
    if [[ -d "$folder" && ("$folder" == "$output" || ! -e "$folder/result.json") ]]; then touch -- "$folder/.stop"; fi
  done
' TERM
rm -f -- "$output/.stop"

srun --ntasks-per-node=1 --cpus-per-task={cpus} --kill-on-bad-exit=0 \\
  ray symmetric-run --address "$address:$port" --min-nodes "$SLURM_JOB_NUM_NODES" \\
  --num-cpus={cpus} --num-gpus={gpus} \\
  -- "$python" -m ray_mm run "$work/job.json" --address "$address:$port" &
run=$!
status=0
wait "$run" || status=$?
while kill -0 "$run" 2> /dev/null; do # the signal ended the waiting, not the run
  status=0
  wait "$run" || status=$?
done

# A job that failed goes back into the queue, and goes on from what it has saved. 2: it is wrong. 3: a gate refused.
if ((status != 0 && status != 2 && status != 3 && stopped == 0 && ${{SLURM_RESTART_COUNT:-0}} < {retries})); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""
