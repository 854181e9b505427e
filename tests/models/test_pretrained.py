"""A pretrained encoder sees what transformers' own processor would show its model, and trains what the job says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor

from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import AudioField, FieldSpec, ImageField, TextField, VideoField
from ray_mm.data.decode.text import decode_text, load_tokenizer
from ray_mm.data.pretrained import FoundModel, find_pretrained
from ray_mm.errors import UsageError
from ray_mm.models.encoders import build_encoder
from ray_mm.models.encoders.backbone import read_weights
from ray_mm.models.encoders.pretrained import PretrainedEncoder, try_pretrained
from ray_mm.models.layers import MAX_TOKENS
from tests.models import tiny

FIELDS: dict[str, FieldSpec] = {
    "audio": AudioField(rate_hz=8000, max_seconds=0.1),
    "image": ImageField(height=16, width=16),
    "text": TextField(max_tokens=12),
    "video": VideoField(num_frames=4, height=16, width=16),
}
MAKERS = {
    "audio": tiny.audio_model,
    "image": tiny.image_model,
    "text": tiny.text_model,
    "video": tiny.video_model,
}
RANDOM = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for each type of field, named after it."""
    folder = tmp_path_factory.mktemp("models")
    for kind, make in MAKERS.items():
        make(folder / kind)
    return folder


def found_in(folder: Path, kind: str, spec: FieldSpec | None = None, **config: Any) -> tuple[EncoderConfig, FoundModel]:
    encoder = EncoderConfig(pretrained=str(folder), dropout=0.0, **config)
    return encoder, find_pretrained(f"model.fields.{kind}", kind, spec or FIELDS[kind], encoder)


def made(folder: Path, kind: str, spec: FieldSpec | None = None, **config: Any) -> PretrainedEncoder:
    torch.manual_seed(0)
    encoder, found = found_in(folder, kind, spec, **config)
    module = build_encoder(found.spec, encoder, None, 8, found.pretrained)
    assert isinstance(module, PretrainedEncoder)
    read_weights(module.backbone, found.pretrained)
    return module.eval()


def theirs(folder: Path, **inputs: Any) -> Tensor:
    """The last hidden states of transformers' own model."""
    from transformers import AutoModel

    with torch.no_grad():
        hidden: Tensor = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    return hidden


def seen(encoder: PretrainedEncoder, *arrays: Tensor) -> tuple[Tensor, Tensor]:
    """The hidden states before they are projected, and the mask."""
    encoder.tokens = lambda hidden: hidden  # type: ignore[method-assign]
    with torch.no_grad():
        hidden, mask = encoder(*arrays)
    return hidden, mask


def batch_of(kind: str, size: int = 3) -> tuple[Tensor, ...]:
    """Noise for a field of ``FIELDS``, padded with zeros, of several lengths."""
    match kind:
        case "image":
            return (torch.from_numpy(RANDOM.integers(0, 256, (size, 16, 16, 3)).astype(np.uint8)),)
        case "text":
            lengths = RANDOM.integers(1, 13, size)
            tokens = RANDOM.integers(1, 30, (size, 12)) * (np.arange(12) < lengths[:, None])
            return (torch.from_numpy(tokens.astype(np.int32)),)
        case "audio":
            lengths = RANDOM.integers(300, 801, size)
            wave = RANDOM.normal(0, 3000, (size, 800)) * (np.arange(800) < lengths[:, None])
            return torch.from_numpy(wave.astype(np.int16)), torch.from_numpy(lengths.astype(np.int32))
        case _:
            lengths = RANDOM.integers(1, 5, size)
            clip = (
                RANDOM.integers(0, 256, (size, 4, 16, 16, 3)) * (np.arange(4) < lengths[:, None])[..., None, None, None]
            )
            times = np.zeros((size, 4), np.float32)
            return tuple(map(torch.from_numpy, (clip.astype(np.uint8), times, lengths.astype(np.int32))))


def test_a_picture_is_seen_as_the_models_own_processor_shows_it(folder: Path) -> None:
    from transformers import AutoImageProcessor

    (pictures,) = batch_of("image")
    processor = AutoImageProcessor.from_pretrained(folder / "image")
    shown = processor(list(pictures.numpy()), do_resize=False, return_tensors="pt", input_data_format="channels_last")
    hidden, mask = seen(made(folder / "image", "image"), pictures)
    torch.testing.assert_close(hidden, theirs(folder / "image", **shown), atol=1e-5, rtol=1e-5)
    assert mask.shape == (3, 17) and mask.all()


def test_a_picture_of_another_size_has_its_places_interpolated(folder: Path) -> None:
    picture = torch.from_numpy(RANDOM.integers(0, 256, (2, 24, 16, 3)).astype(np.uint8))
    encoder = made(folder / "image", "image", ImageField(height=24, width=16))
    hidden, _ = seen(encoder, picture)
    shown = encoder.pixels(picture).permute(0, 3, 1, 2)
    expected = theirs(folder / "image", pixel_values=shown, interpolate_pos_encoding=True)
    assert hidden.shape == (2, 1 + 6 * 4, 16)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_text_is_seen_as_the_models_own_tokenizer_writes_it(kind: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tiny.text_model(tmp_path, kind)
    _, found = found_in(tmp_path, "text")
    assert found.tokenizer is not None
    texts = ["stop at the line", "please turn left here and then once more to the right", "", "go"]
    tokens = np.zeros((len(texts), 12), np.int32)
    for row, text in enumerate(texts):
        decode_text(text, load_tokenizer(found.tokenizer), tokens[row], first_id=1)
    written = AutoTokenizer.from_pretrained(tmp_path)(
        texts, padding="max_length", truncation=True, max_length=12, return_tensors="pt", return_token_type_ids=False
    )
    hidden, mask = seen(made(tmp_path, "text"), torch.from_numpy(tokens))
    assert torch.equal(mask, written["attention_mask"].bool())
    torch.testing.assert_close(hidden[mask], theirs(tmp_path, **written)[mask], atol=1e-5, rtol=1e-5)
    assert tokens.max() < found.spec.vocabulary_size  # type: ignore[union-attr]


@pytest.mark.parametrize("masks", [True, False])
def test_a_recording_is_heard_as_the_models_own_processor_plays_it(masks: bool, tmp_path: Path) -> None:
    from transformers import AutoFeatureExtractor

    tiny.audio_model(tmp_path, masks=masks)
    waves, lengths = batch_of("audio")
    processor = AutoFeatureExtractor.from_pretrained(tmp_path)
    played = [
        processor(wave[:length].numpy() / np.float32(32768), sampling_rate=8000, return_tensors="pt")["input_values"][0]
        for wave, length in zip(waves, lengths, strict=True)
    ]
    inputs = {"input_values": torch.stack([F.pad(wave, (0, 800 - len(wave))) for wave in played])}
    if masks:
        inputs["attention_mask"] = (torch.arange(800) < lengths[:, None]).long()
    hidden, mask = seen(made(tmp_path, "audio"), waves, lengths)
    torch.testing.assert_close(hidden[mask], theirs(tmp_path, **inputs)[mask], atol=1e-4, rtol=1e-4)
    assert mask.sum(1).tolist() == [(((length - 10) // 5 + 1) - 4) // 2 + 1 for length in lengths.tolist()]


def test_a_long_recording_becomes_means_of_its_tokens(folder: Path) -> None:
    waves = torch.from_numpy(RANDOM.normal(0, 3000, (2, 4000)).astype(np.int16))
    lengths = torch.tensor([4000, 2000], dtype=torch.int32)
    encoder = made(folder / "audio", "audio", AudioField(rate_hz=8000, max_seconds=0.5))
    hidden, mask = seen(encoder, waves, lengths)
    assert 64 < mask.shape[1] <= MAX_TOKENS
    short = made(folder / "audio", "audio", AudioField(rate_hz=8000, max_seconds=0.25))
    alone, _ = seen(short, waves[1:, :2000], lengths[1:])
    # 198 tokens, so means of four against means of two.
    torch.testing.assert_close(hidden[1, 10], alone[0, 20:22].mean(0), atol=1e-4, rtol=1e-4)


def test_a_clip_is_seen_as_the_models_own_processor_shows_it(folder: Path) -> None:
    from transformers import AutoImageProcessor

    clips, times, _ = batch_of("video")
    clips = torch.from_numpy(RANDOM.integers(0, 256, tuple(clips.shape)).astype(np.uint8))
    processor = AutoImageProcessor.from_pretrained(folder / "video")
    shown = processor(
        [list(clip) for clip in clips.numpy()],
        do_resize=False,
        do_center_crop=False,
        return_tensors="pt",
        input_data_format="channels_last",
    )
    hidden, mask = seen(made(folder / "video", "video"), clips, times, torch.full((3,), 4))
    expected = theirs(folder / "video", **shown).unflatten(1, (2, 4)).mean(2)
    torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)
    assert mask.shape == (3, 2) and mask.all()


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_what_lies_beyond_the_length_changes_nothing(kind: str, folder: Path) -> None:
    content, *rest = batch_of(kind, 6)
    beyond = torch.arange(content.shape[1])[None] >= rest[-1][:, None]
    filled = content.clone()
    filled[beyond] = 77
    encoder = made(folder / kind, kind)
    with torch.no_grad():
        (tokens, mask), (other, other_mask) = encoder(content, *rest), encoder(filled, *rest)
    assert beyond.any() and torch.equal(mask, other_mask)
    assert torch.equal(tokens, other)


@pytest.mark.parametrize("kind", sorted(FIELDS))
def test_a_field_that_is_absent_has_no_token_that_counts_and_none_that_is_no_number(kind: str, folder: Path) -> None:
    arrays = [torch.zeros_like(array) for array in batch_of(kind)]
    with torch.no_grad():
        tokens, mask = made(folder / kind, kind)(*arrays)
    assert tokens.isfinite().all()
    assert kind == "image" or not mask.any()


@pytest.mark.parametrize("kind", sorted(FIELDS))
@pytest.mark.parametrize("tune", ["frozen", "full", "lora"])
def test_what_is_tuned_gets_a_gradient_and_nothing_else(kind: str, tune: str, folder: Path) -> None:
    encoder = made(folder / kind, kind, tune=tune)
    encoder.requires_grad_(False)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    encoder.requires_grad_(True).train()
    tokens, mask = encoder(*batch_of(kind))
    (tokens[mask] * torch.randn(8)).sum().backward()
    with_gradient = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    # Else several ranks would wait for what does not come.
    assert with_gradient == trained
    of_backbone = {name for name in trained if name.startswith("backbone.")}
    assert trained - of_backbone == {"norm.weight", "norm.bias", "project.weight", "project.bias"}
    everything = {f"backbone.{name}" for name, _ in encoder.backbone.named_parameters()}
    if tune == "frozen":
        assert not of_backbone
        assert not encoder.backbone.training
    elif tune == "full":
        assert everything - of_backbone <= {"backbone.masked_spec_embed"}
        assert encoder.backbone.training
    else:
        assert of_backbone and of_backbone == {name for name in everything if "lora_" in name}


def test_additions_of_rank_and_targets_as_the_job_says(folder: Path) -> None:
    encoder = made(
        folder / "text", "text", tune="lora", lora={"rank": 3, "alpha": 6.0, "dropout": 0.5, "targets": ["query"]}
    )
    added = {name: tuple(p.shape) for name, p in encoder.backbone.named_parameters() if "lora_" in name}
    assert set(added.values()) == {(3, 16), (16, 3)} and len(added) == 4
    assert all(".query." in name for name in added)
    layer = encoder.backbone.encoder.layer[0].attention.self.query
    assert layer.scaling["default"] == 2.0 and layer.lora_dropout["default"].p == 0.5


def test_fresh_additions_change_nothing_yet(folder: Path) -> None:
    (text,) = batch_of("text")
    plain, _ = seen(made(folder / "text", "text"), text)
    added, _ = seen(made(folder / "text", "text", tune="lora"), text)
    torch.testing.assert_close(plain, added)


def test_targets_that_the_model_lacks_are_named(folder: Path) -> None:
    encoder, found = found_in(folder / "text", "text", tune="lora", lora={"targets": ["no_such_layer"]})
    with pytest.raises(UsageError, match=r"model\.fields\.text: .*bert.*no_such_layer"):
        try_pretrained("model.fields.text", found.spec, encoder, found.pretrained)


def test_a_picture_that_the_model_cannot_take_is_refused(tmp_path: Path) -> None:
    tiny.video_model(tmp_path)
    encoder, found = found_in(tmp_path, "video", VideoField(num_frames=4, height=24, width=24))
    with pytest.raises(UsageError, match=r"model\.fields\.video: .*videomae.*24×24 pixels"):
        try_pretrained("model.fields.video", found.spec, encoder, found.pretrained)


def test_weights_that_are_not_all_there_are_refused(tmp_path: Path) -> None:
    tiny.text_model(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    dropped = "encoder.layer.1.output.dense.weight"
    save_file(
        {name: w for name, w in weights.items() if name != dropped}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UsageError, match=rf"lacks weights .* 1 tensors such as {dropped}"):
        made(tmp_path, "text")


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")  # of torch, about WavLM
@pytest.mark.parametrize("kind", ["convnext", "dinov2", "swin", "distilbert", "hubert", "wavlm"])
def test_other_kinds_of_models_are_read_and_tuned(kind: str, tmp_path: Path) -> None:
    field = tiny.other_model(tmp_path, kind)
    encoder = made(tmp_path, field, tune="full").train()
    tokens, mask = encoder(*batch_of(field))
    assert tokens.isfinite().all() and mask.any()
    (tokens[mask] * torch.randn(8)).sum().backward()
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in encoder.parameters())


@pytest.mark.parametrize("kind", sorted(FIELDS))
def test_a_pretrained_encoder_can_be_exported(kind: str, folder: Path) -> None:
    encoder = made(folder / kind, kind)
    arrays = batch_of(kind)
    with torch.no_grad():
        program = torch.export.export(
            encoder, arrays, dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in arrays)
        )
        for size in (1, 5):
            batch = batch_of(kind, size)
            torch.testing.assert_close(program.module()(*batch), encoder(*batch))
