"""What the pages of all stages have in common: how their templates are read, ``page.html`` around them, and their style."""

from __future__ import annotations

from pathlib import Path

import jinja2
from markupsafe import Markup

from ray_mm.evaluation.report.svg import percent

_HERE = Path(__file__).parent


def template(name: str, folder: Path = _HERE) -> jinja2.Template:
    """A template of a folder, which may extend ``page.html``.

    Args:
        name: of its file.
        folder: that it lies in.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, _HERE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent
    return environment.get_template(name)


def style(*more: Path) -> Markup:
    """The style sheet of all pages, and a page's own."""
    return Markup("\n".join(path.read_text(encoding="utf-8") for path in (_HERE / "report.css", *more)))
