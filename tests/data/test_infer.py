"""What members are, by their bytes: the fields that are proposed, and what is refused with its reason."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from ray_mm.config.fields import LabelField
from ray_mm.config.load import load_job
from ray_mm.data.index import ShardIndex, index_shard
from ray_mm.data.infer import Found, look_at_members, propose, proposed_job
from ray_mm.data.inspect import inspect_tars
from ray_mm.preprocessing.raw import raw_label
from ray_mm.storage.remote import stat
from tests.data.decode.videos import video_bytes
from tests.factories import audio_bytes, image_bytes, mask_bytes, mask_of, npy_bytes, write_tar


def _look(folder: Path, members: dict[str, bytes]) -> tuple[list[Found], list[ShardIndex]]:
    tar = write_tar(folder / "0.tar", members)
    index = index_shard(tar)
    return look_at_members([(stat(str(tar)), index)]), [index]


def _picture(format: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, format)
    return stream.getvalue()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_picture_is_known_by_its_bytes_whatever_its_name(tmp_path: Path, format: str) -> None:
    ((found,), _) = _look(tmp_path, {f"{i}.bin": _picture(format) for i in range(3)})
    assert found.specs == {"": {"type": "image"}} and found.detail == "40×30"


@pytest.mark.parametrize(
    ("payloads", "spec"),
    [
        ([audio_bytes(0)], {"type": "audio"}),
        ([npy_bytes(np.zeros((7, 3), np.float32))], {"type": "series"}),
        ([npy_bytes(np.zeros(5))] * 2, {"type": "vector"}),
        ([npy_bytes(np.zeros(5)), npy_bytes(np.zeros(6))], {"type": "series"}),
        ([b"3", b"0"], {"type": "label"}),
        ([b"3.5", b"-1e3"], {"type": "label", "target": "number"}),
        ([b"cat\n", b"dog", b"cat", b"dog"], {"type": "label", "written_as": "name"}),
        ([b"a red car", "ein grünes Haus".encode()], {"type": "text"}),
        ([b"t,x\n0,1\n1,2\n"], {"type": "series"}),
        ([b"[1, 2, 3]"], {"type": "vector"}),
        ([b"[[1, 2], [3, 4]]"], {"type": "series"}),
    ],
    ids=str,
)
def test_other_members_are_known_by_their_bytes_too(
    tmp_path: Path, payloads: list[bytes], spec: dict[str, Any]
) -> None:
    ((found,), _) = _look(tmp_path, {f"{i}.x": payload for i, payload in enumerate(payloads)})
    assert found.specs == {"": spec} and not found.reason


def test_members_of_several_kinds_are_said_to_be_so(tmp_path: Path) -> None:
    ((found,), _) = _look(tmp_path, {"0.bin": image_bytes(0), "1.bin": image_bytes(1), "2.bin": audio_bytes(0)})
    assert (found.format, found.detail) == ("mixed", "jpg 1, png 1, wav 1") and "of several kinds" in found.reason


def test_pictures_of_several_formats_are_one_field_and_no_mask(tmp_path: Path) -> None:
    mask = mask_bytes(mask_of("mask", 0))
    ((found,), _) = _look(tmp_path, {"0.bin": mask, "1.bin": mask, "2.bin": _picture("GIF")})
    assert (found.format, found.detail) == ("png, gif", "16×16, 40×30") and found.specs == {"": {"type": "image"}}


def test_a_clip_with_sound_makes_two_fields_of_one_member(tmp_path: Path) -> None:
    clips = {"0.clip.mp4": video_bytes(sound_seconds=1.0), "1.clip.mp4": video_bytes()}
    ((found,), indexes) = _look(tmp_path, clips)
    assert found.specs == {"": {"type": "video"}, "sound": {"type": "audio"}}
    assert propose([found], indexes) == (
        {"clip": {"type": "video"}, "clip_sound": {"type": "audio"}},
        {"clip": "clip.mp4", "clip_sound": "clip.mp4"},
    )
    ((silent,), _) = _look(tmp_path, {"1.clip.mp4": video_bytes()})
    assert silent.specs == {"": {"type": "video"}}


def test_points_are_known_by_their_name_only(tmp_path: Path) -> None:
    array = npy_bytes(np.zeros((7, 3), np.float32))
    (found, _) = _look(tmp_path, {"0.radar.npy": array, "0.imu.npy": array})
    assert [entry.specs[""]["type"] for entry in found] == ["series", "points"]


def _npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def _npy_of_objects() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("suffix", "payload", "reason"),
    [
        ("pkl", pickle.dumps([1]), "never loaded"),
        ("pth", b"PK\x03\x04", "never loaded"),
        ("npy", _npy_of_objects(), "not an array of numbers"),
        ("npy", npy_bytes(np.zeros((2, 2, 2))), "no field has arrays of 3 dimensions"),
        ("txt.gz", gzip.compress(b"hello", mtime=0), "compressed one by one"),
        ("mp", b"\x82\xa1x\x00\xa1y\x00", "no format that ray_mm reads"),
        ("txt", b"", "empty"),
        ("jpg", b"\xff\xd8\xff\xe0 this is no picture", ""),
        ("json", b"{broken", "not readable JSON"),
        (
            "json",
            b'{"a": [[1], [2, 3]], "b": {}}',
            "a (a list of other things than numbers, or of unequal lengths), b (an object)",
        ),
        ("npz", _npz(a=np.array(["x"]), b=np.zeros((2, 2, 2))), "a (no numbers), b (3 dimensions)"),
    ],
)
def test_what_can_be_no_field_is_refused_with_a_reason(
    tmp_path: Path, suffix: str, payload: bytes, reason: str
) -> None:
    ((found,), indexes) = _look(tmp_path, {f"0.{suffix}": payload})
    assert not found.specs and found.reason and reason in found.reason
    assert propose([found], indexes) == ({}, {}) and proposed_job(["x"], {}, {}, 0) == ""


def test_every_part_of_an_npz_is_a_field_or_told(tmp_path: Path) -> None:
    parts = {"imu": np.zeros((7, 3)), "state": np.zeros(5), "lidar": np.zeros((9, 4)), "grid": np.zeros((2, 2, 2))}
    ((found,), _) = _look(tmp_path, {f"{i}.npz": _npz(**parts, name=np.array("x")) for i in range(2)})
    assert found.detail == "imu 7×3, state 5, lidar 9×4, grid 2×2×2, name"
    assert found.specs == {
        "imu": {"type": "series", "path": "imu"},
        "state": {"type": "vector", "path": "state"},
        "lidar": {"type": "points", "path": "lidar"},
    }
    assert found.passed_over == "grid (3 dimensions), name (no numbers)"


def test_every_value_of_json_is_a_field_or_told(tmp_path: Path) -> None:
    def value(i: int) -> dict[str, Any]:
        return {
            "good": i % 2 == 0,
            "on": True,
            "speed": float(i),
            "version": 2,
            "pose": {"xyz": [i, 1, 2], "frame": {"name": "ab"[i % 2]}},
            "path": [[i, 1]] * (i + 1),
            "tags": ["a"],
            "odd": [] if i else [1],
            "either": i if i % 2 else "x",
            "a.b": 1,
            "none": None,
            "": 3,
        }

    ((found,), indexes) = _look(tmp_path, {f"{i}.json": json.dumps(value(i)).encode() for i in range(8)})
    assert found.specs == {
        "good": {"type": "label", "written_as": "name", "path": "good"},
        "speed": {"type": "label", "target": "number", "path": "speed"},
        "pose.xyz": {"type": "vector", "path": "pose.xyz"},
        "pose.frame.name": {"type": "label", "written_as": "name", "path": "pose.frame.name"},
        "path": {"type": "series", "path": "path"},
    }
    assert found.passed_over == (
        "on (always true, where it was looked at), version (always 2, where it was looked at), "
        "tags (a list of texts, and no few names that come again and again), odd (now and then an empty list), "
        "either (now a number, now a text), a.b (a path can't name it), none (empty),  (a path can't name it)"
    )
    fields, members = propose([found], indexes)
    assert set(fields) == {"good", "speed", "pose_xyz", "pose_frame_name", "path"} and set(members.values()) == {"json"}
    shown = next(
        table for table in inspect_tars([tmp_path / "0.tar"]).tables if table.title.startswith("what they are")
    )
    assert shown.rows[0][3].startswith("good: label, ") and "; none: on (always true" in shown.rows[0][3]


def test_of_many_values_twelve_are_fields_and_the_others_are_told(tmp_path: Path) -> None:
    ((found,), _) = _look(tmp_path, {"0.json": json.dumps({f"x{i}": i for i in range(24)}).encode()})
    assert list(found.specs) == [f"x{i}" for i in range(12)]
    assert found.passed_over.startswith("x12 (beyond 12 fields), ") and found.passed_over.endswith(", … 4 more")


def test_a_mark_before_a_text_is_no_part_of_it(tmp_path: Path) -> None:
    members = {f"{i}.cls": (b"\xef\xbb\xbf" if i % 2 else b"") + (b"cat" if i < 4 else b"dog") for i in range(8)}
    tar = write_tar(tmp_path / "0.tar", members)
    assert inspect_tars([tar]).data["label_counts"] == {"label": {"cat": 4, "dog": 4}}
    assert {raw_label(memoryview(text), LabelField()) for text in members.values()} == {"cat", "dog"}


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("{0} of a hundred", {"type": "text"}),
        ("group {1}", {"type": "label", "written_as": "name"}),
        ("always one", {"type": "text"}),
        ("{1}", {"type": "label"}),
        ("3", None),
        ("0.5", None),
    ],
)
def test_classes_are_told_from_texts_by_many_members(tmp_path: Path, text: str, spec: dict[str, Any] | None) -> None:
    # Of 12 members of 20 groups hardly two are alike, and many of a shard are of the same group.
    for kind, place in (("mixed", lambda i: i % 20), ("sorted", lambda i: i // 20)):
        (tmp_path / kind).mkdir()
        texts = [text.format(i, place(i)) for i in range(200)]
        ((plain,), _) = _look(tmp_path / kind, {f"{i:03}.x": one.encode() for i, one in enumerate(texts)})
        assert plain.specs == ({} if spec is None else {"": spec})
        assert plain.reason == ("" if spec is not None else f"always {text}, where it was looked at")


def test_lists_of_names_that_come_again_are_any_number_of_classes(tmp_path: Path) -> None:
    tags = [[], ["rain"], ["rain", "night"], ["night"], ["rain"], ["fog", "night", "rain"], ["fog"], None]
    members = {f"{i}.json": json.dumps({"tags": each, "who": [f"name {i}"]}).encode() for i, each in enumerate(tags)}
    ((found,), _) = _look(tmp_path, members)
    label = {"type": "label", "target": "classes", "written_as": "name"}
    assert found.specs == {"tags": {**label, "path": "tags"}}
    assert found.passed_over == "who (a list of texts, and no few names that come again and again)"
    # Also as the member itself.
    whole = {f"{i}.tags.json": json.dumps(each).encode() for i, each in enumerate(tags) if each is not None}
    whole |= {f"{i}.who.json": json.dumps([f"name {i}"]).encode() for i in range(len(tags) - 1)}
    (tmp_path / "whole").mkdir()
    (names, who), _ = _look(tmp_path / "whole", whole)
    assert names.specs == {"": label} and not who.specs and "lists of other things than numbers" in who.reason
    inspected = inspect_tars([str(tmp_path / "whole" / "0.tar")])
    assert inspected.data["label_counts"] == {"tags": {"rain": 4, "night": 3, "fog": 2}}
    (row, _) = next(table.rows for table in inspected.tables if table.title.startswith("what they are"))
    assert row[3] == "label (classes)"
    job = load_job(yaml.safe_load(inspected.job))
    assert job.kind == "preprocess" and job.fields["tags"].model_dump(exclude_unset=True) == label


def test_a_few_equal_labels_may_be_of_several_classes(tmp_path: Path) -> None:
    ((found,), _) = _look(tmp_path, {f"{i}.cls": b"3" for i in range(3)})
    assert found.specs == {"": {"type": "label"}}


def test_one_broken_text_among_many_does_not_decide(tmp_path: Path) -> None:
    members = {f"{i:03}.json": json.dumps({"kind": "ab"[i % 2]}).encode() for i in range(200)}
    ((found,), _) = _look(tmp_path, members | {"007.json": b"{broken"})
    assert found.specs == {"kind": {"type": "label", "written_as": "name", "path": "kind"}}


def test_a_proposed_job_is_valid_and_reads_as_one_writes_it(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for i in range(8):
        members[f"d/{i}.{('jpg', 'png')[i % 2]}"] = image_bytes(i)
        members[f"d/{i}.seg.png"] = _picture("PNG")
        members[f"d/{i}.json"] = json.dumps(
            {"caption": f"number {i}", "kind": "ab"[i % 2], "speed": i / 2, "x": None}
        ).encode()
        members[f"d/{i}.cls"] = str(i % 3).encode()
        members[f"d/{i}.0 odd.wav"] = audio_bytes(i)
    write_tar(tmp_path / "0.tar", members)
    found = inspect_tars([tmp_path / "0.tar"])
    assert found.data["members"] == {
        "field_0_odd": "0 odd.wav",
        "label": "cls",
        "image": ["jpg", "png"],
        "caption": "json",
        "kind": "json",
        "speed": "json",
        "seg": "seg.png",
    }
    assert "  image: {type: image}\n" in found.job and "  image: [jpg, png]\n" in found.job
    job = load_job(yaml.safe_load(found.job))
    assert job.kind == "preprocess" and set(job.fields) == set(found.data["members"])


def test_two_pictures_of_one_sample_are_two_fields(tmp_path: Path) -> None:
    found, indexes = _look(tmp_path, {"0.jpg": image_bytes(0), "0.png": image_bytes(1)})
    _, members = propose(found, indexes)
    assert members == {"image": "jpg", "image_png": "png"}


def test_pictures_of_a_few_small_numbers_are_a_mask(tmp_path: Path) -> None:
    members = {f"{i}.seg.png": mask_bytes(mask_of("mask", i)) for i in range(6)}
    ((found,), _) = _look(tmp_path, members)
    assert found.specs == {"": {"type": "label", "target": "mask", "classes": ["0", "1", "2"]}}
    inspected = inspect_tars([str(tmp_path / "0.tar")])
    (row,) = next(table.rows for table in inspected.tables if table.title.startswith("what they are"))
    assert row[2:] == ("16×16, numbers 0 … 2: a mask", "label (mask)")
    assert inspected.data["label_counts"] == {}
    job = load_job(yaml.safe_load(inspected.job))
    assert job.kind == "preprocess" and job.fields["seg"].type == "label"
