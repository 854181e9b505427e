"""Which settings the next trial gets.

Nothing is remembered between two draws: those of ``random`` and ``asha`` are a function of the seed and the trial's number, and
Optuna is told of all trials anew each time, with a seed of its own for each. So a search that goes on draws as if it had never
been interrupted.
"""

from __future__ import annotations

import itertools
import warnings
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from ray_mm.config.search import Settings, draws
from ray_mm.config.tune import OptunaMethod, Space, TuneJob
from ray_mm.errors import UsageError
from ray_mm.tuning.table import State, Table

if TYPE_CHECKING:
    import optuna


def require_method(job: TuneJob) -> None:
    """Checks that what the method needs is installed.

    Raises:
        UsageError: it is not.
    """
    if isinstance(job.method, OptunaMethod):
        try:
            import optuna  # noqa: F401
        except ImportError:
            raise UsageError(
                "method: optuna needs optuna, which is not installed; install it with pip install 'ray_mm[optuna]', or set "
                "method: random."
            ) from None


def next_settings(job: TuneJob, table: Table) -> Settings:
    """The settings of the trial after those that the table has."""
    number = len(table.trials)
    if isinstance(job.method, OptunaMethod) and number >= job.method.startup:
        return _suggested(job, table)
    return next(itertools.islice(draws(job), number, None))


def _suggested(job: TuneJob, table: Table) -> Settings:
    """What Optuna makes of the trials so far: of those that run it knows that they are there, and keeps away from them."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=job.seed + len(table.trials), n_startup_trials=1, multivariate=True, constant_liar=True
        )
        study = optuna.create_study(sampler=sampler, direction="maximize" if job.higher_is_better else "minimize")
        spaces = {key: _distribution(space) for key, space in job.search.items()}
        for trial in table.trials:
            value = table.value_after(trial)
            states = optuna.trial.TrialState
            state = {State.BEGUN: states.RUNNING, State.DONE: states.COMPLETE, State.STOPPED: states.COMPLETE}.get(
                trial.state, states.FAIL
            )
            if state is states.COMPLETE and value is None:
                state = states.FAIL
            study.add_trial(
                optuna.trial.create_trial(
                    state=state,
                    params={key: _place(job.search[key], value) for key, value in trial.settings.items()},
                    distributions=spaces,
                    value=value if state is states.COMPLETE else None,
                )
            )
        found = study.ask(spaces).params
    return {key: _value(space, found[key]) for key, space in job.search.items()}


def _distribution(space: Space) -> optuna.distributions.BaseDistribution:
    import optuna

    if space.options is not None:
        # Options may be sections, which Optuna does not take: it is told their places in the list.
        return optuna.distributions.CategoricalDistribution(range(len(space.options)))
    assert space.bounds is not None
    low, high = space.bounds
    if space.is_whole:
        return optuna.distributions.IntDistribution(int(low), int(high), log=space.is_log)
    return optuna.distributions.FloatDistribution(low, high, log=space.is_log)


def _place(space: Space, value: JsonValue) -> Any:
    return value if space.options is None else space.options.index(value)


def _value(space: Space, place: Any) -> JsonValue:
    if space.options is not None:
        chosen: JsonValue = space.options[place]
        return chosen
    if space.is_whole:
        return int(place)
    assert space.bounds is not None
    low, high = space.bounds
    return min(max(float(f"{place:.4g}"), low), high)
