"""Heads: the fused vector [B, D] → what the task wants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from typing_extensions import assert_never

from ray_mm.config.fields import FieldSpec, LabelField
from ray_mm.config.tasks import (
    ClassifyTask,
    GridTask,
    MultilabelTask,
    ReconstructTask,
    RegressTask,
    RetrieveTask,
    SegmentTask,
    SeveralTask,
    TaskConfig,
)
from ray_mm.models.decoders import ReconstructHead
from ray_mm.models.maps import MapHead

_MAX_SCALE = 100.0
"""As in CLIP: a scale that grows further makes the training unstable."""


class ClassifyHead(nn.Module):
    """[B, D] → logits [B, C]: of one class among others, or of each by itself."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(dim, num_classes)

    def forward(self, fused_BD: Tensor) -> Tensor:
        result: Tensor = self.output(fused_BD)
        return result


class RegressHead(nn.Module):
    """[B, D] → a value [B] in standard deviations from the label's mean."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.output = nn.Linear(dim, 1)

    def forward(self, fused_BD: Tensor) -> Tensor:
        result: Tensor = self.output(fused_BD).squeeze(-1)
        return result


class RetrieveHead(nn.Module):
    """The vectors of towers [B, K, D] → [B, K, E + 2]: each one's embedding of length 1, then two numbers that are the same for
    all of them, by which cosines become logits: a factor, and what is added (0 for InfoNCE).

    The two travel in the output, so that they are weights of the model like any other, which DDP averages and FSDP2 divides.

    Args:
        config: of the task.
        dim: D.
        num_projections: K, or 1 for all of them.
    """

    def __init__(self, config: RetrieveTask, dim: int, num_projections: int) -> None:
        super().__init__()
        siglip = config.loss == "siglip"
        self.project = nn.ModuleList(nn.Linear(dim, config.dim) for _ in range(num_projections))
        self.log_scale = nn.Parameter(torch.tensor([-math.log(config.temperature or (0.1 if siglip else 0.07))]))
        # At first nearly all pairs are of different samples.
        self.bias = nn.Parameter(torch.tensor([-10.0])) if siglip else None

    def forward(self, fused_BKD: Tensor) -> Tensor:
        if len(self.project) == 1:
            vectors: Tensor = self.project[0](fused_BKD)
        else:
            vectors = torch.stack([project(fused_BKD[:, place]) for place, project in enumerate(self.project)], dim=1)
        # In half precision lengths would be off by more than cosines of neighbours differ.
        unit = F.normalize(vectors.float(), dim=-1)
        scale = self.log_scale.float().exp().clamp(max=_MAX_SCALE)
        bias = torch.zeros_like(scale) if self.bias is None else self.bias.float()
        same = torch.cat([scale, bias]).expand(unit.shape[0], unit.shape[1], 2)
        return torch.cat([unit, same], dim=-1)


class SeveralHead(nn.Module):
    """[B, D] → the outputs of several heads beside each other [B, N], as ``SeveralTask.slices`` says; behind them, where the
    tasks are weighed by their uncertainty, the logarithm of each one's variance, the same in every row.

    Args:
        config: of the task.
        fields: the labels among them.
        dim: D.
        grids: see ``build_head``.
    """

    def __init__(
        self,
        config: SeveralTask,
        fields: Mapping[str, FieldSpec],
        dim: int,
        grids: Mapping[str, tuple[int, int]] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.names = sorted(config.tasks)
        self.heads = nn.ModuleList(
            build_head(config.tasks[name], fields, dim, grids={"": grids[name]} if name in grids else {})
            for name in self.names
        )
        learns = config.weighting == "uncertainty"
        self.log_variances = nn.Parameter(torch.zeros(len(config.tasks))) if learns else None

    def forward(self, fused_BD: Tensor, seen: Mapping[str, Any] = MappingProxyType({})) -> Tensor:
        """Joins the outputs.

        Args:
            fused_BD: of all fields.
            seen: task with a map → what its head takes beside the fused vector, see ``maps.MapHead``.
        """
        named = zip(self.names, self.heads, strict=True)
        found: list[Tensor] = [head(fused_BD, *seen.get(name, ())) for name, head in named]
        parts = [output.reshape(output.shape[0], -1) for output in found]
        if self.log_variances is not None:
            parts.append(self.log_variances.to(parts[0].dtype).expand(fused_BD.shape[0], -1))
        return torch.cat(parts, dim=1)


def build_head(
    task: TaskConfig,
    fields: Mapping[str, FieldSpec],
    dim: int,
    num_projections: int = 1,
    grids: Mapping[str, tuple[int, int]] = MappingProxyType({}),
) -> nn.Module:
    """The head for a task, with fresh weights.

    Args:
        task: of the model.
        fields: the inputs, and the label if the task has one.
        dim: width of the fused vector.
        num_projections: of a retrieval: one per tower, or one for all.
        grids: task with a map (one alone has no name) → rows and columns of the tokens that it is made from.
    """
    match task:
        case ClassifyTask() | MultilabelTask():
            label = fields[task.label]
            assert isinstance(label, LabelField)
            return ClassifyHead(dim, len(label.classes or ()))
        case RegressTask():
            return RegressHead(dim)
        case SeveralTask():
            return SeveralHead(task, fields, dim, grids)
        case SegmentTask() | GridTask():
            label = fields[task.label]
            assert isinstance(label, LabelField)
            assert label.height is not None and label.width is not None
            return MapHead(dim, len(label.classes or ()), grids[""], (label.height, label.width))
        case RetrieveTask():
            return RetrieveHead(task, dim, num_projections)
        case ReconstructTask():
            return ReconstructHead(task.fields_of(fields), fields, dim)
        case _:
            assert_never(task)
