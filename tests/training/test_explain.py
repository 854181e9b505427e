"""A diagnosis in words: the sentence says what limits and what to change, notes say what the figures are worth."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from ray_mm.training.costs import Measured
from ray_mm.training.diagnosis import diagnose
from ray_mm.training.explain import as_json, examined, notes, rows, sentence
from tests.training.test_diagnosis import SCHEDULE, costs

PAGE = Path(__file__).parents[2] / "docs" / "performance.md"


def said(measured: Measured) -> str:
    return sentence(measured, diagnose(measured, SCHEDULE))


def test_the_sentence_names_the_stage_the_figures_and_the_remedy() -> None:
    assert said(costs(decode_ms=10.0, step_ms=0.5)) == (
        "decoding limits this job: its 10 readers deliver 990 samples/s on the 7 CPUs that the job leaves them, the worker takes "
        "2,000, and both together need the same 8 CPUs, which allow 784; 21 CPUs per worker would remove it, now 8 (image is "
        "100% of decoding)."
    )
    assert said(costs(step_ms=5.0)).startswith("the train step limits this job: ")
    assert said(costs(step_ms=5.0)).endswith(
        "; more CPUs for reading would change nothing, a smaller model or a faster device would."
    )
    assert "both together need the same 2 CPUs, which allow 643; 4 CPUs per worker would" in said(
        costs(step_cpu_ms=2.0, cpus=2.0, data_cpus=1.0)
    )
    assert said(costs(waits=20.0)).endswith("if the disk or the store gives as much to every process.")
    assert "a larger data.batch_size" in said(costs(hand_ms=2.0))
    assert "has only 1 read task, which one reader can work on" in said(costs(decode_ms=9.0, num_tasks=1))


def test_every_stage_has_a_row_and_the_dearest_field_comes_first() -> None:
    measured = costs()
    decode = replace(measured.decode, fields_s={"speed": 1e-6, "image": 9e-4})
    table = rows(replace(measured, decode=decode, read=replace(measured.read, again_s=5e-5)))
    assert [row.stage for row in table] == ["read", "read again", "decode", "hand over", "transfer", "train step"]
    assert table[0].samples_per_s == 1e4 and table[0].bytes_per_s == 1e9
    assert table[2].told == "image 0.9 ms, speed 0.001 ms"
    on_cpu = rows(replace(measured, device="cpu"))
    assert on_cpu[-2].samples_per_s is None and "CPU" in on_cpu[-2].told


def test_notes_say_where_it_was_measured_and_what_was_not() -> None:
    quiet = " ".join(notes(costs()))
    assert "measured on here, each stage alone" in quiet
    assert "quarantine" not in quiet and "page cache" not in quiet and "gradients" not in quiet
    measured = costs(workers=2, is_remote=True)
    measured = replace(
        measured, has_cache=True, trains_at="there", decode=replace(measured.decode, wall_s=2e-3, num_bad=3)
    )
    told = " ".join(notes(measured))
    assert "measured on here (read, decode) and there (hand over, transfer, train step)" in told
    assert "3 of the first 100 samples can't be decoded" in told
    assert "past data.cache" in told and "exchange of gradients" in told and "2.0 times its CPU time" in told
    warm = costs()
    assert "says nothing about the disk" in " ".join(notes(replace(warm, read=replace(warm.read, in_memory=1.0))))


def test_json_has_the_keys_that_the_docs_explain() -> None:
    content = json.loads(json.dumps(as_json(examined("small", 3.0, costs(step_ms=5.0), SCHEDULE))))
    section = PAGE.read_text().split("## As JSON")[1]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", "".join(first_cells))) == set(content)
    assert all(set(re.findall(r"`(\w+)`", section)) >= set(stage) for stage in content["stages"])
    assert content["limit"] == "train step" and content["cpus_needed"] is None
    assert all(isinstance(stage["samples_per_s"], float) for stage in content["stages"])
