"""The ranks of a training: gradients averaged by DDP, sums over all ranks, one decision for all.

Outside a process group (a test, a notebook) there is one rank and every sum is its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ray_mm.training.spans import span


@dataclass(frozen=True)
class Ranks:
    """This worker's place among all.

    Attributes:
        rank: from 0.
        world_size: number of workers.
        device: where this worker computes.
    """

    rank: int
    world_size: int
    device: torch.device

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks, in float64: the same numbers on every rank.

        They go from host to host: no rank waits for what it has given its device to do.
        """
        if self.world_size == 1:
            return [float(value) for value in values]
        tensor = torch.tensor(values, dtype=torch.float64)
        with span("all-reduce"):
            dist.all_reduce(tensor)
            return [float(value) for value in tensor.tolist()]

    def gather(self, rows: Tensor) -> tuple[Tensor, int]:
        """The rows of all ranks, one after the other, and at which of them this rank's begin.

        Args:
            rows: [B, …], of the same shape on every rank.

        Returns:
            [world_size · B, …]; a gradient of it goes back to the ranks whose rows they are, added up over those that used them.
        """
        if self.world_size == 1:
            return rows, 0
        with span("all-reduce"):
            if rows.is_floating_point():
                found: Tensor = _AllGather.apply(rows, self.rank)  # type: ignore[no-untyped-call]
            else:
                found = _gathered(rows)
        return found, self.rank * rows.shape[0]

    def barrier(self) -> None:
        """Returns when every rank has come here."""
        self.sum([0.0])

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model on this worker's device, its gradients averaged over the ranks."""
        model = model.to(self.device)
        if self.world_size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)


class _AllGather(torch.autograd.Function):
    """The rows of all ranks. What a row costs the others comes back to the rank that made it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int) -> Tensor:
        ctx.place = (rank * rows.shape[0], rows.shape[0])
        return _gathered(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        start, count = ctx.place
        return gradient[start : start + count], None


def _gathered(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The context of a forward pass: half precision where it is wanted and there, else as it is."""
    dtype = half_precision(precision, device)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def half_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of products in half precision; None: they are not."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(resolve_precision(precision, device))


def resolve_precision(precision: str, device: torch.device) -> str:
    """What ``auto`` means here: bf16 on a GPU that has it, else fp32; anything else means itself."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def use_precision(precision: str, device: torch.device) -> None:
    """Lets a GPU multiply float32 matrices in TF32 if that is wanted, and in no other case."""
    if device.type == "cuda":
        wanted = resolve_precision(precision, device) == "tf32"
        torch.set_float32_matmul_precision("high" if wanted else "highest")
        torch.backends.cudnn.allow_tf32 = wanted


def use_cores(workers_on_node: int, most: int | None = None) -> None:
    """Lets torch use this worker's share of the node's cores.

    Ray gives a worker as many threads as it has CPUs reserved, on a laptop less than one. What data does not use at a
    moment would lie idle.

    Args:
        workers_on_node: of this training.
        most: threads that each may use, because others train beside it.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, min(cores // workers_on_node, cores if most is None else most)))
