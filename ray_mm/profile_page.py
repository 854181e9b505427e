"""The figures of profiled steps → one HTML page, in the look of the report: where a step's time goes.

Everything is in the page: it needs no network, and a name can only ever be text in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2
from markupsafe import Markup

from ray_mm.evaluation.report import render
from ray_mm.figures import size
from ray_mm.storage import write_atomic
from ray_mm.training.profile_parts import PARTS, Operator, RankProfile, limit

_MEANINGS = {
    "wait": "waiting for a batch",
    "copy": "bringing it to the device",
    "forward": "forward pass and loss",
    "backward": "gradients",
    "optimizer": "clipping and the step",
    "all-reduce": "exchanging sums and gradients, where nothing else is done meanwhile",
    "other": "all else: checks, notes, checkpoints; on a GPU, waiting for it",
}
_MAX_ROWS = 10
_STYLE = """
.bars th small { display: block; color: var(--soft); font-size: 0.8125rem; white-space: normal; min-width: 18ch; }
.bars td.value { white-space: nowrap; }
main > section:first-child { border-top: 0; margin-top: 0; padding-top: 0; }
.figures tbody th { max-width: none; overflow-wrap: anywhere; min-width: 16ch; }
@media (max-width: 720px) { .bars th small { display: none; } }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
<title>{{ job }} · profile</title>
<style>{{ style }}</style>
</head>
<body>
<header class="top">
<p class="kicker">Profile</p>
<h1>{{ job }}</h1>
<p class="lead">{{ sentence }}</p>
<dl class="tiles">
{% for name, text, note in tiles %}
<div><dt>{{ name }}</dt><dd>{{ text }}</dd><dd class="note">{{ note }}</dd></div>
{% endfor %}
</dl>
</header>
<main>
{% for title, words, rows in tables %}
<section>
<header><h2>{{ title }}</h2><p>{{ words }}</p></header>
<div>
<table class="bars">
<caption class="hidden">{{ title }}</caption>
<tbody>
{% for name, meaning, share, text in rows %}
<tr><th scope="row">{{ name }}<small>{{ meaning }}</small></th>
<td class="track"><span class="fill" style="--width:{{ (100 * share) | round(2) }}%"></span></td>
<td class="value">{{ text }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endfor %}
{% if ranks | length > 1 %}
<section>
<header><h2>By worker</h2><p>A worker that waits in the exchange of gradients waits for a slower one.</p></header>
<div class="scroll" tabindex="0" role="region" aria-label="Parts of a step by worker">
<table class="figures">
<thead><tr><th scope="col">rank</th><th scope="col">step</th>
{% for part in parts %}<th scope="col">{{ part }}</th>{% endfor %}
</tr></thead>
<tbody>
{% for rank, step, shares in ranks %}
<tr><th scope="row">{{ rank }}</th><td>{{ step }}</td>{% for share in shares %}<td>{{ share }}</td>{% endfor %}</tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endif %}
{% for title, words, column, rows in operators %}
<section>
<header><h2>{{ title }}</h2><p>{{ words }}</p></header>
<div class="scroll" tabindex="0" role="region" aria-label="{{ title }}">
<table class="figures">
<thead><tr><th scope="col">operator</th><th scope="col">calls</th><th scope="col">{{ column }}</th></tr></thead>
<tbody>
{% for name, calls, text in rows %}
<tr><th scope="row"><code>{{ name }}</code></th><td>{{ calls }}</td><td>{{ text }}</td></tr>
{% endfor %}
</tbody>
</table>
</div>
</section>
{% endfor %}
</main>
<footer class="end">
<p>Beside this page lies a trace of each worker, <code>rank-0.trace.json.gz</code> and so on: open it at ui.perfetto.dev, or in
chrome://tracing. A profiled step takes longer than others; the shares matter, not the seconds.</p>
</footer>
</body>
</html>
"""


def write_profile_page(path: Path, job: str, ranks: Sequence[RankProfile]) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: of the page.
        job: its name.
        ranks: at least one, by rank. The first one's operators are shown.
    """
    first = ranks[0]
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    css = (Path(render.__file__).parent / "report.css").read_text(encoding="utf-8")
    page = environment.from_string(_PAGE).render(
        job=job,
        style=Markup(css + _STYLE),
        sentence=limit(first),
        tiles=list(_tiles(first)),
        tables=list(_tables(first)),
        parts=PARTS,
        ranks=[
            (rank.rank, _per_step(rank, rank.total_s), [f"{rank.share(part):.0%}" for part in PARTS]) for rank in ranks
        ],
        operators=list(_operators(first)),
    )
    write_atomic(path, page)


def _tiles(profiled: RankProfile) -> list[tuple[str, str, str]]:
    last = profiled.first_step + profiled.num_steps - 1
    workers = f"{profiled.world_size} worker{'s' if profiled.world_size > 1 else ''}"
    tiles = [
        ("A step", _per_step(profiled, profiled.total_s), f"{profiled.precision}, {workers}"),
        ("Steps", f"{profiled.first_step}–{last}" if profiled.num_steps > 1 else f"{last}", f"on {profiled.device}"),
        ("Waiting for data", f"{profiled.share('wait'):.0%}", "of a step"),
    ]
    if profiled.device_parts and profiled.total_s:
        tiles.append(("GPU busy", f"{profiled.device_busy_s / profiled.total_s:.0%}", "of the time"))
    return tiles


def _tables(profiled: RankProfile) -> list[tuple[str, str, list[tuple[str, str, float, str]]]]:
    words = "Of rank 0, on its own thread. The parts exclude each other."
    if profiled.device_parts:
        words = "Of rank 0, on its own thread, which only hands out the work of the GPU. The parts exclude each other."
    if profiled.hidden_s:
        words += f" Another {_per_step(profiled, profiled.hidden_s)} of exchanging gradients lay behind other work."
    tables = [("Where a step's time goes", words, _rows(profiled, profiled.parts))]
    if profiled.device_parts:
        words = "Seconds of the GPU, by the part of the step in which the work was handed out."
        tables.append(("What the GPU does", words, _rows(profiled, profiled.device_parts)))
    return tables


def _rows(profiled: RankProfile, seconds: dict[str, float]) -> list[tuple[str, str, float, str]]:
    return [
        (
            part,
            _MEANINGS[part],
            seconds[part] / profiled.total_s if profiled.total_s else 0.0,
            f"{_per_step(profiled, seconds[part])} · {seconds[part] / profiled.total_s:.0%}"
            if profiled.total_s
            else "–",
        )
        for part in PARTS
    ]


def _operators(profiled: RankProfile) -> list[tuple[str, str, str, list[tuple[str, str, str]]]]:
    on_device = bool(profiled.device_parts)

    def seconds(operator: Operator) -> float:
        return operator.device_s if on_device else operator.host_s

    by_time = sorted(profiled.operators, key=lambda operator: -seconds(operator))[:_MAX_ROWS]
    by_memory = sorted(profiled.operators, key=lambda operator: -operator.memory_bytes)[:_MAX_ROWS]
    place = "GPU" if on_device else "CPU, all threads of an operator together as one"
    return [
        (
            "Operators by time",
            f"Time on the {place}, without what an operator calls.",
            "per step",
            [
                (each.name, f"{each.calls:,}", _per_step(profiled, seconds(each)))
                for each in by_time
                if seconds(each) > 0
            ],
        ),
        (
            "Operators by memory",
            "What they took and did not give back themselves, over all profiled steps.",
            "memory",
            [(each.name, f"{each.calls:,}", size(each.memory_bytes)) for each in by_memory if each.memory_bytes > 0],
        ),
    ]


def _per_step(profiled: RankProfile, seconds: float) -> str:
    each = seconds / max(profiled.num_steps, 1)
    return f"{each:.2f} s" if each >= 1 else f"{1e3 * each:.3g} ms"
