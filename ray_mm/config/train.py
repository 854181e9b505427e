"""``kind: train``: datasets → a checkpoint."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from ray_mm.config.augment import AugmentConfig
from ray_mm.config.base import BadSamples, Config, Fraction, Location, Name, TrainResources
from ray_mm.config.cache import TrainCache
from ray_mm.config.fields import FieldSpec, Share
from ray_mm.config.model import ModelConfig
from ray_mm.config.optimize import (
    CosineSchedule,
    Decay,
    OptimizerConfig,
    Part,
    ScheduleConfig,
    check_parts,
    part_names,
    value_of_part,
)
from ray_mm.config.schedule import JobSchedule
from ray_mm.config.sharing import GradientBlending, GradientModulation, check_sharing
from ray_mm.config.source import AnySource, Balance, TrainSources
from ray_mm.config.tasks import FIGURES, HIGHER_IS_BETTER, ClassifyTask, check_settings, labelled_tasks, labels_of
from ray_mm.config.tracking import TrackingConfig

SETTLED = (
    # Not all of data: who is told to raise data.bad_samples goes on in the same folder.
    *("data.train", "data.validation", "data.balance", "data.epoch_samples"),
    *("data.batch_size", "data.fields", "data.shuffle"),
    *(
        "model",
        "seed",
        "train.init_from",
        "train.epochs",
        "train.optimizer",
        "train.schedule",
        "train.freeze",
        "train.ema",
        "train.best_metric",
        "train.clip_norm",
        "train.modality_dropout",
        "train.gradient_modulation",
        "train.gradient_blending",
        "train.augment",
    ),
)
"""Keys that may not change between two runs in the same folder: what is there was made with them."""


Metric = Literal[
    "accuracy",
    "macro_f1",
    "micro_f1",
    "map",
    "mrr",
    "recall_at_1",
    "recall_at_5",
    "recall_at_10",
    "r2",
    "loss",
    "mae",
    "rmse",
]
"""Figures of a validation, of whatever task."""


class ShuffleConfig(Config):
    """The order of an epoch: chunks of shards are permuted, then rows within a window of chunks."""

    chunk_samples: int = Field(default=256, ge=1)
    """Consecutive samples of a shard that stay in one window."""
    window_chunks: int = Field(default=64, ge=1)
    """Chunks whose rows are mixed with each other."""


class TrainData(Config):
    """Where the samples come from and how they are batched."""

    train: TrainSources
    """The training dataset: its folder, a section that says which part of it, or a list of these to be mixed."""
    validation: AnySource | None = None
    """The validation dataset, scored after every epoch. Unset: none."""
    balance: Balance | None = None
    """How often each class is drawn. Unset: as often as it is in the data."""
    epoch_samples: int | None = Field(default=None, ge=1)
    """Samples of an epoch. Unset: as many as the training datasets have together."""
    batch_size: int = Field(default=128, ge=1)
    """Samples per optimizer step over all workers together."""
    fields: dict[Name, FieldSpec] = Field(default={})
    """Overrides of the dataset's fields: another picture size, a shorter text. Give the type and what differs."""
    shuffle: ShuffleConfig = ShuffleConfig()
    """How thoroughly samples are mixed."""
    bad_samples: BadSamples = BadSamples()
    """When too many unreadable samples stop the run."""
    cache: TrainCache = TrainCache()
    """What is kept on the machine's own disk."""
    prefetch_batches: int = Field(default=2, ge=1, le=256)
    """Batches that wait ready for each worker."""
    head_samples: int | None = Field(default=None, ge=0)
    """Samples that each worker reads by itself at a start, so that it begins at once, while Ray starts the processes that read
    all others. Unset: as many as take it some seconds; 0: none."""
    object_store: Share = 0.5
    """Most that decoded batches may take of Ray's object store while they wait, as a share of it."""


class CheckpointConfig(Config):
    """When the state of a training is saved, in the background, and for how long it is kept."""

    every_steps: int | None = Field(default=None, ge=1)
    """Save every so many steps, too. Unset: after every epoch."""
    keep_last: int = Field(default=2, ge=1)
    """The newest ones that are kept. With one alone nothing is left if that is damaged."""
    keep_every_hours: float | None = Field(default=None, gt=0)
    """Keep one in so many hours for good, too. Unset: none."""


class ProfileConfig(Config):
    """Which steps are profiled: a trace of every worker, and a page that says where a step's time goes."""

    start: int = Field(default=10, ge=1)
    """The first of them. The first steps of a training are not like the others."""
    steps: int = Field(default=5, ge=1, le=100)
    """How many; fewer if an epoch ends before."""


class InitConfig(Config):
    """Weights that a training begins with."""

    checkpoint: Location
    """A train run (its best checkpoint) or a checkpoint; or a model by its name in a registry,
    ``registry:ROOT#NAME@champion``."""
    parts: tuple[Part, ...] | None = Field(default=None, min_length=1)
    """Parts of the model that come from there, named as in ``train.optimizer.parts``; each has to fit. Unset: the encoders that
    fit, and the fusion if it does."""
    shrink: float = Field(default=1.0, gt=0, le=1)
    """Multiply the weights that come from there by this, but for those that are not trained and pretrained encoders (shrink and
    perturb, arXiv 1910.08475): a model that goes on with more data then learns as well as one that begins anew."""
    perturb: float = Field(default=0.0, ge=0, le=1)
    """Add fresh weights times this to them."""

    def takes(self, part: str) -> bool:
        """Whether a part that fits comes from there."""
        if self.parts is None:
            return part != "head"
        return part in self.parts or part.partition(".")[0] in self.parts


def _form(value: Any) -> str:
    return "section" if isinstance(value, (dict, Config)) else "word"


class TrainConfig(Config):
    """The training loop."""

    init_from: (
        Annotated[
            Annotated[Location, Tag("word")] | Annotated[InitConfig, Tag("section")],
            Discriminator(_form),
        ]
        | None
    ) = None
    """First weights from another training, such as one with more data or another task: its checkpoint alone will do. What
    prepares an encoder's input (tokenizer, mean and standard deviation) comes with it. Unset: fresh ones."""

    epochs: int = Field(default=10, ge=1)
    """Passes over the training dataset."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    schedule: ScheduleConfig = CosineSchedule()
    """The learning rate over the steps."""
    freeze: dict[Part, Fraction] = Field(default={})
    """Part of the model → the share of the training, from its start, in which it is not trained, such as ``{encoders: 0.2}``;
    1: never. Parts are named as in ``train.optimizer.parts``."""
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient. Null: no clipping."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How workers share the training. ``ddp``: each has the whole model. ``fsdp``: each keeps a part of weights, gradients and
    moments, for a model that one device can't hold; one worker alone has all of it."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = "auto"
    """``auto``: bf16 on a GPU that has it, else fp32. ``fp16`` scales the loss, so that small gradients survive; ``tf32``: fp32
    whose products a GPU rounds."""
    micro_batches: int = Field(default=1, ge=1)
    """Parts into which each worker cuts its share of a batch, one after the other: the same step in less memory."""
    activation_checkpointing: bool = False
    """Compute what encoders and fusion found a second time for the gradient instead of keeping it: less memory, more time."""
    compile: bool | Literal["reduce-overhead", "max-autotune"] = False
    """Compile the model with ``torch.compile``, which makes the start slower. Or one of its modes: ``reduce-overhead`` replays a
    GPU's work as CUDA graphs, ``max-autotune`` tries kernels out as well. Not with ``fsdp``."""
    ema: Decay | None = None
    """Keep a running average of the weights with this decay, such as 0.999; it is what is validated and published."""
    skip_bad_steps: int = Field(default=0, ge=0)
    """Steps, of the whole training, that may be left out because their loss or gradient is not finite. The one after ends it."""
    modality_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Chance, per sample and field, that a present field is hidden in training; never all of a sample's fields."""
    gradient_modulation: GradientModulation | None = None
    """Hold back the encoders that learn fastest; ``{}`` takes the defaults. Only to classify, and not with ``fsdp``. Unset: do
    not."""
    gradient_blending: GradientBlending | None = None
    """Let each field alone learn, too, weighed by what it gains and how much it overfits in the validation; ``{}`` takes the
    defaults. Needs ``data.validation``; to classify, also with several classes per sample, and for a number. Unset: do not."""
    augment: AugmentConfig | None = None
    """What is changed at random in the samples, on the device. Unset: nothing."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """What a resumed training goes on from."""
    best_metric: Metric | None = None
    """Figure of the validation that decides which weights are published as the best: the lowest loss, MAE or RMSE, the highest of
    all others. Unset: accuracy, then loss; of several classes per sample micro F1, then loss; of a regression the RMSE; of a
    retrieval MRR, then loss; of a reconstruction R², then loss."""
    patience: int | None = Field(default=None, ge=1)
    """Validations in a row without a new best after which the training ends. Unset: it never ends early."""
    baselines: bool = False
    """Then train every field alone with the same budget, below ``output`` in ``baselines/<field>``, and compare: a model of all
    fields can end below the best of them. Trials of a search have none; its ``best.yaml`` keeps the setting."""
    profile: ProfileConfig | None = None
    """Profile some steps; ``{}`` takes those that the defaults name. Unset: none."""
    log_every_steps: int = Field(default=10, ge=1)
    """Write metrics every so many steps."""
    max_failures: int = Field(default=3, ge=0)
    """How often the workers may be started again after one of them died."""

    @property
    def initial(self) -> InitConfig | None:
        """``init_from`` as a section."""
        return InitConfig(checkpoint=self.init_from) if isinstance(self.init_from, str) else self.init_from

    @model_validator(mode="after")
    def _is_compiled_whole(self) -> TrainConfig:
        if self.compile and self.parallel == "fsdp":
            raise ValueError(
                f"compile: {str(self.compile).lower()} and parallel: fsdp do not go together: the model is compiled as a "
                "whole, and with fsdp its layers have their weights only while they run; leave one of the two out"
            )
        if self.gradient_modulation is not None and self.parallel == "fsdp":
            raise ValueError(
                "gradient_modulation and parallel: fsdp do not go together: of a gradient that is divided over the workers none "
                "knows the spread; leave one of the two out"
            )
        return self


class TrainJob(Config):
    """Trains one fusion model, data-parallel over the workers."""

    kind: Literal["train"]
    name: Name
    """Of the run, as its reports and results show it."""
    data: TrainData
    """Where the samples come from and how they are batched."""
    model: ModelConfig
    """The network."""
    train: TrainConfig = TrainConfig()
    """The training loop."""
    tracking: TrackingConfig = TrackingConfig()
    """Where metrics go beside the run's folder, which has them in any case."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order, the initial weights and every random choice."""
    resources: TrainResources = TrainResources()
    """What the run may use."""
    schedule: JobSchedule | None = None
    """When it is run, by ``ray-mm schedule`` or what ``ray-mm render`` writes. Unset: whenever somebody runs it."""
    output: Location
    """Folder of the run: checkpoints, metrics, result. Running the same job again continues it."""

    @model_validator(mode="after")
    def _label_is_no_input(self) -> TrainJob:
        for label in labels_of(self.model.task):
            if label in self.model.fields:
                raise ValueError(f"model.task.label {label!r} is also an input field of the model")
        fewest, most = self.resources.range
        key = "resources.workers" if fewest == most else "resources.workers.max"
        if most > self.data.batch_size:
            raise ValueError(
                f"data.batch_size {self.data.batch_size} is smaller than {key} {most}: every worker needs at least one sample "
                "per step"
            )
        # The more workers, the less each has.
        share = -(-self.data.batch_size // most)
        if self.train.micro_batches > share:
            raise ValueError(
                f"train.micro_batches {self.train.micro_batches} is more than the {share} samples that a worker has of a batch; "
                "lower it, or raise data.batch_size"
            )
        return self

    @model_validator(mode="after")
    def _classes_are_made_up_for_once(self) -> TrainJob:
        balance = self.data.balance
        tasks = {
            f"model.task.tasks.{name}" if name else "model.task": t
            for name, t in labelled_tasks(self.model.task).items()
        }
        for place, task in tasks.items():
            if balance is None or (balance.label, balance.method) != (task.label, "equal"):
                continue
            if not isinstance(task, ClassifyTask):
                continue
            if task.class_weights == "balanced" or task.logit_adjustment is not None:
                key = "class_weights: balanced" if task.class_weights == "balanced" else "logit_adjustment"
                raise ValueError(
                    f"{place}.{key} makes up for how often each class is drawn, and with data.balance every class of "
                    f"{task.label!r} is drawn as often as the others: nothing is left to make up for; leave one of the two out, "
                    "or set data.balance.method to square_root"
                )
        return self

    @model_validator(mode="after")
    def _fields_can_share(self) -> TrainJob:
        train = self.train
        check_sharing(
            self.model.task,
            len(self.model.fields),
            train.gradient_modulation,
            train.gradient_blending,
            self.data.validation is not None,
        )
        return self

    @model_validator(mode="after")
    def _task_can_be_trained_so(self) -> TrainJob:
        check_settings(self.model.task, self.train.baselines, self.train.micro_batches, self.data.batch_size)
        return self

    @model_validator(mode="after")
    def _validation_fits(self) -> TrainJob:
        known = FIGURES[self.model.task.type].validation
        metric = self.train.best_metric
        if metric is not None and metric not in known:
            raise ValueError(
                f"train.best_metric {metric!r} is no figure of the task {self.model.task.type}; choose "
                f"{', '.join(known[:-1])} or {known[-1]}"
            )
        if self.data.validation is None:
            for key, value in (("best_metric", metric), ("patience", self.train.patience)):
                if value is not None:
                    raise ValueError(
                        f"train.{key} {value} needs a validation, and there is none; set data.validation, or leave it out"
                    )
        return self

    @model_validator(mode="after")
    def _parts_are_there(self) -> TrainJob:
        freeze, fields = self.train.freeze, {name: self.model.fields[name] for name in self.model.encoded_fields}
        check_parts("train.optimizer.parts", self.train.optimizer.parts, fields)
        check_parts("train.freeze", freeze, fields)
        if self.train.initial is not None and self.train.initial.parts is not None:
            check_parts("train.init_from.parts", dict.fromkeys(self.train.initial.parts, 0.0), fields)
        if all(value_of_part(freeze, part, 0.0) > 0 for part in part_names(fields)):
            raise ValueError("train.freeze: every part of the model is frozen at the start; leave one of them out")
        if not self.train.baselines:
            return self
        if len(fields) == 1:
            raise ValueError(
                "train.baselines: it compares the model of all fields with each field alone, and this model has one field; "
                "leave it out"
            )
        for name in fields:
            if all(value_of_part(freeze, part, 0.0) > 0 for part in part_names([name])):
                raise ValueError(
                    f"train.baselines: of a model that has {name!r} alone, train.freeze would freeze every part; leave one of "
                    "the two out"
                )
        return self

    @property
    def metric(self) -> str:
        """The figure of a validation that decides which weights are the best."""
        return self.train.best_metric or FIGURES[self.model.task.type].best[0]

    @property
    def higher_is_better(self) -> bool:
        """Of that figure."""
        return self.metric in HIGHER_IS_BETTER
