"""How much of what a GPU could compute a training uses: model FLOPs per sample, and the peaks of GPUs.

Model FLOPs utilisation (MFU; Chowdhery et al., arXiv 2204.02311) counts the products that a forward pass needs, and twice as many
for the gradient. What is computed a second time to save memory is not counted, nor what torch's counter does not know:
recurrent layers, norms, activations.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ray_mm.models.multimodal import MultimodalModel
from ray_mm.training.parts import model_parts

_ROWS = 8
"""Samples that are counted: the figure per sample is the same for any number of them."""

_TERA = 1e12
_PEAKS: tuple[tuple[str, Mapping[str, float]], ...] = (
    (r"B200", {"half": 2250, "tf32": 1100, "fp32": 75}),
    (r"GH200|H200(?! NVL)|H100 (SXM|80GB HBM3)", {"half": 989, "tf32": 494, "fp32": 67}),
    (r"H100 PCIe", {"half": 756, "tf32": 378, "fp32": 51}),
    (r"A100", {"half": 312, "tf32": 156, "fp32": 19.5}),
    (r"L40S", {"half": 362, "tf32": 183, "fp32": 91.6}),
    (r"L4", {"half": 121, "tf32": 60, "fp32": 30.3}),
    (r"A10", {"half": 125, "tf32": 62.5, "fp32": 31.2}),
    (r"V100", {"fp16": 125, "fp32": 15.7}),
    (r"T4", {"fp16": 65, "fp32": 8.1}),
    (r"RTX 4090(?! Laptop)", {"half": 165, "tf32": 82.6, "fp32": 82.6}),
    (r"RTX 3090(?! Ti)", {"half": 71, "tf32": 35.6, "fp32": 35.6}),
)
"""Name of a GPU → 10¹² operations a second by precision, dense, as its maker gives them; half: bf16 and fp16."""


def peak_flops(device_name: str, precision: str) -> float | None:
    """What a GPU can compute in a second at the most; None where nobody has told this table.

    Args:
        device_name: as ``torch.cuda.get_device_name`` says.
        precision: bf16, fp16, tf32 or fp32.
    """
    for pattern, peaks in _PEAKS:
        if re.search(rf"(?<![A-Za-z0-9])({pattern})(?![A-Za-z0-9])", device_name):
            peak = peaks.get(precision, peaks.get("half") if precision in ("bf16", "fp16") else None)
            return None if peak is None else peak * _TERA
    return None


@torch.no_grad()
def forward_flops(model: MultimodalModel, tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Part of the model → operations of its forward pass per sample.

    Args:
        model: not wrapped for its ranks, in train mode.
        tensors: of a real batch; some of its samples are taken.
    """
    few = {name: tensor[:_ROWS] for name, tensor in tensors.items()}
    rows = len(next(iter(few.values())))
    # A compiled model hides its products from the counter; so does, in eval mode, a transformer layer of torch.
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        model(few)
    counts, names = counter.get_flop_counts(), {module: name for name, module in model.named_modules()}
    root = type(model).__name__
    return {
        part: sum(counts.get(f"{root}.{names[module]}", {}).values()) / rows
        for part, module in model_parts(model).items()
    }


def training_flops(forward: Mapping[str, float], frozen: Collection[str]) -> float:
    """Operations of a training step per sample.

    Args:
        forward: of each part of the model.
        frozen: parts that are not trained.
    """
    return sum(flops * (1 if part in frozen else 3) for part, flops in forward.items())
