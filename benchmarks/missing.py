"""What is lost where half of the samples lack a field, in the training and in the test, with modality dropout and without.

    ray-mm run jobs/avdigits/preprocess.yaml      (and those of the other scenarios; their first lines say what they need)
    python benchmarks/missing.py --docs docs/results.md

Which samples lack it is drawn once: a sample of the training that lacks a field is never seen with it. The job files in jobs/
with the budget of ``fusion_grid``; models are scored at their end on the test split, and nothing is chosen by it. What an earlier
call has trained is not trained again; with ``--minutes`` no training is begun after that time.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import results
from fusion_grid import NOT_RUN, Scenario, caption, parser_of, scenarios_of
from inprocess import ALL, Held, finished, fit, keep, score, told

from ray_mm.config.tasks import HIGHER_IS_BETTER

RATE = 0.5
"""Of the samples that lack a field."""
WHOLE = "nothing"


def main() -> None:
    parser = parser_of(__doc__, "runs/missing", ("avdigits", "sentiment"))
    parser.add_argument("--dropout", type=float, default=0.3, help="train.modality_dropout of the models that have it")
    args = parser.parse_args()
    scenarios = [Missing(scenario, args.dropout) for scenario in scenarios_of(args)]
    for seed in args.seeds:
        for scenario in scenarios:
            scenario.run(seed)
    section = "\n\n".join(scenario.markdown(args.seeds) for scenario in scenarios)
    print(section)
    if args.docs is not None:
        args.docs.write_text(results.replace_section(args.docs.read_text(), "missing", section))


class Missing:
    """The trainings of a scenario with and without modality dropout.

    Args:
        scenario: whose data, job and budget are taken.
        dropout: ``train.modality_dropout`` of those that have it.
    """

    def __init__(self, scenario: Scenario, dropout: float) -> None:
        self._scenario, self._dropout = scenario, dropout
        # (field that the training lacks, or "nothing"; dropout; seed) → (field that the test lacks) → figure.
        self._found: dict[tuple[str, float, int], dict[str, float]] = {}

    def run(self, seed: int) -> None:
        """What is not trained yet."""
        scenario = self._scenario
        for lacks in (WHOLE, *scenario.fields):
            for dropout in (0.0, self._dropout):
                job = scenario.job_of(f"lacks-{lacks}-dropout-{dropout:g}", seed, {"train.modality_dropout": dropout})
                figures = finished(job)
                if figures is None and scenario.has_time:
                    training = fit(job, _lacking(scenario.train_data, lacks, seed=1))
                    tests = [WHOLE, *scenario.fields] if lacks == WHOLE else [lacks]
                    figures = {
                        test: score(training.run, _lacking(scenario.test_data, test, seed=2), [scenario.fields])[ALL][
                            scenario.metric
                        ]
                        for test in tests
                    }
                    keep(job, figures)
                    print(f"{scenario.name}, {training.run.name}: {figures}", flush=True)
                if figures is not None:
                    self._found[lacks, dropout, seed] = figures

    def markdown(self, seeds: Sequence[int]) -> str:
        """The table: a line per training, a column per field that the test lacks."""
        scenario = self._scenario
        rows = []
        for label, lacks in (("all samples whole", WHOLE), ("half lack what the test lacks", None)):
            for dropout in (0.0, self._dropout):
                cells = [self._cell(lacks or test, dropout, test, seeds) for test in (WHOLE, *scenario.fields)]
                rows.append([label, f"{dropout:g}", "–" if lacks is None else cells[0], *cells[1:]])
        header = ["trained on", "`modality_dropout`", "nothing is missing"]
        header += [f"half lack {field} (lost)" for field in scenario.fields]
        ran = {seed for _, _, seed in self._found}
        seeds_told = f"Seeds: {', '.join(str(seed) for seed in seeds if seed in ran) or 'none'}."
        fusion = f"Fusion: `{scenario.job.model.fusion.method}`."
        return "\n".join([f"{caption(scenario)} {fusion} {seeds_told}", "", *results.table(header, rows)])

    def _cell(self, lacks: str, dropout: float, test: str, seeds: Sequence[int]) -> str:
        """Figure, and by how much it is worse than that of the model that was trained on everything and has everything."""
        ran = [seed for seed in seeds if (lacks, dropout, seed) in self._found and (WHOLE, 0.0, seed) in self._found]
        if not ran:
            return NOT_RUN
        reached = [self._found[lacks, dropout, seed][test] for seed in ran]
        # An error is worse the larger it is.
        sign = 1 if self._scenario.metric in HIGHER_IS_BETTER else -1
        lost = [sign * (self._found[WHOLE, 0.0, seed][WHOLE] - value) for seed, value in zip(ran, reached, strict=True)]
        figure = f"{statistics.mean(reached):.3f}"
        if test != WHOLE:
            figure += f" ({told(lost)})"
        # Not every cell may be of all seeds.
        begun = {seed for _, _, seed in self._found}
        return figure if len(ran) == len(begun & {*seeds}) else f"{figure}; seed {', '.join(map(str, ran))} alone"


def _lacking(data: Held, field: str, seed: int) -> Held:
    return data if field == WHOLE else data.lacking(field, RATE, seed)


if __name__ == "__main__":
    main()
