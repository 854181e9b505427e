"""The losses of a retrieval, against what they are defined as."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ray_mm.config.model import ModelConfig
from ray_mm.config.tasks import RetrieveTask
from ray_mm.models.heads import RetrieveHead
from ray_mm.models.losses import sample_weights
from ray_mm.models.multimodal import build_model
from ray_mm.models.pairs import pair_losses, tower_presence
from tests.models.batches import noise, preprocessor_of

SCALE, BIAS = 7.0, -2.0


def output_of(vectors: Tensor, bias: float = 0.0) -> Tensor:
    """What the head gives for these vectors [B, K, E]."""
    unit = F.normalize(vectors, dim=-1)
    same = torch.tensor([SCALE, bias]).expand(*unit.shape[:2], 2)
    return torch.cat([unit, same], dim=-1)


def test_info_nce_is_the_cross_entropy_both_ways() -> None:
    torch.manual_seed(0)
    output = output_of(torch.randn(5, 2, 8))
    found = pair_losses(RetrieveTask(), output, torch.ones(5, 2, dtype=torch.bool))
    logits, right = SCALE * output[:, 0, :8] @ output[:, 1, :8].T, torch.arange(5)
    wanted = (F.cross_entropy(logits, right, reduction="none") + F.cross_entropy(logits.T, right, reduction="none")) / 2
    torch.testing.assert_close(found, wanted)


def test_siglip_judges_every_pair_by_itself() -> None:
    torch.manual_seed(0)
    output = output_of(torch.randn(5, 2, 8), BIAS)
    found = pair_losses(RetrieveTask(loss="siglip"), output, torch.ones(5, 2, dtype=torch.bool))
    logits = SCALE * output[:, 0, :8] @ output[:, 1, :8].T + BIAS
    signs = 2 * torch.eye(5) - 1
    torch.testing.assert_close(found, -F.logsigmoid(signs * logits).sum(dim=1))


@pytest.mark.parametrize("loss", ["info_nce", "siglip"])
def test_what_lacks_a_side_is_neither_query_nor_candidate(loss: Literal["info_nce", "siglip"]) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(6, 2, 4)
    there = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0], [1, 1], [0, 1]], dtype=torch.bool)
    # Only the last row has a side that can be found without looking for the other one.
    kept = [0, 2, 4]
    task = RetrieveTask(loss=loss)
    found = pair_losses(task, output_of(vectors, BIAS), there)
    assert found[[1, 3, 5]].tolist() == [0, 0, 0]
    vectors[[1, 3], 1], vectors[[3, 5], 0] = math.pi, -math.pi
    torch.testing.assert_close(pair_losses(task, output_of(vectors, BIAS), there), found)
    alone = pair_losses(task, output_of(vectors[kept], BIAS), there[kept])
    assert (found[kept] >= alone - 1e-6).all() and (found[kept] > alone).any(), "lone sides are candidates"


def test_of_three_towers_all_pairs_count_that_are_there() -> None:
    torch.manual_seed(0)
    output = output_of(torch.randn(4, 3, 8))
    there = torch.ones(4, 3, dtype=torch.bool)
    whole = pair_losses(RetrieveTask(), output, there)
    pairs = [
        pair_losses(RetrieveTask(), output[:, list(pair)], there[:, list(pair)]) for pair in ((0, 1), (0, 2), (1, 2))
    ]
    torch.testing.assert_close(whole, torch.stack(pairs).mean(dim=0))
    there[1, 2] = False
    assert pair_losses(RetrieveTask(), output, there)[1] != whole[1]


@pytest.mark.parametrize("loss", ["info_nce", "siglip"])
def test_nothing_there_gives_no_loss_and_no_gradient_that_is_no_number(loss: Literal["info_nce", "siglip"]) -> None:
    vectors = torch.randn(3, 2, 4, requires_grad=True)
    losses = pair_losses(RetrieveTask(loss=loss), output_of(vectors, BIAS), torch.zeros(3, 2, dtype=torch.bool))
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0]
    assert vectors.grad is not None and not vectors.grad.any()


def test_a_head_begins_with_its_temperature_and_never_grows_beyond_what_is_stable() -> None:
    head = RetrieveHead(RetrieveTask(dim=4), 8, 2)
    output = head(torch.randn(3, 2, 8))
    assert output.shape == (3, 2, 6)
    torch.testing.assert_close(output[..., :4].norm(dim=-1), torch.ones(3, 2))
    assert output[0, 0, 4].item() == pytest.approx(1 / 0.07) and output[0, 0, 5].item() == 0
    siglip = RetrieveHead(RetrieveTask(dim=4, loss="siglip", temperature=0.2), 8, 1)
    assert siglip(torch.randn(1, 2, 8))[0, 0, 4:].tolist() == pytest.approx([5, -10])
    with torch.no_grad():
        head.log_scale.fill_(99.0)
    assert head(torch.randn(3, 2, 8))[0, 0, 4].item() == 100


def retrieves(fields: list[str], **task: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "fields": {name: {} for name in fields},
            "fusion": {"method": "gated", "dim": 16},
            "task": {"type": "retrieve", **task},
        }
    )


TASKS: list[tuple[list[str], dict[str, object]]] = [
    (["image", "text"], {}),
    (["image", "text", "vector"], {"towers": {"seen": ["image", "vector"], "told": ["text"]}, "loss": "siglip"}),
    (["audio", "image", "points"], {}),
]


@pytest.mark.parametrize(("fields", "task"), TASKS, ids=["two", "joined", "three"])
def test_a_tower_knows_nothing_of_the_others_and_every_weight_learns(
    fields: list[str], task: dict[str, object]
) -> None:
    config = retrieves(fields, dim=8, **task)
    preprocessor = preprocessor_of(config)
    torch.manual_seed(0)
    model = build_model(config, preprocessor)
    batch = noise(config, 6)
    assert isinstance(config.task, RetrieveTask)
    towers = config.task.towers_of(fields)
    losses = pair_losses(config.task, model(batch), tower_presence(towers, batch))
    (losses * sample_weights(config.task, batch, fields)).sum().backward()
    # What stands in for a field that is absent, and the gate of one field alone, have a gradient of 0.
    assert all(parameter.grad is not None for parameter in model.parameters())
    for module in (*model.encoders, model.head):
        assert all(p.grad is not None and p.grad.any() for p in module.parameters())
    model.eval()
    before = model(batch)
    hidden = batch | {f"{name}.presence": torch.zeros(6, dtype=torch.bool) for name in next(iter(towers.values()))}
    after = model(hidden)
    assert not torch.equal(after[:, 0], before[:, 0])
    torch.testing.assert_close(after[:, 1:], before[:, 1:], rtol=0, atol=0)


def test_a_shared_encoder_sees_both_sides_alike() -> None:
    config = retrieves(["image", "other"], shared=True)
    preprocessor = preprocessor_of(ModelConfig.model_validate(config.model_dump() | {"fields": {"image": {}}}))
    fields = preprocessor.fields | {"other": preprocessor.fields["image"]}
    model = build_model(config, preprocessor.model_copy(update={"fields": fields})).eval()
    assert (len(model.encoders), model.encoded) == (1, ["image"])
    batch = noise(ModelConfig.model_validate(config.model_dump() | {"fields": {"image": {}}}), 3)
    both = batch | {name.replace("image", "other"): array for name, array in batch.items() if "image" in name}
    output = model(both)
    torch.testing.assert_close(output[:, 0], output[:, 1], rtol=0, atol=0)


def test_a_workers_rows_meet_those_of_all_others() -> None:
    torch.manual_seed(0)
    output, there = output_of(torch.randn(6, 2, 4)), torch.ones(6, 2, dtype=torch.bool)
    whole = pair_losses(RetrieveTask(), output, there)
    for own, rows in enumerate((slice(0, 3), slice(3, 6))):

        def gather(part: Tensor, own: int = own) -> tuple[Tensor, int]:
            return (there if part.dtype == torch.bool else output[..., :-2]), 3 * own

        torch.testing.assert_close(pair_losses(RetrieveTask(), output[rows], there[rows], gather), whole[rows])
