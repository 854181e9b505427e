"""Tars → one HTML page to look at: what ``inspect`` found, and a few samples drawn, in the look of the report.

Everything is in the page: it needs no network, and a name or a text of a member can only ever be text in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from pydantic import TypeAdapter

from ray_mm.config.fields import AudioField, FieldSpec, ImageField, LabelField, TextField, VideoField
from ray_mm.data.decode.audio import recording_length
from ray_mm.data.decode.decoder import decoder_for
from ray_mm.data.decode.error import DecodeError, SilentError
from ray_mm.data.decode.image import image_size
from ray_mm.data.decode.mask import read_mask
from ray_mm.data.decode.numeric import read_points, read_series, read_vector
from ray_mm.data.decode.text import read_text
from ray_mm.data.decode.video import video_shape
from ray_mm.data.fields import field_arrays, length_name
from ray_mm.data.index import ShardIndex
from ray_mm.data.infer import member_reader
from ray_mm.data.inspect import Inspection, Table, indexed_shards, inspect_tars
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.errors import UsageError
from ray_mm.evaluation.report import render
from ray_mm.evaluation.report.masks import legend, mask_picture
from ray_mm.evaluation.report.views import View, view
from ray_mm.storage import write_atomic
from ray_mm.storage.ranges import RangeReader

_SAMPLES = 8
_MAX_SIDE = 320
_MAX_SECONDS = 20.0
_FIELD: TypeAdapter[FieldSpec] = TypeAdapter(FieldSpec)
_FIGURES = re.compile(r"(\d[\d.,]*( [kMG]?B|%| \(.*\))?)?|–")

_PAGE = Markup(
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    "<title>{title} · inspect</title><style>{style}</style></head><body>"
    '<p class="kicker">inspect</p><h1>{title}</h1>{tables}{job}'
    '<section class="examples"><header><h2>Samples</h2><p>{told}</p></header>'
    '<div class="cards">{cards}</div></section></body></html>\n'
)
_JOB = Markup(
    "<section><header><h2>A job to begin with</h2><p>Save it as <code>preprocess.yaml</code>, change what you like, then: "
    "<code>ray-mm run preprocess.yaml</code></p></header>"
    '<details open><summary>preprocess.yaml</summary><pre class="scroll" tabindex="0"><code>{job}</code></pre></details>'
    "</section>"
)
_STYLE = Markup(
    ".figures .words { text-align: left; white-space: normal; min-width: 12ch; } .figures tbody th { max-width: none; } "
    # Where long reasons stand. On a phone a table is scrolled, and a narrow column would be a screen or two high.
    ".figures .words:last-child { min-width: min(36ch, 75vw); } .figures tbody :is(th, td) { vertical-align: top; } "
    "pre { background: var(--faint); border-radius: 6px; padding: 14px 16px; } pre code { overflow-wrap: normal; } "
    "section > details { margin-top: 0; }"
)
_CARD = Markup('<article class="card">{views}<footer><code>{key}</code></footer></article>')
_FIGURE = Markup("<figure>{content}<figcaption><span>{name}</span>{caption}</figcaption></figure>")


def write_gallery(path: Path, patterns: Sequence[str | Path]) -> Inspection:
    """Looks into tars and writes the page; returns what was found.

    Raises:
        DatasetError: a pattern names nothing, or something that is no whole tar.
    """
    found = inspect_tars(patterns)
    info, index = indexed_shards(patterns[:1])[0]
    fields = found.data["fields"]
    cards = _cards(member_reader(info, index), index, fields, found.data["members"]) if fields else ()
    page = _PAGE.format(
        title=found.path,
        style=Markup((Path(render.__file__).parent / "report.css").read_text(encoding="utf-8")) + _STYLE,
        tables=Markup("").join(_section(table) for table in found.tables),
        job=_JOB.format(job=found.job) if found.job else "",
        told="Spread over the first shard." if fields else "No member makes a field, so there is nothing to draw.",
        cards=Markup("").join(cards),
    )
    write_atomic(path, page)
    return found


def _section(table: Table) -> Markup:
    columns = list(zip(*table.rows, strict=True)) or [()] * len(table.header)
    numeric = [all(_FIGURES.fullmatch(text) for text in column) for column in columns]
    cells = [Markup("<td>{}</td>") if is_number else Markup('<td class="words">{}</td>') for is_number in numeric]
    cells[0] = Markup('<th scope="row">{}</th>')
    head = Markup("").join(
        Markup('<th scope="col"{}>{}</th>').format(Markup("" if is_number else ' class="words"'), name)
        for name, is_number in zip(table.header, numeric, strict=True)
    )
    rows = Markup("").join(
        Markup("<tr>{}</tr>").format(Markup("").join(cell.format(text) for cell, text in zip(cells, row, strict=True)))
        for row in table.rows
    )
    return Markup(
        '<section><header><h2>{}</h2></header><div class="scroll" tabindex="0"><table class="figures"><thead><tr>{}</tr>'
        "</thead><tbody>{}</tbody></table></div></section>"
    ).format(table.title, head, rows)


def _cards(
    reader: RangeReader, index: ShardIndex, fields: Mapping[str, Any], members: Mapping[str, Any]
) -> Iterator[Markup]:
    for row in np.linspace(0, len(index) - 1, min(_SAMPLES, len(index))).round().astype(np.int64).tolist():
        views = []
        for name, content in fields.items():
            suffixes = [members[name]] if isinstance(members[name], str) else members[name]
            suffix = next(
                (suffix for suffix in suffixes if suffix in index.sizes and index.sizes[suffix][row] > 0), None
            )
            if suffix is not None:
                place = int(index.offsets[suffix][row]), int(index.sizes[suffix][row])
                views.append(_figure(name, _FIELD.validate_python(content), bytes(reader.read([place])[0])))
        yield _CARD.format(views=Markup("").join(views), key=index.keys[row])


def _figure(name: str, spec: FieldSpec, payload: bytes) -> Markup:
    try:
        drawn = _view(name, spec, payload)
    except SilentError as error:
        drawn = View(name, spec.type, Markup('<p class="absent">{}</p>').format(error), "")
    except (DecodeError, UsageError) as error:
        drawn = View(name, spec.type, Markup('<p class="absent"><span>unreadable</span>{}</p>').format(error), "")
    return _FIGURE.format(content=drawn.content, name=name, caption=drawn.caption)


def _view(name: str, spec: FieldSpec, payload: bytes) -> View:
    if isinstance(spec, TextField):
        text = read_text(payload, spec)
        return view(name, spec, {}, ("" if text is None else text[0]).encode(), None)
    if isinstance(spec, LabelField) and spec.target == "mask":
        numbers = read_mask(payload, spec)
        named = legend(spec.classes or (), np.unique(numbers).tolist())
        content = mask_picture(numbers, f"mask {name}") + Markup("<p>{}</p>").format(named)
        return View(name, spec.type, content, f"{numbers.shape[1]}×{numbers.shape[0]} cells")
    if isinstance(spec, LabelField):
        found = read_text(payload, TextField(path=spec.path))
        return View(
            name, spec.type, Markup("<p><b>{}</b></p>").format("–" if found is None else found[0].strip()), "label"
        )
    if isinstance(spec, (ImageField, VideoField)):
        height, width = image_size(payload) if isinstance(spec, ImageField) else video_shape(payload)[:2]
        scale = min(1.0, _MAX_SIDE / max(height, width))
        sides = {"height": max(1, round(height * scale)), "width": max(1, round(width * scale))}
        drawn = _decoded(name, spec.model_copy(update=sides), payload)
        # Not of the drawing: what one wants to know is how large the picture is that lies in the tar.
        return replace(drawn, caption=f"{width}×{height} pixels{_of_clip(spec, payload)}")
    if isinstance(spec, AudioField):
        frames, rate_hz = recording_length(payload)
        seconds = min(max(frames / rate_hz, 0.01), _MAX_SECONDS)
        return _decoded(name, spec.model_copy(update={"rate_hz": rate_hz, "max_seconds": seconds}), payload)
    if spec.type == "series":
        values = read_series(payload, spec)
    elif spec.type == "points":
        values = read_points(payload, spec)
    else:
        values = read_vector(payload, spec)
    if values is None or not values.size:
        return View(name, spec.type, escape("nothing in it"), "")
    return view(name, spec, {name: values[None], length_name(name): np.array([len(values)])}, payload, None)


def _of_clip(spec: FieldSpec, payload: bytes) -> str:
    return (
        f", {video_shape(payload)[2]:.3g} s, the middle one of {spec.num_frames}"
        if isinstance(spec, VideoField)
        else ""
    )


def _decoded(name: str, spec: FieldSpec, payload: bytes) -> View:
    arrays = {array: np.zeros((1, *found.shape), found.dtype) for array, found in field_arrays(name, spec).items()}
    decoder_for(name, Preprocessor(fields={name: spec}))(payload, arrays, 0)
    return view(name, spec, arrays, payload, None)
