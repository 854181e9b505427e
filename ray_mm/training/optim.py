"""The optimizer, its learning rate as a pure function of the step, and its state without pickle."""

from __future__ import annotations

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
    """Writes an optimizer's state as safetensors, a tensor as ``<parameter's number>.<name>``; settings are the job's."""
    tensors: dict[str, torch.Tensor] = {}
    for parameter, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"{parameter}.{name}"] = value.detach().contiguous()
    save_file(tensors, path)


def load_optimizer(optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Puts a saved state into an optimizer over the same parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in load_file(path).items():
        number, _, name = key.partition(".")
        if tensor.ndim:
            # The fused step takes a parameter's memory and its moments' element by element, whatever their strides say,
            # and a convolution holds its weights as channels_last.
            laid_out = torch.empty_like(parameters[int(number)], dtype=tensor.dtype, device="cpu", requires_grad=False)
            tensor = laid_out.copy_(tensor)
        state.setdefault(int(number), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
