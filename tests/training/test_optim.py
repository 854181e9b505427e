"""The learning rate over the steps, and an optimizer that goes on from a file as if it had never stopped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ray_mm.config.train import ConstantSchedule, CosineSchedule, OptimizerConfig
from ray_mm.training.optim import build_optimizer, learning_rate, load_optimizer, save_optimizer


def test_the_cosine_warms_up_in_a_line_and_falls_to_its_final_share() -> None:
    schedule = CosineSchedule(warmup=0.1, final=0.1)
    rates = [learning_rate(2.0, schedule, step, 100) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.2) and rates[4] == pytest.approx(1.0) and rates[9] == pytest.approx(2.0)
    assert rates[54] == pytest.approx(1.1), "half-way down"
    assert rates[99] == pytest.approx(0.2)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_the_constant_schedule_stays_after_its_warm_up() -> None:
    schedule = ConstantSchedule(warmup=0.25)
    assert [learning_rate(1.0, schedule, step, 8) for step in range(1, 9)] == [0.5, 1, 1, 1, 1, 1, 1, 1]
    assert learning_rate(0.3, ConstantSchedule(), 1, 8) == 0.3


@given(
    warmup=st.floats(0, 1),
    final=st.floats(0, 1),
    num_steps=st.integers(1, 300),
    data=st.data(),
)
def test_the_learning_rate_never_leaves_its_range(
    warmup: float, final: float, num_steps: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(1, num_steps))
    for schedule in (CosineSchedule(warmup=warmup, final=final), ConstantSchedule(warmup=warmup)):
        assert 0 <= learning_rate(1.0, schedule, step, num_steps) <= 1 + 1e-9


def test_weight_decay_is_on_matrices_only() -> None:
    optimizer = build_optimizer(_network(), OptimizerConfig(weight_decay=0.3))
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3 and [p.ndim for p in decayed["params"]] == [4, 2]
    assert plain["weight_decay"] == 0.0 and {p.ndim for p in plain["params"]} == {1}


def test_frozen_parameters_are_left_out() -> None:
    network = _network()
    network[0].weight.requires_grad_(False)  # type: ignore[operator]
    optimizer = build_optimizer(network, OptimizerConfig())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 5


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_optimizer_from_a_file_takes_the_same_steps(tmp_path: Path, memory_format: torch.memory_format) -> None:
    network, copy = _network(memory_format), _network(memory_format)
    optimizer = build_optimizer(network, OptimizerConfig())
    for step in range(3):
        _step(network, optimizer, step)
    save_optimizer(optimizer, tmp_path / "optimizer.safetensors")

    copy.load_state_dict(network.state_dict())
    resumed = build_optimizer(copy, OptimizerConfig())
    load_optimizer(resumed, tmp_path / "optimizer.safetensors")
    for step in range(3, 6):
        _step(network, optimizer, step)
        _step(copy, resumed, step)
        for one, other in zip(network.parameters(), copy.parameters(), strict=True):
            assert torch.equal(one, other)


def test_an_optimizer_that_took_no_step_is_saved_and_loaded(tmp_path: Path) -> None:
    optimizer = build_optimizer(_network(), OptimizerConfig())
    save_optimizer(optimizer, tmp_path / "optimizer.safetensors")
    load_optimizer(optimizer, tmp_path / "optimizer.safetensors")
    assert not optimizer.state_dict()["state"]


def _network(memory_format: torch.memory_format = torch.contiguous_format) -> nn.Sequential:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 16, 3)
    conv.weight.data = conv.weight.data.contiguous(memory_format=memory_format)
    return nn.Sequential(conv, nn.GroupNorm(2, 16), nn.Flatten(), nn.Linear(16 * 4, 2))


def _step(network: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    torch.manual_seed(100 + seed)
    network(torch.randn(3, 8, 4, 4)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
