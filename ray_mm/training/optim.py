"""The optimizer, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from typing_extensions import assert_never

from ray_mm.config.optimize import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    OptimizerConfig,
    ScheduleConfig,
    WsdSchedule,
)

_MOMENTUM = 0.95
_FACTOR = "lr_factor"


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, factors: Mapping[nn.Parameter, float] | None = None
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101), or Muon (arXiv 2502.16982) with it.

    Weight decay is on matrices, not on biases, norms and tokens. Muon takes the weights of linear layers, but those of the
    head, whose rows belong to classes.

    Args:
        model: all of its parameters, frozen ones among them: they are passed over while they have no gradient.
        config: of the optimizer.
        factors: parameter → what its learning rate is multiplied by; 1 for those that are not there.
    """
    factors = factors or {}
    orthogonal = _linear_weights(model) if config.name == "muon" else frozenset()
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        kind = parameter in orthogonal, parameter.ndim >= 2, factors.get(parameter, 1.0)
        groups.setdefault(kind, []).append(parameter)

    def those(taken: bool) -> list[dict[str, Any]]:
        return [
            {"params": parameters, "weight_decay": config.weight_decay if decayed else 0.0, _FACTOR: factor}
            for (by_muon, decayed, factor), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
            if by_muon == taken
        ]

    adamw = torch.optim.AdamW(those(False), lr=config.lr, betas=config.betas, fused=True)
    if not orthogonal:
        return adamw
    momentum = _MOMENTUM if config.momentum is None else config.momentum
    # Its steps as large as AdamW's are, so that one learning rate suits both.
    muon = torch.optim.Muon(those(True), lr=config.lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
    return _Joined(muon, adamw)


class _Joined(torch.optim.Optimizer):
    """Several optimizers over different parameters as one: their groups, their states."""

    def __init__(self, *parts: torch.optim.Optimizer) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts
        for part in parts:
            part.state = self.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of each."""
        if closure is not None:
            raise ValueError("no closure is taken")
        for part in self._parts:
            part.step()


def _linear_weights(model: nn.Module) -> frozenset[nn.Parameter]:
    head = getattr(model, "head", None)
    of_head = frozenset(head.parameters()) if isinstance(head, nn.Module) else frozenset()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    # Typed as a tensor there.
    weights = frozenset(weight for module in linear if isinstance(weight := module.weight, nn.Parameter))
    return weights - of_head


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of a step, each group's multiplied by its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group[_FACTOR]


def learning_rate(peak: float, schedule: ScheduleConfig, step: int, num_steps: int) -> float:
    """The learning rate of a step.

    Args:
        peak: highest learning rate.
        schedule: shape over the training.
        step: from 1 to num_steps.
        num_steps: of the whole training.
    """
    warmup = round(schedule.warmup * num_steps)
    if step <= warmup:
        return peak * step / warmup
    match schedule:
        case ConstantSchedule():
            return peak
        case CosineSchedule():
            left = 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, num_steps)))
        case LinearSchedule():
            left = 1 - _progress(step, warmup, num_steps)
        case WsdSchedule():
            # Better than a line (Hägele et al., arXiv 2405.18392).
            stable = max(warmup, num_steps - round(schedule.decay * num_steps))
            left = 1 - math.sqrt(_progress(step, stable, num_steps))
        case _:
            assert_never(schedule)
    return peak * (schedule.final + (1 - schedule.final) * left)


def _progress(step: int, first: int, last: int) -> float:
    """From 0 at the first step, or before it, to 1 at the last."""
    return max(0, step - first) / max(1, last - first)
