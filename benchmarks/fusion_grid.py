"""Which fusion suits which data: every method on every scenario, with all fields, with each subset of them, and each field alone
with a model of its own; and how the fields share the learning.

    ray-mm run jobs/avdigits/preprocess.yaml      (and those of the other scenarios; their first lines say what they need)
    python benchmarks/fusion_grid.py --docs docs/results.md

The job files in jobs/ with another ``model.fusion.method``, and with the budget in ``BUDGETS``, which is the same for all methods
and is told above each table. Models are scored at their end on the test split: nothing is chosen by it. The loop is that of a
training, without Ray. What an earlier call has trained is not trained again; with ``--minutes`` no training is begun after that
time, and the tables say what was not run.
"""

from __future__ import annotations

import argparse
import html
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import results
import torch
from inprocess import ALL, Figures, Held, finished, fit, hold, keep, score, subsets_of, told

from ray_mm.config.load import load_job, parse_overrides
from ray_mm.config.source import Source
from ray_mm.config.tasks import ClassifyTask
from ray_mm.config.train import TrainJob
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.samples import select_all
from ray_mm.training.baselines import baseline_job
from ray_mm.training.train import plan_training

METHODS = ("late", "concat", "gated", "low_rank", "film", "experts", "cross_attention", "bottleneck", "latent")
NAMES = [name for name, scenario in results.SCENARIOS.items() if len(scenario.fields) > 1]
BALANCES: dict[str, dict[str, Any]] = {
    "plain": {},
    "`gradient_modulation` (OGM-GE)": {"train.gradient_modulation": {}},
    "`gradient_blending`": {"train.gradient_blending": {}},
}
"""How the fields share the learning → settings."""
NOT_RUN = "not run"
Runs = Mapping[tuple[str, int], Mapping[str, Figures]]
"""(What was trained, seed) → figures, by the fields that were given."""


@dataclass(frozen=True)
class Budget:
    """Of each training of a scenario."""

    samples: int
    epochs: int


BUDGETS = {
    "avdigits": Budget(4096, 2),
    "classic": Budget(4096, 4),
    "donkey": Budget(8192, 3),
    "radhar": Budget(2048, 6),
    "sentiment": Budget(5600, 4),
    "video": Budget(1024, 6),
    "vqa": Budget(32768, 2),
}
"""``data.epoch_samples`` and ``train.epochs``: less than the job files have, so that nine methods can be set side by side."""


class Scenario:
    """Trains what is not trained yet.

    Args:
        name: of a folder in jobs/.
        data: folder with its datasets.
        output: folder for its runs.
        budget: of each training.
        until: when no training is begun any more, by ``time.monotonic``; None: never.
        overrides: for all trainings.

    Attributes:
        methods: of fusion, with all fields.
        balances: keys of ``BALANCES``, with the fusion of the job file.
        alone: fields, each with a model of its own.
    """

    def __init__(
        self,
        name: str,
        data: Path,
        output: Path,
        budget: Budget,
        until: float | None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.name, self.budget, self._overrides = name, budget, dict(overrides or {})
        self._data, self._output, self._until = data, output, until
        self.methods: dict[tuple[str, int], Mapping[str, Figures]] = {}
        self.balances: dict[tuple[str, int], Mapping[str, Figures]] = {}
        self.alone: dict[tuple[str, int], Mapping[str, Figures]] = {}
        self.job = self.job_of("plain", 0, {})

        self.metric = results.SCENARIOS[name].metric
        self.title = results.TITLES[self.metric]
        self.fields = sorted(self.job.model.fields)
        # All together come first.
        self.subsets = [ALL, *(" + ".join(subset) for subset in subsets_of(self.fields)[:-1])]

    def run(self, seed: int, methods: Sequence[str], balances: Sequence[str]) -> None:
        """All trainings of a seed, as long as there is time."""
        for method in methods:
            fusion = {"method": method, "dim": self.job.model.fusion.dim}
            self._train(self.methods, method, self.job_of(method, seed, {"model.fusion": fusion}))
        for field in sorted(self.job.model.fields):
            whole = self.job_of("alone", seed, {})
            self._train(self.alone, field, baseline_job(whole, field))
        for balance in self.suited(balances):
            place = "balance-" + "".join(letter for letter in balance if letter.isalpha() or letter == "_")
            settings = dict(BALANCES[balance])
            if "train.gradient_blending" in settings:
                settings["data.validation"] = str(self._data / "validation")
            self._train(self.balances, balance, self.job_of(place, seed, settings))

    def suited(self, balances: Sequence[str]) -> list[str]:
        """Those that suit the task: OGM-GE compares how probable the true class is."""
        is_classify = isinstance(self.job.model.task, ClassifyTask)
        return [name for name in balances if is_classify or "train.gradient_modulation" not in BALANCES[name]]

    def values(self, found: Runs, name: str, subset: str) -> list[float]:
        """What was reached with some fields, seed by seed."""
        return [figures[subset][self.metric] for (of, _), figures in sorted(found.items()) if of == name]

    def header(self, first: str) -> list[str]:
        """Of a table whose rows are ``cells``."""
        return [first, ALL, *(f"{subset} only" for subset in self.subsets[1:]), "seeds"]

    def cells(self, found: Runs, name: str, seeds: Sequence[int]) -> list[str]:
        """Mean and deviation for every subset of the fields, and which seeds they are of."""
        ran = [str(seed) for seed in seeds if (name, seed) in found]
        if not ran:
            return [NOT_RUN] * len(self.subsets) + ["none"]
        # Of a field's own model there is one subset.
        figures = [self.values(found, name, subset) for subset in self.subsets if subset in found[name, int(ran[0])]]
        return [*map(told, figures), ", ".join(ran)]

    def _train(self, found: dict[tuple[str, int], Mapping[str, Figures]], name: str, job: TrainJob) -> None:
        figures = finished(job)
        if figures is None and self.has_time:
            started = time.monotonic()
            training = fit(job, self.train_data, self._validation_data if job.data.validation is not None else None)
            figures = score(training.run, self.test_data)
            keep(job, figures)
            took = time.monotonic() - started
            print(f"{self.name}, {name}, seed {job.seed}: {figures[ALL][self.metric]:.4f} in {took:.0f} s", flush=True)
        if figures is not None:
            found[name, job.seed] = figures

    def job_of(self, run: str, seed: int, settings: Mapping[str, Any]) -> TrainJob:
        """The job of a run."""
        job = load_job(
            results.ROOT / "jobs" / self.name / "train.yaml",
            {
                "data.train": str(self._data / "train"),
                "data.validation": None,
                "data.epoch_samples": self.budget.samples,
                "train.epochs": self.budget.epochs,
                "seed": seed,
                "output": str(self._output / f"{run}-seed-{seed}"),
                **self._overrides,
                **settings,
            },
        )
        assert isinstance(job, TrainJob)
        return job

    @property
    def has_time(self) -> bool:
        """Whether another training may begin."""
        return self._until is None or time.monotonic() < self._until

    @cached_property
    def _preprocessor(self) -> Preprocessor:
        return plan_training(self.job).preprocessor

    @cached_property
    def train_data(self) -> Held:
        """What is learned from."""
        return hold(str(self._data / "train"), self._preprocessor)

    @cached_property
    def _validation_data(self) -> Held:
        return hold(str(self._data / "validation"), self._preprocessor)

    @cached_property
    def test_data(self) -> Held:
        """What is scored."""
        return hold(str(self._data / "test"), self._preprocessor)

    @property
    def num_test(self) -> int:
        """Samples that are scored."""
        return select_all(Source(path=str(self._data / "test")), "data")[1].epoch_samples


def main() -> None:
    parser = parser_of(__doc__, "runs/fusion_grid", NAMES)
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=METHODS)
    parser.add_argument("--balances", nargs="*", choices=[*BALANCES], default=[*BALANCES])
    args = parser.parse_args()
    scenarios = scenarios_of(args)
    # Seed by seed: what is there when the time is over is as even as it can be.
    for seed in args.seeds:
        for scenario in scenarios:
            scenario.run(seed, args.methods, args.balances)
    page = args.docs.read_text() if args.docs is not None else ""
    methods, balances = [], []
    for scenario in scenarios:
        methods.append(methods_section(scenario, args.methods, args.seeds))
        balances.append(balances_section(scenario, args.balances, args.seeds))
        if page and scenario.methods:
            plot = args.docs.with_name(f"fusion_{scenario.name}.svg")
            plot.write_text(plot_of(scenario, args.methods))
            methods[-1] += f"\n\n![{scenario.title} of every fusion method on {scenario.name}]({plot.name})"
    for name, sections in (("fusion_grid", methods), ("balances", balances)):
        section = "\n\n".join(sections)
        print(section)
        if page:
            page = results.replace_section(page, name, section)
    if page:
        args.docs.write_text(page)


def parser_of(doc: str | None, output: str, only: Sequence[str]) -> argparse.ArgumentParser:
    """What both benchmarks of fusions may be told.

    Args:
        doc: of the script.
        output: folder for its runs.
        only: the scenarios that it is of, unless it is told.
    """
    parser = argparse.ArgumentParser(description=(doc or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=only)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--samples", type=int, help="of an epoch of each training, instead of the scenario's budget")
    parser.add_argument("--epochs", type=int, help="of each training, instead of the scenario's budget")
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="folder with <scenario>/train and <scenario>/test"
    )
    parser.add_argument("--output", type=Path, default=Path(output), help="folder for the runs")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--minutes", type=float, help="after which no training is begun; 0: show what there is")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="for all trainings, such as train.modality_dropout=0.3",
    )
    parser.add_argument("--docs", type=Path, help="page to write tables, and plots if there are some, into")
    return parser


def scenarios_of(args: argparse.Namespace) -> list[Scenario]:
    """The scenarios that a call is about, whose time begins now."""
    torch.set_num_threads(args.threads)
    until = None if args.minutes is None else time.monotonic() + 60 * args.minutes
    overrides = parse_overrides(args.set)
    scenarios = []
    for name in args.only:
        budget = Budget(args.samples or BUDGETS[name].samples, args.epochs or BUDGETS[name].epochs)
        scenarios.append(Scenario(name, args.data / name, args.output / name, budget, until, overrides))
    return scenarios


def methods_section(scenario: Scenario, methods: Sequence[str], seeds: Sequence[int]) -> str:
    """A line per method, and one per field that has a model of its own."""
    if not scenario.methods:
        return f"**{scenario.name}**: {NOT_RUN}."
    rows = [[f"`{method}`", *scenario.cells(scenario.methods, method, seeds)] for method in methods]
    for field in scenario.fields:
        place = scenario.subsets.index(field)
        (figure, *_, ran) = scenario.cells(scenario.alone, field, seeds)
        cells = [figure if number == place else "–" for number in range(len(scenario.subsets))]
        rows.append([f"{field} alone, a model of its own", *cells, ran])
    return "\n".join([caption(scenario), "", *results.table(scenario.header("`model.fusion.method`"), rows)])


def balances_section(scenario: Scenario, balances: Sequence[str], seeds: Sequence[int]) -> str:
    """A line per way of sharing the learning."""
    if not scenario.balances:
        return f"**{scenario.name}**: {NOT_RUN}."
    rows = [[name, *scenario.cells(scenario.balances, name, seeds)] for name in scenario.suited(balances)]
    fusion = f"Fusion: `{scenario.job.model.fusion.method}`."
    return "\n".join([f"{caption(scenario)} {fusion}", "", *results.table(scenario.header(""), rows)])


def plot_of(scenario: Scenario, methods: Sequence[str]) -> str:
    """The figures of every method, seed by seed, and of each field's own model."""
    rows = {method: scenario.values(scenario.methods, method, ALL) for method in methods}
    rows |= {f"{field} alone": scenario.values(scenario.alone, field, ALL) for field in scenario.fields}
    return dots({name: values for name, values in rows.items() if values}, scenario.title)


def caption(scenario: Scenario) -> str:
    """What a table shows, and of which trainings."""
    budget, batch_size = scenario.budget, scenario.job.data.batch_size
    steps = -(-budget.samples // batch_size) * budget.epochs
    return (
        f"**{scenario.name}**: {scenario.title.lower()} on {scenario.num_test:,} test samples after {steps:,} steps of "
        f"{batch_size} samples, {budget.epochs} epochs of {budget.samples:,}."
    )


def dots(rows: Mapping[str, Sequence[float]], title: str) -> str:
    """A dot per seed and a line at their mean as SVG, one row below the other."""
    width, row, left, right = 700, 28, 170, 70
    low, high = min(map(min, rows.values())), max(map(max, rows.values()))
    span = (high - low) or 1.0
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {row * (len(rows) + 1) + 8}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        f"<title>{html.escape(title)}</title>",
        "<style>text { fill: #1c2733 } line { stroke: #8d99a6 } @media (prefers-color-scheme: dark) "
        "{ text { fill: #e4eaf0 } }</style>",
    ]

    def place(value: float) -> float:
        return left + (width - left - right) * (value - low) / span

    for number, (name, values) in enumerate(rows.items()):
        middle, mean = 4 + number * row + row / 2, statistics.mean(values)
        color = "#8d99a6" if name.endswith(" alone") else "#2f7fd3"
        lines += [
            f'<text x="{left - 14}" y="{middle + 4}" text-anchor="end">{html.escape(name)}</text>',
            f'<line x1="{left}" x2="{width - right}" y1="{middle}" y2="{middle}" stroke-opacity="0.3"/>',
            f'<rect x="{place(mean) - 1.5:.1f}" y="{middle - 9}" width="3" height="18" fill="{color}"/>',
            *(
                f'<circle cx="{place(value):.1f}" cy="{middle}" r="4" fill="{color}" fill-opacity="0.55"/>'
                for value in values
            ),
            f'<text x="{width - right + 12}" y="{middle + 4}">{mean:.3f}</text>',
        ]
    bottom = row * (len(rows) + 1)
    lines += [
        f'<text x="{left}" y="{bottom}" text-anchor="middle">{low:.3f}</text>',
        f'<text x="{width - right}" y="{bottom}" text-anchor="middle">{high:.3f}</text>',
        f'<text x="{(left + width - right) / 2}" y="{bottom}" text-anchor="middle">{html.escape(title)}</text>',
    ]
    return "\n".join([*lines, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
