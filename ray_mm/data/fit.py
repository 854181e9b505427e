"""Whether a dataset's fields are what a model reads. Light: ``ray-mm check`` asks it, too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_mm.config.fields import FieldSpec, LabelField, SeriesField, is_mask, names_of
from ray_mm.errors import DatasetError
from ray_mm.storage import is_remote

_MAX_NAMED = 5


def require_fit(
    place: str, found: Mapping[str, FieldSpec], wanted: Mapping[str, FieldSpec], may_lack: Collection[str] = ()
) -> list[str]:
    """Checks that a dataset holds what a model reads: its fields, with the same types, channels and classes, and written alike.

    Args:
        place: of the dataset, for the message.
        found: its fields.
        wanted: the model's input fields and its label.
        may_lack: input fields that need not be there; one of them must be.

    Returns:
        Those of ``may_lack`` that are not there, sorted.

    Raises:
        DatasetError: with every difference.
    """
    lacking = sorted(name for name in may_lack if name not in found)
    if lacking and len(lacking) == len(may_lack):
        raise DatasetError(
            f"{place} does not fit the model: it has none of the fields that the model reads, {', '.join(lacking)}; its own "
            f"are {', '.join(sorted(found))}."
        )
    differences: list[str] = []
    for name, spec in sorted(wanted.items()):
        if name not in found:
            differences += [] if name in lacking else [f"has no field {name!r}"]
        elif found[name].type != spec.type:
            differences.append(f"{name} is {found[name].type}, the model reads {spec.type}")
        else:
            differences += _differences(name, found[name], spec)
    if differences:
        raise DatasetError(f"{place} does not fit the model: {'; '.join(differences)}.")
    return lacking


def no_dataset(root: str) -> str:
    """What is to be said where a dataset was expected and no ``dataset.json`` is."""
    if not is_remote(root):
        folder = Path(root)
        if not folder.exists():
            return (
                f"{root}: no such dataset folder; make it with a preprocess job, or correct the path: it starts from the "
                f"folder where the command is given, now {Path.cwd()}."
            )
        children = folder.iterdir() if folder.is_dir() else iter(())
        inside = sorted(child.name for child in children if (child / "dataset.json").is_file())
        if inside:
            return f"{root}: holds the datasets {', '.join(inside)}; name one of them."
    return f"{root}: has no dataset.json, so it is not a (whole) dataset; run the preprocess job that makes it."


def lacking_text(lacking: Collection[str]) -> str:
    """What is to be said of a dataset that lacks fields which it may lack."""
    return f"has no field {' and no field '.join(map(repr, lacking))}: absent in every sample"


def _differences(name: str, found: FieldSpec, wanted: FieldSpec) -> Iterator[str]:
    if isinstance(found, SeriesField) and isinstance(wanted, SeriesField) and found.streams != wanted.streams:
        # Members are read as the model's fields say.
        here, there = (
            f"members {', '.join(spec.members)}" if spec.members else "one member" for spec in (found, wanted)
        )
        yield (
            f"{name}.streams: it is read from {here}, for the model from {there}"
            if here != there
            else f"{name}.streams names other parts or times of {here} than the model's"
        )
        return
    for key in _MUST_AGREE[wanted.type]:
        here, there = getattr(found, key), getattr(wanted, key)
        if here == there or (key in ("path", "time_path") and names_of(here) == names_of(there)):
            continue
        if key == "classes" and here is not None and there is not None:
            yield f"{name} {_class_difference(here, there)}"
        else:
            yield f"{name}.{key} is {here!r}, the model has {there!r}"
        return  # what follows from it needs no words of its own
    if is_mask(found) and is_mask(wanted) and found.like is None:
        yield from _map_difference(name, found, wanted)
    if isinstance(found, SeriesField) and isinstance(wanted, SeriesField):
        measured, read = _steps_per_second(found), _steps_per_second(wanted)
        # Where either is not known, the rate only labels an axis.
        if measured is not None and read is not None and measured != read:
            yield f"{name} has {measured:g} steps per second, the model reads it as if it had {read:g}"


def _map_difference(name: str, found: LabelField, wanted: LabelField) -> Iterator[str]:
    """A map from above is not cut or scaled: its cells are places."""
    if (found.height, found.width) != (wanted.height, wanted.width):
        yield (
            f"{name} is a map of {found.height}×{found.width} cells, the model's of {wanted.height}×{wanted.width} cells"
        )


def _steps_per_second(spec: SeriesField) -> float | None:
    """Of members without times; None: not known."""
    has_times = spec.time_path is not None or spec.streams is not None
    return None if has_times else spec.source_rate_hz or spec.rate_hz


def _class_difference(found: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    unknown, missing = sorted(set(found) - set(wanted)), sorted(set(wanted) - set(found))
    counts = f"{len(found):,} classes, the model has {len(wanted):,}"
    if unknown:
        return f"has classes that the model does not know: {_listed(unknown)} ({counts})"
    if missing:
        return f"lacks classes that the model knows: {_listed(missing)} ({counts})"
    place = next(index for index, pair in enumerate(zip(found, wanted, strict=True)) if pair[0] != pair[1])
    return f"has its classes in another order: number {place} is {found[place]!r}, in the model {wanted[place]!r}"


def _listed(names: list[Any]) -> str:
    more = f" and {len(names) - _MAX_NAMED:,} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(map(repr, names[:_MAX_NAMED])) + more


# Members are read as the model's fields say, so where their values lie and how they are written must be the same; what decoding
# makes the same (sizes of pictures, rates of recordings) need not.
_MUST_AGREE: dict[str, tuple[str, ...]] = {
    "image": (),
    "text": ("path",),  # the model's own tokenizer is used, whatever the dataset has
    "audio": (),
    "video": (),
    "series": ("channels", "path", "time_path"),
    "points": ("channels", "path", "raw_float32"),
    "vector": ("size", "path"),
    "label": ("target", "path", "written_as", "like", "classes"),
}
