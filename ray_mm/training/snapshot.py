"""What a training has learned at a moment, and its files: this rank's part of it, or all.

    model.safetensors       or model-00001-of-00002.safetensors, ...       the weights
    optimizer.safetensors   or optimizer-00001-of-00002.safetensors, ...   the optimizer's state
    average.safetensors     or average-00001-of-00002.safetensors, ...     the average of the weights, where the job keeps one

Either is read into a model that is divided or not, by any number of ranks: each reads what it needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ray_mm.checkpoint import WEIGHTS_KIND
from ray_mm.errors import CheckpointError
from ray_mm.storage import sha256_file
from ray_mm.tensor_files import Part, TensorFiles, part_file, read_tensors, whole_file, write_parts
from ray_mm.training.parallel import Ranks
from ray_mm.training.sharding import local, part_of

OPTIMIZER_KIND = "optimizer"
AVERAGE_KIND = "average"


@dataclass(frozen=True)
class Snapshot:
    """Copies of tensors on the CPU.

    Attributes:
        kinds: kind (the weights, the optimizer's state, the average) → name → what this rank has of the tensor.
        rank: whose it is.
        world_size: of how many; 1: all is whole.
    """

    kinds: dict[str, dict[str, Part]]
    rank: int = 0
    world_size: int = 1

    def write(self, folder: Path) -> dict[str, str]:
        """Writes its files into a folder, which may exist.

        Returns:
            File → its hex SHA-256.
        """
        folder.mkdir(parents=True, exist_ok=True)
        digests = {}
        for kind, parts in self.kinds.items():
            if self.world_size == 1:
                file = whole_file(kind)
                save_file({name: part.tensor for name, part in parts.items()}, folder / file)
            else:
                file = part_file(kind, self.rank, self.world_size)
                write_parts(folder / file, parts)
            digests[file] = sha256_file(folder / file)
        return digests


def take_snapshot(kinds: Mapping[str, Mapping[str, Tensor]], ranks: Ranks, divided: bool) -> Snapshot:
    """Copies tensors, to be written while the training goes on.

    Args:
        kinds: as in ``Snapshot``; on any device.
        ranks: this worker's place.
        divided: whether every rank has its part of them; else this one has all.
    """
    copies = {kind: dict[str, Part]() for kind in kinds}
    for kind, tensors in kinds.items():
        for name, tensor in tensors.items():
            part = part_of(tensor)
            # What is not divided, such as a count of steps, is the same everywhere; of some tensors this rank has nothing.
            if not divided or (part.tensor.numel() and (ranks.rank == 0 or part.tensor.shape != part.shape)):
                copies[kind][name] = Part(copied(part.tensor), part.offset, part.shape)
    return Snapshot(copies, ranks.rank, ranks.world_size) if divided else Snapshot(copies)


def copied(tensor: Tensor) -> Tensor:
    """A copy on the CPU, in the order of its dimensions: a convolution holds its weights in another."""
    return tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)


def published_weights(folder: Path, averaged: bool) -> dict[str, Tensor]:
    """The weights that a model is used with, from the files of a snapshot: the averaged ones, where there are any."""
    return read_tensors(folder, WEIGHTS_KIND) | (read_tensors(folder, AVERAGE_KIND) if averaged else {})


def load_tensors(folder: Path, kind: str, into: Mapping[str, Tensor]) -> None:
    """Reads what this rank has of some tensors, in place.

    Args:
        folder: of a checkpoint.
        kind: of the tensors.
        into: all of this kind, by name.

    Raises:
        CheckpointError: they are not those that are there.
    """
    with TensorFiles(folder, kind) as stored, torch.no_grad():
        if other := sorted(set(stored.names) - set(into)):
            raise CheckpointError(f"{folder}: {kind} has {other[0]}, which the model has not; it is of another model.")
        for name, tensor in into.items():
            stored.fill(name, part_of(tensor))


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Iterable[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
    """An optimizer's state, a tensor as ``<parameter>.<what it is>``; settings are the job's.

    Args:
        optimizer: after any number of steps.
        names: of its parameters, as the model names them.
    """
    return {
        f"{name}.{what}": value
        for name, parameter in names
        for what, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, names: Iterable[tuple[str, nn.Parameter]], folder: Path) -> None:
    """Puts a state that was saved into an optimizer of the same kind, over parameters of the same names."""
    parameters = dict(names)
    with TensorFiles(folder, OPTIMIZER_KIND) as stored, torch.no_grad():
        for key in stored.names:
            name, _, what = key.rpartition(".")
            parameter = parameters.get(name)
            if parameter is None:
                raise CheckpointError(f"{folder}: {OPTIMIZER_KIND} has {name}, which the model has not.")
            if stored.shape(key):
                # The fused step takes a parameter's memory and its moments' element by element, whatever their strides
                # say, and a convolution holds its weights as channels_last.
                value = torch.empty_like(parameter, dtype=torch.float32, requires_grad=False)
            else:
                value = torch.empty((), dtype=torch.float32, device=local(parameter).device)
            stored.fill(key, part_of(value))
            optimizer.state[parameter][what] = value
