"""What a tune job searches over → the settings of its trials, each a train job that is valid before anything starts.

Draws are a function of (seed, round, key): no generator has a state, and a trial is the same whatever came before it. A round is
one draw of all that is drawn, with every combination of the grids.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import JsonValue, ValidationError

from ray_mm.config.explain import Source, first_reason
from ray_mm.config.train import TrainJob
from ray_mm.config.tune import NOT_SEARCHED, AshaMethod, OptunaMethod, Space, TuneJob
from ray_mm.errors import JobFileError

Settings = dict[str, JsonValue]
"""Key of the train job → the value that a trial gives it."""

_DEFAULT_TRIALS = 16
_MAX_LISTED = 100_000
"""Combinations up to here are put in a random order, so that none is drawn twice; among more it hardly happens."""


def num_trials(job: TuneJob) -> int:
    """How many trials the search has."""
    grids, combinations = _num_grid_points(job), num_combinations(job)
    only_grids = all(space.grid is not None for space in job.search.values())
    wanted = job.trials or (grids if only_grids else max(grids, _DEFAULT_TRIALS))
    return wanted if combinations is None else min(wanted, combinations)


def num_combinations(job: TuneJob) -> int | None:
    """How many different trials there can be; None: any number."""
    sizes = [space.size for space in job.search.values()]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def draws(job: TuneJob) -> Iterator[Settings]:
    """The settings of trial 1, 2, …: as many as there are combinations, or without end."""
    grids = {key: space.grid for key, space in job.search.items() if space.grid is not None}
    others = {key: space for key, space in job.search.items() if space.grid is None}
    for drawn in _rounds(job.seed, others):
        for point in itertools.product(*grids.values()):
            settings = drawn | dict(zip(grids, point, strict=True))
            yield {key: settings[key] for key in job.search}


def trial_job(job: TuneJob, settings: Mapping[str, JsonValue], output: str) -> TrainJob:
    """The training of a trial.

    Args:
        job: the search.
        settings: of the trial.
        output: its folder.

    Raises:
        ValidationError: they do not go together.
    """
    return _validated(trial_content(job, settings, output))


def trial_content(job: TuneJob, settings: Mapping[str, JsonValue], output: str) -> dict[str, Any]:
    """The same as the content of a job file: what the train job says, and what the trial sets; no default is filled in."""
    content, resolved = _contents(job.train)
    content = copy.deepcopy(content)
    # A section that is chosen as a whole comes before the keys in it.
    for key, value in sorted(settings.items(), key=lambda item: item[0].count(".")):
        *sections, last = key.split(".")
        section, known = content, resolved
        for name in sections:
            inner, known = section.get(name), known.get(name, {}) if isinstance(known, Mapping) else {}
            if isinstance(inner, str):  # a dataset that is given as its folder alone
                inner = {"path": inner}
            elif not isinstance(inner, Mapping):
                # Of several sections that may stand there, it is the one that stands there unsaid.
                told = known if isinstance(known, Mapping) else {}
                inner = {tag: told[tag] for tag in ("method", "name", "type") if tag in told}
            section[name] = dict(inner)
            section = section[name]
        section[last] = copy.deepcopy(value)
    content["output"] = output
    return content


def check_search(job: TuneJob, where: Source) -> None:
    """Checks that every key is one of a train job, that every value is valid there, and that every trial is.

    Of a range both ends are looked at; of trials those that are drawn at random, which is all of them but with Optuna.

    Raises:
        JobFileError: naming the key's line.
    """
    if num_trials(job) < _num_grid_points(job):
        raise JobFileError(
            f"{where.at(('trials',))}: trials: {num_trials(job)} are fewer than the {_num_grid_points(job)} combinations of the "
            "grids; raise it, or use choice instead of grid."
        )
    candidates = {key: _candidates(space) for key, space in job.search.items()}
    first: Settings = {key: values[0] for key, values in candidates.items()}
    for key, values in candidates.items():
        _check_key(job, key, where)
        for value in values:
            _check_candidate(job, key, first | {key: value}, where)
    for number, settings in enumerate(itertools.islice(draws(job), num_trials(job)), 1):
        try:
            trial_job(job, settings, "unused")
        except ValidationError as error:
            path, reason = first_reason(error, TrainJob)
            raise JobFileError(
                f"{where.at(('search',))}: search: trial {number}, with {told(settings)}, is no valid training: "
                f"{'.'.join(map(str, path)) or 'job'}: {reason} Choose whole sections where keys depend on each other."
            ) from None


def told(settings: Mapping[str, JsonValue]) -> str:
    """Settings in a line, such as ``train.optimizer.lr=0.001, model.fusion.dim=64``."""
    return ", ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    )


def value_at(space: Space, place: float) -> JsonValue:
    """The value of a space at a place in it, 0 ≤ place < 1. Numbers have four digits: more would only be harder to read."""
    if space.options is not None:
        return space.options[int(place * len(space.options))]
    assert space.bounds is not None
    low, high = space.bounds
    if space.is_whole:
        top = high + 1
        value = math.floor(low * (top / low) ** place if space.is_log else low + place * (top - low))
        return int(min(max(value, low), high))
    value = low * (high / low) ** place if space.is_log else low + place * (high - low)
    return min(max(float(f"{value:.4g}"), low), high)


def _rounds(seed: int, spaces: Mapping[str, Space]) -> Iterator[Settings]:
    sizes = [space.size for space in spaces.values()]
    number = None if None in sizes else math.prod(size for size in sizes if size is not None)
    if number is not None and number <= _MAX_LISTED:
        order = sorted(range(number), key=lambda index: _unit(seed, index, ""))
        for index in order:
            settings: Settings = {}
            for (key, space), size in zip(spaces.items(), sizes, strict=True):
                assert size is not None
                index, place = divmod(index, size)
                settings[key] = _nth(space, place)
            yield settings
        return
    for round_ in range(number) if number is not None else itertools.count():
        yield {key: value_at(space, _unit(seed, round_, key)) for key, space in spaces.items()}


def _nth(space: Space, index: int) -> JsonValue:
    if space.options is not None:
        return space.options[index]
    assert space.bounds is not None
    return int(space.bounds[0]) + index


def _unit(seed: int, round_: int, key: str) -> float:
    digest = hashlib.blake2b(f"{seed}:{round_}:{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def _num_grid_points(job: TuneJob) -> int:
    return math.prod(len(space.grid) for space in job.search.values() if space.grid is not None)


def _candidates(space: Space) -> tuple[JsonValue, ...]:
    if space.options is not None:
        return space.options
    assert space.bounds is not None
    return tuple(int(bound) if space.is_whole else bound for bound in space.bounds)


def _check_key(job: TuneJob, key: str, where: Source) -> None:
    place = where.at(("search", key))
    for refused, reason in NOT_SEARCHED.items():
        # The section around it would bring it along.
        if f"{key}.".startswith(f"{refused}.") or refused.startswith(f"{key}."):
            raise JobFileError(f"{place}: search.{key}: {refused} can't be searched over: {reason}.")
    if isinstance(job.method, OptunaMethod) and job.search[key].grid is not None:
        raise JobFileError(f"{place}: search.{key}: grid goes with method random or asha; use choice with optuna.")
    if isinstance(job.method, AshaMethod) and key == "train.epochs":
        raise JobFileError(
            f"{place}: search.{key}: trials of different lengths can't be compared after the same epoch, as asha does; use "
            "method: random."
        )


def _check_candidate(job: TuneJob, key: str, settings: Settings, where: Source) -> None:
    try:
        trial_job(job, settings, "unused")
    except ValidationError as error:
        path, reason = first_reason(error, TrainJob)
        dotted = ".".join(map(str, path))
        blamed = next((each for each in job.search if f"{dotted}.".startswith(f"{each}.")), key)
        if dotted != blamed and not (reason.startswith("unknown key") and blamed.startswith(f"{dotted}.")):
            reason = f"with {told({blamed: settings[blamed]})}, {dotted or 'job'}: {reason}"
        raise JobFileError(f"{where.at(('search', blamed))}: search.{blamed}: {reason}") from None


@functools.lru_cache(maxsize=4)
def _contents_of(dumped: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(dumped)
    return content


def _contents(train: TrainJob) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the job file said, and the same with every default."""
    return _contents_of(train.model_dump_json(exclude_unset=True)), _contents_of(train.model_dump_json())


def _validated(content: Mapping[str, Any]) -> TrainJob:
    return TrainJob.model_validate_json(json.dumps(content), strict=True)
