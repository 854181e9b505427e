"""A model that is divided over the ranks: each keeps a part of every weight, gradient and moment (FSDP2, arXiv 2304.11277).

A layer's weights are put together when it is computed, forward and backward, and let go of after it. Everything else (the
optimizer's step, the norm of the gradient, the average of the weights) is done on the parts.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ray_mm.models.encoders.pretrained import PretrainedEncoder
from ray_mm.models.multimodal import MultimodalModel
from ray_mm.tensor_files import Part
from ray_mm.training.parallel import Ranks, half_precision
from ray_mm.training.parts import model_parts

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

_MIN_UNIT = 1 << 20
"""Values of a layer that is put together by itself. Smaller ones are with their encoder: asking for each would cost more than
it saves."""


def shard(model: MultimodalModel, ranks: Ranks, precision: str) -> None:
    """Divides a model over the ranks, in place: layers, encoders, the fusion, and the head with what is left.

    Args:
        model: with the same weights on every rank, on the CPU: no device has to hold all of it.
        ranks: two or more.
        precision: of the job. In bf16 the weights travel in it, too; gradients are added up in float32.
    """
    # Slow to import, in every process that starts, and most trainings are not divided.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    if ranks.device.type == "cuda":
        # FSDP2 works on the process's current one.
        torch.cuda.set_device(ranks.device)
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))
    # Not in fp16, in which the gradients of norms would overflow long before those of matrices do.
    dtype = torch.bfloat16 if half_precision(precision, ranks.device) == torch.bfloat16 else None
    # Inputs stay as they are: a sensor's values are standardised first, and autocast decides what else is rounded.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    # Nothing here changes in place what a layer gives back.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    # FSDP2 takes contiguous weights only; a convolution holds its own as channels_last.
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    for module in (*_units(model), model):
        # After a validation, too, only parts are to be there.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    model.to(ranks.device)


def _units(model: MultimodalModel) -> Iterator[nn.Module]:
    """Modules that are put together one by one, inner ones first."""
    for name, part in model_parts(model).items():
        if name == "head":
            continue
        if isinstance(part, PretrainedEncoder):
            yield from (layer for layer in part.layers() if sum(p.numel() for p in layer.parameters()) >= _MIN_UNIT)
        for child in part.children():
            if isinstance(child, (nn.Sequential, nn.ModuleList)):
                yield from (layer for layer in child if sum(p.numel() for p in layer.parameters()) >= _MIN_UNIT)
        yield part


@contextlib.contextmanager
def exchanging(model: nn.Module, last: bool) -> Iterator[None]:
    """Within the block a backward pass exchanges the gradients of all since the last exchange, or only adds to them.

    Args:
        model: divided, wrapped by DDP, or neither.
        last: whether it is the last one before the step.
    """
    if is_divided(model):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def is_divided(module: nn.Module) -> TypeGuard[FSDPModule]:
    """Whether ``shard`` has divided a module."""
    # As long as nothing is divided, it is not imported.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def is_part(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor is one of a module that is divided."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this rank has of a tensor: its part, or all of one that is not divided. Shares its memory."""
    return tensor.to_local() if is_part(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all of its parts; every rank has to ask for it."""
    return tensor.full_tensor() if is_part(tensor) else tensor


def part_of(tensor: Tensor) -> Part:
    """What this rank has of a tensor, and where it is in the whole. Shares its memory."""
    mine = local(tensor.detach())
    if not is_part(tensor):
        return Part(mine, (0,) * mine.ndim, tuple(mine.shape))
    from torch.distributed.tensor import Shard

    mesh = tensor.device_mesh
    assert tensor.placements == (Shard(0),), "FSDP2 divides the first dimension"
    # As torch.chunk does: the last ranks may have less, or nothing.
    rows = -(-tensor.shape[0] // mesh.size())
    first = min(mesh.get_local_rank() * rows, tensor.shape[0])
    assert mine.shape[0] == min(rows, tensor.shape[0] - first)
    return Part(mine, (first, *(0,) * (mine.ndim - 1)), tuple(tensor.shape))


class Writers:
    """The threads of all ranks that write one checkpoint: what one has to say, all hear.

    They have a process group of their own, so that they do not get in the way of the training. Every rank has to make one.

    Args:
        ranks: this worker's place.
        divided: whether every rank writes; else rank 0 does alone.
    """

    def __init__(self, ranks: Ranks, divided: bool) -> None:
        self.rank = ranks.rank
        self.divided = divided
        self._world_size = ranks.world_size
        self._group = dist.new_group(backend="gloo") if divided else None

    @property
    def writes(self) -> bool:
        """Whether this rank writes."""
        return self.divided or self.rank == 0

    def exchange(self, mine: dict[str, str]) -> list[dict[str, str]]:
        """What every rank has to say, by rank; waits for all."""
        if self._group is None:
            return [mine]
        found: list[dict[str, str]] = [{} for _ in range(self._world_size)]
        dist.all_gather_object(found, mine, group=self._group)
        return found
