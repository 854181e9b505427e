"""``kind: retrain``: new shards, and the champion → a challenger, and the better of the two."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from ray_mm.config.base import BadSamples, Config, Fraction, Location, Name, Resources
from ray_mm.config.compress import GateConfig, LatencyConfig, QuantizeConfig
from ray_mm.config.fields import FieldSpec
from ray_mm.config.preprocess import Patterns
from ray_mm.config.schedule import JobSchedule, require_zone
from ray_mm.config.source import AnySource
from ray_mm.config.tasks import FIGURES, SeveralTask
from ray_mm.config.train import TrainJob

_TABLES = (".csv", ".jsonl", ".ndjson", ".parquet")

RETRAIN_SETTLED = ("holdout", "seed")
"""Keys that may not change between two nights in the same folder: they decide which samples are never trained on."""


class Arrivals(Config):
    """Where new shards come in, and what counts as new."""

    shards: Patterns | None = None
    """WebDataset tars: files, folders, globs and braces; local, ``s3://``, ``gs://``. They stay where they are."""
    tables: Patterns | None = None
    """Instead of shards: CSV, JSON lines or Parquet files with a row per sample, by names or globs such as ``in/*.jsonl``. What
    they name is written into tars, below the night's folder."""
    root: Location | None = None
    """For ``tables``: folder that paths in them are relative to. Unset: each table's own folder."""
    columns: dict[Name, str | tuple[str, ...]] = Field(default={})
    """For ``tables``: field → column, where they differ."""
    key: str | None = None
    """For ``tables``: column with a unique name per sample. Unset: the row's number, so that of all tables the same rows are held
    out."""
    by: Literal["listing", "event_time", "manifest"] = "listing"
    """What counts as new. ``listing``: every shard that no night has taken. ``event_time``: of these, by the time in its name.
    ``manifest``: of these, those that ``manifest`` lists, as it describes them."""
    manifest: Location | None = None
    """JSON lines with ``path`` (as a listing has it, or relative to this file), and optionally ``size_bytes``, ``sha256`` and
    ``event_time`` (ISO 8601)."""
    time_pattern: str = r"(\d{4}-\d{2}-\d{2}(?:[T_]\d{2}(?:[:-]?\d{2}){0,2})?)"
    """For ``by: event_time``: a regular expression whose first group is the time in a shard's name, such as 2026-11-03 or
    2026-11-03T02-30."""
    time_zone: str = "UTC"
    """Of times that do not say theirs, such as Europe/Berlin."""
    late_hours: float = Field(default=48, ge=0)
    """Where there are event times: a shard may come so many hours after the end of the interval that it belongs to. Later ones
    are refused by name."""
    settle_s: float = Field(default=60, ge=0)
    """Shards that were written to within so many seconds wait for the next night: they may not be whole yet."""
    min_samples: int = Field(default=100, ge=1)
    """With fewer new samples nothing is trained; they wait."""
    max_age_hours: float | None = Field(default=None, gt=0)
    """Train with fewer all the same when one of them has waited for so long. Unset: never."""
    fields: dict[Name, FieldSpec] = Field(default={})
    """Fields of the shards, where they are written otherwise than in the first training dataset."""
    members: dict[Name, str | tuple[str, ...]] = Field(default={})
    """Field → suffix of its members, where that is another than in the first training dataset."""

    @field_validator("time_pattern")
    @classmethod
    def _has_a_group(cls, pattern: str) -> str:
        try:
            if re.compile(pattern).groups >= 1:
                return pattern
        except re.error as error:
            raise ValueError(f"is no regular expression ({error})") from None
        raise ValueError(f"needs a group in parentheses around the time, found {pattern!r}")

    @field_validator("time_zone")
    @classmethod
    def _is_known(cls, name: str) -> str:
        require_zone("time_zone", name)
        return name

    @model_validator(mode="after")
    def _one_kind_of_data(self) -> Arrivals:
        if (self.shards is None) == (self.tables is None):
            raise ValueError("takes either shards or tables")
        foreign = ("root", "columns", "key") if self.tables is None else ("members",)
        for key in foreign:
            if getattr(self, key) != type(self).model_fields[key].get_default():
                raise ValueError(f"{key} is for {'tables' if self.tables is None else 'shards'}; remove it")
        tables = (self.tables,) if isinstance(self.tables, str) else self.tables or ()
        for table in tables:
            if "://" in table or not table.lower().endswith(_TABLES):
                raise ValueError(
                    f"tables are files on a disk that every node sees, named as in/*.jsonl, and end in {', '.join(_TABLES)}; "
                    f"found {table!r}"
                )
        return self

    @property
    def patterns(self) -> tuple[str, ...]:
        """Of shards, or of tables."""
        given = self.shards if self.shards is not None else self.tables or ()
        return (given,) if isinstance(given, str) else tuple(given)

    @model_validator(mode="after")
    def _times_are_told(self) -> Arrivals:
        ways = {
            "time_pattern": ("event_time",),
            "time_zone": ("event_time", "manifest"),
            "late_hours": ("event_time", "manifest"),
        }
        for key, used in ways.items():
            if self.by not in used and getattr(self, key) != type(self).model_fields[key].get_default():
                raise ValueError(f"{key} is for by: {' or '.join(used)}, where event times are told; remove it")
        return self

    @model_validator(mode="after")
    def _manifest_goes_with_it(self) -> Arrivals:
        if (self.manifest is not None) != (self.by == "manifest"):
            raise ValueError("manifest belongs to by: manifest; set both or neither")
        return self


class Validation(Config):
    """What new shards must meet. A shard that does not is quarantined; too many of them, or a drift of all together, stop the
    night."""

    max_bad_shards: Fraction = 0.2
    """Share of the new shards that may be quarantined; more stop the night."""
    max_unreadable: Fraction = 0.02
    """Share of a shard's members, of any field, that can't be read."""
    max_presence_shift: Fraction = 0.2
    """How far the share of new samples that have a field may be from that in the training data."""
    drift: Literal["jensen_shannon", "psi", "chi_square"] = "jensen_shannon"
    """How the classes of all new samples are compared with those of the training data. ``jensen_shannon``: divergence in bits, 0
    to 1. ``psi``: population stability index. ``chi_square``: 1 − p of the test, so that 0.999 is one chance in a thousand."""
    max_drift: float | None = Field(default=None, ge=0)
    """Of that figure. Unset: 0.1, 0.25, 0.999. Of a number: how far its mean may be from that of the training data, in standard
    deviations, with 0.5 unset."""
    max_test_duplicates: Fraction = 0.0
    """Share of a shard's samples whose input is, byte for byte, one of the frozen test set."""

    @property
    def drift_limit(self) -> float:
        """``max_drift`` of classes."""
        return (
            {"jensen_shannon": 0.1, "psi": 0.25, "chi_square": 0.999}[self.drift]
            if self.max_drift is None
            else self.max_drift
        )

    @property
    def shift_limit(self) -> float:
        """``max_drift`` of numbers."""
        return 0.5 if self.max_drift is None else self.max_drift


class WarmStart(Config):
    """A training that begins with the champion's weights, shrunk and perturbed (arXiv 1910.08475)."""

    shrink: float = Field(default=0.6, gt=0, le=1)
    """The champion's weights are multiplied by this."""
    perturb: float = Field(default=0.1, ge=0, le=1)
    """Fresh weights times this are added."""
    scratch_every: int | None = Field(default=7, ge=1)
    """Every so many nights that train, the weights are fresh and all data is taken as it comes. Unset: never."""


class EvaluateSettings(Config):
    """How champion and challenger are scored."""

    batch_size: int = Field(default=64, ge=1)
    """Samples per forward pass."""
    subsets: Literal["all", "full"] = "all"
    """``all``: every non-empty subset of the input fields, which the gates can then judge. ``full``: only all fields together."""
    bad_samples: BadSamples = BadSamples()
    """When too many unreadable samples stop the night."""
    resources: Resources = Resources()
    """``workers`` is the number of scoring actors."""


class CompressSettings(Config):
    """How a challenger is compressed; one that its gate refuses is no champion."""

    quantize: QuantizeConfig = QuantizeConfig()
    """How weights and activations become integers."""
    latency: LatencyConfig = LatencyConfig()
    """How latency is measured."""
    gate: GateConfig = GateConfig()
    """What the artifact must meet."""
    resources: Resources = Resources()
    """What its evaluations may use."""


class Limits(Config):
    """What the challenger must reach on one dataset, beside the champion. Of figures that are errors, gains and drops are
    relative."""

    min_gain: float = 0.0
    """Smallest gain over the champion; below 0 it is the largest loss that is accepted."""
    max_drop_subset: float | None = Field(default=None, ge=0)
    """Largest loss with any smaller subset of the fields. Unset: not judged."""
    at_least: float | None = None
    """Value that the challenger must reach by itself, also where there is no champion; of an error, the largest. Unset: none."""


class Gates(Config):
    """What makes a challenger the champion: everything here. What was not measured is missed."""

    metric: str | None = None
    """Figure of an evaluation that decides, such as ``macro_f1``. Unset: what a compression must not lose, such as accuracy. A
    model of several tasks is judged by that of each."""
    frozen: Limits = Limits(min_gain=-0.01, max_drop_subset=0.05)
    """On the frozen test set."""
    newest: Limits = Limits(min_gain=0.0)
    """On the newest window: samples of the last nights that no training has seen."""


class Retention(Config):
    """What is kept of old nights. Results, reports and the indexes of their data always stay; so does all of the champion and the
    one before."""

    nights: int = Field(default=14, ge=1)
    """The newest nights of which weights and evaluations are kept."""


class RegistryMlflow(Config):
    """Where MLflow's registry shows the versions and the aliases; it needs ``ray_mm[mlflow]``, and decides nothing."""

    uri: str | None = None
    """A server, or ``sqlite:///PATH``. Unset: ``mlflow.db`` in the registry's folder."""


Event = Literal["promoted", "refused", "stopped", "skipped", "failed"]


class Notify(Config):
    """Who is told how a night ended. Each message may come more than once; it has the night's id."""

    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """A program and its arguments, run without a shell; it gets the message as JSON on its standard input."""
    webhook: str | None = None
    """URL that gets the message as JSON by POST."""
    secret: str | None = Field(default=None, pattern=r"^(env:[A-Za-z_][A-Za-z0-9_]*|file:.+)$")
    """``env:NAME`` or ``file:PATH`` with the key that signs it: ``X-Ray-Mm-Signature: sha256=HMAC(key, time + "." + body)``, with
    the time in ``X-Ray-Mm-Time``. A command finds both in ``RAY_MM_SIGNATURE`` and ``RAY_MM_TIME``. Unset: it is not signed."""
    on: Annotated[tuple[Event, ...], Field(min_length=1)] = ("promoted", "refused", "stopped", "failed")
    """Ends of a night that are told."""
    timeout_s: float = Field(default=10, gt=0)
    """For the command, and for each of three tries of the webhook."""

    @model_validator(mode="after")
    def _can_tell(self) -> Notify:
        if self.command is None and self.webhook is None:
            raise ValueError("takes command or webhook, or both; found neither")
        if self.webhook is not None:
            parts = urlsplit(self.webhook)
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("webhook must be an http:// or https:// URL")
            if parts.username is not None or parts.password is not None:
                raise ValueError(
                    "webhook must hold no user or password: a job file is no place for them; sign it with secret"
                )
        return self


def _form(value: Any) -> str:
    return "section" if isinstance(value, (dict, Config)) else "word"


def _form_or_list(value: Any) -> str:
    return "list" if isinstance(value, (list, tuple)) else _form(value)


class RetrainJob(Config):
    """Trains on what is new, and lets the better of two models be the champion."""

    kind: Literal["retrain"]
    name: Name
    """Of the job; with the data interval it names a night."""
    arrivals: Annotated[
        Annotated[Location, Tag("word")]
        | Annotated[tuple[Location, ...], Field(min_length=1), Tag("list")]
        | Annotated[Arrivals, Tag("section")],
        Discriminator(_form_or_list),
    ]
    """Where new shards come in: a pattern alone, or a section that says what counts as new."""
    base: Annotated[Annotated[Location, Tag("word")] | Annotated[TrainJob, Tag("section")], Discriminator(_form)]
    """The train job: its file, relative to this one, or the job itself. Its datasets are the old data; its ``output`` and
    ``schedule`` are not used."""
    frozen_test: AnySource
    """A dataset that never changes, on which every champion and challenger is scored."""
    champion: Location | None = None
    """A train run or checkpoint that is the champion before the first night. Unset: the first night's model is."""
    holdout: float = Field(default=0.2, gt=0, lt=1)
    """Share of the new samples that no training sees, by a hash of their keys."""
    window: int = Field(default=1, ge=1)
    """The newest window: what was held out in so many nights, the present one included."""
    replay: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of an epoch that is drawn from old data, where the weights are warm."""
    warm_start: WarmStart | None = WarmStart()
    """How weights begin. Null: always fresh."""
    validation: Validation = Validation()
    """What new shards must meet."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """How models are scored."""
    compress: CompressSettings | None = None
    """Also compress each challenger; ``{}`` takes the defaults. Unset: do not."""
    gates: Gates = Gates()
    """What makes a challenger the champion."""
    registry: Location | None = None
    """Folder or URL with the lease, the watermark and the registry of models, which all schedulers of this job share. Unset:
    ``registry`` in the output."""
    mlflow: RegistryMlflow | None = None
    """Also show the registry in MLflow, whose aliases then follow; ``{}`` takes the defaults. Unset: do not."""
    lease_s: Annotated[float, Field(ge=5)] = 120
    """Seconds after which a night whose process has died can be gone on with by another one."""
    retention: Retention = Retention()
    """What is kept of old nights."""
    schedule: JobSchedule | None = None
    """When it is run, by ``ray-mm schedule`` or what ``ray-mm render`` writes. Unset: whenever somebody runs it."""
    notify: Notify | None = None
    """Who is told. Unset: nobody."""
    seed: int = Field(default=0, ge=0)
    """Of what is held out; the trainings have the train job's."""
    output: Location
    """Folder of all nights: ``history.html``, ``nights/``. The same command at any time does what is due."""

    @property
    def incoming(self) -> Arrivals:
        """``arrivals`` as a section."""
        return self.arrivals if isinstance(self.arrivals, Arrivals) else Arrivals(shards=self.arrivals)

    @property
    def train(self) -> TrainJob:
        """The train job. A file is read when the job is loaded."""
        assert isinstance(self.base, TrainJob)
        return self.base

    @model_validator(mode="after")
    def _nothing_is_said_in_vain(self) -> RetrainJob:
        if isinstance(self.base, TrainJob):
            read, given = self.base.model.read_fields, self.incoming
            for key in ("fields", "members", "columns"):
                unknown = sorted(set(getattr(given, key)) - read)
                if unknown:
                    raise ValueError(
                        f"arrivals.{key}.{unknown[0]}: the model does not read it; it reads {', '.join(sorted(read))}"
                    )
        if self.warm_start is None and self.replay != type(self).model_fields["replay"].get_default():
            raise ValueError(
                "replay is for warm weights, and with warm_start: null all data is taken as it comes; remove it"
            )
        drops = (self.gates.frozen.max_drop_subset, self.gates.newest.max_drop_subset)
        if self.evaluate.subsets == "full" and drops not in ((None, None), (Gates().frozen.max_drop_subset, None)):
            raise ValueError(
                "gates: max_drop_subset judges subsets, and evaluate.subsets: full scores none; set it to all"
            )
        return self

    @model_validator(mode="after")
    def _gates_know_the_task(self) -> RetrainJob:
        metric = self.gates.metric
        if not isinstance(self.base, TrainJob) or metric is None:
            return self
        task = self.base.model.task
        for each in task.tasks.values() if isinstance(task, SeveralTask) else (task,):
            figures = FIGURES[each.type]
            known = {*figures.validation, figures.main, figures.gate} - {"loss"}
            if metric not in known:
                raise ValueError(
                    f"gates.metric: {metric!r} is no figure by which models of the task {each.type} are compared; those are "
                    f"{', '.join(sorted(known))}"
                )
        return self

    @model_validator(mode="after")
    def _baselines_are_for_people(self) -> RetrainJob:
        if isinstance(self.base, TrainJob) and self.base.train.baselines:
            raise ValueError("base.train.baselines: a night trains one model; remove it")
        if isinstance(self.base, TrainJob) and self.base.train.init_from is not None and self.warm_start is not None:
            raise ValueError(
                "base.train.init_from and warm_start both say what weights begin with; set warm_start to null, or leave it out"
            )
        return self
