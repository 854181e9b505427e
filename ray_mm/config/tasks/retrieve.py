"""A task without a label: find one side of a sample by another."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_mm.config.base import Config, Name
from ray_mm.config.tasks.sample import Positive


class RetrieveTask(Config):
    """Find what belongs together, such as pictures and their descriptions: each side of a sample becomes a vector, near that of
    its other side and far from those of other samples."""

    type: Literal["retrieve"] = "retrieve"
    towers: dict[Name, Annotated[tuple[Name, ...], Field(min_length=1)]] | None = None
    """The sides: name → its input fields, which ``model.fusion`` joins. Unset: each field is one."""
    loss: Literal["info_nce", "siglip"] = "info_nce"
    """InfoNCE (arXiv 1807.03748, as CLIP has it, 2103.00020): which of all samples of the batch belongs to this one. SigLIP
    (2303.15343): whether two of them belong together, each pair by itself."""
    dim: int = Field(default=128, ge=2, le=8192)
    """Numbers in a vector."""
    shared: bool = False
    """One encoder, fusion and projection for all sides, each of one field of the same type: to find another picture of it."""
    temperature: Positive | None = None
    """By which cosines are divided at first; it is learned. Unset: 0.07, with ``loss: siglip`` 0.1."""

    @model_validator(mode="after")
    def _towers_differ(self) -> RetrieveTask:
        seen: dict[str, str] = {}
        for tower, names in (self.towers or {}).items():
            for name in names:
                if name in seen:
                    where = f"twice in {tower}" if seen[name] == tower else f"in {seen[name]} and in {tower}"
                    raise ValueError(f"towers: {name!r} stands {where}; each field belongs to one of them")
                seen[name] = tower
            if self.shared and len(names) > 1:
                raise ValueError(
                    f"towers.{tower} has {len(names)} fields, and with shared: true each of them has one; take the others out"
                )
        return self

    @property
    def needs_class_counts(self) -> bool:
        """There are no classes."""
        return False

    def towers_of(self, fields: Iterable[str]) -> dict[str, tuple[str, ...]]:
        """Tower → its fields, sorted, of a model with these input fields; the towers in the order of their names."""
        towers = self.towers if self.towers is not None else {name: (name,) for name in fields}
        return {name: tuple(sorted(towers[name])) for name in sorted(towers)}
