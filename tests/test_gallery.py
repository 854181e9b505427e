"""The page of ``inspect --html``: every kind of field drawn, nothing of a tar but text, and whole in a browser."""

from __future__ import annotations

import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from ray_mm.config.load import load_job
from ray_mm.gallery import write_gallery
from tests.data.decode.videos import video_bytes
from tests.factories import member_of, write_tar

_EVIL = "<script>alert(1)</script>"


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    members: dict[str, bytes] = {}
    for i in range(10):
        extension, picture = member_of("image", i)
        members |= {
            f"d/{_EVIL if i == 0 else i}.{extension}": picture,
            f"d/{_EVIL if i == 0 else i}.txt": f"{_EVIL} number {i}".encode(),
            f"d/{_EVIL if i == 0 else i}.wav": member_of("audio", i)[1],
            f"d/{_EVIL if i == 0 else i}.imu.npy": member_of("series", i)[1],
            f"d/{_EVIL if i == 0 else i}.radar.npy": member_of("points", i)[1],
            f"d/{_EVIL if i == 0 else i}.state.npy": member_of("vector", i)[1],
            f"d/{_EVIL if i == 0 else i}.json": json.dumps({"kind": _EVIL[: i % 2 + 3]}).encode(),
        }
    members["d/9.imu.npy"] = b"\x93NUMPY this is no array"
    return write_tar(tmp_path / "0.tar", members)


def test_every_field_is_drawn_and_nothing_gets_into_the_page(tars: Path, tmp_path: Path) -> None:
    found = write_gallery(tmp_path / "page.html", [tars])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert found.data["num_samples"] == 10 and "imu" not in found.data["fields"], "a broken member makes no field"
    assert page.count('<article class="card">') == 8
    assert page.count("<img ") == 8 and page.count("<audio ") == 8 and page.count("waveform of field audio") == 8
    assert page.count("points of field radar") == 8 and page.count("values of field state") == 8
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt; number 0" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_proposed_job_stands_in_the_page(tars: Path, tmp_path: Path) -> None:
    found = write_gallery(tmp_path / "page.html", [tars])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    ((job,),) = [
        re.findall(r"<details open><summary>preprocess.yaml</summary><pre[^>]*><code>(.*?)</code>", page, re.S)
    ]
    assert html.unescape(job) == found.job and load_job(yaml.safe_load(found.job)).kind == "preprocess"


def test_a_member_that_can_not_be_drawn_says_why(tmp_path: Path) -> None:
    members = {f"{i:02d}.jpg": member_of("image", 2 * i)[1] for i in range(40)}
    members["06.jpg"] = b"\xff\xd8\xff\xe0 this is no picture"
    tar = write_tar(tmp_path / "0.tar", members)
    write_gallery(tmp_path / "page.html", [tar])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 7 and page.count("<span>unreadable</span>") == 1


def test_a_silent_clip_is_not_said_to_be_damaged(tmp_path: Path) -> None:
    clips = {"0.mp4": video_bytes(sound_seconds=1.0), "1.mp4": video_bytes()}
    write_gallery(tmp_path / "page.html", [write_tar(tmp_path / "0.tar", clips)])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('<p class="absent">has no audio track</p>') == 1 and "unreadable" not in page


def test_a_picture_is_told_in_its_own_size(tmp_path: Path) -> None:
    sink = io.BytesIO()
    Image.new("RGB", (900, 600)).save(sink, "PNG")
    write_gallery(tmp_path / "page.html", [write_tar(tmp_path / "0.tar", {"0.png": sink.getvalue()})])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "900×600 pixels" in page and "320×213" not in page
    assert '<td class="words">900×600</td>' in page, "not a column of numbers"


def test_where_no_member_makes_a_field_no_empty_cards_are_drawn(tmp_path: Path) -> None:
    write_gallery(tmp_path / "page.html", [write_tar(tmp_path / "0.tar", {"0.mp": b"\x82\xa1\0x"})])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<article" not in page and "No member makes a field" in page and "<details" not in page


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_whole(tars: Path, tmp_path: Path, browser: Any, width: int) -> None:
    write_gallery(tmp_path / "page.html", [tars])
    page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    faults: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())
    page.wait_for_load_state("load")
    assert faults == [] and [url for url in requests if not url.startswith(("data:", "file:"))] == []
    assert page.title() == f"{tars} · inspect"
    pictures = page.eval_on_selector_all("img", "nodes => nodes.map(node => [node.naturalWidth, node.clientWidth])")
    assert len(pictures) == 8 and all(natural > 0 and shown > 0 for natural, shown in pictures)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.eval_on_selector_all("svg", "nodes => nodes.every(n => n.getBoundingClientRect().height > 20)")
    page.context.close()


def test_a_mask_is_drawn_with_the_names_of_its_classes(tmp_path: Path) -> None:
    members = {}
    for i in range(4):
        extension, picture = member_of("image", i)
        members |= {f"{i}.{extension}": picture, f"{i}.seg.png": member_of("mask", i)[1]}
    write_gallery(tmp_path / "page.html", [write_tar(tmp_path / "0.tar", members)])
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count('alt="mask seg"') == 4 and page.count("not labelled") == 4
