"""Encoders and fusions of another package: the one that docs/extending.md shows."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import torch

from ray_mm.checkpoint import load_checkpoint
from ray_mm.config.fields import FieldSpec, SeriesField, VectorField
from ray_mm.config.model import ModelConfig, check_model
from ray_mm.errors import UsageError
from ray_mm.models.multimodal import build_model
from ray_mm.models.own import try_own
from tests.factories import make_dataset
from tests.models.batches import LABELS, noise, preprocessor_of
from tests.training.inprocess import make_training, train

ROOT = Path(__file__).parents[2]
FIELDS: dict[str, FieldSpec] = {"series": SeriesField(channels=3, max_length=11), "vector": VectorField(size=5)}
OWN = {
    "fields": {"series": {"encoder": "own", "name": "windows", "options": {"steps": 3}}, "vector": {}},
    "fusion": {"method": "own", "name": "average", "dim": 16},
    "task": {"type": "classify", "label": "kind"},
}
WRONG = """

class Narrow(nn.Module):
    def __init__(self, spec, config, statistics, dim):
        super().__init__()

    def forward(self, series, length):
        return series, length_mask(length, series.shape[1])


class Unmasked(Narrow):
    def forward(self, series, length):
        tokens = series.new_zeros(*series.shape[:2], 16)
        return tokens, tokens[..., 0]


class Infinite(Narrow):
    def forward(self, series, length):
        tokens = series.new_zeros(*series.shape[:2], 16) / length[:, None, None]
        return tokens, length_mask(length, series.shape[1])


class Failing(Narrow):
    def forward(self, series, length):
        raise RuntimeError("no such layer")


class Wide(Average):
    def forward(self, encoded, presence):
        return super().forward(encoded, presence).repeat(1, 2)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package of the page, as pip would lay it out, with some parts that are wrong."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"```\w+\n# file: (\S+)\n(.*?)^```", page, re.M | re.S))
    place = tmp_path / "site"
    (place / "mylab_parts-1.0.dist-info").mkdir(parents=True)
    (place / "mylab_parts.py").write_text(files["mylab_parts.py"] + WRONG)
    (place / "mylab_parts-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mylab-parts\nVersion: 1.0\n"
    )
    groups = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n((?:\w+ = ".*"\n)+)', files["pyproject.toml"])
    points = "".join(f"[{group}]\n{lines.replace(chr(34), '')}" for group, lines in groups)
    wrong = "".join(f"{name.lower()} = mylab_parts:{name}\n" for name in ("Narrow", "Unmasked", "Infinite", "Failing"))
    points = points.replace("[ray_mm.encoders]\n", f"[ray_mm.encoders]\n{wrong}") + "wide = mylab_parts:Wide\n"
    (place / "mylab_parts-1.0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(place)
    importlib.invalidate_caches()
    monkeypatch.delitem(sys.modules, "mylab_parts", raising=False)
    return place


def config_of(**changes: object) -> ModelConfig:
    return ModelConfig.model_validate(OWN | changes)


def test_parts_of_the_page_are_made_tried_and_looked_through(installed: Path) -> None:
    config = config_of()
    check_model(config, FIELDS | LABELS)
    try_own(config, preprocessor_of(config, FIELDS))
    torch.manual_seed(0)
    model = build_model(config, preprocessor_of(config, FIELDS)).eval()
    batch = noise(config, 6, fields=FIELDS)
    content, length = batch["series"], batch["series.length"]
    output = model(batch)
    assert output.shape == (6, 4) and output.isfinite().all()
    filled = content.clone()
    filled[torch.arange(content.shape[1])[None] >= length[:, None]] = 99
    assert torch.equal(model({**batch, "series": filled}), output)
    # With the options of the job: four windows of three steps.
    tokens, mask = model.encode(batch)["series"]
    assert tokens.shape == (6, 4, 16) and mask.shape == (6, 4)


def test_a_training_learns_with_them_and_its_checkpoint_loads(installed: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "train", 32, ("series", "vector", "label"))
    settings = {"model.fields": OWN["fields"], "model.fusion": OWN["fusion"], "train.epochs": 1}
    training = make_training(tmp_path, inputs=("series", "vector"), **settings)
    train(training)
    model = load_checkpoint(training.run / "last").build()
    assert type(model.encoders[0]).__module__ == type(model.fusion).__module__ == "mylab_parts"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": "own"}, r"^model\.fields\.series\.name: which one is not said"),
        (
            {"encoder": "own", "name": "waves"},
            r"^model\.fields\.series\.name: no package .* encoder 'waves' .*failing, infinite, narrow, unmasked, windows",
        ),
        ({"name": "windows"}, r"^model\.fields\.series\.name: only own has this key, and the encoder is cnn"),
        ({"options": {}}, r"^model\.fields\.series\.options: only own has this key"),
    ],
)
def test_a_part_that_is_not_there_is_refused_by_its_key(
    installed: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_model(config_of(fields={"series": changes}), FIELDS | LABELS)


@pytest.mark.parametrize("fusion", [{"method": "own"}, {"method": "own", "name": "sum"}])
def test_a_fusion_that_is_not_there_is_refused_by_its_key(installed: Path, fusion: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"^model\.fusion\.name: (which one is not said|no package .* fusion 'sum')"):
        check_model(config_of(fusion=fusion), FIELDS | LABELS)


def test_two_packages_with_one_name_are_told_apart_by_nobody(installed: Path) -> None:
    other = installed / "other-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text("[ray_mm.encoders]\nwindows = other:Windows\n")
    importlib.invalidate_caches()
    with pytest.raises(UsageError, match=r"several packages bring along the encoder 'windows': mylab_parts.*, other"):
        check_model(config_of(), FIELDS | LABELS)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "narrow",
            r"gives a tensor \[2, 11, 3\] of torch\.float32; tokens of two samples are a tensor \[2, any number, 16\]",
        ),
        ("unmasked", r"gives a tensor \[2, 11\] of torch\.float32 as its mask; expected bool \[2, 11\]"),
        ("infinite", r"gives tokens that are not finite"),
        ("failing", r"can't be used \(RuntimeError: no such layer\)"),
    ],
)
def test_an_encoder_that_answers_wrongly_is_refused_before_anything_starts(
    installed: Path, name: str, message: str
) -> None:
    config = config_of(fields={"series": {"encoder": "own", "name": name}})
    with pytest.raises(UsageError, match=rf"^model\.fields\.series\.name: '{name}' {message}"):
        try_own(config, preprocessor_of(config, FIELDS))


def test_a_fusion_that_answers_wrongly_is_refused_before_anything_starts(installed: Path) -> None:
    config = config_of(fusion={"method": "own", "name": "wide", "dim": 16})
    with pytest.raises(UsageError, match=r"^model\.fusion\.name: 'wide' gives a tensor \[2, 32\].*a tensor \[2, 16\]"):
        try_own(config, preprocessor_of(config, FIELDS))
