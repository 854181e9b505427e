"""A profile of some steps: written once, by every rank, and true to what it saw."""

from __future__ import annotations

import gzip
import json
import re
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ray_mm.errors import UsageError
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.profile import ProfileWatch, profile_folder, read_profiles
from ray_mm.training.profile_parts import PARTS, Operator, RankProfile, length, limit, parts_of_step
from ray_mm.training.spans import PREFIX, span
from ray_mm.training.state import begin_attempt, current_attempt
from ray_mm.training.worker import run_worker
from tests.factories import make_dataset
from tests.training.inprocess import Killed, batches, curve, make_training, train
from tests.training.together import run_ranks

pytestmark = pytest.mark.usefixtures("one_thread")


def folder_of(training: Training) -> Path:
    config = training.job.train.profile
    assert config is not None
    return profile_folder(training.run, config)


def ranges(path: Path) -> dict[str, int]:
    """Name of a part → how often it stands in a trace."""
    found: dict[str, int] = {}
    for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
        if event.get("cat") == "user_annotation" and event["name"].startswith(PREFIX):
            name = event["name"].removeprefix(PREFIX)
            found[name] = found.get(name, 0) + 1
    return found


def test_the_steps_that_are_named_are_profiled_and_learn_the_same(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 70, ("vector", "label"))
    make_dataset(tmp_path / "validation", 20, ("vector", "label"), num_shards=1, seed=1)
    plain = make_training(tmp_path, "plain")
    train(plain)
    profiled = make_training(tmp_path, "profiled", **{"train.profile": {"start": 2, "steps": 3}})
    train(profiled)
    assert curve(profiled) == curve(plain)
    assert not (plain.run / "profile").exists()
    folder = folder_of(profiled)
    assert folder.name == "steps-2-4"
    assert ranges(folder / "rank-0.trace.json.gz") == {"data": 3, "forward": 3, "backward": 3, "optimizer": 3}
    (found,) = read_profiles(folder)
    assert (found.first_step, found.num_steps, found.device, found.precision) == (2, 3, "cpu", "fp32")
    assert tuple(found.parts) == PARTS and sum(found.parts.values()) == pytest.approx(found.total_s, rel=1e-6)
    assert all(found.parts[part] > 0 for part in ("forward", "backward", "optimizer", "other"))
    assert {"aten::addmm", "aten::mm"} & {operator.name for operator in found.operators}
    assert any(operator.memory_bytes > 0 for operator in found.operators)
    assert RankProfile.from_json(json.loads(json.dumps(asdict(found)))) == found


def test_a_profile_ends_with_its_epoch_and_micro_batches_add_up(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 40, ("vector", "label"))
    make_dataset(tmp_path / "validation", 20, ("vector", "label"), num_shards=1, seed=1)
    training = make_training(tmp_path, **{"train.profile": {"start": 2, "steps": 5}, "train.micro_batches": 2})
    train(training)
    assert ranges(folder_of(training) / "rank-0.trace.json.gz")["forward"] == 4
    (found,) = read_profiles(folder_of(training))
    assert (found.first_step, found.num_steps) == (2, 2)


def test_a_training_that_goes_on_profiles_what_it_has_not(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 70, ("vector", "label"))
    settings: dict[str, Any] = {"train.checkpoints.every_steps": 2, "train.profile": {"start": 3, "steps": 1}}
    training = make_training(tmp_path, **settings)
    with pytest.raises(Killed):
        train(training, stop_before=3)
    written = (folder_of(training) / "rank-0.json").read_bytes()
    train(training)  # from step 2: step 3 is done again, and not profiled again
    assert (folder_of(training) / "rank-0.json").read_bytes() == written

    other = make_training(tmp_path, "other", **settings | {"train.profile": {"start": 2, "steps": 3}})
    with pytest.raises(Killed):
        train(other, stop_before=3)  # in the midst of it
    assert not (folder_of(other) / "rank-0.json").exists()
    train(other)
    (found,) = read_profiles(folder_of(other))
    assert (found.first_step, found.num_steps) == (3, 2)


def test_steps_behind_the_end_are_refused(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 40, ("vector", "label"))
    with pytest.raises(UsageError, match=r"train\.profile\.start: step 7 .* 6 steps"):
        make_training(tmp_path, **{"train.profile": {"start": 7}})


def test_the_page_is_drawn_once_when_every_rank_is_there(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 40, ("vector", "label"))
    training = make_training(tmp_path, **{"train.profile": {"start": 1, "steps": 1}})
    folder = folder_of(training)
    drawn: list[tuple[str, list[int]]] = []

    def draw(path: Path, job: str, found: list[RankProfile]) -> None:
        drawn.append((job, [profiled.rank for profiled in found]))
        path.write_text("page")

    watch = ProfileWatch(training, draw)
    assert watch.look() is None
    folder.mkdir(parents=True)
    for rank in (1, 0):
        assert watch.look() is None
        (folder / f"rank-{rank}.json").write_text(json.dumps(asdict(replace(ONE, rank=rank, world_size=2))))
    assert watch.look() == folder / "summary.html"
    assert watch.look() is None and ProfileWatch(training, draw).look() is None
    assert drawn == [("small", [0, 1])]
    assert ProfileWatch(training, None).look() is None


def test_two_ranks_tell_what_they_exchange(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 40, ("vector", "label"))
    training = make_training(tmp_path, **{"train.profile": {"start": 1, "steps": 2}, "train.epochs": 1})
    begin_attempt(training.run, training.data_digest)
    run_ranks(_rank, (training, tmp_path / "rendezvous"), 2)
    found = read_profiles(folder_of(training))
    assert [(profiled.rank, profiled.world_size) for profiled in found] == [(0, 2), (1, 2)]
    for profiled in found:
        assert profiled.parts["all-reduce"] > 0 and min(profiled.parts.values()) >= 0
        assert ranges(folder_of(training) / f"rank-{profiled.rank}.trace.json.gz")["all-reduce"] >= 2


def _rank(rank: int, training: Training, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, torch.device("cpu"))
    run_worker(training, ranks, current_attempt(training.run), batches(training, 0, rank, 2))
    dist.destroy_process_group()


def test_a_span_costs_next_to_nothing_where_nobody_profiles() -> None:
    started = time.process_time()
    for _ in range(10_000):
        with span("forward"):
            pass
    # record_function takes some 5 µs; a plain context a tenth of one.
    assert time.process_time() - started < 0.03


# --- figures

ONE = RankProfile(
    rank=0,
    world_size=1,
    device="cpu",
    precision="fp32",
    first_step=10,
    num_steps=5,
    total_s=10.0,
    parts={
        "wait": 0.5,
        "copy": 0.0,
        "forward": 3.0,
        "backward": 5.0,
        "optimizer": 1.0,
        "all-reduce": 0.0,
        "other": 0.5,
    },
    hidden_s=0.0,
    device_parts={},
    device_busy_s=0.0,
    operators=(Operator("aten::mm", 60, 3.0, 0.0, 4096),),
)


def test_parts_are_the_whole_step_and_exclude_each_other() -> None:
    second = 1e6
    spans = {
        "data": [(0.0, 2 * second)],
        "all-reduce": [(2 * second, 2.5 * second)],
        "forward": [(3 * second, 4 * second)],
        "backward": [(4 * second, 8 * second)],
        "optimizer": [(8 * second, 9 * second)],
    }
    # From 6 on nothing else is computed; what comes after the backward pass is no part of it.
    exchanges, work = [(5 * second, 7.5 * second), (8.5 * second, 9 * second)], [(3 * second, 6 * second)]
    found = parts_of_step(spans, exchanges, work, 10.0, wait_s=1.5, copy_s=0.25)
    assert found == pytest.approx(
        {"wait": 1.5, "copy": 0.25, "forward": 1, "backward": 2.5, "optimizer": 1, "all-reduce": 2, "other": 1.75}
    )
    assert length([(0, 2), (1, 3), (5, 6), (5.5, 5.7)]) == 4


@pytest.mark.parametrize(
    ("profiled", "told"),
    [
        (ONE, "The backward pass takes the most: 50% of a step."),
        (replace(ONE, parts=ONE.parts | {"wait": 6.0, "backward": 0.0}), "Waiting for data limits: 60% of a step"),
        (
            replace(ONE, parts=ONE.parts | {"wait": 2.0}),
            "The backward pass takes the most: 50% .* waiting for data takes 20%",
        ),
        (replace(ONE, parts=ONE.parts | {"all-reduce": 6.0, "backward": 0.0}), "Exchanging gradients limits: 60%"),
        (
            replace(ONE, device_parts={"forward": 3.0, "backward": 6.0}, device_busy_s=9.0),
            "The GPU limits: it is busy 90% of the time, for the most part with the backward pass",
        ),
        (
            replace(ONE, device_parts={"forward": 1.0, "backward": 2.0}, device_busy_s=3.0),
            "Handing out the work limits: the GPU is busy 30% of the time only",
        ),
    ],
)
def test_what_limits_is_told_in_a_sentence(profiled: RankProfile, told: str) -> None:
    assert re.match(told, limit(profiled))
