"""The optimizer, its learning rate as a pure function of the step, and its state without pickle."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typing_extensions import assert_never

from ray_mm.config.train import ConstantSchedule, CosineSchedule, OptimizerConfig


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101); weight decay on matrices, not on biases, norms and tokens."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(peak: float, schedule: CosineSchedule | ConstantSchedule, step: int, num_steps: int) -> float:
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
            progress = (step - warmup) / max(1, num_steps - warmup)
            return peak * (schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * progress)))
        case _:
            assert_never(schedule)


def save_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Writes an optimizer's state as safetensors: tensors as ``<parameter>.<name>``, everything else in the metadata."""
    tensors: dict[str, torch.Tensor] = {}
    for parameter, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"{parameter}.{name}"] = value.detach().contiguous()
    save_file(tensors, path, metadata={"parameters": json.dumps([len(g["params"]) for g in optimizer.param_groups])})


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Puts a saved state into an optimizer over the same parameters."""
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in load_file(path).items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
