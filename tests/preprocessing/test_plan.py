"""The plan: what is checked before Ray starts, and what the digests follow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ray_mm.errors import UsageError
from ray_mm.preprocessing.plan import Plan, plan_job
from tests.preprocessing.tables import make_job, make_rows, write_csv, write_file, write_json_lines


def _texts(n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"t{i}", "group": f"g{i % 9}", **more} for i in range(n)]


def _keys(plan: Plan) -> list[tuple[str, list[str]]]:
    return [(shard.path, [plan.source.keys[row] for row in shard.rows]) for shard in plan.shards]


def test_every_row_goes_to_one_shard_of_one_split(tmp_path: Path) -> None:
    job = make_job(write_csv(tmp_path / "t.csv", _texts(200)), ["text"], splits={"by": "hash"}, shard_size=20_000)
    plan = plan_job(job)
    assert sorted(row for shard in plan.shards for row in shard.rows) == list(range(200))
    assert plan.splits == ("train", "validation", "test") and plan.train_split == "train"
    for split in plan.splits:
        assert [shard.number for shard in plan.shards if shard.split == split] == list(
            range(sum(shard.split == split for shard in plan.shards))
        )
    assert len([shard for shard in plan.shards if shard.split == "train"]) == -(
        -len(plan.rows["train"]) * 1024 // 20_000
    )


def test_groups_stay_together(tmp_path: Path) -> None:
    fractions = {"train": 0.5, "test": 0.5}
    splits = {"by": "hash", "group": "group", "fractions": fractions}
    plan = plan_job(make_job(write_csv(tmp_path / "t.csv", _texts(50)), ["text"], splits=splits))
    groups = {split: {f"g{row % 9}" for row in rows} for split, rows in plan.rows.items()}
    assert groups["train"] and groups["test"] and not groups["train"] & groups["test"]


def test_a_row_without_key_and_group_stays_in_its_split_when_others_come_before_it(tmp_path: Path) -> None:
    def split_of(rows: list[dict[str, Any]]) -> dict[str, str]:
        plan = plan_job(make_job(write_csv(tmp_path / "t.csv", rows), ["text"], splits={"by": "hash"}))
        texts = plan.source.values("text")
        return {texts[row]: split for split, members in plan.rows.items() for row in members}

    rows = _texts(150)
    before = split_of(rows)
    after = split_of([{"text": "new", "group": "x"}, *rows[::-1]])
    assert {text: after[text] for text in before} == before


def test_a_column_names_the_splits(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "set": name} for i, name in enumerate(["dev", "fit", "dev"])]
    plan = plan_job(make_job(write_csv(tmp_path / "t.csv", rows), ["text"], splits={"by": "column", "column": "set"}))
    assert plan.rows == {"dev": [0, 2], "fit": [1]} and plan.train_split == "dev"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["train", "", "test"], r"splits\.column: column 'set' .* is empty in 1 row: row 2"),
        (["train", "../up"], r"has the value '../up', which can't name a dataset"),
        (["train", "0"], r"has the value '0', which can't name a dataset"),
    ],
)
def test_a_column_that_can_not_name_splits_is_refused(tmp_path: Path, names: list[str], reason: str) -> None:
    rows = [{"text": "x", "set": name} for name in names]
    job = make_job(write_csv(tmp_path / "t.csv", rows), ["text"], splits={"by": "column", "column": "set"})
    with pytest.raises(UsageError, match=reason):
        plan_job(job)


def test_too_few_groups_and_empty_groups_are_refused(tmp_path: Path) -> None:
    job = make_job(write_csv(tmp_path / "t.csv", _texts(4)), ["text"], splits={"by": "hash", "group": "group"})
    with pytest.raises(UsageError, match=r"got none of the 4 groups of column 'group'"):
        plan_job(job)
    rows = [*_texts(3), {"text": "x", "group": None}]
    job = make_job(write_csv(tmp_path / "t.csv", rows), ["text"], splits={"by": "hash", "group": "group"})
    with pytest.raises(UsageError, match=r"splits\.group: column 'group' .* is empty in 1 row: row 4"):
        plan_job(job)


def test_rows_without_any_field_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"text": "x", "image": None}, {"text": None, "image": "no.jpg"}, {"text": None, "image": None}]
    plan = plan_job(make_job(write_csv(tmp_path / "t.csv", rows), ["text", "image"], on_missing="absent"))
    assert plan.num_empty == 2 and plan.rows == {"train": [0]}
    write_csv(tmp_path / "t.csv", rows[1:])
    with pytest.raises(UsageError, match="no row with any of the fields image, text"):
        plan_job(make_job(tmp_path / "t.csv", ["text", "image"], on_missing="absent"))


def test_a_train_split_without_texts_is_refused(tmp_path: Path) -> None:
    rows = [{"text": None, "label": "a", "set": "train"}, {"text": "x", "label": "b", "set": "test"}]
    job = make_job(write_csv(tmp_path / "t.csv", rows), ["text", "label"], splits={"by": "column", "column": "set"})
    with pytest.raises(UsageError, match=r"fields\.text: no row of split 'train' has a text"):
        plan_job(job)


def test_a_wrong_class_and_a_wrong_number_are_refused(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", [{"label": "a", "x": "1", "y": "2"}, {"label": "b", "x": "high", "y": "2"}])
    with pytest.raises(UsageError, match=r"fields\.label\.classes: 1 row: row 2 \('b'\)"):
        plan_job(make_job(table, {"label": {"type": "label", "classes": ["a"]}}))
    with pytest.raises(UsageError, match=r"fields\.v: 1 row: row 2 \('high'\) in column 'x'"):
        plan_job(make_job(table, {"v": {"type": "vector"}}, columns={"v": ["x", "y"]}))


def test_the_plan_does_not_depend_on_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = make_rows(tmp_path, 20)
    splits = {"by": "hash", "fractions": {"train": 0.5, "test": 0.5}}
    plans = [
        plan_job(make_job(write_csv(tmp_path / "t.csv", ordered), key="key", splits=splits, shard_size=50_000))
        for ordered in (rows, rows[::-1])
    ]
    assert _keys(plans[0]) == _keys(plans[1])
    assert len(plans[0].shards) > 2


def test_the_digest_follows_table_files_and_settings_and_nothing_else(tmp_path: Path) -> None:
    table = write_csv(tmp_path / "t.csv", make_rows(tmp_path, 8))

    def digests(**more: Any) -> tuple[str, list[str]]:
        plan = plan_job(make_job(table, key="key", shard_size=30_000, **more))
        return plan.digest, [shard.digest for shard in plan.shards]

    first = digests()
    assert len(first[1]) > 1
    assert digests() == first
    assert digests(name="other", output=str(tmp_path / "o2"), resources={"workers": 2}) == first
    for more in ({"seed": 1}, {"on_missing": "absent"}):
        assert digests(**more)[0] != first[0]
    image = tmp_path / "files/image3.bin"
    os.utime(image, ns=(1, 1))
    touched = digests()
    assert touched[0] != first[0]
    assert sum(a != b for a, b in zip(touched[1], first[1], strict=True)) == 1  # only the shard that holds it
    write_file(table, table.read_bytes() + b"\n")
    assert digests()[0] != touched[0]


def test_a_table_may_hold_lists(tmp_path: Path) -> None:
    rows = [{"series": [[1, 2], [3, 4]], "v": [1, 2, 3]}, {"series": None, "v": [4, 5, 6]}]
    fields = {"series": {"type": "series"}, "v": {"type": "vector"}}
    plan = plan_job(make_job(write_json_lines(tmp_path / "t.jsonl", rows), fields))
    table = plan.shard_rows(plan.shards[0])
    assert sorted(table.column("cell:v:0").to_pylist()) == [[1, 2, 3], [4, 5, 6]]
    assert set(table.column("size:series:0").to_pylist()) == {-1}
