"""The step, measured alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ray_mm.training.feeding import plan_feed
from ray_mm.training.probe_data import probe_data
from ray_mm.training.probe_step import _measured, probe_step
from tests.factories import make_dataset
from tests.training.inprocess import make_training

# The block is a view of memory that is only read; outside of tests the loader sees to it that torch does not mind.
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")


def test_a_step_is_of_the_workers_share_of_a_batch(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 60, ("vector", "label"))
    training = make_training(tmp_path, **{"data.batch_size": 16})
    feed = plan_feed(training, 2, 0)
    cost = probe_step(training, probe_data(feed, 0.02)[2], 8, torch.device("cpu"), 0.2)
    assert (cost.batch_size, cost.precision, cost.num_threads) == (8, "fp32", torch.get_num_threads())
    assert cost.num_steps >= 2 and min(cost.step_s, cost.validate_s, cost.step_cpu_s) > 0
    assert not (tmp_path / "run").exists(), "nothing is written"


def test_a_large_model_takes_longer_and_two_steps_are_measured_in_any_case(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 60, ("vector", "label"))
    small = make_training(tmp_path)
    large = make_training(tmp_path, **{"model.fusion.dim": 2048})
    table = probe_data(plan_feed(small, 1, 0), 0.02)[2]
    costs = [probe_step(training, table, 16, torch.device("cpu"), 1e-6) for training in (small, large)]
    assert [cost.num_steps for cost in costs] == [2, 2]
    # Seconds of a CPU, which do not depend on what else the machine does.
    assert costs[1].step_cpu_s > 3 * costs[0].step_cpu_s


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_waits_until_the_step_is_done(tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    # A hundred million cycles are at least 30 ms; giving the order for them takes microseconds.
    watch, _ = _measured(lambda: torch.cuda._sleep(100_000_000), device, 0.2)
    assert watch.wall_s > 0.03
    make_dataset(tmp_path / "train", 60, ("vector", "label"))
    training = make_training(tmp_path)
    cost = probe_step(training, probe_data(plan_feed(training, 1, 0), 0.02)[2], 16, device, 0.2)
    assert min(cost.transfer_s, cost.step_s, cost.validate_s) > 0
