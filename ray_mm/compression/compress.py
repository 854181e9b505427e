"""``ray-mm run compress.yaml``: checkpoint → ONNX → 8-bit integers → measured → judged → artifact, or a refusal.

<run>/artifact/              the compressed model, if the gate agreed (see ``compression.artifact``)
<run>/refused/               the same, if it did not
<run>/evaluation/original/   the evaluation of the checkpoint
<run>/evaluation/artifact/   the evaluation of the compressed model, by the same stage on the same data
<run>/result.json            what was measured and what the gate said
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ray_mm.checkpoint import WEIGHTS_FILE, Checkpoint, load_checkpoint, run_kind
from ray_mm.compression.artifact import CANDIDATE, describe_artifact, publish, refuse, start_candidate
from ray_mm.compression.calibrate import read_spread, with_absences
from ray_mm.compression.export import export_onnx
from ray_mm.compression.gate import (
    Measurements,
    Outcome,
    Verdict,
    describe,
    judge,
    metric_drop,
    speedup_p50,
    worst_drop,
)
from ray_mm.compression.latency import Latency, compare
from ray_mm.compression.quantize import Quantized, quantize
from ray_mm.config.compress import CompressJob
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.source import source_of
from ray_mm.config.tasks import FIGURES, SeveralTask, TaskConfig
from ray_mm.data.epochs import Epochs
from ray_mm.data.preprocessor import check_dataset_fits
from ray_mm.data.reader import read_batches
from ray_mm.data.samples import select_all
from ray_mm.errors import CheckpointError, DatasetError, GateRefused, RayMMError, UsageError
from ray_mm.evaluation.evaluate import run_evaluate
from ray_mm.evaluation.tasks import unscorable
from ray_mm.model_folder import ARTIFACT_FILE, GRAPH_FILE
from ray_mm.predictor import Predictor, load_predictor
from ray_mm.progress import Progress, progress
from ray_mm.registered import on_this_machine
from ray_mm.run_folder import RunFolder, open_run_folder
from ray_mm.session import ray_session
from ray_mm.storage import local_path, write_atomic

EVALUATION = "evaluation"
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_STEPS = ("export to ONNX", "quantize", "load and try it", "measure the latency")


@dataclass(frozen=True)
class _Inputs:
    """What the job names, opened and checked."""

    checkpoint: Checkpoint
    calibration: Epochs
    data: Epochs


@dataclass(frozen=True)
class _Findings:
    """What is known about the candidate; ``measured`` is what the gate judges."""

    measured: Measurements
    size_bytes: int
    quantized: Quantized
    latencies: Mapping[int, Latency] = field(default_factory=dict)
    original: Mapping[str, Any] = field(default_factory=dict)
    artifact: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def run_compress(job: CompressJob) -> dict[str, Any]:
    """Compresses a checkpoint and publishes the result if the gate agrees.

    Returns:
        The content of ``result.json``.

    Raises:
        UsageError: something that the job names is missing or does not fit; nothing was started.
        GateRefused: the artifact misses a limit; ``result.json`` says ``refused``.
        RayMMError: the model can't be exported, or an evaluation failed.
    """
    inputs = _check(job)
    run = open_run_folder(job)
    with run.locked():
        candidate = start_candidate(run.path)
        try:
            found = _measure(job, inputs, run.path, candidate)
            verdict = judge(found.measured, job.gate, job.latency.batch_sizes)
            metrics = _metrics(inputs.checkpoint.config.task, found, verdict)
            describe_artifact(
                candidate, inputs.checkpoint, job.quantize, _numbers(found.artifact), metrics, verdict.outcome.value
            )
            return _settle(run, verdict, metrics)
        finally:
            shutil.rmtree(candidate, ignore_errors=True)


def require_packages() -> None:
    """Checks that what a compression needs is installed.

    Raises:
        UsageError: it is not.
    """
    missing = [package for package in _PACKAGES if importlib.util.find_spec(package) is None]
    if missing:
        raise UsageError(
            f"compress needs {', '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; install "
            "with pip install 'ray_mm[onnx]'."
        )


def _check(job: CompressJob) -> _Inputs:
    require_packages()
    root = local_path(on_this_machine(job.checkpoint))
    if (root / ARTIFACT_FILE).is_file() or run_kind(root) == "compress":
        raise CheckpointError(
            f"checkpoint: {root} is compressed already; give the train run or the checkpoint that it was made from."
        )
    checkpoint = load_checkpoint(job.checkpoint)
    opened = {
        key: select_all(source_of(given), key)
        for key, given in (("calibration_data", job.calibration_data), ("data", job.data))
    }
    (calibration, _), (data, _) = opened["calibration_data"], opened["data"]
    # What calibrates has to show every field; what is scored may lack some, as in an evaluation.
    check_dataset_fits(calibration, checkpoint.preprocessor)
    check_dataset_fits(data, checkpoint.preprocessor, may_lack=sorted(checkpoint.config.fields))
    if calibration.manifest.digest == data.manifest.digest:
        raise DatasetError(
            f"calibration_data and data are the same dataset ({calibration.root}, {data.root}): a model must not be judged "
            "on the samples that tuned it; calibrate with training or validation data."
        )
    lacked = unscorable(checkpoint.config, data.manifest.presence)
    if lacked is not None:
        raise DatasetError(f"{data.root}: {lacked}, so nothing can be judged.")
    return _Inputs(checkpoint, *(Epochs([dataset], samples, None) for dataset, samples in opened.values()))


def _measure(job: CompressJob, inputs: _Inputs, run: Path, candidate: Path) -> _Findings:
    """Builds the candidate and measures it. What can't be measured stays None."""
    checkpoint = inputs.checkpoint
    # Of an earlier run: nothing of it may be taken for a result of this one.
    shutil.rmtree(run / EVALUATION, ignore_errors=True)
    with progress("compress", len(_STEPS), "steps", waiting=_STEPS[0]) as bar:
        quantized = _build(job, inputs, candidate, bar)
        describe_artifact(candidate, checkpoint, job.quantize, {}, {}, None)
        size = (candidate / GRAPH_FILE).stat().st_size
        ratio = size / (checkpoint.path / WEIGHTS_FILE).stat().st_size
        measured = Measurements(size_ratio=ratio, num_quantized=quantized.num_quantized, reloads=False)
        original = load_predictor(checkpoint.path, device="cpu")
        try:
            artifact = load_predictor(candidate, threads=job.latency.threads)
            _check_answers(original, artifact, inputs.data)
        except Exception as error:  # of onnxruntime, whose errors have no common class that is public
            return _Findings(measured, size, quantized, error=str(error))
        bar.advance(now=_STEPS[3])
        latencies = _time(job, original, artifact, inputs.data)
        bar.advance(now="done")
    with ray_session(announce=True):
        before, after = (
            _evaluate(job, model, run / EVALUATION / name, f"evaluate {name}")
            for name, model in (("original", checkpoint.path), ("artifact", candidate))
        )
    measured = replace(
        measured,
        reloads=True,
        speedups={size: found.speedup_p50 for size, found in latencies.items()},
        metric_drop=worst_drop(checkpoint.config.task, before, after),
    )
    return _Findings(measured, size, quantized, latencies, before, after)


def _build(job: CompressJob, inputs: _Inputs, candidate: Path, bar: Progress) -> Quantized:
    preprocessor = inputs.checkpoint.preprocessor
    with tempfile.TemporaryDirectory(prefix="ray_mm.") as folder:
        graph = Path(folder) / "float.onnx"
        export_onnx(inputs.checkpoint.build(), preprocessor, graph)
        bar.advance(now=_STEPS[1])
        batches = read_spread(inputs.calibration, preprocessor, job.quantize.calibration_samples)
        if not batches:
            raise RayMMError(
                f"{inputs.calibration.datasets[0].root}: none of its samples can be read, so there is nothing to calibrate with."
            )
        fields = sorted(inputs.checkpoint.config.fields)
        quantized = quantize(graph, candidate / GRAPH_FILE, list(with_absences(batches, fields)), job.quantize)
    bar.advance(now=_STEPS[2])
    return quantized


def _check_answers(original: Predictor, artifact: Predictor, data: Epochs) -> None:
    """Checks that the artifact, as it was loaded from disk, gives finite answers of the original's shape."""
    batch = next(read_batches(data, original.preprocessor, 8, 8))
    expected, found = original.outputs(batch), artifact.outputs(batch)
    if expected.shape != found.shape:
        raise RayMMError(f"the artifact answers in the shape {list(found.shape)}, the original {list(expected.shape)}.")
    if not np.isfinite(found).all():
        raise RayMMError("the artifact gives answers that are not finite.")


def _time(job: CompressJob, original: Predictor, artifact: Predictor, data: Epochs) -> dict[int, Latency]:
    """Latency of both on real samples, at every batch size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(job.latency.threads)
    try:
        found = {}
        for size in sorted(set(job.latency.batch_sizes)):
            batch = _batch_of(data, original, size)
            found[size] = compare(
                lambda batch=batch: original.outputs(batch),  # type: ignore[misc]
                lambda batch=batch: artifact.outputs(batch),  # type: ignore[misc]
                job.latency.rounds,
            )
        return found
    finally:
        torch.set_num_threads(threads)


def _batch_of(data: Epochs, predictor: Predictor, size: int) -> dict[str, Any]:
    batch = next(read_batches(data, predictor.preprocessor, size, size))
    # A small dataset is repeated: what a sample holds hardly matters for how long it takes.
    return {name: np.resize(values, (size, *values.shape[1:])) for name, values in batch.items()}


def _evaluate(job: CompressJob, model: Path, output: Path, title: str) -> dict[str, Any]:
    result = run_evaluate(
        EvaluateJob(
            kind="evaluate",
            name=job.name,
            checkpoint=str(model),
            data=job.data,
            resources=job.resources,
            output=str(output),
        ),
        title,
    )
    metrics: dict[str, Any] = result["metrics"]
    return metrics


def _metrics(task: TaskConfig, found: _Findings, verdict: Verdict) -> dict[str, Any]:
    before, after = found.original.get("subsets", {}), found.artifact.get("subsets", {})
    return {
        "metric": "the worst of all tasks" if isinstance(task, SeveralTask) else FIGURES[task.type].gate,
        "metric_drop": found.measured.metric_drop,
        "size_ratio": found.measured.size_ratio,
        "speedup_p50": speedup_p50(found.measured),
        "gate": verdict.outcome.value,
        "checks": [asdict(check) for check in verdict.checks],
        "size_bytes": found.size_bytes,
        "original": _numbers(found.original),
        "artifact": _numbers(found.artifact),
        "metric_drop_subsets": {
            name: metric_drop(task.type, before[name], after[name]) for name in before if name in after
        },
        "speedups_p50": {str(size): ratio for size, ratio in found.measured.speedups.items()},
        "latency": {str(size): asdict(latency) for size, latency in found.latencies.items()},
        "num_quantized": found.quantized.num_quantized,
        "num_float": found.quantized.num_float,
        "stored_as_int8": list(found.quantized.stored_as_int8),
        **({} if found.error is None else {"error": found.error}),
    }


def _settle(run: RunFolder, verdict: Verdict, metrics: dict[str, Any]) -> dict[str, Any]:
    if verdict.outcome is Outcome.PASSED:
        artifact = publish(run.path)
        _name_model(run.path / EVALUATION / "artifact", run.path / CANDIDATE, artifact)
        return run.write_result("done", metrics, artifact=str(artifact))
    refused = refuse(run.path)
    _name_model(run.path / EVALUATION / "artifact", run.path / CANDIDATE, refused)
    run.write_result("refused", metrics, refused=str(refused))
    missed = ", ".join(check.criterion for check in verdict.missed)
    reason = f" It can't be used: {metrics['error']}" if "error" in metrics else ""
    raise GateRefused(
        f"{run.job.name}: the compressed model was refused because of {missed}; no artifact was published, the model and its "
        f"measurements are in {refused}.{reason} Change how it is made (quantize.calibrate, quantize.calibration_samples), "
        f"train longer, or change the limits under gate.\n{describe(verdict)}"
    )


def _name_model(evaluation: Path, before: Path, after: Path) -> None:
    """Lets an evaluation name the model where it is now; while it was scored, it had no place yet."""
    for file in evaluation.glob("*.*"):
        if file.suffix in (".json", ".html"):
            write_atomic(file, file.read_text(encoding="utf-8").replace(str(before), str(after)))


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers among the metrics."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
