"""The learning rate over the steps, and an optimizer that goes on from a file as if it had never stopped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ray_mm.config.optimize import (
    ConstantSchedule,
    CosineSchedule,
    LinearSchedule,
    OptimizerConfig,
    ScheduleConfig,
    WsdSchedule,
)
from ray_mm.training.optim import build_optimizer, learning_rate, set_learning_rate
from ray_mm.training.parallel import Ranks
from ray_mm.training.snapshot import OPTIMIZER_KIND, load_optimizer, optimizer_tensors, take_snapshot


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


def test_the_line_falls_to_its_final_share() -> None:
    schedule = LinearSchedule(warmup=0.2, final=0.5)
    assert [learning_rate(1.0, schedule, step, 10) for step in range(1, 11)] == pytest.approx(
        [0.5, 1, *(1 - 0.5 * step / 8 for step in range(1, 9))]
    )


def test_warm_up_stable_decay_falls_at_its_end_only() -> None:
    schedule = WsdSchedule(warmup=0.1, decay=0.4, final=0.1)
    rates = [learning_rate(1.0, schedule, step, 10) for step in range(1, 11)]
    assert rates[:6] == [1.0] * 6
    assert rates[6:] == pytest.approx([0.1 + 0.9 * (1 - math.sqrt(step / 4)) for step in range(1, 5)])
    assert rates[-1] == pytest.approx(0.1)


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
    schedules: list[ScheduleConfig] = [
        CosineSchedule(warmup=warmup, final=final),
        LinearSchedule(warmup=warmup, final=final),
        ConstantSchedule(warmup=warmup),
        WsdSchedule(warmup=warmup, decay=data.draw(st.floats(0, 1 - warmup)), final=final),
    ]
    for schedule in schedules:
        assert 0 <= learning_rate(1.0, schedule, step, num_steps) <= 1 + 1e-9


def test_weight_decay_is_on_matrices_only() -> None:
    optimizer = build_optimizer(_network(), OptimizerConfig(weight_decay=0.3))
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.3 and [p.ndim for p in decayed["params"]] == [4, 2]
    assert plain["weight_decay"] == 0.0 and {p.ndim for p in plain["params"]} == {1}


def test_frozen_parameters_stay_as_they_are() -> None:
    network = _network()
    optimizer = build_optimizer(network, OptimizerConfig(weight_decay=0.3))
    frozen = network[0].weight
    assert isinstance(frozen, nn.Parameter)
    frozen.requires_grad_(False)
    before = frozen.clone()
    _step(network, optimizer, 0)
    assert torch.equal(frozen, before) and frozen not in optimizer.state
    frozen.requires_grad_(True)
    _step(network, optimizer, 1)
    assert not torch.equal(frozen, before)


def test_each_parameter_learns_at_its_own_multiple_of_the_rate() -> None:
    network = _network()
    factors = dict.fromkeys(network[0].parameters(), 0.5)
    optimizer = build_optimizer(network, OptimizerConfig(), factors)
    set_learning_rate(optimizer, 0.1)
    found = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert found == {parameter: 0.1 * factors.get(parameter, 1.0) for parameter in network.parameters()}


def test_muon_takes_the_linear_layers_and_makes_their_steps_orthogonal() -> None:
    network = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.LayerNorm(8))
    network.add_module("head", nn.Linear(8, 2))
    config = OptimizerConfig(name="muon", weight_decay=0.0)
    optimizer = build_optimizer(network, config)
    weight = network[1].weight
    assert isinstance(weight, nn.Parameter)
    before = weight.detach().clone()
    torch.manual_seed(0)
    network(torch.arange(5)).square().mean().backward()
    set_learning_rate(optimizer, 0.1)
    optimizer.step()
    assert {name for parameter, state in optimizer.state.items() for name in state if parameter is weight} == {
        "momentum_buffer"
    }
    assert all("exp_avg" in state for parameter, state in optimizer.state.items() if parameter is not weight)
    assert len(optimizer.state) == len(list(network.parameters()))
    # A multiple of a matrix whose singular values are all about 1, of the size of a step of AdamW.
    singular = torch.linalg.svdvals((weight.detach() - before) / (0.1 * 0.2 * math.sqrt(8)))
    assert singular[:2].min() > 0.4 and singular.max() < 1.5


@pytest.mark.parametrize(
    "config", [OptimizerConfig(), OptimizerConfig(name="muon", momentum=0.8)], ids=["adamw", "muon"]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_optimizer_from_a_file_takes_the_same_steps(
    tmp_path: Path, memory_format: torch.memory_format, config: OptimizerConfig
) -> None:
    network, copy = _network(memory_format), _network(memory_format)
    optimizer = build_optimizer(network, config)
    for step in range(3):
        _step(network, optimizer, step)
    _save(network, optimizer, tmp_path)

    copy.load_state_dict(network.state_dict())
    resumed = build_optimizer(copy, config)
    load_optimizer(resumed, copy.named_parameters(), tmp_path)
    for step in range(3, 6):
        _step(network, optimizer, step)
        _step(copy, resumed, step)
        for one, other in zip(network.parameters(), copy.parameters(), strict=True):
            assert torch.equal(one, other)


def test_an_optimizer_that_took_no_step_is_saved_and_loaded(tmp_path: Path) -> None:
    network = _network()
    optimizer = build_optimizer(network, OptimizerConfig())
    _save(network, optimizer, tmp_path)
    load_optimizer(optimizer, network.named_parameters(), tmp_path)
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


def _save(network: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    kinds = {OPTIMIZER_KIND: optimizer_tensors(optimizer, network.named_parameters())}
    take_snapshot(kinds, Ranks(0, 1, torch.device("cpu")), divided=False).write(folder)
