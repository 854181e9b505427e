"""Named tensors in one safetensors file, or each of them in parts: a file per rank of a sharded training.

    <folder>/model.safetensors                    whole tensors
    <folder>/model-00001-of-00002.safetensors     parts: blocks of the tensors, and where in them they begin

Parts are written as torch.distributed.checkpoint does with its ``HuggingFaceStorageWriter``, whose reader reads them, too.
Whoever reads does not see which of the two it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ray_mm.errors import CheckpointError

if TYPE_CHECKING:  # what describes an artifact is read where there is no torch
    from torch import Tensor

_OFFSETS_KEY = "DCP_SHARDING_INFO"
_OFFSETS = "saved_offsets"


@dataclass(frozen=True)
class Part:
    """A block of a tensor.

    Attributes:
        tensor: the block; of any number of dimensions, none among them.
        offset: where in the whole tensor it begins, a number per dimension.
        shape: of the whole tensor.
    """

    tensor: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def whole_file(kind: str) -> str:
    """The file of whole tensors, such as ``model.safetensors``."""
    return f"{kind}.safetensors"


def part_file(kind: str, rank: int, world_size: int) -> str:
    """The file of a rank's parts, such as ``model-00001-of-00002.safetensors``."""
    return f"{kind}-{rank + 1:05d}-of-{world_size:05d}.safetensors"


def write_parts(path: Path, parts: Mapping[str, Part]) -> None:
    """Writes a rank's parts.

    Args:
        path: of the file.
        parts: name → this rank's part; on the CPU and contiguous. What another rank writes is left out.
    """
    from safetensors.torch import save_file

    offsets = {name: {_OFFSETS: list(part.offset)} for name, part in parts.items()}
    save_file({name: part.tensor for name, part in parts.items()}, path, {_OFFSETS_KEY: json.dumps(offsets)})


class TensorFiles:
    """The tensors of one kind in a folder, to be read by name. A context: at its end the files are closed.

    Args:
        folder: of a checkpoint.
        kind: such as ``model``.

    Raises:
        CheckpointError: there are none.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        whole = folder / whole_file(kind)
        self._where = f"{folder}: {kind}"
        self._paths = [whole] if whole.exists() else sorted(folder.glob(f"{kind}-*-of-*.safetensors"))
        if not self._paths:
            raise CheckpointError(
                f"{folder}: there is no {whole_file(kind)}, nor parts of it; the checkpoint is not whole."
            )
        self._files = ExitStack()
        self._parts: dict[str, list[tuple[Any, tuple[int, ...], tuple[int, ...]]]] = {}

    def __enter__(self) -> TensorFiles:
        from safetensors import SafetensorError, safe_open

        for path in self._paths:
            try:
                stored = self._files.enter_context(safe_open(path, "pt"))
            except (OSError, SafetensorError) as error:
                self._files.close()
                raise CheckpointError(f"{path}: is not a safetensors file ({error}).") from None
            offsets = json.loads((stored.metadata() or {}).get(_OFFSETS_KEY, "{}"))
            for name in stored.keys():  # noqa: SIM118 - not a dict
                shape = tuple(stored.get_slice(name).get_shape())
                offset = tuple(offsets[name][_OFFSETS]) if name in offsets else (0,) * len(shape)
                self._parts.setdefault(name, []).append((stored, offset, shape))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()

    @property
    def names(self) -> list[str]:
        """Of all tensors, sorted."""
        return sorted(self._parts)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a whole tensor, as far as its parts say."""
        _, offsets, shapes = zip(*self._found(name), strict=True)
        ends = [[start + size for start, size in zip(*part, strict=True)] for part in zip(offsets, shapes, strict=True)]
        return tuple(max(sizes) for sizes in zip(*ends, strict=True))

    def read(self, name: str) -> Tensor:
        """A whole tensor, in a memory of its own.

        Raises:
            CheckpointError: there is none of this name, or a part of it is missing.
        """
        import torch

        shape = self.shape(name)
        whole = torch.empty(shape, dtype=self._found(name)[0][0].get_tensor(name).dtype)
        self.fill(name, Part(whole, (0,) * len(shape), shape))
        return whole

    def fill(self, name: str, into: Part) -> None:
        """Reads a part of a tensor, from as many files as have something of it.

        Args:
            name: of the tensor.
            into: takes the values; its tensor may be on any device, in any strides, and of any dtype.

        Raises:
            CheckpointError: there is no tensor of this name and shape, or some of it is in no file.
        """
        found = self._found(name)
        if self.shape(name) != into.shape:
            raise CheckpointError(
                f"{self._where}: {name} has shape {list(self.shape(name))}, expected {list(into.shape)}; the checkpoint is of "
                "another model, or not whole."
            )
        missing = into.tensor.numel()
        for stored, start, shape in found:
            # Where both overlap, in the whole tensor.
            begins = [max(one, other) for one, other in zip(start, into.offset, strict=True)]
            ends = [
                min(one + size, other + wanted)
                for one, size, other, wanted in zip(start, shape, into.offset, into.tensor.shape, strict=True)
            ]
            if any(end <= begin for begin, end in zip(begins, ends, strict=True)):
                continue
            here = tuple(slice(begin - at, end - at) for begin, end, at in zip(begins, ends, into.offset, strict=True))
            there = tuple(slice(begin - at, end - at) for begin, end, at in zip(begins, ends, start, strict=True))
            block = stored.get_slice(name)[there] if there else stored.get_tensor(name)
            into.tensor[here].copy_(block)
            missing -= block.numel()
        if missing:
            raise CheckpointError(f"{self._where}: {abs(missing)} values of {name} are in no file, or in several.")

    def _found(self, name: str) -> list[tuple[Any, tuple[int, ...], tuple[int, ...]]]:
        if name not in self._parts:
            raise CheckpointError(f"{self._where}: there is no {name}; the checkpoint is of another model.")
        return self._parts[name]


def read_tensors(folder: Path, kind: str) -> dict[str, Tensor]:
    """All tensors of a kind in a folder, whole, whatever files they are in.

    Raises:
        CheckpointError: they are not there, or not whole.
    """
    with TensorFiles(folder, kind) as stored:
        return {name: stored.read(name) for name in stored.names}
