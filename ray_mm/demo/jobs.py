"""The four jobs of the demo, as files that anyone could have written."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from string import Template

from ray_mm.storage import write_atomic


def write_jobs(output: Path) -> dict[str, Path]:
    """Writes the four job files and returns them by stage."""
    files = {}
    # As it stands between double quotes in YAML, which are JSON's.
    quoted = json.dumps(str(output), ensure_ascii=False)[1:-1]
    for stage, text in _JOBS.items():
        files[stage] = output / f"{stage}.yaml"
        content = Template(text).substitute(output=quoted, file=shlex.quote(str(files[stage])))
        write_atomic(files[stage], content.encode())
    return files


_JOBS = {
    "preprocess": """\
# The demo, step 1 of 4: the table that names the raw files → a dataset per split
#
#   ray-mm run $file
kind: preprocess
name: demo
table: "$output/raw/table.jsonl"
fields:
  camera: {type: image, height: 64, width: 96}   # half of what the camera gives: enough, and four times as fast
  radar: {type: points}                          # x, y in m, radial velocity in m/s, intensity
  imu: {type: series, rate_hz: 50}               # acceleration and turn rate, three axes each
  instruction: {type: text}
  action: {type: label}
key: key
splits: {by: hash, fractions: {train: 0.7, validation: 0.12, test: 0.18}}
output: "$output/dataset"
""",
    "train": """\
# The demo, step 2 of 4: one model over camera, radar, motion sensor and instruction
#
#   ray-mm run $file
kind: train
name: demo
data:
  train: "$output/dataset/train"
  validation: "$output/dataset/validation"
  batch_size: 32
model:
  fields:
    camera: {encoder: cnn}
    radar: {encoder: pointnet}
    imu: {encoder: cnn}
    instruction: {encoder: recurrent}
  fusion: {method: gated, dim: 64}
  task: {type: classify, label: action}
train:
  epochs: 10
  optimizer: {lr: 1e-3}
  modality_dropout: 0.15                         # hides a field now and then, as gaps in the data do
output: "$output/train"
""",
    "evaluate": """\
# The demo, step 3 of 4: the model with every subset of its fields; writes report.html
#
#   ray-mm run $file
kind: evaluate
name: demo
checkpoint: "$output/train"
data: "$output/dataset/test"
subsets: all                                     # fifteen subsets of four fields
output: "$output/evaluate"
""",
    "compress": """\
# The demo, step 4 of 4: an 8-bit ONNX model, published only if the gate agrees
#
#   ray-mm run $file
kind: compress
name: demo
checkpoint: "$output/train"
calibration_data: "$output/dataset/train"
data: "$output/dataset/test"
gate: {max_metric_drop: 0.02, max_size_ratio: 0.5, min_speedup: 1.0}
output: "$output/compress"
""",
}
