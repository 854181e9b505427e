"""Which samples take part: required fields, classes, fixed parts, balanced classes and mixed datasets, by key."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mm.config.fields import LabelField
from ray_mm.config.source import Balance, Source, TrainSource
from ray_mm.data.epochs import Epochs
from ray_mm.data.manifest import Dataset
from ray_mm.data.order import Shuffle
from ray_mm.data.samples import Samples, class_counts, class_shares, open_planned, plan_samples, select_all
from ray_mm.data.sidecar import index_path, read_index, write_index
from ray_mm.errors import DatasetError
from tests.factories import edit_manifest, make_dataset

FIELDS = ["image", "vector", "label"]
SHUFFLE = Shuffle(seed=0, digest="a", chunk_samples=4, window_chunks=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``first`` (90 samples in 4 shards, a third without picture, some without label) and ``second`` (30 samples)."""
    root = tmp_path_factory.mktemp("selection")
    make_dataset(root / "first", 90, FIELDS, num_shards=4, missing={"image": 0.34, "label": 0.1})
    make_dataset(root / "second", 30, FIELDS, num_shards=2, seed=1)
    return root


def _keys(datasets: list[Dataset], samples: Samples, epoch: int = 0, shuffle: Shuffle | None = None) -> list[str]:
    """Dataset and key of every sample of an epoch, in its order."""
    places = Epochs(datasets, samples, shuffle).places(0, samples.epoch_samples, epoch)
    indexes = {
        (number, shard): dataset.read_index(shard)
        for number, dataset in enumerate(datasets)
        for shard in range(len(dataset.shards))
    }
    rows = zip(*(column.tolist() for column in places), strict=True)
    return [f"{number}/{indexes[number, shard].keys[row]}" for number, shard, row in rows]


def _selected(folder: Path, **source: Any) -> list[str]:
    dataset, samples = select_all(Source(path=str(folder), **source), "data")
    return _keys([dataset], samples)


def _facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Key → whether it has a picture, and its class, read from the indexes by another way."""
    (dataset, samples) = select_all(Source(path=str(folder)), "data")
    found = {}
    for shard in range(len(dataset.shards)):
        index = dataset.read_index(shard)
        for row, key in enumerate(index.keys):
            pictured = any(index.sizes[suffix][row] > 0 for suffix in index.sizes if suffix.startswith("image."))
            found[f"0/{key}"] = {"image": pictured, "label": int(index.labels["label"][row])}
    assert list(found) == _keys([dataset], samples)
    return found


def test_required_fields_and_classes_leave_exactly_their_samples_in_the_order_of_the_shards(folder: Path) -> None:
    facts = _facts(folder / "first")
    dataset, _ = select_all(Source(path=str(folder / "first")), "data")
    classes = dataset.manifest.fields["label"].classes  # type: ignore[union-attr]
    assert classes is not None
    pictured = [key for key, fact in facts.items() if fact["image"]]
    assert 0 < len(pictured) < 90
    assert _selected(folder / "first", require=["image"]) == pictured
    of_class = [key for key, fact in facts.items() if fact["label"] in (0, 2)]
    assert _selected(folder / "first", where={"label": (classes[2], classes[0])}) == of_class
    both = [key for key in pictured if key in of_class]
    assert _selected(folder / "first", require=["image", "label"], where={"label": (classes[0], classes[2])}) == both


@pytest.mark.parametrize(("part", "expected"), [({"limit": 7}, 7), ({"fraction": 0.25}, 22), ({"limit": 500}, 90)])
def test_a_part_is_as_large_as_was_said_spread_over_the_shards_and_always_the_same(
    folder: Path, part: dict[str, Any], expected: int
) -> None:
    found = _selected(folder / "first", **part)
    assert len(found) == len(set(found)) == expected
    assert found == _selected(folder / "first", **part)
    everything = list(_facts(folder / "first"))
    quarters = Counter(everything.index(key) * 4 // 90 for key in found)
    assert len(quarters) == 4
    assert found == [key for key in everything if key in set(found)], "in the order of the shards"


def test_a_part_of_what_filters_leave(folder: Path) -> None:
    found = _selected(folder / "first", require=("image",), limit=10)
    facts = _facts(folder / "first")
    assert len(found) == 10 and all(facts[key]["image"] for key in found)


def _plan(folder: Path, sources: list[dict[str, Any]], **more: Any) -> tuple[list[Dataset], Samples]:
    named = [TrainSource(**source | {"path": str(folder / source["path"])}) for source in sources]
    return plan_samples(named, more.get("balance"), more.get("epoch_samples"))


def test_a_plan_is_opened_from_any_folder(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    _, samples = plan_samples([TrainSource(path="first"), TrainSource(path="second")], None, None)
    monkeypatch.chdir(tmp_path)
    assert [dataset.root for dataset in open_planned(samples)] == [str(folder / "first"), str(folder / "second")]


def test_datasets_without_weights_are_read_once_each(folder: Path) -> None:
    datasets, samples = _plan(folder, [{"path": "first"}, {"path": "second"}])
    found = _keys(datasets, samples, shuffle=SHUFFLE)
    assert len(found) == len(set(found)) == 120
    for start in range(0, 120, 24):
        assert sum(key.startswith("1/") for key in found[start : start + 24]) == 6


def test_weights_decide_how_much_of_an_epoch_each_dataset_is(folder: Path) -> None:
    datasets, samples = _plan(
        folder, [{"path": "first", "weight": 1}, {"path": "second", "weight": 3}], epoch_samples=80
    )
    epochs = [_keys(datasets, samples, epoch, SHUFFLE) for epoch in range(3)]
    for found in epochs:
        assert Counter(key[0] for key in found) == {"0": 20, "1": 60}
    drawn = Counter(key for found in epochs for key in found if key.startswith("1/"))
    assert len(drawn) == 30 and set(drawn.values()) == {6}, "passes go on where an epoch ends"


def test_equal_classes_are_drawn_equally_in_every_part_of_the_epoch(folder: Path) -> None:
    facts = _facts(folder / "first")
    datasets, samples = _plan(folder, [{"path": "first"}], balance=Balance(label="label"), epoch_samples=60)
    found = [facts[key]["label"] for key in _keys(datasets, samples, shuffle=SHUFFLE)]
    assert len(found) == 60 and -1 not in found
    counts = Counter(found)
    assert max(counts.values()) - min(counts.values()) <= 1
    half = Counter(found[:30])
    assert max(half.values()) - min(half.values()) <= 2


@pytest.mark.parametrize(
    ("balance", "power"),
    [
        (Balance(label="label", method="square_root"), 0.5),
        (Balance(label="label", method="temperature", temperature=4), 0.25),
        (Balance(label="label", method="temperature", temperature=1), 1.0),
    ],
)
def test_classes_are_drawn_by_their_number_to_a_power(folder: Path, balance: Balance, power: float) -> None:
    facts = [_facts(folder / name) for name in ("first", "second")]
    in_data = Counter(fact["label"] for found in facts for fact in found.values() if fact["label"] >= 0)
    datasets, samples = _plan(folder, [{"path": "first"}, {"path": "second"}], balance=balance, epoch_samples=1000)
    drawn: Counter[int] = Counter()
    for key in _keys(datasets, samples, shuffle=SHUFFLE):
        drawn[facts[int(key[0])]["0/" + key[2:]]["label"]] += 1
    total = sum(count**power for count in in_data.values())
    for label, count in in_data.items():
        assert drawn[label] == pytest.approx(1000 * count**power / total, abs=2)


def test_balance_within_weighted_datasets(folder: Path) -> None:
    sources = [{"path": "first", "weight": 3}, {"path": "second", "weight": 1}]
    datasets, samples = _plan(folder, sources, balance=Balance(label="label"), epoch_samples=400)
    assert Counter(key[0] for key in _keys(datasets, samples, shuffle=SHUFFLE)) == {"0": 300, "1": 100}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"require": ("radar",)}, r"data\.require: .* has no field 'radar'; it has image, label, vector"),
        ({"where": {"image": ("x",)}}, r"data\.where: 'image' is not a class label .* its class labels are label"),
        ({"where": {"label": ("nine",)}}, r"data\.where\.label: has no class 'nine'; the classes of"),
        ({"where": {"label": ()}}, r"data\.where\.label: is given no class"),
    ],
)
def test_what_a_dataset_does_not_have_is_told(folder: Path, source: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        select_all(Source(path=str(folder / "first"), **source), "data")


def test_nothing_left_and_no_label_to_balance_by_are_told(folder: Path, tmp_path: Path) -> None:
    bare = make_dataset(tmp_path / "bare", 6, FIELDS, missing={"image": 1.0})
    with pytest.raises(DatasetError, match=r"nothing of .*bare is left"):
        select_all(Source(path=str(bare), require=("image",)), "data")
    with pytest.raises(DatasetError, match=r"'vector' is not a class label of data\.train"):
        _plan(folder, [{"path": "first"}], balance=Balance(label="vector"))


def test_the_digest_follows_what_is_selected_and_a_dataset_made_anew_is_refused(folder: Path, tmp_path: Path) -> None:
    whole, required, limited = (
        _plan(folder, [source])[1].digest
        for source in ({"path": "first"}, {"path": "first", "require": ("image",)}, {"path": "first", "limit": 5})
    )
    assert len({whole, required, limited}) == 3
    made = make_dataset(tmp_path / "made", 6, FIELDS)
    _, samples = select_all(Source(path=str(made)), "data")
    open_planned(samples)
    edit_manifest(made, lambda content: content.update(digest="0" * 64))
    with pytest.raises(DatasetError, match="was made anew while it was being read"):
        open_planned(samples)


def test_rows_of_an_epoch_are_within_their_shards(folder: Path) -> None:
    datasets, samples = _plan(folder, [{"path": "first", "require": ("image",)}, {"path": "second", "fraction": 0.5}])
    places = Epochs(datasets, samples, SHUFFLE).places(0, samples.epoch_samples)
    sizes = [dataset.shard_sizes for dataset in datasets]
    assert all(
        row < sizes[number][shard] for number, shard, row in zip(*(column.tolist() for column in places), strict=True)
    )
    assert np.bincount(places.datasets).tolist() == [selection.num_samples for selection in samples.selections]


@pytest.mark.parametrize(
    ("sources", "more"),
    [
        ([{"path": "first"}], {}),
        ([{"path": "first"}, {"path": "second"}], {}),
        ([{"path": "first", "require": ("image",)}, {"path": "second", "limit": 20}], {}),
        ([{"path": "first", "where": {"label": ("left", "stop")}}], {}),
        ([{"path": "first", "weight": 3}, {"path": "second", "weight": 1}], {"epoch_samples": 240}),
        ([{"path": "first"}], {"balance": Balance(label="label")}),
        ([{"path": "first"}, {"path": "second"}], {"balance": Balance(label="label", method="square_root")}),
    ],
)
def test_classes_are_counted_as_epochs_draw_them(
    folder: Path, sources: list[dict[str, Any]], more: dict[str, Any]
) -> None:
    datasets, samples = _plan(folder, sources, **more)
    facts = [_facts(folder / source["path"]) for source in sources]
    epochs, drawn = 30, np.zeros(3)
    for epoch in range(epochs):
        for key in _keys(datasets, samples, epoch, SHUFFLE):
            label = facts[int(key[0])]["0/" + key[2:]]["label"]
            drawn[label] += label >= 0
    counts = class_counts(datasets, samples, "label")
    assert counts == pytest.approx(drawn / epochs, abs=1.0)
    if "weight" not in sources[0]:
        assert counts == pytest.approx(drawn / epochs, rel=1e-12), "of what is drawn once, or by its class"
    # What dataset.json says and what the indexes say is the same.
    unaware = [replace(each, manifest=each.manifest.model_copy(update={"label_counts": {}})) for each in datasets]
    assert class_counts(unaware, samples, "label") == pytest.approx(counts, rel=1e-12)


def test_classes_are_counted_where_another_label_is_balanced(tmp_path: Path) -> None:
    weather = LabelField(classes=("dry", "wet"))
    dataset = make_dataset(tmp_path / "data", 60, FIELDS, num_shards=3)

    def add_weather(content: dict[str, Any]) -> None:
        content["fields"]["weather"] = weather.model_dump(mode="json")
        content["members"]["weather"] = ["weather.cls"]
        content["presence"]["weather"] = 60

    edit_manifest(dataset, add_weather)
    wet = {}
    for path in sorted(dataset.glob("shards/*.tar")):
        index = read_index(index_path(path), str(path))
        # Most samples of the last class are wet, and no other.
        values = ((index.labels["label"] == 2) & (np.arange(len(index)) % 4 > 0)).astype(np.int32)
        write_index(index_path(path), replace(index, labels=index.labels | {"weather": values}))
        wet |= dict(zip(index.keys, values.tolist(), strict=True))
    assert 0 < sum(wet.values()) < 20
    datasets, samples = _plan(tmp_path, [{"path": "data"}], balance=Balance(label="weather"), epoch_samples=600)
    counts = class_counts(datasets, samples, "label")
    drawn = Counter(int(_facts(dataset)[key]["label"]) for key in _keys(datasets, samples, shuffle=SHUFFLE))
    assert counts == pytest.approx([drawn[label] for label in range(3)], abs=20)
    assert counts[2] > 300 and counts.sum() == pytest.approx(600)


def test_where_no_sample_has_the_label_nothing_can_be_counted(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 12, FIELDS, missing={"label": 1.0})
    datasets, samples = _plan(tmp_path, [{"path": dataset.name}])
    with pytest.raises(DatasetError, match=r"data\.train: no selected sample has the label 'label'"):
        class_counts(datasets, samples, "label")


def test_of_several_classes_the_share_of_each_is_that_of_all_datasets(tmp_path: Path) -> None:
    for name, count, seed in (("first", 60, 0), ("second", 30, 1)):
        make_dataset(tmp_path / name, count, ("vector", "tags"), seed=seed, missing={"tags": 0.3})
    sources = [
        TrainSource(path=str(tmp_path / "first"), weight=1.0),
        TrainSource(path=str(tmp_path / "second"), weight=3.0),
    ]
    datasets, samples = plan_samples(sources, None, 40)
    having, labelled = np.zeros(3), 0.0
    for dataset, drawn in zip(datasets, (10, 30), strict=True):
        manifest = dataset.manifest
        having += drawn / manifest.num_samples * np.array([*manifest.label_counts["tags"].values()])
        labelled += drawn / manifest.num_samples * manifest.presence["tags"]
    shares = class_shares(datasets, samples, "tags")
    assert shares == pytest.approx(having / labelled)
    assert 1 > shares[0] > shares[1] > shares[2] == 0


@pytest.mark.parametrize("key", ["where", "balance"])
def test_what_needs_one_class_per_sample_says_so(tmp_path: Path, key: str) -> None:
    source = TrainSource(path=str(make_dataset(tmp_path / "data", 12, ("vector", "tags"))))
    balance = Balance(label="tags") if key == "balance" else None
    if key == "where":
        source = source.model_copy(update={"where": {"tags": ("moves",)}})
    with pytest.raises(
        DatasetError, match=rf"{key}.*'tags' is not a class label .*any number of classes \(target: classes\)"
    ):
        plan_samples([source], balance, None)
