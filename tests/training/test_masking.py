"""What is hidden from a model that is to say the whole again: as much as was asked for, the same whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ray_mm.config.fields import FieldSpec, PointsField, SeriesField, VectorField
from ray_mm.config.tasks import ReconstructTask
from ray_mm.data.fields import POSITION, length_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.training.masking import Masker
from tests.config.jobs import SMALLEST
from tests.models.batches import FIELDS, STATISTICS, noise, preprocessor_of
from tests.models.test_targets import says

ALL = sorted(FIELDS)
ROWS = 64


def masker(task: ReconstructTask, fields: list[str] = ALL, specs: dict[str, FieldSpec] | None = None) -> Masker:
    from ray_mm.config.load import load_job

    config = says(fields)
    job = load_job(SMALLEST["train"] | {"model": config.model_dump(mode="json")})
    assert job.kind == "train"
    preprocessor = preprocessor_of(config)
    return Masker(task, job, preprocessor.model_copy(update={"fields": preprocessor.fields | (specs or {})}))


def batch_of(fields: list[str] = ALL, specs: dict[str, FieldSpec] | None = None) -> dict[str, torch.Tensor]:
    known = FIELDS | (specs or {})
    return noise(says(fields), ROWS, fields=known) | {POSITION: torch.arange(100, 100 + ROWS)}


def test_a_share_of_every_field_is_hidden_and_the_batch_itself_stays() -> None:
    batch = batch_of()
    before = {name: tensor.clone() for name, tensor in batch.items()}
    seen = masker(ReconstructTask(mask=0.3))(batch, batch, 0)
    assert all(batch[name].equal(tensor) for name, tensor in before.items())
    assert seen.keys() == batch.keys()
    for name in ALL:
        assert seen[name].dtype == batch[name].dtype and seen[name].shape == batch[name].shape
    shares = {
        "image": (seen["image"] == 128).all(-1),
        "text": (seen["text"] == 0)[batch["text"] != 0],
        "vector": seen["vector"] == 0,
        "audio": (seen["audio"] == 0)[batch["audio"] != 0],
        "video": (seen["video"] == 128).all(-1),
        "series": (seen["series"] == torch.tensor(STATISTICS["series"].mean)).all(-1),
    }
    for name, hidden in shares.items():
        assert hidden.float().mean().item() == pytest.approx(0.3, abs=0.08), name
    left, there = (each[length_name("points")].sum().item() for each in (seen, batch))
    assert left / there == pytest.approx(0.7, abs=0.1)


def test_whole_squares_and_pieces_are_hidden() -> None:
    specs: dict[str, FieldSpec] = {"series": SeriesField(channels=3, max_length=64)}
    batch = batch_of(["image", "series"], specs)
    seen = masker(ReconstructTask(), ["image", "series"], specs)(batch, batch, 0)
    # 12 × 20 pixels in squares of 3, and 64 steps in pieces of 4.
    hidden = (seen["image"] == 128).all(-1)
    squares = hidden[:, :12, :18].unflatten(2, (6, 3)).unflatten(1, (4, 3)).float().mean((2, 4))
    assert set(squares.flatten().tolist()) <= {0.0, 1.0}
    steps = (seen["series"] == torch.tensor(STATISTICS["series"].mean)).all(-1).unflatten(1, (16, 4)).float().mean(2)
    assert set(steps.flatten().tolist()) == {0.0, 1.0}


def test_points_that_are_left_come_first_and_are_those_that_were_there() -> None:
    specs: dict[str, FieldSpec] = {"points": PointsField(channels=4, max_points=50)}
    batch = batch_of(["points"], specs)
    seen = masker(ReconstructTask(), ["points"], specs)(batch, batch, 0)
    for row in range(ROWS):
        count = int(seen["points.length"][row])
        assert not seen["points"][row, count:].any()
        kept = {tuple(point) for point in seen["points"][row, :count].tolist()}
        assert kept <= {tuple(point) for point in batch["points"][row, : batch["points.length"][row]].tolist()}


def test_what_is_hidden_belongs_to_the_sample_and_the_epoch() -> None:
    batch, mask = batch_of(), masker(ReconstructTask(noise=0.1))
    whole = mask(batch, batch, 3)
    part = {name: tensor[20:30] for name, tensor in batch.items()}
    for name, tensor in mask(part, part, 3).items():
        assert tensor.equal(whole[name][20:30]), name
    other = mask(batch, batch, 4)
    assert not any(other[name].equal(whole[name]) for name in ALL)


def test_noise_is_of_so_many_standard_deviations() -> None:
    specs: dict[str, FieldSpec] = {"vector": VectorField(size=5)}
    batch = batch_of()
    batch["image"][:], batch["series"][:] = 128, 0.0
    seen = masker(ReconstructTask(mask=0, noise=0.5), ALL, specs)(batch, batch, 0)
    assert (seen["image"].float() - 128).std().item() == pytest.approx(32, rel=0.05)
    deviation = seen["series"].std((0, 1)) / torch.tensor(STATISTICS["series"].std)
    np.testing.assert_allclose(deviation, 0.5, rtol=0.15)
    assert (seen["vector"] - batch["vector"]).std().item() == pytest.approx(0.5, rel=0.15)
    inside = batch["audio"] != 0
    level = batch["audio"][inside].float().std()
    added = (seen["audio"].float() - batch["audio"].float())[inside].std()
    assert (added / level).item() == pytest.approx(0.5, rel=0.1)
    assert seen["text"].equal(batch["text"])


def test_an_empty_preprocessor_is_no_obstacle() -> None:
    # Fields without statistics are taken as they are, as their encoders take them.
    specs = {"vector": FIELDS["vector"]}
    batch = batch_of(["vector"])
    job_masker = masker(ReconstructTask(), ["vector"], specs)
    job_masker._preprocessor = Preprocessor(fields=specs)
    assert (job_masker(batch, batch, 0)["vector"] == 0).any()
