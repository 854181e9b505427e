"""Mix-up (arXiv 1710.09412), cut-mix (arXiv 1905.04899): two neighbours of a batch → two samples that are part one, part other.

Sample 2k of a global batch is mixed with sample 2k + 1, each with a share of its own: the plan has shuffled them, so a neighbour
is a random sample, and another one in every epoch. Every worker has an even number of samples (``config.augment.check_pairs``),
so no pair is cut in two, and what becomes of a sample does not depend on the number of workers.

A pair is mixed only if the same fields are there in both, and a label: a sample that lacks the picture in which the other's
class shows can't be partly of that class. Where one of two series or recordings has ended, the other goes on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ray_mm.config.augment import AugmentConfig
from ray_mm.config.fields import FieldSpec, ImageField, VectorField, VideoField
from ray_mm.config.model import ModelConfig
from ray_mm.config.tasks import LabelledTask
from ray_mm.data.fields import POSITION, WEIGHT, length_name, presence_name, time_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.models.layers import length_mask
from ray_mm.models.losses import other_label_name, own_share_name
from ray_mm.training.draws import Draws, Numbers, on_device


@dataclass(frozen=True)
class Boxes:
    """A rectangle for each sample, in shares of the height and width: float64 [B] each."""

    top: Numbers
    left: Numbers
    height: Numbers
    width: Numbers

    @classmethod
    def of(cls, height: Numbers, width: Numbers, draws: Draws, *what: str) -> Boxes:
        """Of a size, at a random place, wholly within the picture."""
        height, width = np.minimum(height, 1.0), np.minimum(width, 1.0)
        top = draws.uniform(*what, "top") * (1 - height)
        return cls(top, draws.uniform(*what, "left") * (1 - width), height, width)

    def mask(self, like: Tensor) -> Tensor:
        """bool [B, (1,) height, width, 1]: what lies within.

        Args:
            like: [B, (frames,) height, width, channels].
        """
        rows, columns = like.shape[-3], like.shape[-2]
        within = [
            on_device(_between(start, size, count), like.device)
            for start, size, count in ((self.top, self.height, rows), (self.left, self.width, columns))
        ]
        found = (within[0][:, :, None] & within[1][:, None, :])[..., None]
        return found if like.ndim == 4 else found[:, None]


def _between(start: Numbers, size: Numbers, count: int) -> npt.NDArray[np.bool_]:
    """bool [B, count]: of as many places as the size comes to, rounded."""
    first = np.round(start * count)[:, None]
    places = np.arange(count)[None, :]
    return (places >= first) & (places < first + np.round(size * count)[:, None])


def mix_pairs(
    tensors: dict[str, Tensor],
    host: Mapping[str, Tensor],
    draws: Draws,
    config: AugmentConfig,
    model: ModelConfig,
    preprocessor: Preprocessor,
) -> dict[str, Tensor]:
    """A batch whose samples are mixed with their neighbours.

    Args:
        tensors: a worker's share of a batch, an even number of samples.
        host: presence, label and weight of it on the CPU.
        draws: of its samples.
        config: how they are mixed.
        model: its input fields and its task.
        preprocessor: its fields.

    Returns:
        The batch; classes have a second label and the share of the first one beside them (see ``models.losses``).
    """
    task, fields = model.task, sorted(model.fields)
    assert isinstance(task, LabelledTask), "check_augment has passed"
    mixed = _pairs(host, [*fields, task.label])
    cut = np.zeros(len(mixed), np.bool_)
    share = np.ones(len(mixed))
    if config.cutmix is not None:
        cut = mixed & (draws.uniform("cut or mix") < (0.5 if config.mixup is not None else 1.0))
        share[cut] = draws.beta(config.cutmix, "cut")[cut]
    if config.mixup is not None:
        share[mixed & ~cut] = draws.beta(config.mixup, "mix")[mixed & ~cut]
    device = tensors[WEIGHT].device
    on = _Mix(on_device(mixed, device), on_device(cut, device), on_device(share.astype(np.float32), device), share)
    found = dict(tensors)
    for name in fields:
        found |= _mix_field(name, preprocessor.fields[name], tensors, on, draws)
    label = tensors[task.label]
    if label.is_floating_point():
        return found | {task.label: torch.lerp(_neighbour(label), label, on.share.reshape(-1, *[1] * (label.ndim - 1)))}
    # Between two numbers of classes lies none: both stay, beside each other.
    return found | {other_label_name(task.label): _neighbour(label), own_share_name(task.label): on.share}


@dataclass(frozen=True)
class _Mix:
    """What becomes of each sample: whether it is mixed, whether by a rectangle, and the share that is its own."""

    mixed: Tensor
    cut: Tensor
    share: Tensor
    share_on_host: Numbers


def _pairs(host: Mapping[str, Tensor], fields: list[str]) -> npt.NDArray[np.bool_]:
    """Which samples are mixed with their neighbour: bool [B]."""
    there = np.stack([host[presence_name(name)].numpy() for name in fields])
    counts = (host[POSITION].numpy() >= 0) & (host[WEIGHT].numpy() > 0) & there[-1]
    alike = (there[:, 0::2] == there[:, 1::2]).all(axis=0) & counts[0::2] & counts[1::2]
    return np.repeat(alike, 2)


def _neighbour(x: Tensor) -> Tensor:
    """Each sample's other one of its pair."""
    return x.reshape(-1, 2, *x.shape[1:]).flip(1).reshape(x.shape)


def _mix_field(name: str, spec: FieldSpec, tensors: Mapping[str, Tensor], on: _Mix, draws: Draws) -> dict[str, Tensor]:
    own = tensors[name]
    axes = [-1, *[1] * (own.ndim - 1)]
    share = on.share.reshape(axes)
    if isinstance(spec, ImageField | VideoField):
        side = np.sqrt(1 - on.share_on_host)
        inside = Boxes.of(side, side, draws, name, "cut").mask(own)
        share = torch.where(on.cut.reshape(axes), (~inside).float(), share)
    if isinstance(spec, ImageField | VectorField):
        return {name: _blend(own, _neighbour(own), share)}
    length = tensors[length_name(name)]
    other_length = _neighbour(length)
    here, there = (
        length_mask(each, own.shape[1]).reshape(*own.shape[:2], *axes[2:]) for each in (length, other_length)
    )
    share = torch.where(here & there, share, (here | ~there).float())
    # Of a pair that is not mixed nothing is taken, however long the other is.
    share = torch.where(on.mixed.reshape(axes), share, 1.0)
    longest = torch.where(on.mixed, torch.maximum(length, other_length), length)
    found = {name: _blend(own, _neighbour(own), share), length_name(name): longest}
    if isinstance(spec, VideoField):
        times = tensors[time_name(name)]
        goes_on = on.mixed[:, None] & (there & ~here).reshape(own.shape[:2])
        found[time_name(name)] = torch.where(goes_on, _neighbour(times), times)
    return found


def _blend(own: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """share · own + (1 − share) · other, in the dtype of the content."""
    blended = torch.lerp(other.float(), own.float(), share)
    return blended if own.is_floating_point() else blended.round_().to(own.dtype)
