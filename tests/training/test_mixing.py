"""Two samples made one: contents, labels and loss in the same shares, and only where both have the same fields."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812

from ray_mm.config.fields import VideoField
from ray_mm.errors import UsageError
from ray_mm.models.losses import loss_per_sample
from ray_mm.training.augment import Augmenter
from ray_mm.training.draws import Draws
from ray_mm.training.learner import Learner
from ray_mm.training.mixing import Boxes, _Mix, _mix_field
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Training
from ray_mm.training.state import begin_attempt, current_attempt
from ray_mm.training.worker import run_worker
from tests.factories import make_dataset
from tests.training.inprocess import Killed, batches, curve, make_training, train
from tests.training.together import run_ranks

ONE = Ranks(0, 1, torch.device("cpu"))
INPUTS = ("audio", "image", "series", "vector")
STILL: dict[str, Any] = {
    "model.fields": {name: {"dropout": 0.0} for name in INPUTS},
    "model.fusion": {"method": "gated", "dim": 16, "dropout": 0.0},
}

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mixing")
    fields = (*INPUTS, "label", "number")
    make_dataset(folder / "train", 43, fields, missing={"series": 0.3, "label": 0.2}, corrupt={(7, "vector")})
    make_dataset(folder / "validation", 9, fields, num_shards=1, seed=1)
    return folder


def _mixed(training: Training, number: int = 0) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A batch before and after."""
    batch = list(batches(training))[number]
    config = training.job.train.augment
    assert config is not None
    augment = Augmenter(config, training.job, training.preprocessor)
    return batch.tensors, augment(batch.tensors, batch.on_host, batch.item.epoch)


def _is_mixed(before: dict[str, torch.Tensor], fields: tuple[str, ...] = INPUTS) -> np.ndarray:
    """Told by hand."""
    there = [tuple(bool(before[f"{name}.presence"][row]) for name in (*fields, "label")) for row in range(16)]
    counts = [bool(before["weight"][row] > 0) and there[row][-1] for row in range(16)]
    return np.array([there[row] == there[row ^ 1] and counts[row] and counts[row ^ 1] for row in range(16)])


def test_contents_and_labels_are_mixed_in_the_same_shares(data: Path) -> None:
    training = make_training(data, "mixup", INPUTS, **{"train.augment.mixup": 0.8})
    before, after = _mixed(training)
    mixed, share = _is_mixed(before), after["label.share"]
    assert 4 <= mixed.sum() < 16, "of both kinds"
    assert torch.equal(share[~mixed], torch.ones(int((~mixed).sum())))
    assert ((share[mixed] >= 0) & (share[mixed] < 1)).all() and len(share[mixed].unique()) == mixed.sum()
    for row in range(16):
        other, own = row ^ 1, float(share[row])
        expected = own * before["vector"][row] + (1 - own) * before["vector"][other]
        torch.testing.assert_close(after["vector"][row], expected)
        picture = own * before["image"][row].float() + (1 - own) * before["image"][other].float()
        assert (after["image"][row].float() - picture).abs().max() <= 0.51
        steps = [int(before["series.length"][each]) for each in (row, other)]
        shortest, longest = (min(steps), max(steps)) if mixed[row] else (steps[0], steps[0])
        assert int(after["series.length"][row]) == longest
        series = own * before["series"][row] + (1 - own) * before["series"][other]
        torch.testing.assert_close(after["series"][row, :shortest], series[:shortest])
        if mixed[row]:
            longer = row if steps[0] > steps[1] else other
            assert torch.equal(after["series"][row, shortest:], before["series"][longer, shortest:])
        assert int(after["label.other"][row]) == int(before["label"][other])
    for name in ("position", "weight", "label", *(f"{name}.presence" for name in INPUTS)):
        assert torch.equal(after[name], before[name])


def test_a_rectangle_comes_from_the_other_picture(data: Path) -> None:
    training = make_training(data, "cutmix", INPUTS, **{"train.augment.cutmix": 1.0})
    before, after = _mixed(training)
    mixed, share = _is_mixed(before), after["label.share"]
    for row in np.flatnonzero(mixed):
        own, other, found = (
            picture.flatten(0, 1) for picture in (before["image"][row], before["image"][row ^ 1], after["image"][row])
        )
        from_other = (found == other).all(1) & (own != other).any(1)
        assert ((found == own).all(1) | (found == other).all(1)).all()
        assert float(from_other.float().mean()) == pytest.approx(1 - float(share[row]), abs=0.1)
        vector = float(share[row]) * before["vector"][row] + (1 - float(share[row])) * before["vector"][row ^ 1]
        torch.testing.assert_close(after["vector"][row], vector)
    assert torch.equal(after["image"][~mixed], before["image"][~mixed])


def test_with_both_each_sample_gets_one_of_them(data: Path) -> None:
    training = make_training(data, "both", ("image",), **{"train.augment": {"mixup": 0.8, "cutmix": 1.0}})
    cut, blended = 0, 0
    for number in range(2):
        before, after = _mixed(training, number)
        for row in np.flatnonzero(_is_mixed(before, ("image",))):
            own, other, found = before["image"][row], before["image"][row ^ 1], after["image"][row]
            is_cut = bool(((found == own) | (found == other)).all())
            cut, blended = cut + is_cut, blended + (not is_cut)
    assert cut >= 4 and blended >= 4


def test_a_mixed_number_is_mixed(data: Path) -> None:
    settings: dict[str, Any] = {"model.task": {"type": "regress", "label": "number"}, "train.augment.mixup": 0.8}
    before, after = _mixed(make_training(data, "numbers", ("vector",), **settings))
    row = next(row for row in range(16) if not torch.equal(before["number"][row], after["number"][row]))
    # The vector tells the share.
    own, other, found = before["vector"][row], before["vector"][row ^ 1], after["vector"][row]
    share = float(((found - other) / (own - other)).median())
    expected = share * float(before["number"][row]) + (1 - share) * float(before["number"][row ^ 1])
    assert float(after["number"][row]) == pytest.approx(expected, abs=1e-3)
    assert "number.other" not in after


def test_the_loss_of_a_mixture_is_the_mixture_of_losses(data: Path) -> None:
    training = make_training(data, "loss", INPUTS, **{"train.augment.mixup": 0.8, "model.task.label_smoothing": 0.1})
    before, after = _mixed(training)
    output = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    found = loss_per_sample(training.job.model.task, output, after, training.preprocessor)
    share = after["label.share"][:, None]
    target = share * F.one_hot(before["label"], 3) + (1 - share) * F.one_hot(after["label.other"], 3)
    expected = F.cross_entropy(output, 0.9 * target + 0.1 / 3, reduction="none")
    torch.testing.assert_close(found, expected)


def test_a_clip_that_ends_earlier_goes_on_with_the_other() -> None:
    length = torch.tensor([2, 4], dtype=torch.int32)
    clip = torch.zeros(2, 4, 2, 2, 3, dtype=torch.uint8)
    clip[0, :2], clip[1] = 100, 200
    times = torch.tensor([[0.0, 0.5, 0.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    half, yes = np.full(2, 0.5), torch.ones(2, dtype=torch.bool)
    on = _Mix(yes, ~yes, torch.full((2,), 0.5), half)
    tensors = {"clip": clip, "clip.length": length, "clip.time": times}
    found = _mix_field("clip", VideoField(num_frames=4, height=2, width=2), tensors, on, Draws(0, 0, np.arange(2)))
    assert found["clip"][:, :, 0, 0, 0].tolist() == [[150, 150, 200, 200]] * 2
    assert found["clip.length"].tolist() == [4, 4]
    assert found["clip.time"].tolist() == [[0.0, 0.5, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]]


def test_boxes_lie_within_the_picture_and_are_as_large_as_they_should_be() -> None:
    height, width = np.full(300, 0.4), np.linspace(0, 1, 300)
    boxes = Boxes.of(height, width, Draws(0, 0, np.arange(300)), "x").mask(torch.zeros(300, 50, 20, 3))
    assert boxes.shape == (300, 50, 20, 1)
    assert boxes.any(2)[..., 0].sum(1).tolist()[20:] == [20] * 280
    assert np.abs(boxes.any(1)[..., 0].sum(1).numpy() - 20 * width).max() <= 1


# --- in a training


def test_without_it_a_batch_is_what_it_was_and_a_validation_always_is(data: Path) -> None:
    plain = make_training(data, "plain", INPUTS)
    assert Learner(plain, ONE)._augment is None
    train(plain)
    # Nothing is learned, so that nothing but the data could make a difference.
    still: dict[str, Any] = {"train.optimizer": {"lr": 1e-30, "weight_decay": 0.0}}
    calm, mixed = (
        make_training(data, name, INPUTS, **still, **more)
        for name, more in (("calm", {}), ("changed", {"train.augment": _everything()}))
    )
    train(calm)
    train(mixed)
    losses = [{key: loss for key, loss in curve(t).items() if key[0] == "validation"} for t in (calm, mixed)]
    assert losses[0] == losses[1]
    assert curve(calm)["train", 1] != pytest.approx(curve(mixed)["train", 1], abs=1e-3)


def test_a_training_that_was_killed_goes_on_with_the_same_changes(data: Path) -> None:
    settings: dict[str, Any] = {"train.augment": _everything(), "train.checkpoints.every_steps": 2}
    calm, killed = (make_training(data, name, INPUTS, **settings) for name in ("whole", "killed"))
    train(calm)
    with pytest.raises(Killed):
        train(killed, stop_before=5)
    train(killed)
    assert curve(killed) == pytest.approx(curve(calm), abs=1e-6)


def test_two_ranks_change_samples_as_one_does(data: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        **STILL,
        "data.batch_size": 12,  # shares of 6; of the last batch, of 7, one rank has 6 and the other 1
        "train.augment": _everything(),
        "train.modality_dropout": 0.3,
    }
    one, two = (make_training(data, f"ranks-{size}", INPUTS, **settings) for size in (1, 2))
    train(one)
    begin_attempt(two.run, two.data_digest)
    run_ranks(_rank, (two, tmp_path / "rendezvous"), 2)
    assert curve(two) == pytest.approx(curve(one), abs=1e-5)


def test_parts_of_a_batch_are_mixed_as_the_whole(data: Path) -> None:
    settings: dict[str, Any] = {**STILL, "train.augment": _everything()}
    whole = make_training(data, "in-one", INPUTS, **settings)
    parts = make_training(data, "in-parts", INPUTS, **settings, **{"train.micro_batches": 3})
    train(whole)
    train(parts)
    assert curve(parts) == pytest.approx(curve(whole), abs=1e-5)


def test_a_share_with_half_a_pair_is_refused_before_anything_starts(data: Path) -> None:
    with pytest.raises(UsageError, match=r"each of 2 workers gets 7, an odd number"):
        make_training(
            data, "odd", INPUTS, **{"train.augment.mixup": 0.2, "data.batch_size": 14, "resources.workers": 2}
        )


def _everything() -> dict[str, Any]:
    return {
        "mixup": 0.8,
        "cutmix": 1.0,
        "fields": {
            "image": {"color": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}, "erase": 0.5},
            "audio": {"time_mask": 0.3, "frequency_mask": 0.3},
            "series": {"noise": 0.2, "scale": 0.2, "time_mask": 0.3},
            "vector": {"noise": 0.2},
        },
    }


def _rank(rank: int, training: Training, rendezvous: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    ranks = Ranks(rank, 2, torch.device("cpu"))
    run_worker(training, ranks, current_attempt(training.run), batches(training, 0, rank, 2))
    dist.destroy_process_group()


def test_of_several_classes_a_mixed_sample_has_the_share_of_each(tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 16, ("vector", "tags"), missing={"tags": 0.2})
    task = {"model.task": {"type": "multilabel", "label": "tags"}, "train.augment.mixup": 0.8}
    before, after = _mixed(make_training(tmp_path, **task))
    assert "tags.share" not in after
    found = (after["tags"] != before["tags"]).any(dim=1)
    assert found.any()
    neighbour = before["tags"].reshape(-1, 2, 3).flip(1).reshape(16, 3)
    # Where the two differ, the share of the sample's own classes and that of its neighbour's are all there is.
    differ = before["tags"] != neighbour
    share = torch.where(before["tags"] > 0, after["tags"], 1 - after["tags"])
    for row in range(16):
        own = share[row][differ[row]]
        assert torch.allclose(own, own[:1].expand_as(own)) and ((own >= 0) & (own <= 1)).all()
