"""The page of a night and the history: what happened stands there, whatever it is called, on a desk and on a telephone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from ray_mm.retraining.night import Facts, Night, read_nights
from ray_mm.retraining.outcome import End, figures_of
from ray_mm.retraining.registry import Registry
from ray_mm.retraining.report.render import write_history, write_night
from ray_mm.storage import write_json
from tests.retraining.lab import NIGHT_S, START, World

ODD = "<script>alert(1)</script> & a reason that is as long as a reason may become when a store says all that it knows of it"


def night_of(output: Path, number: int, status: str | None, **notes: Any) -> Night:
    """A night with these notes: step → what it found."""
    until = START + number * NIGHT_S
    facts = Facts(f"small-{number}", until - NIGHT_S, until, number, number or None, number, until, starts=1)
    night = Night(output / "nights" / facts.id, facts, lambda point: None)
    for name, note in notes.items():
        write_json(night.folder / "steps" / f"{name}.json", {**note, "seconds": 1.5})
    night.save(status=status, reason=ODD if status == "stopped" else "because")
    return night


def trained(accuracy: float, before: float | None) -> dict[str, Any]:
    models = {"challenger": {"": accuracy}} | ({"champion": {"": before}} if before is not None else {})
    check = {"criterion": "frozen: accuracy, gain", "measured": 0.01, "limit": 0.0, "at_most": False, "passed": True}
    return {
        "01-arrivals": {"new": [{"url": "/in/a.tar", "size": 512}], "refused": [], "num_settling": 0},
        "02-look": {"accepted": ["/in/a.tar"], "rejected": {}, "num_samples": 45, "checks": [check]},
        "11-gates": {
            "checks": [check, {**check, "measured": None, "passed": False}],
            "figures": {"frozen": models, "newest": models},
        },
    }


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """The output of a retraining with nights of every kind."""
    world = World(tmp_path)
    job, output = world.job(), tmp_path / "retrain"
    nights = [
        night_of(output, 0, "promoted", **trained(0.9, None)),
        night_of(output, 1, "refused", **trained(0.8, 0.9)),
        night_of(output, 2, "skipped", **{"01-arrivals": {"new": [], "refused": []}}),
        night_of(
            output,
            3,
            "stopped",
            **{
                "01-arrivals": {
                    "new": [{"url": "/in/b.tar", "size": 9}],
                    "refused": [{"url": "/in/" + "x" * 200, "reason": ODD}],
                },
                "02-look": {"accepted": [], "rejected": {"/in/b.tar": ODD}, "checks": [], "num_samples": 0},
            },
        ),
        night_of(output, 4, None),
    ]
    for night in nights[:-1]:
        end = End(str(night.facts.status), night.facts.reason)
        found = figures_of(job, night)
        write_night(night.folder / "report.html", job, night, end, found)
        night.save(figures=found, promoted=1 if night.facts.status == "promoted" else None)
    write_history(output / "history.html", job, read_nights(output), Registry(output / "registry", "small"))
    return output


def test_everything_that_happened_is_on_the_pages_and_nothing_of_it_is_code(pages: Path) -> None:
    history = (pages / "history.html").read_text()
    assert "5 nights: 1 promoted, 1 challenger refused, 1 stopped, 1 nothing to do, 1 under way." in history
    assert "90.0% → 80.0%" in history and "– → 90.0%" in history
    assert re.findall(r'href="(nights/small-\d/report\.html)"', history) == [
        f"nights/small-{n}/report.html" for n in (3, 2, 1, 0)
    ]
    stopped = (pages / "nights" / "small-3" / "report.html").read_text()
    assert "x" * 200 in stopped and "/in/b.tar" in stopped
    for page in (history, stopped):
        assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    refused = (pages / "nights" / "small-1" / "report.html").read_text()
    assert "not measured" in refused and '<td class="missed">missed</td>' in refused


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_pages_fit_their_window(pages: Path, browser: Any, width: int) -> None:
    said: list[str] = []
    for path in (pages / "history.html", *sorted(pages.glob("nights/*/report.html"))):
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
        assert page.evaluate("document.querySelectorAll('h1').length") == 1
        page.close()
    assert said == []
