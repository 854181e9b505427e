"""A training with pretrained encoders: what it begins with, what it trains, and that it needs their folders no more."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ray_mm.check import check_job
from ray_mm.checkpoint import load_checkpoint
from ray_mm.compression.export import check_parity, export_onnx
from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import AudioField, FieldSpec, ImageField, TextField, VectorField, VideoField
from ray_mm.data.pretrained import find_pretrained
from ray_mm.errors import JobFileError, UsageError
from ray_mm.models.encoders import build_encoder
from ray_mm.models.encoders.backbone import read_weights
from ray_mm.models.encoders.pretrained import PretrainedEncoder
from ray_mm.predictor import load_predictor
from ray_mm.training.learner import Learner
from ray_mm.training.parallel import Ranks
from ray_mm.training.parts import learning_rate_factors
from ray_mm.training.plan import Training
from tests.factories import SPECS, image_bytes, make_dataset
from tests.models import tiny
from tests.training.inprocess import Killed, curve, make_training, newest, train
from tests.training.together import Start, train_together

pytestmark = pytest.mark.usefixtures("one_thread")

FIELDS = ("image", "text", "label")
ALONE = Ranks(0, 1, torch.device("cpu"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Datasets of pictures and texts, and a model for each of the two."""
    make_dataset(tmp_path / "train", 48, FIELDS)
    make_dataset(tmp_path / "validation", 16, FIELDS, seed=1)
    tiny.text_model(tmp_path / "text", "roberta")
    tiny.image_model(tmp_path / "image")
    return tmp_path


def training_of(folder: Path, run: str = "run", tune: str = "frozen", **overrides: Any) -> Training:
    fields = {name: {"pretrained": str(folder / name), "tune": tune, "dropout": 0.0} for name in ("image", "text")}
    return make_training(folder, run, **{"model.fields": fields, "train.optimizer.lr": 1e-2, **overrides})


def weights_of(folder: Path, field: int) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint's backbone; field 0 is the image, 1 the text."""
    prefix = f"encoders.{field}.backbone."
    state = load_checkpoint(folder).state
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


@pytest.mark.parametrize("tune", ["frozen", "full", "lora"])
def test_a_training_learns_and_its_checkpoint_needs_no_other_folder(tune: str, folder: Path) -> None:
    training = training_of(folder, tune=tune, **{"train.epochs": 6})
    train(training)
    losses = curve(training)
    assert losses["train", 18] < 0.7 * losses["train", 1]
    before = load_file(folder / "text" / "model.safetensors")
    shutil.rmtree(folder / "text")
    shutil.rmtree(folder / "image")

    after = weights_of(training.run / "last", 1)
    changed = {
        name
        for name, tensor in after.items()
        if "lora_" in name or not tensor.equal(before[name.replace(".base_layer", "")])
    }
    assert "embeddings.word_embeddings.weight" in after
    match tune:
        case "frozen":
            assert not changed
        case "full":
            # The words of other texts than these, and what a sum over softmax does not see, may stay.
            assert len(changed) > 0.7 * len(after)
        case _:
            assert changed == {name for name in after if "lora_" in name}
            assert all(after[name].any() for name in changed)

    predictor = load_predictor(training.run / "last", device="cpu")
    # Tokenised by the text model's own tokenizer: one that knows no word of it gives another answer.
    first, again, other = (
        predictor.predict({"image": image_bytes(0), "text": text}).probabilities
        for text in ("stop at the line", "stop at the line", "please turn left here")
    )
    assert first == again != other


def test_a_training_that_was_killed_goes_on_without_the_folders(folder: Path) -> None:
    with pytest.raises(Killed):
        train(training_of(folder, tune="full"), stop_before=6)
    whole = training_of(folder, "whole", tune="full")
    train(whole)
    shutil.rmtree(folder / "text")
    shutil.rmtree(folder / "image")
    resumed = training_of(folder, tune="full")
    train(resumed)
    assert curve(resumed) == curve(whole)
    one, other = load_checkpoint(newest(resumed)).state, load_checkpoint(newest(whole)).state
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_another_model_is_looked_at_however_far_the_run_has_come(folder: Path) -> None:
    train(training_of(folder, **{"train.epochs": 1}))
    with pytest.raises(UsageError, match=r"model\.fields\.image\.pretrained: .*elsewhere"):
        fields = {"image": {"pretrained": str(folder / "elsewhere")}}
        make_training(folder, **{"model.fields": fields})


@pytest.mark.slow
def test_two_workers_begin_with_the_weights_that_the_first_one_reads(folder: Path) -> None:
    # What dropout hides differs between ranks.
    tiny.text_model(folder / "text", "roberta", dropout=0.0)
    tiny.image_model(folder / "image", dropout=0.0)
    still = {"train.epochs": 1, "train.modality_dropout": 0.0, "model.fusion.dropout": 0.0}
    plans = [
        (tune, training_of(folder, f"{tune}-{parallel}", tune, **{"train.parallel": parallel}, **still))
        for tune, parallel in (("frozen", "ddp"), ("full", "ddp"), ("lora", "fsdp"))
    ]
    train_together([Start(training, 2, min_unit=1) for _, training in plans], folder / "meet")
    for tune, training in plans:
        alone = training_of(folder, f"{training.run.name}-alone", tune, **still)
        train(alone)
        assert curve(training) == pytest.approx(curve(alone), rel=1e-3), training.run.name


def test_layers_nearer_to_the_input_learn_slower(folder: Path) -> None:
    training = training_of(folder, tune="full", **{"train.optimizer.layer_decay": 0.5})
    learner = Learner(training, ALONE)
    factors = learning_rate_factors(learner.model, training.job.train.optimizer)
    text = learner.model.encoders[1]
    named = {name: factors[parameter] for name, parameter in text.named_parameters()}
    assert named["project.weight"] == 1.0
    assert named["backbone.encoder.layer.1.output.dense.weight"] == 0.5
    assert named["backbone.encoder.layer.0.output.dense.weight"] == 0.25
    assert named["backbone.embeddings.word_embeddings.weight"] == 0.125
    assert set(named) == {name for name, _ in text.named_parameters()}


def test_a_part_that_is_thawed_again_does_not_thaw_what_is_frozen_for_good(folder: Path) -> None:
    training = training_of(folder, **{"train.freeze": {"encoders": 0.5}})
    train(training)
    before = load_file(folder / "text" / "model.safetensors")
    after = weights_of(training.run / "last", 1)
    assert all(tensor.equal(before[name]) for name, tensor in after.items())


@pytest.mark.filterwarnings("ignore")
def test_the_graph_of_a_trained_model_answers_as_it_does(folder: Path) -> None:
    training = training_of(folder, tune="lora", **{"train.epochs": 1})
    train(training)
    model = load_checkpoint(training.run / "last").build()
    export_onnx(model, training.preprocessor, folder / "model.onnx")
    assert check_parity(model, training.preprocessor, folder / "model.onnx") < 1e-3


def test_check_names_the_models(folder: Path) -> None:
    training = training_of(folder, tune="lora")
    lines = check_job(training.job)
    assert f"model.fields.image: vit from {folder / 'image'}, lora" in lines
    assert f"model.fields.text: roberta from {folder / 'text'}, lora" in lines


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tune": "full"}, "tune is of a pretrained model"),
        ({"pretrained": "x", "lora": {"rank": 2}}, "set tune: lora"),
        ({"pretrained": "x", "encoder": "cnn"}, "two encoders for one field"),
        ({"pretrained": "x", "size": "base"}, "leave size out"),
        ({"pretrained": "x", "patch": 8}, r"patch: only vit has this key"),
        ({"pretrained": "x", "tune": "lora", "lora": {"rank": 0}}, "rank"),
    ],
)
def test_keys_that_do_not_go_together_are_named(config: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises((JobFileError, UsageError), match=message):
        make_training(folder, **{"model.fields": {"image": config}})


TEXT, IMAGE = TextField(max_tokens=8), ImageField(height=16, width=16)
AUDIO, VIDEO = AudioField(rate_hz=8000, max_seconds=0.1), VideoField(num_frames=4, height=16, width=16)


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        ("text", IMAGE, r"\(bert\) reads text, and the field is of type image"),
        ("image", TEXT, r"\(vit\) reads image, and the field is of type text"),
        ("video", IMAGE, r"\(videomae\) reads video"),
        (
            "image",
            ImageField(height=16, width=16, channels=1),
            r"3 channels, the field has 1; set data\.fields\.f\.channels",
        ),
        (
            "text",
            TextField(max_tokens=21),
            r"reads 3 to 20 tokens, and the field has 21; set data\.fields\.f\.max_tokens",
        ),
        ("text", TextField(max_tokens=2), r"reads 3 to 20 tokens"),
        (
            "audio",
            AudioField(rate_hz=4000, max_seconds=1),
            r"8000 samples per second, .* set data\.fields\.f\.rate_hz: 8000",
        ),
        ("audio", AudioField(rate_hz=8000, max_seconds=1, channels=2), r"set data\.fields\.f\.channels: 1"),
        ("video", VideoField(num_frames=8, height=16, width=16), r"set data\.fields\.f\.num_frames: 4"),
    ],
)
def test_a_model_that_does_not_suit_its_field_is_refused(
    model: str, spec: FieldSpec, message: str, models: Path
) -> None:
    with pytest.raises(UsageError, match=rf"^model\.fields\.f\.pretrained: .*{message}"):
        find_pretrained("model.fields.f", "f", spec, EncoderConfig(pretrained=str(models / model)))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each kind."""
    folder = tmp_path_factory.mktemp("models")
    tiny.audio_model(folder / "audio")
    tiny.image_model(folder / "image")
    tiny.text_model(folder / "text")
    tiny.video_model(folder / "video")
    return folder


@pytest.mark.parametrize(
    ("kind", "spec", "message"),
    [
        ("clip", IMAGE, r"\(clip\) reads image and text, and the field is of type image"),
        ("whisper", AUDIO, r"\(whisper\) reads audio and text, and the field is of type audio"),
        ("t5", TEXT, r"\(t5\) is an encoder with a decoder"),
        ("gpt2", TEXT, r"\(gpt2\) is not an encoder of texts"),
        ("audio-spectrogram-transformer", AUDIO, "choose a model that reads the wave itself"),
        ("vivit", VIDEO, r"\(vivit\) lays its tokens out in a way"),
        ("no-such-kind", IMAGE, "is of the kind 'no-such-kind', which transformers .* does not know"),
    ],
)
def test_kinds_of_models_that_are_no_encoder_of_one_field_are_refused(
    kind: str, spec: FieldSpec, message: str, models: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(models / spec.type, tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    if kind == "audio-spectrogram-transformer":
        (folder / "preprocessor_config.json").write_text(json.dumps({"feature_extractor_type": "ASTFeatureExtractor"}))
    with pytest.raises(UsageError, match=rf"^model\.fields\.f\.pretrained: .*{message}"):
        find_pretrained("model.fields.f", "f", spec, EncoderConfig(pretrained=str(folder)))


def damaged(models: Path, tmp_path: Path, damage: str) -> Path:
    folder = shutil.copytree(models / "image", tmp_path / damage)
    match damage:
        case "pickle":
            (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        case "weightless":
            (folder / "model.safetensors").unlink()
        case "no_config":
            (folder / "config.json").unlink()
        case "no_processor":
            (folder / "preprocessor_config.json").unlink()
        case "no_json":
            (folder / "config.json").write_text("{")
        case "own_code":
            (folder / "config.json").write_text('{"model_type": "mine", "auto_map": {"AutoModel": "evil.Model"}}')
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("pickle", "only pytorch_model.bin: such a file can run code"),
        ("weightless", "neither model.safetensors nor parts"),
        ("no_config", "has no config.json, so it is not a model that transformers has written"),
        ("no_processor", "preprocessor_config.json is missing"),
        ("no_json", "config.json can't be read"),
        ("own_code", "code of its own, which is never run"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(damage: str, message: str, models: Path, tmp_path: Path) -> None:
    encoder = EncoderConfig(pretrained=str(damaged(models, tmp_path, damage)))
    with pytest.raises(UsageError, match=rf"^model\.fields\.f\.pretrained: .*{message}"):
        find_pretrained("model.fields.f", "f", IMAGE, encoder)


def test_where_transformers_is_not_installed_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(training_of(folder, **{"train.epochs": 1}))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'ray_mm\[pretrained\]'"):
        load_predictor(folder / "run" / "last")
    with pytest.raises(UsageError, match=r"^model\.fields\.f\.pretrained: .*pip install 'ray_mm\[pretrained\]'"):
        find_pretrained("model.fields.f", "f", IMAGE, EncoderConfig(pretrained=str(folder / "image")))


@pytest.mark.parametrize("given", ["/no/such/folder", "./none", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match=r"^model\.fields\.f\.pretrained: .* is no folder"):
        find_pretrained("model.fields.f", "f", IMAGE, EncoderConfig(pretrained=given))


def test_a_name_that_the_hub_does_not_give_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match=r"^model\.fields\.f\.pretrained: .*hf download nobody/nothing --local-dir"):
        find_pretrained("model.fields.f", "f", IMAGE, EncoderConfig(pretrained="nobody/nothing"))


def test_a_model_of_the_hub_is_read_at_the_commit_that_the_driver_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    kept = tmp_path / "models--some--vit"
    snapshot = tiny.image_model(kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    encoder = EncoderConfig(pretrained="some/vit")
    pretrained = find_pretrained("model.fields.f", "f", IMAGE, encoder).pretrained
    assert (pretrained.source, pretrained.revision) == ("some/vit", commit)
    # Another one is the newest by the time that rank 0 reads.
    (kept / "refs" / "main").write_text(commit[::-1])
    module = build_encoder(IMAGE, encoder, None, 8, pretrained)
    assert isinstance(module, PretrainedEncoder)
    read_weights(module.backbone, pretrained)
    weights = load_file(snapshot / "model.safetensors")
    assert torch.equal(module.backbone.embeddings.cls_token, weights["embeddings.cls_token"])
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"^some/vit: has no weights as safetensors"):
        read_weights(module.backbone, pretrained)


@pytest.mark.parametrize("spec", [SPECS["series"], SPECS["points"], VectorField(size=5)])
def test_fields_of_numbers_have_no_pretrained_models(spec: FieldSpec, tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 6, (spec.type, "label"))
    with pytest.raises(
        UsageError, match=rf"model\.fields\.{spec.type}\.pretrained: there are none for a field of type"
    ):
        make_training(tmp_path, **{"model.fields": {spec.type: {"pretrained": "x"}}})
