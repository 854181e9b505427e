"""Encoders and fusions that other packages bring along, by their names. Looks at what is installed and imports none of it."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from ray_mm.errors import UsageError

OWN_ENCODERS = "ray_mm.encoders"
OWN_FUSIONS = "ray_mm.fusions"
"""Groups of entry points."""


def find_own(key: str, group: str, name: str | None) -> EntryPoint:
    """The entry point of an encoder or a fusion.

    Args:
        key: where the job names it, for the message.
        group: of entry points.
        name: as the job has it.

    Raises:
        UsageError: no name is given, or no package that is installed brings one of this name, or several do.
    """
    what = "encoder" if group == OWN_ENCODERS else "fusion"
    if name is None:
        raise UsageError(f"{key}: which one is not said; give the name of its entry point in {group}.")
    installed = entry_points(group=group)
    found = [each for each in installed if each.name == name]
    if not found:
        known = ", ".join(sorted({each.name for each in installed})) or "none"
        raise UsageError(
            f"{key}: no package that is installed here brings the {what} {name!r} along (entry points of the group {group}: "
            f"{known}); install it on every node."
        )
    if len({each.value for each in found}) > 1:
        raise UsageError(
            f"{key}: several packages bring along the {what} {name!r}: {', '.join(sorted(each.value for each in found))}; "
            "uninstall all but one."
        )
    return found[0]
