"""What is in new shards is found, and judged: each shard by itself, all of them together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ray_mm.config.fields import FieldSpec, LabelField, VectorField
from ray_mm.config.load import load_job
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.config.retrain import Validation
from ray_mm.data.manifest import Statistics, open_dataset
from ray_mm.preprocessing.in_place import plan_in_place
from ray_mm.preprocessing.statistics import Moments
from ray_mm.retraining.contents import write_hashes
from ray_mm.retraining.validation import Judgement, Look, Reference, judge, look, reference_of
from tests.factories import make_dataset, member_of, write_tar

FIELDS: dict[str, FieldSpec] = {"vector": VectorField(size=5), "label": LabelField(classes=("a", "b"))}
KNOWN = Reference({"vector": 0.9, "label": 1.0}, {"label": {"a": 50, "b": 50}}, {})


def good(name: str, **changes: Any) -> Look:
    found: dict[str, Any] = {
        "url": name,
        "num_samples": 100,
        "splits": {"train": 80, "newest": 20},
        "present": {"vector": 90, "label": 100},
        "classes": {"label": {"a": 50, "b": 50}},
    }
    return Look(**{**found, **changes})


def judged(
    *looks: Look, fields: dict[str, FieldSpec] = FIELDS, reference: Reference = KNOWN, **limits: Any
) -> Judgement:
    return judge(looks, reference, Validation(**limits), fields)


def missed(found: Judgement) -> list[str]:
    return [check.criterion for check in found.verdict.missed]


def test_shards_like_those_that_are_known_are_taken() -> None:
    found = judged(good("a"), good("b"))
    assert found.accepted == ("a", "b") and found.num_samples == 200 and not found.rejected and not missed(found)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reason": "is no tar"}, "is no tar"),
        ({"num_samples": 0}, "has no sample with any of the fields"),
        ({"unreadable": {"vector": 3}}, "3 of 93 members of vector can't be read"),
        ({"num_test_duplicates": 1}, "1 of 100 samples are in the frozen test set"),
    ],
)
def test_a_bad_shard_is_set_aside_and_the_others_are_taken(changes: dict[str, Any], reason: str) -> None:
    found = judged(good("a"), good("b", **changes), max_bad_shards=0.5)
    assert found.accepted == ("a",) and found.rejected["b"].startswith(reason) and not missed(found)
    assert missed(judged(good("a"), good("b", **changes))) == ["shards that are quarantined"]


def test_at_a_limit_nothing_is_wrong() -> None:
    found = judged(
        good("a", unreadable={"vector": 10}, num_test_duplicates=5), max_unreadable=0.1, max_test_duplicates=0.05
    )
    assert found.accepted == ("a",)


def test_the_same_samples_are_taken_once_in_whatever_night() -> None:
    first, again = good("a", content="x"), good("b", content="x")
    assert judged(first, again).rejected == {"b": "has the samples of a"}
    earlier = judge([first], KNOWN, Validation(), FIELDS, {"x": "of-last-week"})
    assert earlier.rejected == {"a": "has the samples of of-last-week"}


def test_a_field_that_is_missing_more_or_less_than_before_stops() -> None:
    assert missed(judged(good("a", present={"vector": 69, "label": 100}))) == ["vector: presence"]
    assert missed(judged(good("a", present={"vector": 70, "label": 100}))) == []
    # None at all is no shift but a loss, however rare the field was.
    rare = Reference({"vector": 0.1, "label": 1.0}, KNOWN.label_counts, {})
    assert missed(judged(good("a", present={"label": 100}), reference=rare)) == ["vector: presence"]


def test_classes_that_drift_stop_by_each_measure() -> None:
    shifted = good("a", classes={"label": {"a": 95, "b": 5}})
    for drift in ("jensen_shannon", "psi", "chi_square"):
        assert missed(judged(shifted, drift=drift)) == ["label: drift of the classes"]
        assert missed(judged(good("a", classes={"label": {"a": 52, "b": 48}}), drift=drift)) == []
    assert missed(judged(shifted, max_drift=0.9)) == []
    assert missed(judged(good("a", classes={}))) == ["label: drift of the classes"]


def test_a_number_whose_mean_moves_stops() -> None:
    fields: dict[str, FieldSpec] = {"far": LabelField(target="number")}
    reference = Reference({"far": 1.0}, {}, {"far": Statistics(mean=(10.0,), std=(4.0,))})

    def of(mean: float) -> Look:
        return good("a", present={"far": 100}, moments={"far": Moments(count=100, mean=(mean,), squares=(1.0,))})

    assert missed(judged(of(11.9), fields=fields, reference=reference)) == []
    assert missed(judged(of(12.1), fields=fields, reference=reference)) == ["far: shift of the mean"]


@pytest.mark.ray
def test_what_is_in_shards_is_found(local_ray: None, tmp_path: Path) -> None:
    def members(samples: range, seed: int) -> dict[str, bytes]:
        found = {}
        for i in samples:
            for name in ("vector", "label"):
                extension, payload = member_of(name, i, seed)
                found[f"s{seed}-{i}.{name}.{extension}"] = payload
        return found

    test = make_dataset(tmp_path / "test", 12, ("vector", "label"), seed=3)
    clean = members(range(20), 9)
    copies = {**members(range(5), 9), **members(range(4), 3)}  # four of them are in the frozen test set, by other names
    broken = {**clean, "s9-7.vector.npy": b"\x93NUMPY no array"}
    unknown = {**clean, "s9-7.label.cls": b"17"}
    again = {name.replace("s9-", "other-"): payload for name, payload in reversed(clean.items())}
    tars = {"clean": clean, "copies": copies, "broken": broken, "unknown": unknown, "again": again}
    for name, content in tars.items():
        write_tar(tmp_path / "in" / f"{name}.tar", content)
    (tmp_path / "in" / "none.tar").write_bytes(b"this is no tar" * 100)
    dataset = open_dataset(test)
    job = load_job(
        {
            "kind": "preprocess",
            "name": "looked",
            "shards": [str(tmp_path / "in" / f"{name}.tar") for name in (*tars, "none")],
            "fields": {
                "vector": dataset.manifest.fields["vector"].model_dump(mode="json"),
                "label": dataset.manifest.fields["label"].model_dump(mode="json"),
            },
            "on_missing": "absent",
            "splits": {"by": "hash", "fractions": {"train": 0.8, "newest": 0.2}},
            "output": str(tmp_path / "out"),
        }
    )
    assert isinstance(job, PreprocessJob)
    write_hashes(tmp_path / "hashes", dataset, ["vector"])
    promised = {str(tmp_path / "in" / "clean.tar"): "0" * 64}
    looks = {Path(one.url).stem: one for one in look(plan_in_place(job), ["vector"], tmp_path / "hashes", {})}
    assert looks["clean"].num_samples == 20 == sum(looks["clean"].splits.values())
    assert looks["clean"].classes["label"] and sum(looks["clean"].classes["label"].values()) == 20
    assert (looks["clean"].num_test_duplicates, looks["copies"].num_test_duplicates) == (0, 4)
    assert looks["broken"].unreadable == {"vector": 1} and looks["broken"].present == {"vector": 19, "label": 20}
    assert "none of the 3 classes" in str(looks["unknown"].reason)
    assert looks["none"].reason is not None and "in/none.tar" not in looks["none"].reason
    # The names and the order of samples do not tell them apart, their inputs do.
    assert looks["clean"].content == looks["again"].content is not None
    assert len({looks[name].content for name in ("clean", "copies", "broken")}) == 3
    told = {Path(one.url).stem: one for one in look(plan_in_place(job), ["vector"], None, promised)}
    assert "the manifest says 0000" in str(told["clean"].reason)
    assert told["copies"].num_test_duplicates == 0 and told["copies"].content is None
    reference = reference_of([dataset.manifest], ["vector", "label"])
    found = judge(list(looks.values()), reference, Validation(max_bad_shards=1), job.fields)
    assert [Path(url).stem for url in found.accepted] == ["clean"]
    (reason,) = (reason for url, reason in found.rejected.items() if url.endswith("/again.tar"))
    assert reason == f"has the samples of {tmp_path}/in/clean.tar"
