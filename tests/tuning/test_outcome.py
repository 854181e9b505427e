"""What a search leaves: the best job ready to run, a result, a page."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_mm.check import check_job
from ray_mm.config.load import load_job
from ray_mm.config.search import draws
from ray_mm.config.train import TrainJob
from ray_mm.errors import RayMMError
from ray_mm.run_folder import RunFolder
from ray_mm.summary import result_parts
from ray_mm.tuning.outcome import best_job, write_outcome
from ray_mm.tuning.report.render import render
from ray_mm.tuning.table import State, Table
from tests.factories import make_dataset
from tests.tuning.searches import make_table, tune_job

SEARCH: dict[str, Any] = {
    "train.optimizer.lr": {"log_uniform": [1e-4, 1e-1]},
    "train.modality_dropout": {"uniform": [0, 0.3]},
    "model.fusion": {"choice": [{"method": "gated", "dim": 16}, {"method": "concat", "dim": 16, "dropout": 0}]},
    "train.optimizer.weight_decay": {"choice": [0, 0.01, 0.05]},
    "seed": {"integer": [0, 3]},
}
STATES = [State.DONE, State.STOPPED, State.DIVERGED, State.DONE, State.FAILED]
CURVES = [[0.5, 0.8, 0.7, 0.75], [0.3], [0.6, 0.2], [0.6, 0.8, 0.9, 0.95], []]


def search_table(folder: Path) -> Table:
    return make_table(tune_job(folder, SEARCH, method="asha", trials=5), CURVES, STATES)


def test_the_best_job_is_the_train_job_with_the_best_settings(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        make_dataset(tmp_path / split, 6, ("vector", "label"))
    table = search_table(tmp_path)
    result = write_outcome(RunFolder(table.folder, table.job), table)
    file = table.folder / "best.yaml"
    best = load_job(file)
    assert isinstance(best, TrainJob)
    settings = list(itertools.islice(draws(table.job), 4))[3]
    assert best.train.optimizer.lr == settings["train.optimizer.lr"]
    assert best.model.fusion.model_dump(exclude_unset=True) == settings["model.fusion"]
    assert best.output == f"{table.folder}/winner"
    assert best.model_copy(update={"output": ""}).data == table.job.train.data
    assert f"# ray-mm run {file}" in file.read_text()
    assert (
        "# Trial 4 of the search small-search: accuracy 95.0% after epoch 4, the best of 5 trials." in file.read_text()
    )
    assert any(line.startswith("data.train: ") for line in check_job(best))

    assert (result["status"], result["best"]["settings"], result["best"]["job"]) == ("done", settings, str(file))
    assert result["metrics"] == {
        "best_trial": 4,
        "accuracy": 0.95,
        "best_epoch": 4,
        "num_trials": 5,
        "num_stopped": 1,
        "num_failed": 2,
        "num_epochs": 11,
    }
    assert [row["trial"] for row in result["trials"]] == [4, 1, 2, 3, 5]
    assert json.loads((table.folder / "result.json").read_text()) == result


def test_texts_that_look_like_something_else_are_quoted(tmp_path: Path) -> None:
    table = search_table(tmp_path)
    names = ["1e3", "no", "null", "0x1f", "12:30", "a: b", "plain"]
    data = {"path": str(tmp_path / "train"), "where": {"label": names}}
    job = tune_job(tmp_path, SEARCH, trials=5, **{"job.data.train": data})
    best = table.best()
    assert best is not None
    (tmp_path / "best.yaml").write_text(best_job(job, table, best))
    loaded = load_job(tmp_path / "best.yaml")
    assert isinstance(loaded, TrainJob)
    assert loaded.data.train.where["label"] == tuple(names)  # type: ignore[union-attr]


def test_the_terminal_shows_the_trials_best_first_and_why_some_failed(tmp_path: Path) -> None:
    from rich.console import Console

    table = search_table(tmp_path)
    result = write_outcome(RunFolder(table.folder, table.job), table)
    console = Console(width=200)
    with console.capture() as capture:
        for part in result_parts(result, str(table.folder)):
            console.print(part)
    text = capture.get()
    rows = [line.split() for line in text.splitlines()]
    first = next(number for number, row in enumerate(rows) if row[:2] == ["trial", "accuracy"])
    assert [row[0] for row in rows[first + 1 : first + 6]] == ["4", "1", "2", "3", "5"]
    assert rows[first + 1][1:4] == ["95.0%", "4", "done"]
    assert "    3  because" in text and "best.yaml" in text and "the best trial" in text


def test_where_nothing_was_trained_there_is_no_best(tmp_path: Path) -> None:
    table = make_table(tune_job(tmp_path), [[], []], [State.FAILED, State.DIVERGED])
    with pytest.raises(RayMMError, match="none of the 2 trials was trained: because"):
        write_outcome(RunFolder(table.folder, table.job), table)


def test_the_page_has_a_row_for_every_trial_and_a_plot_for_every_key(tmp_path: Path) -> None:
    table = search_table(tmp_path)
    html = render(table)
    assert re.findall(r'<th scope="row">(\d+)</th>', html) == ["4", "1", "2", "3", "5"]
    assert html.count("<svg") == len(SEARCH) + 1
    # Three trials can be compared, the best one among them; four have a curve.
    assert html.count('class="dots trial best"') == len(SEARCH)
    assert html.count('class="dots trial done"') == html.count('class="dots trial stopped"') == len(SEARCH)
    assert html.count('class="line trial') == 4
    assert "Why one trial was stopped" in html and "Why 2 trials failed" in html
    assert "<script" not in html and not re.search(r"""(?:src|href)=["'](?!data:)|https?://""", html)


def test_what_stands_in_a_job_can_not_break_out_of_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    table = make_table(tune_job(tmp_path), [[0.5]], [State.DONE])
    table._trials[1] = replace(table.trial(1), settings={"train.optimizer.lr": evil}, reason=evil)
    table.job.search["train.optimizer.lr"] = type(table.job.search["train.optimizer.lr"])(choice=(evil,))
    assert "<script" not in render(table)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_search_with_one_trial_of_one_epoch_is_drawn(tmp_path: Path, metric: str) -> None:
    job = tune_job(tmp_path, {"seed": {"grid": [3]}}, trials=1, **{"job.train.best_metric": metric})
    html = render(make_table(job, [[1.0]]))
    assert "nan" not in html and "inf" not in html


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 390), ("dark", 390), ("light", 1280)])
def test_a_browser_shows_the_page_without_a_fault(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    (tmp_path / "report.html").write_text(render(search_table(tmp_path)))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_load_state("load")
    assert faults == []
    assert page.title() == "small-search · search"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.eval_on_selector_all(
        "body *:not(.scroll *)",
        "(nodes, width) => nodes.filter(n => n.getBoundingClientRect().right > width + 1).map(n => n.outerHTML.slice(0, 80))",
        width,
    )
    assert wide == []
    assert page.eval_on_selector_all("svg", "nodes => nodes.every(n => n.getBoundingClientRect().height > 20)")
    context.close()
