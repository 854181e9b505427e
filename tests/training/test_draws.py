"""Numbers that belong to a sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_mm.data.order import stable_hash
from ray_mm.training.draws import on_device, uniform


def test_the_numbers_are_uniform_and_never_change() -> None:
    numbers = uniform(np.arange(100_000), key=stable_hash("seed"))
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(10_000, abs=400)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    # SplitMix64 from state 0 gives 0xE220A8397B1DCDAF first, 0x6E789E6AA1B965F4 next: its published sequence.
    golden = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert uniform(np.array([1, 2, 3]), key=0).tolist() == [(bits >> 11) / 2**53 for bits in golden]
    assert uniform(np.array([-1]), key=1 << 100).tolist() == uniform(np.array([-1]), key=0).tolist()


def test_on_the_cpu_an_array_is_not_copied() -> None:
    array = np.arange(3.0)
    tensor = on_device(array, torch.device("cpu"))
    array[0] = 7
    assert tensor.tolist() == [7, 1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_is_not_waited_for() -> None:
    device = torch.device("cuda", 0)
    array = np.arange(1000.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tensor = on_device(array, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.array_equal(tensor.cpu().numpy(), array)
