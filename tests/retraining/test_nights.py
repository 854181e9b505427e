"""Fourteen nights come to what the table in ``docs/reliability.md`` says, and after each of them nothing is amiss."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tests.faults.table import PAGE
from tests.object_store import ENVIRONMENT, faulty_proxy, make_bucket
from tests.retraining.lab import World
from tests.retraining.nights import CASES, ENDS, SECRET, Case, Story
from tests.retraining.table import page

_TELL = """
import json, os, sys
line = {"body": sys.stdin.read(), "time": os.environ["RAY_MM_TIME"], "signature": os.environ["RAY_MM_SIGNATURE"]}
assert "RETRAIN_TEST_KEY" not in os.environ
open(sys.argv[1], "a").write(json.dumps(line) + "\\n")
"""


@pytest.fixture(scope="module")
def story(local_ray: None, s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    folder = tmp_path_factory.mktemp("nights")
    make_bucket(s3_endpoint, "nights")
    with faulty_proxy(s3_endpoint) as proxy, pytest.MonkeyPatch.context() as environment:
        more = {"RETRAIN_TEST_KEY": SECRET, "RAY_MM_REGISTRY_CACHE": str(folder / "cache")}
        for name, value in {**ENVIRONMENT, "AWS_ENDPOINT_URL": proxy.endpoint, **more}.items():
            environment.setenv(name, value)
        tell = [sys.executable, "-c", _TELL, str(folder / "told")]
        notify = {"command": tell, "secret": "env:RETRAIN_TEST_KEY", "timeout_s": 60}
        arrivals = {"arrivals.by": "event_time", "arrivals.time_zone": "Europe/Berlin"}
        # Models of nine steps differ by chance: only the one that has learned nothing shall lose.
        gates = {"gates.frozen.min_gain": -0.25, "gates.newest.min_gain": -0.4}
        yield Story(World(folder, registry="s3://nights/registry", notify=notify, **arrivals, **gates), proxy)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_night_comes_to_what_the_table_says(story: Story, case: Case) -> None:
    world, number = story.world, CASES.index(case)
    assert len(world.nights) == number, "each night follows those before it: run the whole file"
    if number:
        world.pass_nights(4 if case.name == "missed" else 25 / 24 if case.name == "clocks-back" else 1)
    case.run(story)
    world.check()
    nights = world.nights
    assert len(nights) == number + 1 and nights[-1].facts.status == case.ends
    result = json.loads((world.folder / "retrain" / "result.json").read_text())
    assert (result["status"], result["night"]) == (case.ends, nights[-1].facts.id)
    assert result["champion"] == world.registry.champion()
    history = (world.folder / "retrain" / "history.html").read_text()
    assert all(f'nights/{night.facts.id}/report.html"' in history for night in nights)
    for ends in ENDS:
        count = sum(night.facts.status == ends for night in nights)
        assert history.count(f'<td class="{ends}">') == count == sum(each.ends == ends for each in CASES[: number + 1])


def test_the_page_has_the_table_of_the_nights() -> None:
    text = PAGE.read_text()
    assert page(text) == text, "write it with: python -m tests.retraining.table"
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) == 14
