"""The benchmarks of a training run, at a tiny size; their figures mean nothing here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.factories import make_dataset

ROOT = Path(__file__).parents[1]


def _run(script: str, folder: Path, *options: str) -> tuple[str, str]:
    """What a script printed, and the page that it wrote into."""
    page = folder / "page.md"
    page.write_text(
        "before\n<!-- loop: begin -->\n<!-- loop: end -->\n<!-- gpu: begin -->\n<!-- gpu: end -->\nbehind\n"
    )
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks" / script), "--tiny", "--rounds", "1"),
            *("--data", str(folder / "data"), "--docs", str(page), *options),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, page.read_text()


def test_our_loop_does_the_maths_of_the_one_by_hand(tmp_path: Path) -> None:
    printed, page = _run("train_loop.py", tmp_path, "--only", "loop", "checkpoints")
    assert "our loop and one by hand: pictures, texts, series" in page and printed.strip() in page
    differences = [line.split("|")[2] for line in printed.splitlines() if "difference of their mean losses" in line]
    assert len(differences) == 2 and all(float(found) < 1e-4 for found in differences)
    assert "stood still for them" in page and page.startswith("before\n") and page.endswith("behind\n")


@pytest.mark.ray
def test_a_training_through_ray_is_set_beside_one_from_memory(tmp_path: Path) -> None:
    printed, _ = _run("train_loop.py", tmp_path, "--only", "goodput", "scaling")
    assert "through Ray and from memory" in printed and "two workers with a batch each, and one" in printed


@pytest.mark.ray
def test_the_table_of_the_gpu_is_made_on_any_machine(tmp_path: Path) -> None:
    lines = ("one resident batch, augmented", "through the loader, augmented")
    _, page = _run("gpu.py", tmp_path, "--only", *lines)
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in page.splitlines() if line.startswith("|")}
    resident, loaded = (rows[line] for line in lines)
    assert float(resident[0].replace(",", "")) > 0 and resident[1].strip() == "–"
    assert float(loaded[1]) > 0 and loaded[3].strip().endswith("%"), "the share of the time spent waiting for data"
    assert "GFLOP forward per sample" in page


def test_remedies_for_rare_classes_are_set_side_by_side(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- imbalance: begin -->\n<!-- imbalance: end -->\nbehind\n")
    options = ["--seeds", "0", "1", "--steps", "2", "3", "--docs", str(page)]
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "runs")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "imbalance.py"), *options, *places],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in page.read_text().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 5 and all(len(row) == 7 for row in rows)
    assert all(0 < float(cell.split("±")[0]) < 1 for row in rows[2:] for cell in row[1:])


@pytest.mark.timeout(600)
def test_pretraining_is_set_beside_fresh_weights(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- pretraining: begin -->\n<!-- pretraining: end -->\nbehind\n")
    for number, part in enumerate(("train", "test")):
        make_dataset(tmp_path / "data" / "avdigits" / part, 40, ("image", "audio", "label"), seed=number)
    options = ["--only", "avdigits", "--seeds", "0", "1", "--steps", "2", "--pretrain-steps", "3", "--shares", "0.2"]
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "runs"), "--docs", str(page)]
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "pretraining.py"),
            *options,
            *places,
            "--threads",
            "1",
            "--label",
            "label",
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split("|")[1:-1] for line in page.read_text().splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in rows[2:]] == ["8 (20%)", "8 (20%)", "40 (100%)"]
    assert all(0 <= float(cell.split("±")[0]) <= 1 for row in rows[2:] for cell in row[2:])
    assert "R² of the reconstruction" in page.read_text() and page.read_text().endswith("behind\n")


@pytest.mark.timeout(600)
def test_fusions_are_set_side_by_side_and_what_was_not_run_is_told(tmp_path: Path) -> None:
    for number, part in enumerate(("train", "validation", "test")):
        make_dataset(tmp_path / "data" / "avdigits" / part, 40, ("image", "audio", "label"), seed=number)
    page = tmp_path / "page.md"
    marks = [f"<!-- {name}: {edge} -->" for name in ("fusion_grid", "balances", "missing") for edge in ("begin", "end")]
    page.write_text("before\n" + "\n".join(marks) + "\nbehind\n")
    common = ["--only", "avdigits", "--samples", "32", "--epochs", "2", "--set", "model.task.label=label"]
    common += ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "runs"), "--docs", str(page)]

    def run(script: str, *options: str) -> tuple[str, dict[str, list[str]]]:
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / script), *common, *options],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        tables = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.read_text().splitlines()]
        return done.stdout, {row[0]: row[1:] for row in tables if row}

    ways = ["plain", "`gradient_blending`"]
    _, first = run("fusion_grid.py", "--methods", "late", "--balances", *ways, "--seeds", "0")
    assert [float(cell.split("±")[0]) >= 0 for cell in first["`late`"][:3]] == [True] * 3
    assert first["`late`"][3] == "0" and first["audio alone, a model of its own"][2] == "–"
    assert all(first[way][3] == "0" for way in ways)
    assert (
        "1 steps of 64 samples" not in page.read_text() and "2 steps of 64 samples, 2 epochs of 32." in page.read_text()
    )
    # Nothing is trained again, and what there was no time for is not left out in silence.
    said, later = run("fusion_grid.py", "--methods", "late", "gated", "--balances", *ways, "--minutes", "0")
    assert "avdigits, late" not in said and {name: later[name] for name in first} == first
    assert later["`gated`"] == ["not run"] * 3 + ["none"]
    plot = (tmp_path / "fusion_avdigits.svg").read_text()
    assert plot.count("<circle") == 3 and ">late</text>" in plot and ">audio alone</text>" in plot
    run("missing.py", "--seeds", "1")
    text = page.read_text()
    section = text[text.index("missing: begin") : text.index("missing: end")]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("|")][2:]
    assert [row[1].strip() for row in rows] == ["0", "0.3"] * 2 and rows[2][2].strip() == "–"
    assert all("(" in cell for row in rows for cell in row[3:]) and "Seeds: 1." in section
    assert text.startswith("before\n") and text.endswith("behind\n")
