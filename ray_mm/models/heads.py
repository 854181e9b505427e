"""Heads: the fused vector [B, D] → what the task wants."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import assert_never

from ray_mm.config.fields import LabelField


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


def build_head(label: LabelField, dim: int) -> nn.Module:
    """The head for a label, with fresh weights."""
    match label.target:
        case "class" | "classes":
            return ClassifyHead(dim, len(label.classes or ()))
        case "number":
            return RegressHead(dim)
        case _:
            assert_never(label.target)
