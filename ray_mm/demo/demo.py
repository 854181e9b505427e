"""``ray-mm demo``: raw files → dataset → checkpoint → report → artifact, through the same jobs as everyone's.

<output>/raw/             what a user would bring: pictures, arrays, a table (see ``files.py``)
<output>/<stage>.yaml     the four jobs; each can be run again with ``ray-mm run``
<output>/dataset/         preprocess: a dataset per split
<output>/train/           checkpoints, metrics
<output>/evaluate/        metrics of every subset of fields, report.html
<output>/compress/        the compressed model, or why there is none
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_mm.config.load import load_job
from ray_mm.demo.files import write_files
from ray_mm.demo.jobs import write_jobs
from ray_mm.demo.scenes import FIELDS
from ray_mm.errors import GateRefused
from ray_mm.session import ray_session
from ray_mm.stages import run_job
from ray_mm.storage import local_path

if TYPE_CHECKING:
    from rich.console import Console

NUM_SAMPLES = 3_000
STAGES = {
    "preprocess": "packs the files that the table names into shards, in parallel, and learns words, classes and statistics",
    "train": "trains one model over the four fields, on Ray, in an order that is known beforehand",
    "evaluate": "scores the model with every subset of the fields and writes a report",
    "compress": "makes an 8-bit ONNX model and lets a gate decide if it is good enough",
}
"""Stage → what it does, in the order in which they run."""


@dataclass(frozen=True)
class StageRun:
    """What came of one stage: the content of its ``result.json``, and how long it took here, in seconds."""

    result: dict[str, Any]
    seconds: float
    reused: bool


def run_demo(output: Path, console: Console | None = None, num_samples: int = NUM_SAMPLES) -> dict[str, Any]:
    """Runs the whole path on generated data. What an earlier run in the same folder finished is not done again.

    Args:
        output: folder for everything.
        console: where to say what happens. None: stdout.
        num_samples: samples to generate.

    Returns:
        Stage → the content of its ``result.json``; and ``"report"`` → the path of the report.

    Raises:
        UsageError: the folder holds something else.
        RayMMError: a stage failed.
    """
    if console is None:
        from rich.console import Console

        console = Console()
    started = time.monotonic()
    output = local_path(str(output))
    console.print(
        "A car drives in the middle lane of three. From its camera, radar, motion sensor and a spoken instruction, a model "
        "is to say what it should do: brake, slow down, move left, move right or keep its lane. No field alone tells.",
        highlight=False,
    )
    write_files(output / "raw", num_samples)
    console.print(f"{time.monotonic() - started:5.0f} s  generate    {num_samples:,} samples in {output / 'raw'}")
    jobs = write_jobs(output)
    runs: dict[str, StageRun] = {}
    with contextlib.ExitStack() as stack:
        for stage, job in jobs.items():
            runs[stage] = _run_stage(job, all(run.reused for run in runs.values()), stack)
            how = "done before" if runs[stage].reused else STAGES[stage]
            console.print(f"{runs[stage].seconds:5.0f} s  {stage:10}  {how}", highlight=False)
    report = output / "evaluate" / "report.html"
    console.print(summary_table(runs))
    console.print(f"{time.monotonic() - started:.0f} s in all. The report: {report}", highlight=False, soft_wrap=True)
    return {stage: run.result for stage, run in runs.items()} | {"report": str(report)}


def summary_table(runs: Mapping[str, StageRun]) -> Any:
    """One rich table: a row per stage, and how good the fields are together and alone."""
    from rich.table import Table

    results = {stage: run.result for stage, run in runs.items()}
    table = Table("stage", "seconds", "result", title="What came of it", title_justify="left")
    counts = results["preprocess"]["metrics"]["num_samples"]
    subsets = results["evaluate"]["metrics"]["subsets"]
    alone = ", ".join(f"{field} {subsets[field]['accuracy']:.3f}" for field in FIELDS)
    compress = results["compress"]["metrics"]
    says = {
        "preprocess": ", ".join(f"{split} {count:,}" for split, count in sorted(counts.items())) + " samples",
        "train": f"best validation accuracy {results['train']['metrics']['accuracy']:.3f}",
        "evaluate": f"accuracy {results['evaluate']['metrics']['accuracy']:.3f} with all fields; with one: {alone}",
        "compress": f"gate {compress['gate']}: {_share(compress['size_ratio'])} of the size, "
        f"{compress['speedup_p50']:.1f} times as fast, accuracy {-compress['metric_drop']:+.3f}",
    }
    for stage, run in runs.items():
        table.add_row(stage, "–" if run.reused else f"{run.seconds:.0f}", says[stage])
    return table


def _run_stage(job: Path, may_reuse: bool, stack: contextlib.ExitStack) -> StageRun:
    started = time.monotonic()
    earlier = _earlier_result(job) if may_reuse else None
    if earlier is not None:
        return StageRun(earlier, 0.0, reused=True)
    # One Ray for all stages, and none at all where everything was done before. Entering it again joins it.
    stack.enter_context(ray_session())
    try:
        result = run_job(job)
    except GateRefused:
        # That is a result to show, too.
        refused = _earlier_result(job)
        if refused is None:
            raise
        result = refused
    return StageRun(result, time.monotonic() - started, reused=False)


def _earlier_result(path: Path) -> dict[str, Any] | None:
    """The result of a finished run of exactly this job."""
    job = load_job(path)
    folder = local_path(job.output)
    try:
        same = json.loads((folder / "job.json").read_text()) == job.model_dump(mode="json")
        result = json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None
    finished = same and isinstance(result, dict) and result.get("status") in ("done", "refused", "unchanged")
    return result if finished else None


def _share(ratio: float) -> str:
    return f"{100 * ratio:.0f}%"
