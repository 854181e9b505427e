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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_mm.config.load import load_job
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.demo.files import write_files
from ray_mm.demo.jobs import write_jobs
from ray_mm.demo.scenes import FIELDS
from ray_mm.errors import GateRefused
from ray_mm.running import run_job
from ray_mm.session import ray_session
from ray_mm.storage import local_path

if TYPE_CHECKING:
    from rich.console import Console

NUM_SAMPLES = 3_000
STAGES = {
    "generate": "a small world of roads and traffic, drawn as pictures and measured by the other sensors.",
    "preprocess": "packs the files that the table names into shards, and learns the words, the classes and the statistics.",
    "train": "one model over the four fields, on Ray, in an order that is fixed beforehand.",
    "evaluate": "scores the model with every subset of the fields, and writes a report.",
    "compress": "makes an 8-bit ONNX model, measures it, and lets a gate decide whether it may be published.",
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
    say = partial(console.print, highlight=False, soft_wrap=True)
    say(
        "A car drives in the middle lane of three. From its camera, radar, motion sensor and an instruction, a model is to\n"
        "say what it should do: brake, slow down, move left, move right or keep its lane. No field alone tells."
    )
    say(f"\ngenerate: {STAGES['generate']}")
    table = write_files(output / "raw", num_samples)
    say(f"  {num_samples:,} samples, in {time.monotonic() - started:.0f} s: {table}")
    runs: dict[str, StageRun] = {}
    with contextlib.ExitStack() as stack:
        for stage, job in write_jobs(output).items():
            say(f"\n{stage}: {STAGES[stage]}")
            runs[stage] = _run_stage(job, all(run.reused for run in runs.values()), stack)
            say(f"  done before: {job}" if runs[stage].reused else f"  in {runs[stage].seconds:.0f} s: {job}")
    report = output / "evaluate" / "report.html"
    console.print("", summary_table(runs))
    say(f"\n{time.monotonic() - started:.0f} s in all. The report: {report}")
    return {stage: run.result for stage, run in runs.items()} | {"report": str(report)}


def summary_table(runs: Mapping[str, StageRun]) -> Any:
    """One rich table: a row per stage, and how good the fields are together and alone."""
    from rich import box
    from rich.table import Table

    results = {stage: run.result for stage, run in runs.items()}
    counts = results["preprocess"]["metrics"]["num_samples"]
    evaluate, compress = results["evaluate"]["metrics"], results["compress"]["metrics"]
    alone = {field: evaluate["subsets"][field]["accuracy"] for field in FIELDS}
    says = {
        "preprocess": [f"{counts[split]:,} samples for {split}" for split in ("train", "validation", "test")],
        "train": [f"accuracy {results['train']['metrics']['accuracy']:.3f} on the validation samples, at best"],
        "evaluate": [
            f"accuracy {evaluate['accuracy']:.3f} with all fields",
            *(f"         {accuracy:.3f} with {field} only" for field, accuracy in alone.items()),
        ],
        "compress": [
            f"{compress['gate']} by the gate",
            f"{compress['size_ratio']:.0%} of the size, {compress['speedup_p50']:.1f} times as fast",
            f"accuracy {compress['artifact']['accuracy']:.3f} with all fields",
        ],
    }
    table = Table("stage", "seconds", "result", box=box.SIMPLE_HEAD, pad_edge=False)
    for stage, run in runs.items():
        table.add_row(stage, "before" if run.reused else f"{run.seconds:.0f}", "\n".join(says[stage]))
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
        if (
            isinstance(job, PreprocessJob) and job.table is not None
        ):  # the first in the line: the others follow its datasets
            same = same and local_path(job.table).stat().st_mtime_ns <= (folder / "result.json").stat().st_mtime_ns
    except (OSError, ValueError):
        return None
    finished = same and isinstance(result, dict) and result.get("status") in ("done", "refused", "unchanged")
    return result if finished else None
