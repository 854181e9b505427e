"""benchmarks/results.py: what it writes. That it runs is for those who have the hours."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def results() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_results", ROOT / "benchmarks" / "results.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def evaluation(accuracy: float, **subsets: float) -> dict[str, Any]:
    shares = {name: {"accuracy": value} for name, value in subsets.items()}
    return {"metrics": {"accuracy": accuracy, "num_samples": 1200, "subsets": shares, "baseline": {"accuracy": 0.1}}}


def compression(gate: str) -> dict[str, Any]:
    return {
        "metrics": {
            "gate": gate,
            "metric_drop": -0.0008,
            "size_ratio": 0.2713,
            "speedups_p50": {"1": 2.5, "64": 1.25},
            "artifact": {"accuracy": 0.9908},
        }
    }


def test_a_table_shows_every_seed_their_mean_and_their_spread(results: ModuleType) -> None:
    found = results.Results(
        train={"all fields": {0: {"seconds": 90.0}, 1: {"seconds": 110.0}}},
        evaluate={
            "all fields": {0: evaluation(0.99, audio=0.96, image=0.95), 1: evaluation(0.98, audio=0.97, image=0.94)},
            "audio": {0: evaluation(0.965), 1: evaluation(0.965)},
            "image": {0: evaluation(0.95), 1: evaluation(0.97)},
        },
        compress={0: compression("passed"), 1: compression("refused")},
    )
    text = results.markdown("avdigits", found)
    assert "| all fields | 0.9900 | 0.9800 | **0.9850** ± 0.0071 |" in text
    assert "| audio alone, a model of its own | 0.9650 | 0.9650 | **0.9650** ± 0.0000 |" in text
    assert "| image only, given to the model of all fields | 0.9500 | 0.9400 | **0.9450** ± 0.0071 |" in text
    assert "| no model: always the commonest class | 0.1000 | 0.1000 | **0.1000** ± 0.0000 |" in text
    assert "| 1 | refused | 0.9908 | -0.0008 | 0.271 of the original | 1: 2.50×, 64: 1.25× |" in text
    assert "took 100 s" in text


def test_only_the_text_between_the_marks_of_a_section_changes(results: ModuleType) -> None:
    page = (
        "# A\n<!-- vqa: begin -->\nold\n<!-- vqa: end -->\nB\n<!-- avdigits: begin -->\nkeep\n<!-- avdigits: end -->\n"
    )
    once = results.replace_section(page, "vqa", "new")
    assert "old" not in once and "keep" in once
    assert once.startswith("# A\n<!-- vqa: begin -->\n\nnew\n\n<!-- vqa: end -->\nB\n")
    assert results.replace_section(once, "vqa", "new") == once


def test_a_page_without_marks_is_refused(results: ModuleType) -> None:
    with pytest.raises(ValueError, match="vqa: begin"):
        results.replace_section("<!-- vqa: end --> <!-- vqa: begin -->", "vqa", "new")


def test_the_page_in_the_docs_has_a_place_for_every_scenario(results: ModuleType) -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    for name in results.SCENARIOS:
        assert "new" in results.replace_section(page, name, "new")
