"""The page of a profile: whole at any width, and asking for nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ray_mm.profile_page import write_profile_page
from ray_mm.training.profile_parts import Operator, RankProfile

EVIL = '"><script>alert(1)</script>'
GPU = RankProfile(
    rank=0,
    world_size=2,
    device="NVIDIA H100 80GB HBM3",
    precision="bf16",
    first_step=10,
    num_steps=5,
    total_s=1.0,
    parts={
        "wait": 0.2,
        "copy": 0.0,
        "forward": 0.3,
        "backward": 0.4,
        "optimizer": 0.05,
        "all-reduce": 0.03,
        "other": 0.02,
    },
    hidden_s=0.1,
    device_parts={
        "wait": 0.0,
        "copy": 0.05,
        "forward": 0.2,
        "backward": 0.6,
        "optimizer": 0.1,
        "all-reduce": 0.0,
        "other": 0.0,
    },
    device_busy_s=0.95,
    operators=(
        Operator("aten::mm", 400, 0.3, 0.5, 6_500_000),
        Operator("autograd::engine::evaluate_function: ConvolutionBackward0" * 2, 60, 0.1, 0.2, -5),
    ),
)
CPU = replace(GPU, world_size=1, device="cpu", device_parts={}, device_busy_s=0.0, hidden_s=0.0)


def test_it_says_where_the_time_goes(tmp_path: Path) -> None:
    write_profile_page(tmp_path / "gpu.html", "driving", [GPU, replace(GPU, rank=1)])
    page = (tmp_path / "gpu.html").read_text()
    for text in (
        "The GPU limits",
        "What the GPU does",
        "By worker",
        "backward",
        "80 ms · 40%",
        "95%",
        "10–14",
        "6.5 MB",
    ):
        assert text in page
    assert "Another 20 ms of exchanging gradients" in page
    write_profile_page(tmp_path / "cpu.html", "driving", [CPU])
    page = (tmp_path / "cpu.html").read_text()
    assert "The backward pass takes the most: 40% of a step; waiting for data takes 20%." in page
    assert "What the GPU does" not in page and "By worker" not in page


def test_it_asks_for_nothing_and_names_can_not_break_out_of_it(tmp_path: Path) -> None:
    evil = replace(GPU, device=EVIL, operators=(replace(GPU.operators[0], name=EVIL),))
    write_profile_page(tmp_path / "page.html", EVIL, [evil])
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") >= 4
    assert not re.search(r"""(?:src|href)=["'](?!data:)|@import|url\((?!data:)|https?://""", page)


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_it_whole(tmp_path: Path, browser: Any, width: int, scheme: str) -> None:
    write_profile_page(tmp_path / "page.html", "driving", [GPU, replace(GPU, rank=1)])
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    bars = page.locator(".bars .fill").evaluate_all("bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert len(bars) == 14 and max(bars) == bars[10] > 40
    assert not faults
    page.close()
