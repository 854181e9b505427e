"""Heads: the fused vector [B, D] → what the task wants."""

from __future__ import annotations

from torch import Tensor, nn

from ray_mm.config.fields import LabelField


class ClassifyHead(nn.Module):
    """[B, D] → logits [B, C]."""

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
    return ClassifyHead(dim, len(label.classes or ())) if label.target == "class" else RegressHead(dim)
