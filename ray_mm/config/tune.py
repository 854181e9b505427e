"""``kind: tune``: a train job, and keys of it to search over → many trainings, and the best of them as a job file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, JsonValue, Tag, model_validator

from ray_mm.config.base import Config, Location, Name
from ray_mm.config.schedule import JobSchedule
from ray_mm.config.train import SETTLED, TrainJob

TUNE_SETTLED = (*(f"job.{key}" for key in SETTLED), "search", "method", "seed")
"""Keys that may not change between two runs in the same folder: its trials were drawn and compared with them."""

NOT_SEARCHED = {
    "kind": "it says what a trial is",
    "name": "trials are told apart by their numbers",
    "output": "every trial has a folder of its own below the output of the search",
    "schedule": "trials are run one after the other",
    "resources": "all trials get the same share of the machine",
    "data.validation": "trials are compared by it",
    "train.best_metric": "trials are compared by it",
    "train.baselines": "a trial trains one model",
    "model.task.type": "trials would not be of one task",
    "model.task.label": "trials would not be of one task",
    "model.task.fields": "trials would not be of one task",
}
"""Key of a train job that can't be searched over, with all below it → why."""


class Space(Config):
    """The values that a key may take: one of these keys."""

    choice: Annotated[tuple[JsonValue, ...], Field(min_length=1)] | None = None
    """One of these values, each as often as the others."""
    grid: Annotated[tuple[JsonValue, ...], Field(min_length=1)] | None = None
    """Each of these values in turn: all combinations of the grids are tried. Not with ``method: optuna``."""
    uniform: tuple[float, float] | None = None
    """A number between these two."""
    log_uniform: tuple[float, float] | None = None
    """A number between these two, any power of ten as often as the others: for learning rates."""
    integer: tuple[int, int] | None = None
    """A whole number from the first to the last of these two."""
    log_integer: tuple[int, int] | None = None
    """The same, any power of ten as often as the others."""

    @model_validator(mode="after")
    def _is_one(self) -> Space:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "nothing"
            raise ValueError(f"takes one of {', '.join(type(self).model_fields)}; found {found}")
        bounds = self.bounds
        if bounds is not None:
            low, high = bounds
            if not low < high:
                raise ValueError(f"{given[0]} goes from a lower to a higher number; found {low:g} and {high:g}")
            if self.is_log and low <= 0:
                raise ValueError(
                    f"{given[0]} needs numbers above 0, found {low:g}; raise it, or use {given[0].removeprefix('log_')}"
                )
        return self

    @property
    def options(self) -> tuple[JsonValue, ...] | None:
        """The values, where they are listed."""
        return self.choice if self.choice is not None else self.grid

    @property
    def bounds(self) -> tuple[float, float] | None:
        """The lowest and the highest number, where there is a range."""
        return self.uniform or self.log_uniform or self.integer or self.log_integer

    @property
    def is_log(self) -> bool:
        """Whether it is a range of logarithms."""
        return self.log_uniform is not None or self.log_integer is not None

    @property
    def is_whole(self) -> bool:
        """Whether it is a range of whole numbers."""
        return self.integer is not None or self.log_integer is not None

    @property
    def size(self) -> int | None:
        """How many values there are; None: any number of them."""
        if self.options is not None:
            return len(self.options)
        bounds = self.integer or self.log_integer
        return None if bounds is None else bounds[1] - bounds[0] + 1


class RandomMethod(Config):
    """Every trial is drawn for itself and trained to its end."""

    name: Literal["random"] = "random"


class AshaMethod(Config):
    """Drawn as with ``random``; trials that are behind the others after as many epochs are stopped (ASHA, arXiv 1810.05934)."""

    name: Literal["asha"] = "asha"
    grace: int = Field(default=1, ge=1)
    """Epochs that every trial gets. It is looked at after them, and after ``reduction`` times as many, and so on."""
    reduction: int = Field(default=3, ge=2)
    """Of the trials that have come as far, the best one in so many goes on."""


class OptunaMethod(Config):
    """Later trials are drawn where earlier ones were good (Optuna's TPE); needs the extra ``optuna``."""

    name: Literal["optuna"] = "optuna"
    startup: int = Field(default=8, ge=1)
    """Trials that are drawn at random before."""


AnyMethod = RandomMethod | AshaMethod | OptunaMethod


def _section(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Method = Annotated[
    AnyMethod,
    Field(discriminator="name"),
    BeforeValidator(_section, json_schema_input_type=Literal["random", "asha", "optuna"] | AnyMethod),
]
"""Its name alone will do."""


def _form(value: Any) -> str:
    return "section" if isinstance(value, (dict, Config)) else "word"


class TuneResources(Config):
    """How much of the machine or the cluster is used at once; what one trial takes stands in the train job."""

    trials_at_once: int | None = Field(default=None, ge=1)
    """Trials that are trained side by side, each with its share of the CPUs, the GPUs and Ray's object store. Unset: as many as
    there are GPUs for, or CPUs where they need none."""


class TuneJob(Config):
    """Trains the same job many times over with other settings, and writes the best of them as a job file."""

    kind: Literal["tune"]
    name: Name
    """Of the search, as its report and result show it."""
    job: Annotated[Annotated[Location, Tag("word")] | Annotated[TrainJob, Tag("section")], Discriminator(_form)]
    """The train job: its file, relative to this one, or the job itself. Its ``output`` and ``schedule`` are not used."""
    search: dict[str, Space] = Field(min_length=1)
    """Key of the train job → the values that it may take, such as ``train.optimizer.lr: {log_uniform: [1e-4, 1e-2]}``."""
    method: Method = RandomMethod()
    """How trials are drawn, and whether they are stopped early: a name, or a section with its settings."""
    trials: int | None = Field(default=None, ge=1)
    """How many, over all commands; no more than there are combinations. Unset: once through the grids, else 16. May be raised
    later."""
    max_failed_trials: int = Field(default=3, ge=0)
    """Trials that may fail before the search ends."""
    seed: int = Field(default=0, ge=0)
    """Seed of what is drawn. That of the trainings is the train job's."""
    resources: TuneResources = TuneResources()
    """How many trials at once."""
    schedule: JobSchedule | None = None
    """When it is run, by ``ray-mm schedule`` or what ``ray-mm render`` writes. Unset: whenever somebody runs it."""
    output: Location
    """Folder of the search: the trials, ``result.json``, ``report.html``, ``best.yaml``. Running the same job again continues
    it."""

    @property
    def train(self) -> TrainJob:
        """The train job. A file is read when the job is loaded."""
        assert isinstance(self.job, TrainJob)
        return self.job

    @property
    def metric(self) -> str:
        """The figure of a validation by which trials are compared: what decides about a training's best weights."""
        return self.train.metric

    @property
    def higher_is_better(self) -> bool:
        """Of that figure."""
        return self.train.higher_is_better

    @model_validator(mode="after")
    def _can_be_compared(self) -> TuneJob:
        if not isinstance(self.job, TrainJob):
            return self
        if self.job.data.validation is None:
            raise ValueError("job.data.validation is missing: trials are compared by their validation; set it")
        method, epochs = self.method, self.job.train.epochs
        if isinstance(method, AshaMethod) and "train.epochs" not in self.search and method.grace >= epochs:
            raise ValueError(
                f"method.grace {method.grace} is not less than the {epochs} epochs of a trial, so none would ever be stopped; "
                "lower it, or set method: random"
            )
        return self
