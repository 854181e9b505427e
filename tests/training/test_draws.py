"""Numbers that belong to a sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_mm.data.order import stable_hash
from ray_mm.training.draws import Draws, on_device, uniform


def test_the_numbers_are_uniform_and_never_change() -> None:
    numbers = uniform(np.arange(100_000), key=stable_hash("seed"))
    assert numbers.min() >= 0 and numbers.max() < 1
    assert np.histogram(numbers, bins=10, range=(0, 1))[0] == pytest.approx(10_000, abs=400)
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.02
    # SplitMix64 from state 0 gives 0xE220A8397B1DCDAF first, 0x6E789E6AA1B965F4 next: its published sequence.
    golden = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert uniform(np.array([1, 2, 3]), key=0).tolist() == [(bits >> 11) / 2**53 for bits in golden]
    assert uniform(np.array([-1]), key=1 << 100).tolist() == uniform(np.array([-1]), key=0).tolist()


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.5, 1.0, 4.0])
def test_shares_are_from_a_symmetric_beta_distribution(alpha: float) -> None:
    shares = Draws(0, 0, np.arange(50_000)).beta(alpha, "mix")
    assert shares.min() >= 0 and shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=0.01)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    # The fourth moment about the mean tells it from others of the same variance.
    kurtosis = ((shares - 0.5) ** 4).mean() / shares.var() ** 2
    assert kurtosis == pytest.approx(3 - 6 / (2 * alpha + 3), rel=0.03)


def test_noise_is_normal_and_the_same_for_any_share() -> None:
    cpu = torch.device("cpu")
    noise = Draws(1, 2, np.arange(400)).normal(500, cpu, "imu")
    assert float(noise.mean()) == pytest.approx(0, abs=0.01) and float(noise.std()) == pytest.approx(1, abs=0.01)
    assert float((noise.abs() > 2).float().mean()) == pytest.approx(0.0455, abs=0.002)
    assert noise.dtype == torch.float32 and noise.isfinite().all()
    assert abs(np.corrcoef(noise[0], noise[1])[0, 1]) < 0.15 and abs(np.corrcoef(noise[:, 0], noise[:, 1])[0, 1]) < 0.15
    assert torch.equal(Draws(1, 2, np.arange(100, 200)).normal(500, cpu, "imu"), noise[100:200])
    assert not torch.equal(Draws(1, 3, np.arange(400)).normal(500, cpu, "imu"), noise)


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
