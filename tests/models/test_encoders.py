"""Every encoder learns, and looks at nothing beyond a sample's length."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import AudioField, FieldSpec, ImageField, PointsField, SeriesField, VideoField
from ray_mm.models.encoders import build_encoder
from ray_mm.models.encoders.pillars import Pillars
from ray_mm.models.layers import MAX_TOKENS
from ray_mm.models.losses import loss_per_sample
from tests.models.batches import (
    ALL_ENCODERS,
    FIELDS,
    STATISTICS,
    encoder_content,
    model_config,
    noise,
    preprocessor_of,
    seeded_model,
)

WITH_LENGTH = [(kind, encoder) for kind, encoder in ALL_ENCODERS if kind in ("audio", "points", "series", "video")]


def encode(kind: str, encoder: str, batch: dict[str, Tensor], size: str = "small") -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    config = EncoderConfig.model_validate(encoder_content(encoder) | {"size": size})
    module = build_encoder(FIELDS[kind], config, STATISTICS.get(kind), 16).eval()
    arrays = [batch[name] for name in (kind, f"{kind}.time", f"{kind}.length") if name in batch]
    with torch.no_grad():
        tokens, mask = module(*arrays)
    return tokens, mask


def tokens_of(spec: FieldSpec, *arrays: Tensor) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        tokens, mask = build_encoder(spec, EncoderConfig(), None, 16).eval()(*arrays)
    return tokens, mask


LEARNED = [(kind, encoder, "classify") for kind, encoder in ALL_ENCODERS] + [("vector", "mlp", "regress")]


@pytest.mark.parametrize(("kind", "encoder", "task"), LEARNED)
def test_an_encoder_learns_thirty_two_samples_by_heart(kind: str, encoder: str, task: str) -> None:
    config = model_config([kind], encoders={kind: encoder}, task=task, dim=32)
    model, preprocessor = seeded_model(config).train(), preprocessor_of(config)
    # Short texts may be the same by chance: then nobody could tell their classes apart.
    batch = next(batch for batch in (noise(config, 32, seed=seed) for seed in range(100)) if _differs(batch[kind]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    for _ in range(300):
        loss = loss_per_sample(config.task, model(batch), batch, preprocessor).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if loss < 0.02:
            return
    pytest.fail(f"loss is still {loss:.3f} after 300 steps")


def _differs(content: Tensor) -> bool:
    return len({tuple(sample.flatten().tolist()) for sample in content}) == len(content)


@pytest.mark.parametrize(("kind", "encoder"), ALL_ENCODERS)
@pytest.mark.parametrize("size", ["small", "base"])
def test_an_encoder_gives_tokens_and_a_mask(kind: str, encoder: str, size: str) -> None:
    batch = noise(model_config([kind]), 3)
    tokens, mask = encode(kind, encoder, batch, size)
    assert tokens.shape == (*mask.shape, 16) and len(tokens) == 3
    assert mask.dtype == torch.bool and mask.any(1).all()
    assert tokens.isfinite().all()


@pytest.mark.parametrize(("kind", "encoder"), ALL_ENCODERS)
def test_base_is_larger_than_small(kind: str, encoder: str) -> None:
    small, base = (
        sum(
            parameter.numel()
            for parameter in build_encoder(
                FIELDS[kind], EncoderConfig.model_validate(encoder_content(encoder) | {"size": size}), None, 64
            ).parameters()
        )
        for size in ("small", "base")
    )
    assert base > 1.5 * small


@pytest.mark.parametrize(("kind", "encoder"), WITH_LENGTH)
def test_what_lies_beyond_the_length_changes_nothing(kind: str, encoder: str) -> None:
    batch = noise(model_config([kind]), 8)
    content, length = batch[kind], batch[f"{kind}.length"]
    beyond = torch.arange(content.shape[1])[None] >= length[:, None]
    filled = {**batch, kind: content.clone()}
    # More than any value that counts, whatever the type of the array.
    filled[kind][beyond] = 251
    if kind == "video":
        filled["video.time"] = batch["video.time"].masked_fill(beyond, 77)
    tokens, mask = encode(kind, encoder, batch)
    other_tokens, other_mask = encode(kind, encoder, filled)
    assert beyond.any() and torch.equal(mask, other_mask)
    assert torch.equal(tokens[mask], other_tokens[mask])


@pytest.mark.parametrize(("kind", "encoder"), WITH_LENGTH)
def test_the_mask_covers_as_much_as_the_length(kind: str, encoder: str) -> None:
    batch = noise(model_config([kind]), 2)
    batch[f"{kind}.length"] = torch.tensor([0, batch[kind].shape[1]], dtype=torch.int32)
    tokens, mask = encode(kind, encoder, batch)
    assert not mask[0].any() and mask[1].all()
    assert tokens.isfinite().all()


@pytest.mark.parametrize("encoder", ["recurrent", "lstm", "transformer"])
def test_the_mask_of_a_text_is_where_its_tokens_are(encoder: str) -> None:
    text = torch.tensor([[5, 6, 7, 0, 0, 0, 0], [0] * 7], dtype=torch.int32)
    tokens, mask = encode("text", encoder, {"text": text})
    assert mask.tolist() == [[True] * 3 + [False] * 4, [False] * 7]
    assert tokens.isfinite().all()


@pytest.mark.parametrize("encoder", ["recurrent", "lstm"])
def test_a_recurrent_text_encoder_reads_from_left_to_right(encoder: str) -> None:
    first, second = (torch.tensor([[5, 6, last, 0, 0, 0, 0]], dtype=torch.int32) for last in (7, 8))
    tokens, other = (encode("text", encoder, {"text": text})[0] for text in (first, second))
    assert torch.equal(tokens[:, :2], other[:, :2])
    assert not torch.equal(tokens[:, 2], other[:, 2])


def test_a_transformer_reads_in_both_directions() -> None:
    first, second = (torch.tensor([[5, 6, last, 0, 0, 0, 0]], dtype=torch.int32) for last in (7, 8))
    tokens, other = (encode("text", "transformer", {"text": text})[0] for text in (first, second))
    assert not torch.equal(tokens[:, 0], other[:, 0])


@pytest.mark.parametrize(("kind", "encoder"), ALL_ENCODERS)
def test_a_sample_does_not_see_the_others_of_its_batch(kind: str, encoder: str) -> None:
    batch = noise(model_config([kind]), 5)
    tokens, mask = encode(kind, encoder, batch)
    alone, alone_mask = encode(kind, encoder, {name: values[2:3] for name, values in batch.items()})
    assert torch.equal(mask[2:3], alone_mask)
    torch.testing.assert_close(tokens[2:3], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("encoder", ["pointnet", "pillars"])
def test_the_order_of_points_changes_nothing(encoder: str) -> None:
    batch = noise(model_config(["points"]), 4)
    batch["points.length"][:] = batch["points"].shape[1]
    turned = {**batch, "points": batch["points"].flip(1)}
    torch.testing.assert_close(encode("points", encoder, batch)[0], encode("points", encoder, turned)[0])


def test_pillars_count_the_points_of_each_cell_and_leave_out_what_lies_beyond() -> None:
    config = EncoderConfig(encoder="pillars", cells=4, extent=(0.0, 40.0, -2.0, 2.0))
    encoder = build_encoder(PointsField(channels=3, max_points=5), config, None, 16)
    assert isinstance(encoder, Pillars)
    inside = [[5.0, -1.5, 9.0], [5.0, -1.5, -9.0], [39.0, 1.9, 0.0]]
    points = torch.tensor([[*inside, [40.0, 0.0, 0.0], [5.0, -1.5, 0.0]]])
    number = encoder.grid(points, torch.tensor([4]))[0, -1].expm1().round()
    expected = torch.zeros(4, 4)
    expected[0, 0], expected[3, 3] = 2, 1
    assert torch.equal(number, expected)


def test_a_clip_is_told_by_when_its_frames_are_shown() -> None:
    batch = noise(model_config(["video"]), 4)
    slower = {**batch, "video.time": batch["video.time"] * 2}
    for encoder in ("transformer", "recurrent"):
        tokens, other = encode("video", encoder, batch)[0], encode("video", encoder, slower)[0]
        # The first frame is shown at 0 s in both.
        assert not torch.allclose(tokens[:, -1], other[:, -1])


def test_a_recurrent_video_encoder_looks_forward_in_time() -> None:
    batch = noise(model_config(["video"]), 4)
    batch["video.length"][:] = 5
    later = {**batch, "video": batch["video"].clone()}
    later["video"][:, 3:] = 0
    tokens, other = encode("video", "recurrent", batch)[0], encode("video", "recurrent", later)[0]
    assert torch.equal(tokens[:, :3], other[:, :3]) and not torch.equal(tokens[:, 3], other[:, 3])
    both, neither = encode("video", "transformer", batch)[0], encode("video", "transformer", later)[0]
    assert not torch.allclose(both[:, 0], neither[:, 0])


def test_a_clip_of_very_many_frames_is_shortened() -> None:
    clip = torch.zeros(1, 300, 8, 8, 3, dtype=torch.uint8)
    times, length = torch.arange(300)[None] / 30, torch.tensor([300], dtype=torch.int32)
    _, mask = tokens_of(VideoField(num_frames=300, height=8, width=8), clip, times, length)
    assert 64 < mask.shape[1] <= MAX_TOKENS and mask.all()


def test_the_place_of_a_thing_in_a_picture_survives_the_mean_over_tokens() -> None:
    # A blob left or right: what a steering angle depends on.
    picture = torch.zeros(2, 64, 64, 3, dtype=torch.uint8)
    picture[0, 28:36, 12:20] = 255
    picture[1, 28:36, 44:52] = 255
    tokens, _ = tokens_of(ImageField(height=64, width=64), picture)
    left, right = tokens.mean(1)
    assert (left - right).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("height", "width", "num_tokens"),
    [(8, 8, 4), (28, 28, 49), (64, 64, 64), (120, 160, 80), (9, 200, 50), (224, 224, 49)],
)
def test_a_picture_becomes_a_small_grid(height: int, width: int, num_tokens: int) -> None:
    tokens, _ = tokens_of(ImageField(height=height, width=width), torch.zeros(1, height, width, 3, dtype=torch.uint8))
    assert tokens.shape[1] == num_tokens


def test_long_recordings_and_series_are_shortened() -> None:
    seconds = 30
    audio = torch.zeros(1, 8000 * seconds, dtype=torch.int16)
    length = torch.tensor([8000 * seconds], dtype=torch.int32)
    _, mask = tokens_of(AudioField(rate_hz=8000, max_seconds=seconds), audio, length)
    assert 64 < mask.shape[1] <= MAX_TOKENS and mask.all()
    series = torch.zeros(1, 4096, 2)
    _, mask = tokens_of(SeriesField(channels=2, max_length=4096), series, torch.tensor([4096], dtype=torch.int32))
    assert 64 < mask.shape[1] <= MAX_TOKENS and mask.all()


def test_a_long_recording_is_not_influenced_by_what_lies_beyond_its_length() -> None:
    spec = AudioField(rate_hz=2000, max_seconds=20)
    audio = torch.randint(-3000, 3000, (1, 40_000), dtype=torch.int16)
    length = torch.tensor([17_003], dtype=torch.int32)
    tokens, mask = tokens_of(spec, audio, length)
    audio[:, 17_003:] = 0
    other, _ = tokens_of(spec, audio, length)
    assert torch.equal(tokens[mask], other[mask])


@pytest.mark.parametrize("encoder", ["mel_cnn", "mel_transformer"])
def test_each_channel_of_a_recording_counts(encoder: str) -> None:
    spec = AudioField(rate_hz=4000, max_seconds=0.5, channels=2)
    audio = torch.randint(-3000, 3000, (3, 2000, 2), dtype=torch.int16)
    length = torch.tensor([2000, 1000, 0], dtype=torch.int32)
    torch.manual_seed(0)
    module = build_encoder(spec, EncoderConfig.model_validate({"encoder": encoder}), None, 16).eval()
    with torch.no_grad():
        tokens, mask = module(audio, length)
        swapped, _ = module(audio.flip(2), length)
        one_silent, _ = module(audio * torch.tensor([1, 0], dtype=torch.int16), length)
        audio[1, 1000:] = 99
        filled, _ = module(audio, length)
    assert mask.any(1).tolist() == [True, True, False] and not mask[1].all()
    assert not torch.allclose(tokens[0], swapped[0]) and not torch.allclose(tokens[0], one_silent[0])
    assert torch.equal(tokens[mask], filled[mask])


def test_a_single_point_is_a_cloud() -> None:
    tokens, mask = tokens_of(PointsField(channels=3, max_points=1), torch.ones(2, 1, 3), torch.tensor([1, 0]))
    assert mask.any(1).tolist() == [True, False] and tokens.isfinite().all()
