"""The report: what stands in it, what can't get into it, and what a browser makes of it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_mm.config.evaluate import EvaluateJob
from ray_mm.data.epochs import sequence
from ray_mm.evaluation.metrics import confusion_matrix, per_class
from ray_mm.evaluation.outcome import report_content, result_details, result_metrics
from ray_mm.evaluation.report.content import (
    ClassificationDetails,
    MultilabelDetails,
    ReconstructionDetails,
    ReportContent,
    SubsetScore,
)
from ray_mm.evaluation.report.curves import read_curves
from ray_mm.evaluation.report.plots import error_plot, scatter_plot
from ray_mm.evaluation.report.reconstructions import said_rows
from ray_mm.evaluation.report.render import render
from ray_mm.evaluation.report.svg import figure, percent
from ray_mm.evaluation.report.tables import class_rows, confusions, matrix, metric_text, subset_table, summary
from ray_mm.evaluation.report.tiles import tiles
from ray_mm.evaluation.subsets import field_subsets
from ray_mm.evaluation.tally import Tally
from ray_mm.evaluation.tasks import evaluated_task
from ray_mm.predictor import load_predictor
from tests.evaluation.scenes import Scene, make_scene, scored_blocks
from tests.factories import TAGS

ALL = ["image", "text", "audio", "series", "points", "vector"]


def content_of(scene: Scene, **settings: Any) -> ReportContent:
    """The report's content without Ray."""
    job = EvaluateJob.model_validate(
        {
            "kind": "evaluate",
            "name": "scene",
            "checkpoint": str(scene.checkpoint),
            "data": str(scene.dataset.root),
            "output": "unused",
            "examples": 4,
            **settings,
        }
    )
    predictor = load_predictor(scene.checkpoint)
    subsets = field_subsets(scene.inputs, job.subsets if predictor.towers is None else "full")
    tally = Tally(evaluated_task(predictor), scene.inputs, subsets, job.examples)
    for rows, keys in scored_blocks(scene, subsets):
        tally.add(rows, keys)
    return report_content(job, predictor, sequence(scene.dataset), subsets, tally)


def write_metrics(run: Path) -> None:
    lines = [
        {"kind": "train", "step": step, "epoch": 1 + step // 50, "loss": 2.0 / (1 + step)} for step in range(1, 100)
    ]
    lines += [
        {"kind": "validation", "step": 50 * e, "epoch": e, "loss": 1.0 / e, "accuracy": 1 - 0.5 / e} for e in (1, 2)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> ReportContent:
    """Every type of field, some missing, one bad sample, a training to show."""
    folder = tmp_path_factory.mktemp("report")
    scene = make_scene(folder, ALL, missing={"image": 0.4, "text": 0.4, "audio": 0.4}, corrupt=[(2, "vector")])
    write_metrics(folder)
    return content_of(scene)


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> ReportContent:
    return content_of(make_scene(tmp_path_factory.mktemp("number"), ["image", "vector"], "number"))


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> ReportContent:
    return content_of(make_scene(tmp_path_factory.mktemp("tags"), ["image", "vector"], "tags", missing={"tags": 0.2}))


def test_every_field_of_every_example_is_drawn_or_said_to_be_absent(content: ReportContent) -> None:
    cards = [*content.worst, *content.best]
    assert len(cards) == 8
    for card in cards:
        assert sorted([view.field for view in card.views] + list(card.absent)) == sorted(ALL)
        for view in card.views:
            wanted = {"image": "<img", "text": "<blockquote>", "audio": "<audio"}.get(view.type, "<svg")
            assert wanted in view.content
        chances = [bar.probability for bar in card.bars]
        assert card.right == (card.true == card.predicted)
        assert card.bars[0].name == card.predicted
        assert chances[0] == max(chances)
        assert [bar.name for bar in card.bars if bar.true] == [card.true]
        assert card.shard in ("shards/000000.tar", "shards/000001.tar")
    losses = [float(card.figure.removeprefix("loss ")) for card in content.worst]
    assert losses == sorted(losses, reverse=True)


def test_the_page_asks_for_nothing_and_runs_nothing(content: ReportContent, regression: ReportContent) -> None:
    for html in (render(content), render(regression)):
        assert "<script" not in html
        assert not re.search(r"""(?:src|href)=["'](?!data:)""", html)
        assert not re.search(r"@import|url\((?!data:)|https?://", html)
        assert "default-src 'none'" in html


def test_of_several_classes_each_has_a_row_and_a_card_names_all(several: ReportContent) -> None:
    details = several.details
    assert isinstance(details, MultilabelDetails) and details.classes == TAGS
    html = render(several)
    assert (
        "average precision" in html
        and "Which classes it finds" in html
        and "confusion" not in html.lower().split("</style>")[1]
    )
    names = ["Micro F1", "Macro F1", "Mean average precision", "Calibration error", "Log loss"]
    assert [tile.name for tile in tiles(several)] == names
    assert "micro F1 of" in summary(several) and "more than half of the samples have" in summary(several)
    cards = [*several.worst, *several.best]
    assert {card.true for card in cards} <= {"moves, odd", "moves", "no class"} and len(
        {card.true for card in cards}
    ) > 1
    for card in cards:
        assert card.right == (card.true == card.predicted)
        true = [] if card.true == "no class" else card.true.split(", ")
        assert sorted(bar.name for bar in card.bars if bar.true) == sorted(true)
    told = result_metrics(several)
    assert set(told["subsets"]) == {"image", "vector", "image+vector"}
    low, high = told["interval"]["micro_f1"]
    assert low < told["micro_f1"] < high and f"95% interval {percent(low)} to {percent(high)}" in html
    classes = result_details(several)["classes"]
    assert (
        list(classes) == list(TAGS)
        and classes["turns"]["support"] == 0
        and classes["turns"]["average_precision"] is None
    )
    assert sum(several.contributions.values()) == pytest.approx(  # type: ignore[union-attr]
        float(several.metrics["micro_f1"] or 0) - float(several.baseline["micro_f1"] or 0)
    )


def test_what_stands_in_the_data_can_not_break_out_of_the_page(content: ReportContent) -> None:
    evil = '"><script>alert(1)</script>'
    details = content.details
    assert isinstance(details, ClassificationDetails)
    cards = [replace(card, key=evil, shard=evil, true=evil, predicted=evil, absent=(evil,)) for card in content.worst]
    html = render(
        replace(
            content,
            job=evil,
            dataset=evil,
            checkpoint=evil,
            model=evil,
            label=evil,
            details=replace(details, classes=(evil, evil + "2", "plain")),
            subsets=[replace(score, fields=(evil,)) for score in content.subsets],
            contributions={evil: 1.0, "plain": 0.5},
            worst=cards,
        )
    )
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 30


def test_a_text_of_a_sample_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.factories._SENTENCES", ("<b>turn</b> left", "a & b", "<img src=x>"))
    content = content_of(make_scene(tmp_path, ["text"], num_samples=8))
    html = render(content)
    assert "<img" not in html
    assert "&lt;b&gt;turn&lt;/b&gt; left" in html
    assert "a &amp; b" in html


def test_the_bins_of_a_histogram_follow_the_number_of_samples() -> None:
    draw = np.random.default_rng(0)
    counts = []
    for size in (30, 1500):
        true = np.zeros(size)
        counts.append(error_plot(true, draw.normal(0, 1, size)).count("<rect"))
    assert counts[0] < 12 < 20 < counts[1]
    assert error_plot(np.zeros(3), np.zeros(3)).count("<rect") == 1


def test_few_dots_are_large_and_dark() -> None:
    assert 'class="dots sample few"' in scatter_plot(np.arange(9.0), np.arange(9.0))
    assert 'class="dots sample"' in scatter_plot(np.arange(999.0), np.arange(999.0))


def test_many_classes_become_a_list_of_mistakes_instead_of_a_matrix(content: ReportContent) -> None:
    draw = np.random.default_rng(0)
    labels, predictions = draw.integers(0, 40, 2000), draw.integers(0, 40, 2000)
    found = confusion_matrix(labels, predictions, 40)
    base = content.details
    assert isinstance(base, ClassificationDetails)
    from ray_mm.evaluation.metrics import classification_sums

    sums = classification_sums(labels, predictions[None], np.full((1, 2000), 0.5), np.full((1, 2000), 0.5), 40)
    details = replace(
        base,
        classes=tuple(f"class {index}" for index in range(40)),
        figures=per_class(sums.hits[0], sums.predicted[0], sums.support),
        confusion=found,
    )
    assert matrix(details) is None
    mistakes = confusions(details)
    off_diagonal = found - np.diag(np.diag(found))
    assert mistakes[0].count == off_diagonal.max()
    assert [each.count for each in mistakes] == sorted((each.count for each in mistakes), reverse=True)
    rows, left_out = class_rows(details)
    assert (len(rows), left_out) == (20, 20)
    assert max(row.f1 or 0 for row in rows) <= sorted(figures.f1 or 0 for figures in details.figures)[20]
    html = render(replace(content, details=details))
    assert 'class="matrix"' not in html
    assert "40 classes are too many for a matrix" in html


def test_a_matrix_shows_every_count(content: ReportContent) -> None:
    details = content.details
    assert isinstance(details, ClassificationDetails)
    assert details.confusion is not None
    rows = matrix(details)
    assert rows is not None
    assert [[cell.count for cell in cells] for _, cells in rows] == details.confusion.tolist()


def test_of_very_many_subsets_the_telling_ones_come_first(content: ReportContent) -> None:
    names = [f"f{index}" for index in range(6)]
    subsets = [SubsetScore(tuple(sorted(each)), dict(content.metrics), 1.0) for each in field_subsets(names, "all")]
    table = subset_table(replace(content, subsets=subsets))
    assert [len(row.fields) for row in table.rows] == [1] * 6 + [5] * 6 + [6]
    assert len(table.rows) + len(table.more) == 63
    assert [row.full for row in table.rows].index(True) == 12


def test_a_model_of_one_field_has_no_comparison(tmp_path: Path) -> None:
    content = content_of(make_scene(tmp_path, ["vector"], num_samples=12))
    html = render(content)
    assert 'id="fields"' not in html
    assert "best single field" not in summary(content)


def test_a_regression_says_how_far_off_it_is(regression: ReportContent) -> None:
    html = render(regression)
    assert 'id="errors"' in html
    assert 'id="mistakes"' not in html
    assert [tile.name for tile in tiles(regression)] == ["Mean absolute error", "Root mean squared error", "R²"]
    assert metric_text("mae", regression.metrics["mae"]) in summary(regression)
    low, high = regression.details.intervals["mae"]  # type: ignore[union-attr]
    assert tiles(regression)[0].note.startswith(f"95% interval {figure(low)} to {figure(high)}; ")
    assert low < (regression.metrics["mae"] or 0) < high
    worst = regression.worst[0]
    assert f"<span>predicted</span> <b>{worst.predicted}</b><span>, true</span> <b>{worst.true}</b>" in html
    assert all(card.right is None and card.figure.startswith("error ") for card in regression.worst)
    assert sum((regression.contributions or {}).values()) == pytest.approx(
        (regression.baseline["mae"] or 0) - (regression.metrics["mae"] or 0)
    )


def test_without_examples_there_are_no_cards(tmp_path: Path) -> None:
    html = render(content_of(make_scene(tmp_path, ["vector"], num_samples=12), examples=0))
    assert '<article class="card">' not in html


def test_curves_take_the_later_of_two_lines_and_leave_out_a_cut_one(tmp_path: Path) -> None:
    assert read_curves(tmp_path / "best") is None
    write_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('\n[]\n{"kind": "other", "step": 1}\n{"kind": "train", "step": 3, "epoch": 1, "loss": 9.0}\n')
        stream.write('{"kind": "train", "step": 4, "epoch": 1, "loss": NaN}\n')
    curves = read_curves(tmp_path / "best")
    assert curves is not None
    assert dict(curves.train_loss)[3.0] == 9.0
    assert 4.0 not in dict(curves.train_loss)
    assert curves.validation_metric == ((50.0, 0.5), (100.0, 0.75))
    assert (curves.metric, curves.epochs) == ("accuracy", 2)


def test_long_curves_are_thinned_to_means(tmp_path: Path) -> None:
    lines = [{"kind": "train", "step": step, "epoch": 1, "loss": float(step % 2)} for step in range(10_000)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curves = read_curves(tmp_path / "best")
    assert curves is not None
    assert len(curves.train_loss) <= 240
    assert {round(loss, 1) for _, loss in curves.train_loss} == {0.5}


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_browser_shows_the_report_without_a_fault(
    browser: Any, request: pytest.FixtureRequest, tmp_path: Path, kind: str, scheme: str, width: int
) -> None:
    content = request.getfixturevalue("content" if kind == "classification" else "regression")
    (tmp_path / "report.html").write_text(render(content))
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_load_state("load")

    assert faults == []
    assert [url for url in requests if not url.startswith(("data:", "file:"))] == []
    assert page.title() == "scene · evaluation"
    pictures = page.eval_on_selector_all("img", "nodes => nodes.map(node => [node.naturalWidth, node.clientWidth])")
    assert len(pictures) == sum(view.type == "image" for card in [*content.worst, *content.best] for view in card.views)
    assert len(pictures) > 0
    assert all(natural > 0 and shown > 0 for natural, shown in pictures)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    wide = page.eval_on_selector_all(
        "body *:not(.scroll *)",
        "(nodes, width) => nodes.filter(n => n.getBoundingClientRect().right > width + 1).map(n => n.outerHTML.slice(0, 80))",
        width,
    )
    assert wide == []
    # A sound that the page may not play, or a plot without a size, would be a hole in the report.
    assert page.eval_on_selector_all("svg", "nodes => nodes.every(n => n.getBoundingClientRect().height > 20)")
    durations = page.evaluate(
        """async () => Promise.all([...document.querySelectorAll('audio')].map(node => new Promise(done => {
            node.onloadedmetadata = () => done(node.duration);
            node.onerror = () => done(-1);
            node.preload = 'metadata';
            node.load();
        })))"""
    )
    assert all(duration > 0 for duration in durations)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(252, 252, 250)" if scheme == "light" else "rgb(19, 20, 23)"
    )
    context.close()


def test_a_reconstruction_is_drawn_beside_what_is_there(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, ALL, None, 20, {"type": "reconstruct"}, missing={"image": 0.4, "points": 0.4})
    content = content_of(scene)
    details = content.details
    assert isinstance(details, ReconstructionDetails) and details.fields == tuple(sorted(ALL))
    cards = [*details.worst, *details.best]
    assert len(cards) == 8 and not content.worst
    for card in cards:
        # What occurs in a text is not drawn.
        assert sorted(each.field for each in card.fields) == sorted(set(ALL) - {"text"})
        for each in card.fields:
            wanted = "<svg" if each.type in ("series", "vector") else "<img"
            assert wanted in each.said and (each.original is None or wanted in each.original)
    absent = [each.field for card in cards for each in card.fields if each.original is None]
    assert set(absent) == {"image", "points"}
    losses = [float(card.figure.removeprefix("mean squared error ")) for card in details.worst]
    assert losses == sorted(losses, reverse=True)
    html = render(content)
    assert "Which field from which" in html and "<script" not in html
    # Alone, and all together; all fields, and their mean.
    assert len(said_rows(content, details)) == len(ALL) + 1
    assert all(len(row) == 1 + len(ALL) + 1 for row in said_rows(content, details))
    assert result_metrics(content)["subsets"]["vector"]["r2"] < 1 and result_details(content) == {}
