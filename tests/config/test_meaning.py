"""What keys mean: the texts in the source, for every key of every kind of job, in the schema and in the list of keys."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import Field

from ray_mm.config.base import Config
from ray_mm.config.load import JOB_KINDS, job_schema
from ray_mm.config.meaning import meanings


class Outer(Config):
    first: int = 1
    """Of the outer
    class."""
    second: int = 2
    third: dict[str, int] = Field(default={})
    """Of a dictionary."""


class Inner(Outer):
    first: int = 3
    """Of the inner class."""


def test_a_text_belongs_to_the_field_above_it_and_is_inherited() -> None:
    assert meanings(Outer) == {"first": "Of the outer\nclass.", "third": "Of a dictionary."}
    assert meanings(Inner) == {"first": "Of the inner class.", "third": "Of a dictionary."}


@pytest.mark.parametrize("kind", JOB_KINDS)
def test_the_schema_says_what_every_key_means(kind: str) -> None:
    schema = job_schema(kind)
    without: list[str] = []

    def look(part: dict[str, Any], name: str) -> None:
        for key, value in part.get("properties", {}).items():
            # The kind of a job, the type of a field: what is chosen explains itself.
            if "description" not in value and "const" not in value:
                without.append(f"{name}.{key}")

    look(schema, kind)
    for name, part in schema.get("$defs", {}).items():
        look(part, name)
    assert without == []
