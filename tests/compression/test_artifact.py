from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ray_mm.compression.artifact import publish, refuse, start_candidate
from ray_mm.data.epochs import sequence
from ray_mm.data.manifest import open_dataset
from ray_mm.data.reader import read_batches
from ray_mm.errors import CheckpointError
from ray_mm.predictor import load_predictor
from tests.factories import member_of


def test_an_artifact_answers_like_the_checkpoint_it_was_made_from(trained: Path, artifact: Path) -> None:
    original, compressed = load_predictor(trained), load_predictor(artifact)
    data = open_dataset(trained.parent / "train")
    subsets = [frozenset({"audio"}), frozenset({"image"}), frozenset({"audio", "image"})]
    for batch in read_batches(sequence(data), original.preprocessor, 48):
        expected, found = original.outputs(batch, subsets), compressed.outputs(batch, subsets)
        np.testing.assert_allclose(found, expected, atol=0.1)
        assert (found[2].argmax(-1) == expected[2].argmax(-1)).mean() >= 0.95


def test_an_artifact_answers_in_a_fresh_process_without_torch(artifact: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(member_of("image", 1)[1])
    code = (
        "import json, sys\n"
        "from ray_mm.predictor import load_predictor\n"
        "answer = load_predictor(sys.argv[1]).predict({'image': sys.argv[2]})\n"
        "print(json.dumps([answer.label, answer.probabilities, sorted({'torch', 'ray'} & set(sys.modules))]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(artifact), str(picture)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    label, probabilities, heavy = json.loads(done.stdout)
    expected = load_predictor(artifact).predict({"image": picture})
    assert label == expected.label
    assert probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert heavy == []
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "preprocessor.json"])
def test_a_file_that_changed_on_disk_is_refused_with_its_checksum(artifact: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "artifact"))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name}: its SHA-256 digest is .* artifact.json says") as refusal:
        load_predictor(folder)
    assert refusal.value.exit_status == 2


@pytest.mark.parametrize("name", ["model.onnx", "model.json", "preprocessor.json"])
def test_a_file_that_is_gone_is_named(artifact: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "artifact"))
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: is missing"):
        load_predictor(folder)


def test_an_artifact_of_a_newer_format_is_refused_with_both_versions(artifact: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(artifact, tmp_path / "artifact"))
    content = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(CheckpointError, match=r"version 99, this ray_mm reads versions 1 to 1"):
        load_predictor(folder)


def candidate(run: Path, content: str) -> None:
    (start_candidate(run) / "artifact.json").write_text(content)


def test_publishing_takes_the_place_of_an_older_artifact_and_of_a_refusal(tmp_path: Path) -> None:
    candidate(tmp_path, "first")
    publish(tmp_path)
    (tmp_path / "refused").mkdir()
    candidate(tmp_path, "second")
    assert (publish(tmp_path) / "artifact.json").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_refusing_removes_an_older_artifact(tmp_path: Path) -> None:
    candidate(tmp_path, "first")
    publish(tmp_path)
    candidate(tmp_path, "second")
    assert (refuse(tmp_path) / "artifact.json").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["refused"]


def test_a_candidate_starts_empty_whatever_was_left_there(tmp_path: Path) -> None:
    candidate(tmp_path, "interrupted")
    assert list(start_candidate(tmp_path).iterdir()) == []
