"""What a training changes, and one step of it: the weights, the optimizer's state, the average of the weights."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from ray_mm.checkpoint import WEIGHTS_KIND
from ray_mm.config.tasks import ReconstructTask, RetrieveTask
from ray_mm.data.fields import POSITION, WEIGHT
from ray_mm.data.loader import LoadedBatch
from ray_mm.data.order import stable_hash
from ray_mm.errors import RayMMError
from ray_mm.models.losses import loss_per_sample, on_device, sample_weights, training_terms
from ray_mm.models.multimodal import MultimodalModel, build_model
from ray_mm.models.targets import build_targets
from ray_mm.training.augment import Augmenter
from ray_mm.training.average import WeightAverage
from ray_mm.training.blending import Blending
from ray_mm.training.dropout import hide_fields
from ray_mm.training.field_balance import LOOK_EVERY, GradientShares, Modulation
from ray_mm.training.initial import read_initial
from ray_mm.training.masking import Masker
from ray_mm.training.optim import build_optimizer, learning_rate, set_learning_rate
from ray_mm.training.parallel import Ranks, autocast, resolve_precision
from ray_mm.training.parts import frozen_parts, learning_rate_factors, model_parts, set_frozen, train_mode
from ray_mm.training.plan import Training
from ray_mm.training.pretrained import read_pretrained
from ray_mm.training.sharding import exchanging, shard, whole
from ray_mm.training.snapshot import (
    AVERAGE_KIND,
    OPTIMIZER_KIND,
    Snapshot,
    load_optimizer,
    load_tensors,
    optimizer_tensors,
    take_snapshot,
)
from ray_mm.training.spans import span
from ray_mm.training.stopping import Ask


@dataclass(frozen=True)
class Step:
    """What one step met.

    Attributes:
        loss_sum: this rank's weighted sum of losses, a scalar on its device; 0 of a step that was left out.
        weight_sum: this rank's sum of weights, likewise 0.
        finite: whether its loss and gradient were finite, a bool on the device.
        met: samples of all ranks.
        quarantined: those of them that can't be read.
        quarantined_here: positions of this rank's.
        asked: what the training, or these workers, are asked for.
    """

    loss_sum: Tensor
    weight_sum: float
    finite: Tensor
    met: int
    quarantined: int
    quarantined_here: tuple[int, ...]
    asked: Ask


class Learner:
    """A model that learns.

    Args:
        training: what to do.
        ranks: this worker's place.
        checkpoint: folder that it goes on from; None: fresh weights, drawn with the job's seed.
        loss_scale: what ``loss_scale`` said when that was saved.
        blending: what ``blending`` said then.

    Attributes:
        model: not wrapped by DDP; divided over the ranks by FSDP2, if the job says so.
        divided: whether it is.
        optimizer: of its parameters.

    Raises:
        RayMMError: the model is to be compiled, and there is no compiler.
        CheckpointError: the checkpoint is not one of this model.
    """

    def __init__(
        self,
        training: Training,
        ranks: Ranks,
        checkpoint: Path | None = None,
        loss_scale: Mapping[str, float] | None = None,
        blending: Mapping[str, Sequence[float | None]] | None = None,
    ) -> None:
        self._training = training
        self._ranks = ranks
        config = training.job.train
        torch.manual_seed(training.job.seed)
        self.model = build_model(training.job.model, training.preprocessor)
        if checkpoint is None:
            initial = training.initial
            read_pretrained(self.model, training.preprocessor, ranks, initial.fields if initial is not None else ())
            if initial is not None:
                read_initial(self.model, initial, ranks)
        if config.activation_checkpointing:
            _recompute(self.model)
        # One worker alone has nothing to divide.
        self.divided = config.parallel == "fsdp" and ranks.world_size > 1
        if self.divided:
            shard(self.model, ranks, config.precision)
        else:
            self.model.to(ranks.device)
        self.optimizer = build_optimizer(
            self.model, config.optimizer, learning_rate_factors(self.model, config.optimizer)
        )
        self._average = WeightAverage(self.model, config.ema) if config.ema is not None else None
        half = resolve_precision(config.precision, ranks.device) == "fp16"
        self._scaler = torch.amp.GradScaler(ranks.device.type, enabled=half)
        if checkpoint is not None:
            load_tensors(checkpoint, WEIGHTS_KIND, self.model.state_dict())
            load_optimizer(self.optimizer, self.model.named_parameters(), checkpoint)
            if self._average is not None:
                load_tensors(checkpoint, AVERAGE_KIND, self._average.tensors)
            # Another precision may have been set since.
            if half and loss_scale:
                self._scaler.load_state_dict(dict(loss_scale))
        if config.compile:
            _require_compiler(ranks.device)
            self.model.compile(mode=None if config.compile is True else config.compile)
        self._augment = None
        if config.augment is not None:
            self._augment = Augmenter(config.augment, training.job, training.preprocessor)
        self._shares = GradientShares(self.model, ranks)
        modulation = config.gradient_modulation
        self._modulation = Modulation(modulation, training.job, ranks) if modulation is not None else None
        blends = config.gradient_blending
        self._blending = Blending(blends, training.job, ranks, blending or {}) if blends is not None else None
        terms = training_terms(training.job.model.task, training.class_counts, training.classes)
        self._terms = on_device(terms, ranks.device)
        task, fields = training.job.model.task, sorted(training.job.model.fields)
        # Of a tower some of its fields at the most: without it there is nothing to compare.
        towers = task.towers_of(fields) if isinstance(task, RetrieveTask) else {"": fields}
        self._hidden_among = [list(names) for names in towers.values() if len(names) > 1 or len(towers) == 1]
        self._targets = build_targets(task, training.preprocessor, ranks.device)
        self._mask = None
        if isinstance(task, ReconstructTask) and (task.mask > 0 or task.noise > 0):
            self._mask = Masker(task, training.job, training.preprocessor)
        self._frozen = frozenset[str]()
        self._wrapped = self._wrap()

    @property
    def loss_scale(self) -> dict[str, float]:
        """What the loss is multiplied by in half precision, and when that changes; empty otherwise."""
        return dict(self._scaler.state_dict())

    @property
    def blending(self) -> dict[str, list[float | None]]:
        """Of a training with Gradient-Blending all that it goes on from; empty otherwise. Every rank has to ask."""
        return self._blending.state() if self._blending is not None else {}

    def validated(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Takes note of a validation; every rank has to."""
        if self._blending is not None:
            self._blending.estimate(epoch, metrics)

    def train(self, batch: LoadedBatch, asked: Ask = Ask.NOTHING) -> Step:
        """Forward, backward, and one step of the optimizer: all that is done with a training batch.

        Args:
            batch: this rank's share of a global batch.
            asked: what was asked of one rank, and of no other: told to all with what is told anyway.
        """
        job, item, ranks = self._training.job, batch.item, self._ranks
        num_steps = self._training.schedule.num_steps
        self._freeze(frozen_parts(job.train.freeze, self.model.encoded, item.step, num_steps))
        # Dropout differs between steps and ranks, and is the same again after a resume.
        _seed(ranks.device, stable_hash(job.seed, item.step, ranks.rank) % (1 << 63))
        # Counted where the batch came from: the device is not asked before its work is given to it.
        host = batch.on_host
        positions = host[POSITION].numpy()
        bad = positions[(positions >= 0) & (host[WEIGHT].numpy() == 0)]
        weight_sum = float(sample_weights(job.model.task, host, self.model.fields).sum())
        total_weight, met, quarantined, wish = ranks.sum(
            [weight_sum, float((positions >= 0).sum()), float(len(bad)), float(asked)]
        )
        tensors = batch.tensors
        if self._augment is not None:
            tensors = self._augment(tensors, host, item.epoch)
        if self._targets is not None:
            tensors = self._targets.added_to(tensors)
        # The loss is of the sample as it is; what the model is shown of it may be less.
        seen = tensors if self._mask is None else self._mask(tensors, host, item.epoch)
        for fields in self._hidden_among:
            seen = hide_fields(seen, positions, fields, job.train.modality_dropout, job.seed, item.epoch)

        if not self.model.training:
            # After a validation. To go through all modules in every step costs short ones a part that can be seen.
            train_mode(self._wrapped)
        set_learning_rate(
            self.optimizer, learning_rate(job.train.optimizer.lr, job.train.schedule, item.step, num_steps)
        )
        modulation = self._modulation
        if modulation is not None and not modulation.holds(item.step, num_steps):
            modulation = None
        if self._blending is not None:
            self._blending.begin(item, self._training.schedule.train_batches)
        loss_sum = torch.zeros((), device=ranks.device)
        rows = -(-len(positions) // job.train.micro_batches)
        for start in range(0, len(positions), rows):
            part, shown = (
                {name: tensor[start : start + rows] for name, tensor in each.items()} for each in (tensors, seen)
            )
            # DDP averages over the ranks; each rank's share of the global batch may differ.
            loss_sum += self._backward(
                part, shown, ranks.world_size / max(total_weight, 1.0), start + rows >= len(positions), modulation
            )
        if self._blending is not None:
            self._blending.end(item)
        with span("optimizer"):
            self._scaler.unscale_(self.optimizer)
            if modulation is not None:
                modulation.apply(self.model, item.step)
            if item.step % LOOK_EVERY == 0 or item.ends_phase:
                self._shares.look()
            finite = self._clip()
            if self._scaler.is_enabled():
                # There a gradient that is too large for half precision is no fault: the scale is lowered.
                finite = loss_sum.isfinite()
            skips = job.train.skip_bad_steps > 0 and not bool(finite)
            if self._scaler.is_enabled() or not skips:
                self._scaler.step(self.optimizer)
                self._scaler.update()
                if self._average is not None:
                    self._average.update(item.step)
            self.optimizer.zero_grad(set_to_none=True)
        if skips:
            loss_sum, weight_sum = torch.zeros_like(loss_sum), 0.0
        return Step(
            loss_sum, weight_sum, finite, round(met), round(quarantined), tuple(int(p) for p in bad), Ask(round(wish))
        )

    def balance(self) -> dict[str, float]:
        """How much each field's encoder learned since this was last asked for (see ``field_balance``)."""
        found = self._shares.read()
        for each in (self._modulation, self._blending):
            found |= each.read() if each is not None else {}
        return found

    def _backward(
        self,
        tensors: dict[str, Tensor],
        seen: dict[str, Tensor],
        factor: float,
        last: bool,
        modulation: Modulation | None,
    ) -> Tensor:
        """Adds the gradients of some samples; exchanges those of all so far with the other ranks after the last ones.

        Args:
            tensors: the samples.
            seen: what the model is shown of them.
            factor: that their loss is multiplied by.
            last: whether they are the last of this rank's share.
            modulation: of this step.

        Returns:
            The weighted sum of their losses.
        """
        task, wrapped, blending = self._training.job.model.task, self._wrapped, self._blending
        preprocessor = self._training.preprocessor
        weights = sample_weights(task, tensors, self.model.fields)
        with exchanging(wrapped, last):
            with span("forward"):
                with autocast(self._training.job.train.precision, self._ranks.device):
                    # All fields come last.
                    share = modulation or blending
                    outputs = wrapped(seen)[None] if share is None else wrapped(seen, share.subsets)
                    if modulation is not None:
                        modulation.add(outputs[:-1], seen)
                losses = loss_per_sample(task, outputs[-1], tensors, preprocessor, self._terms, self._ranks.gather)
                # A sample without weight may hold anything, even what makes its loss infinite.
                learned = loss_sum = torch.where(weights > 0, losses * weights, torch.zeros_like(losses)).sum()
                if blending is not None:
                    learned = blending.blend(
                        outputs,
                        seen,
                        weights,
                        lambda output: loss_per_sample(task, output, tensors, preprocessor, self._terms),
                        lambda output: loss_per_sample(task, output, tensors, preprocessor),
                    )
            with span("backward"):
                self._scaler.scale(learned * factor).backward()  # type: ignore[no-untyped-call]
        return loss_sum.detach()

    def _clip(self) -> Tensor:
        """Limits the norm of the gradient, and says whether it is finite."""
        largest = self._training.job.train.clip_norm
        trained = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm = whole(nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None]))
        if largest is not None:
            nn.utils.clip_grads_with_norm_(trained, largest, norm)
        return norm.isfinite()

    def _freeze(self, frozen: frozenset[str]) -> None:
        if frozen != self._frozen:
            set_frozen(self.model, frozen)
            self._wrapped, self._frozen = self._wrap(), frozen
            train_mode(self._wrapped)

    def _wrap(self) -> nn.Module:
        return self.model if self.divided else self._ranks.wrap(self.model)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the model has the average of its weights, where the job keeps one: to be scored."""
        with self._average.in_place() if self._average is not None else contextlib.nullcontext():
            yield

    def snapshot(self) -> Snapshot:
        """A copy of all that this rank has learned, on the CPU, to be written while it learns on."""
        kinds = {
            WEIGHTS_KIND: self.model.state_dict(),
            OPTIMIZER_KIND: optimizer_tensors(self.optimizer, self.model.named_parameters()),
        }
        if self._average is not None:
            kinds[AVERAGE_KIND] = self._average.tensors
        return take_snapshot(kinds, self._ranks, self.divided)


def _seed(device: torch.device, seed: int) -> None:
    """Seeds the device that is trained on. ``torch.manual_seed`` sees to all kinds of devices, and takes a stack trace for each
    that is not there."""
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _recompute(model: MultimodalModel) -> None:
    """Lets the encoders and the fusion forget what they computed, and compute it again for the gradient."""
    for part, module in model_parts(model).items():
        if part != "head":
            module.forward = functools.partial(recomputed, module.forward, use_reentrant=False)


def _require_compiler(device: torch.device) -> None:
    compilers = [os.environ.get("CXX", "g++"), "clang++"]
    if device.type == "cpu" and not any(shutil.which(compiler) for compiler in compilers):
        raise RayMMError(
            f"train.compile: there is no C++ compiler ({' or '.join(compilers)}) where the workers run, and compiling for a CPU "
            "needs one; install it on every node, or leave train.compile out."
        )
