"""The figures of docs/results.md: real data, three seeds, fields together and alone.

    tar -xzf fsdd.tar.gz -C data/raw         (and mnist_test, easy_vqa, radhar, donkey, emoji)
    python jobs/avdigits/make_table.py --data data/raw --output data/tables/avdigits       (and all others)
    python benchmarks/results.py

It preprocesses once; then, for every seed, it trains and evaluates the model with all fields and one model per field
alone, with the job files in jobs/, and compresses avdigits. What an earlier call finished is not done again, so a call that
was interrupted goes on. In the end it writes the tables between the marks in docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_mm.config.compress import CompressJob
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.load import load_job, parse_overrides
from ray_mm.errors import GateRefused
from ray_mm.session import ray_session
from ray_mm.stages import run_stage

ROOT = Path(__file__).parents[1]
FUSED = "all fields"
TITLES = {"accuracy": "Accuracy", "mae": "Mean absolute error", "recall_at_10": "Recall", "micro_f1": "Micro F1"}
_CONSTANTS = {
    "accuracy": "always the commonest class",
    "mae": "always the mean of the training data",
    "recall_at_10": "candidates in any order, at 10",
    "micro_f1": "always the classes that more than half have",
}


@dataclass(frozen=True)
class Scenario:
    """A folder in jobs/.

    Attributes:
        fields: of the model; of a retrieval none: no field does anything alone.
        compress: whether the table of compression is made, too.
        metric: that the tables show.
    """

    fields: tuple[str, ...]
    compress: bool = False
    metric: str = "accuracy"


SCENARIOS = {
    "avdigits": Scenario(("audio", "image"), compress=True),
    "classic": Scenario(("note", "picture")),
    "donkey": Scenario(("camera", "history"), metric="mae"),
    "radhar": Scenario(("motion", "points")),
    "sentiment": Scenario(("picture", "text")),
    "similarity": Scenario((), metric="recall_at_10"),
    "video": Scenario(("clip", "sound"), metric="micro_f1"),
    "vqa": Scenario(("image", "question")),
}


@dataclass(frozen=True)
class Results:
    """What the runs of a scenario left: seed → content of ``result.json``."""

    train: dict[str, dict[int, dict[str, Any]]]
    evaluate: dict[str, dict[int, dict[str, Any]]]
    compress: dict[int, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=sorted(SCENARIOS), default=sorted(SCENARIOS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        help="folder with tables/<scenario>/table.csv, which gets the datasets",
    )
    parser.add_argument("--output", type=Path, default=Path("runs/results"), help="folder for all runs")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs" / "results.md", help="page to write the tables into")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="for all trainings, such as train.epochs=1"
    )
    args = parser.parse_args()
    with ray_session():
        for name in args.only:
            results = run_scenario(name, args.seeds, args.data / name, args.output / name, parse_overrides(args.set))
            section = markdown(name, results)
            print(f"\n{section}")
            args.docs.write_text(replace_section(args.docs.read_text(), name, section))


def run_scenario(
    name: str, seeds: Sequence[int], data: Path, output: Path, overrides: Mapping[str, Any] | None = None
) -> Results:
    """Runs what is not done yet.

    Args:
        name: of the scenario.
        seeds: of the trainings.
        data: folder that gets the datasets; the table is in ``tables/<name>`` beside it.
        output: folder for the runs.
        overrides: for all trainings.
    """
    scenario, jobs = SCENARIOS[name], ROOT / "jobs" / name
    run_once(jobs / "preprocess.yaml", {"table": str(data.parent / "tables" / name / "table.csv"), "output": str(data)})
    splits = {"data.train": str(data / "train"), "data.validation": str(data / "validation")}
    models = (FUSED, *scenario.fields)
    results = Results({FUSED: {}}, {model: {} for model in models}, {})
    for seed in seeds:
        folder = output / f"seed-{seed}"
        train = {**(overrides or {}), **splits, "seed": seed, "output": str(folder / "train")}
        if scenario.fields:
            train["train.baselines"] = True
        results.train[FUSED][seed] = run_once(jobs / "train.yaml", train)
        for model in models:
            run = folder / "train" if model == FUSED else folder / "train" / "baselines" / model
            checkpoint = {"checkpoint": str(run), "data": str(data / "test")}
            evaluate = {**checkpoint, "output": str(folder / f"evaluate-{model.replace(' ', '-')}")}
            results.evaluate[model][seed] = run_once(jobs / "evaluate.yaml", evaluate)
            if scenario.compress and model == FUSED:
                compress = {**checkpoint, "calibration_data": str(data / "train"), "output": str(folder / "compress")}
                results.compress[seed] = run_once(jobs / "compress.yaml", compress)
    return results


def run_once(job: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a job, unless exactly it was run to the end before; returns its ``result.json``. A refusal is a result."""
    loaded = load_job(job, overrides)
    folder = Path(loaded.output)
    print(f"{loaded.kind} → {folder}", flush=True)
    # The other stages see for themselves that there is nothing left to do.
    if isinstance(loaded, EvaluateJob | CompressJob) and _is_finished(loaded):
        return _read(folder / "result.json")
    try:
        run_stage(loaded)
    except GateRefused as refusal:
        print(refusal, flush=True)
    return _read(folder / "result.json")


def markdown(name: str, results: Results) -> str:
    """The tables of a scenario."""
    fused, metric = results.evaluate[FUSED], SCENARIOS[name].metric
    seeds = sorted(fused)
    counts = fused[seeds[0]]["metrics"]["num_samples"]
    rows = [("all fields", [_figure(fused[seed], metric) for seed in seeds])]
    if metric == "recall_at_10":
        rows = _retrieval_rows([fused[seed] for seed in seeds])
    for field in SCENARIOS[name].fields:
        alone = results.evaluate[field]
        rows.append((f"{field} alone, a model of its own", [_figure(alone[seed], metric) for seed in seeds]))
    for field in SCENARIOS[name].fields:
        only = [_figure(fused[seed], metric, field) for seed in seeds]
        rows.append((f"{field} only, given to the model of all fields", only))
    # A constant: the same for every seed.
    rows.append(
        (f"no model: {_CONSTANTS[metric]}", [float(fused[seed]["metrics"]["baseline"][metric]) for seed in seeds])
    )
    seconds = statistics.median(results.train[FUSED][seed]["seconds"] for seed in seeds)
    lines = [
        f"{TITLES[metric]} on the {counts:,} test samples:",
        "",
        *table(("", *(f"seed {seed}" for seed in seeds), "mean ± sd"), [(label, *_cells(v)) for label, v in rows]),
        "",
        f"Training the model of all fields took {seconds:,.0f} s (median, start of the workers included) on "
        f"{os.cpu_count()} cores.",
    ]
    if results.compress:
        lines += ["", "Compressed to 8 bits:", "", *_compress_table(results.compress)]
    return "\n".join(lines)


def replace_section(page: str, name: str, section: str) -> str:
    """The page with the text between a scenario's marks replaced.

    Raises:
        ValueError: the page does not have both marks, once and in order.
    """
    start, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if page.count(start) != 1 or page.count(end) != 1 or page.index(start) > page.index(end):
        raise ValueError(f"the page must have {start} and, after it, {end}, once each")
    before, _, rest = page.partition(start)
    return f"{before}{start}\n\n{section}\n\n{end}{rest.partition(end)[2]}"


def _compress_table(results: Mapping[int, Mapping[str, Any]]) -> list[str]:
    header = ("seed", "gate", "accuracy", "accuracy lost", "size", "speed-up at p50, by batch size")
    rows = []
    for seed, result in sorted(results.items()):
        metrics = result["metrics"]
        speeds = ", ".join(f"{size}: {ratio:.2f}×" for size, ratio in metrics["speedups_p50"].items())
        accuracy = metrics["artifact"]["accuracy"]
        cells = (f"{accuracy:.4f}", f"{metrics['metric_drop']:+.4f}", f"{metrics['size_ratio']:.3f} of the original")
        rows.append((str(seed), metrics["gate"], *cells, speeds))
    return table(header, rows)


def _figure(result: Mapping[str, Any], metric: str, subset: str | None = None) -> float:
    metrics = result["metrics"] if subset is None else result["metrics"]["subsets"][subset]
    return float(metrics[metric])


def _retrieval_rows(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[float]]]:
    """Recall of each way, and the means."""
    rows = []
    for way in results[0]["metrics"]["ways"]:
        for cutoff in (1, 10):
            name = f"recall_at_{cutoff}"
            rows.append((f"{way}, at {cutoff}", [float(each["metrics"]["ways"][way][name]) for each in results]))
    rows.append(("both ways, at 10", [_figure(each, "recall_at_10") for each in results]))
    rows.append(("mean reciprocal rank (MRR)", [_figure(each, "mrr") for each in results]))
    return rows


def _cells(values: Sequence[float]) -> list[str]:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return [*(f"{value:.4f}" for value in values), f"**{statistics.mean(values):.4f}** ± {spread:.4f}"]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def _is_finished(job: EvaluateJob | CompressJob) -> bool:
    """Whether exactly this was run to the end, on the checkpoint that is there now."""
    folder = Path(job.output)
    finished = _read(folder / "result.json").get("status") in ("done", "refused")
    if not finished or _read(folder / "job.json") != job.model_dump(mode="json"):
        return False
    trained = Path(job.checkpoint) / "result.json"
    return trained.is_file() and trained.stat().st_mtime_ns <= (folder / "result.json").stat().st_mtime_ns


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


if __name__ == "__main__":
    main()
