"""Tensors in parts: read whole, or any block of them, whoever wrote which."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ray_mm.errors import CheckpointError
from ray_mm.tensor_files import Part, TensorFiles, part_file, read_tensors, write_parts

SHAPES = [(), (1,), (7,), (5, 3), (2, 3, 4), (0, 2)]


def _write(folder: Path, world_size: int) -> dict[str, torch.Tensor]:
    """Tensors of several shapes, divided along their first dimension; those without one are rank 0's."""
    torch.manual_seed(0)
    tensors = {f"t{number}": torch.randn(shape) for number, shape in enumerate(SHAPES)}
    for rank in range(world_size):
        parts = {}
        for name, tensor in tensors.items():
            shape = tuple(tensor.shape)
            if not shape or not tensor.numel():
                if rank == 0:
                    parts[name] = Part(tensor, (0,) * len(shape), shape)
                continue
            rows = -(-shape[0] // world_size)
            block = tensor[rank * rows : (rank + 1) * rows].contiguous()
            if block.numel():
                parts[name] = Part(block, (rank * rows, *(0,) * (len(shape) - 1)), shape)
        write_parts(folder / part_file("model", rank, world_size), parts)
    return tensors


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_parts_make_a_whole(tmp_path: Path, world_size: int) -> None:
    tensors = _write(tmp_path, world_size)
    found = read_tensors(tmp_path, "model")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_one_file_of_whole_tensors_is_read_alike(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.tensor(4, dtype=torch.int64)}
    save_file(tensors, tmp_path / "model.safetensors")
    found = read_tensors(tmp_path, "model")
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )


@given(
    world_size=st.integers(1, 6),
    first=st.integers(0, 4),
    rows=st.integers(0, 5),
    column=st.integers(0, 2),
    data=st.data(),
)
def test_any_block_is_read_from_any_parts(
    tmp_path_factory: pytest.TempPathFactory, world_size: int, first: int, rows: int, column: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("parts")
    expected = _write(folder, world_size)["t3"]
    columns = data.draw(st.integers(0, 3 - column))
    block = expected[first : first + rows, column : column + columns]
    into = torch.zeros(block.shape, dtype=torch.float64)
    with TensorFiles(folder, "model") as stored:
        stored.fill("t3", Part(into, (first, column), (5, 3)))
    assert torch.equal(into, block.double())


def test_strides_of_what_is_filled_do_not_matter(tmp_path: Path) -> None:
    expected = _write(tmp_path, 2)["t4"]
    into = torch.zeros(4, 3, 2).permute(2, 1, 0)
    with TensorFiles(tmp_path, "model") as stored:
        stored.fill("t4", Part(into, (0, 0, 0), (2, 3, 4)))
    assert torch.equal(into, expected)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no model\.safetensors, nor parts of it"):
        read_tensors(tmp_path, "model")
    _write(tmp_path, 3)
    with TensorFiles(tmp_path, "model") as stored:
        with pytest.raises(CheckpointError, match="there is no other; the checkpoint is of another model"):
            stored.read("other")
        with pytest.raises(CheckpointError, match=r"t3 has shape \[5, 3\], expected \[6, 3\]"):
            stored.fill("t3", Part(torch.zeros(6, 3), (0, 0), (6, 3)))
    # The part in the middle: both ends are there.
    (tmp_path / part_file("model", 1, 3)).unlink()
    with pytest.raises(CheckpointError, match="values of t2 are in no file"):
        read_tensors(tmp_path, "model")
    (tmp_path / part_file("model", 2, 3)).write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=r"model-00003-of-00003\.safetensors: is not a safetensors file"):
        read_tensors(tmp_path, "model")
