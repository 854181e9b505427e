"""Videos in a table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from ray_mm.config.fields import AudioField, VideoField
from ray_mm.data.epochs import sequence
from ray_mm.data.inspect import inspect_dataset
from ray_mm.data.manifest import open_dataset
from ray_mm.data.preprocessor import preprocessor_for
from ray_mm.data.reader import read_batches
from ray_mm.errors import UsageError
from ray_mm.preprocessing.preprocess import run_preprocess
from tests.data.decode.videos import video_bytes
from tests.preprocessing.tables import FIELDS, make_job, write_csv, write_file


@pytest.mark.ray
def test_clips_become_frames_and_their_sound_another_field(local_ray: None, tmp_path: Path) -> None:
    rows = []
    for i in range(4):
        # The last one is silent: it is there, its sound is not.
        write_file(tmp_path / f"clips/{i}.bin", video_bytes(10 + i, sound_seconds=0.0 if i == 3 else 1.0))
        rows.append({"clip": f"clips/{i}.bin" if i else "", "y": i})
    fields = {"clip": {"type": "video", "num_frames": 3}, "sound": {"type": "audio"}, "y": FIELDS["number"]}
    job = make_job(write_csv(tmp_path / "t.csv", rows), fields, columns={"sound": "clip"})
    run_preprocess(job)
    dataset = open_dataset(tmp_path / "out/train")
    assert dataset.manifest.fields["clip"] == VideoField(num_frames=3, height=48, width=64)
    sound = dataset.manifest.fields["sound"]
    assert isinstance(sound, AudioField) and sound.rate_hz == 16000
    assert dataset.manifest.presence == {"clip": 3, "sound": 2, "y": 4}
    assert dataset.manifest.members["clip"] == ("clip.mp4",) and dataset.manifest.members["sound"] == ("sound.mp4",)
    (batch,) = read_batches(sequence(dataset), preprocessor_for(dataset, {}, fields), 4)
    assert sorted(batch["clip.length"].tolist()) == [0, 3, 3, 3] and batch["weight"].all()
    assert (batch["sound.length"][batch["sound.presence"]] > 15000).all()
    (table,) = [table for table in inspect_dataset(tmp_path / "out/train").tables if table.title == "fields"]
    assert table.rows[0][:3] == ("clip", "video", "uint8 [3, 48, 64, 3]")


def test_a_job_with_clips_needs_pyav_and_says_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    job = make_job(write_csv(tmp_path / "t.csv", [{"clip": "a.mp4"}]), {"clip": {"type": "video"}})
    with pytest.raises(UsageError, match=r"fields\.clip \(video\) needs PyAV; install it with pip install"):
        run_preprocess(job)
    assert not (tmp_path / "out").exists()
