"""New shards → what is in each, which of them are quarantined, and whether all together are still the data that one knows.

``look`` reads; ``judge`` is pure.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from ray_mm.compression.gate import Verdict, judged
from ray_mm.config.base import Config
from ray_mm.config.fields import FieldSpec, LabelField, has_streams
from ray_mm.config.retrain import Validation
from ray_mm.data.manifest import Manifest, Statistics
from ray_mm.data.stream_parts import parts_of_field
from ray_mm.errors import DatasetError, UsageError
from ray_mm.preprocessing.classes import class_label, label_counts
from ray_mm.preprocessing.facts import (
    PlacedShard,
    PlaceSettings,
    PlaceSummary,
    facts_index_path,
    find_facts,
    open_ranges,
    read_facts,
)
from ray_mm.preprocessing.in_place import PlacePlan
from ray_mm.preprocessing.statistics import Moments, RunningMoments
from ray_mm.preprocessing.summary import merge_summaries
from ray_mm.progress import progress
from ray_mm.retraining.contents import read_hashes, sample_hashes
from ray_mm.retraining.drift import drift_of
from ray_mm.session import map_on_ray, own_errors
from ray_mm.storage.ranges import RangeReader

_CHUNK = 16 << 20
_ROUNDING = 1e-9


class Look(Config):
    """What is in a shard."""

    url: str
    reason: str | None = None
    """Why it can't be used at all."""
    num_samples: int = 0
    """With any of the fields."""
    splits: dict[str, int] = Field(default={})
    """Split → these samples."""
    present: dict[str, int] = Field(default={})
    """Field → samples that have it."""
    unreadable: dict[str, int] = Field(default={})
    """Field → members that can't be read."""
    classes: dict[str, dict[str, int]] = Field(default={})
    """Class label → class → samples."""
    moments: dict[str, Moments] = Field(default={})
    """Number label → of its values."""
    num_test_duplicates: int = 0
    """Samples whose input is one of the frozen test set."""
    content: str | None = None
    """Hash of the inputs of all samples, whatever their order; None where they were not read."""


@dataclass(frozen=True)
class Reference:
    """The data that is known.

    Attributes:
        presence: field → share of the samples that have it.
        label_counts: class label → class → samples.
        statistics: number label → mean and standard deviation.
    """

    presence: Mapping[str, float]
    label_counts: Mapping[str, Mapping[str, int]]
    statistics: Mapping[str, Statistics]


@dataclass(frozen=True)
class Judgement:
    """What becomes of new shards.

    Attributes:
        accepted: to be trained on.
        rejected: shard → why it is quarantined.
        verdict: of all together; one that is refused stops the night.
        num_samples: in the accepted ones.
    """

    accepted: tuple[str, ...]
    rejected: Mapping[str, str]
    verdict: Verdict
    num_samples: int


def reference_of(manifests: Sequence[Manifest], fields: Iterable[str]) -> Reference:
    """What some datasets together say of some fields."""
    total = sum(manifest.num_samples for manifest in manifests)
    presence = {name: sum(manifest.presence.get(name, 0) for manifest in manifests) / total for name in fields}
    counts: dict[str, Counter[str]] = {}
    for manifest in manifests:
        for label, found in manifest.label_counts.items():
            counts.setdefault(label, Counter()).update(found)
    return Reference(presence, counts, manifests[0].statistics)


def look(plan: PlacePlan, inputs: Sequence[str], test_hashes: Path | None, promised: Mapping[str, str]) -> list[Look]:
    """Looks into the shards of a plan, a Ray task for each.

    Args:
        plan: of the shards; what is found is kept for it.
        inputs: the model's input fields.
        test_hashes: of the frozen test set, see ``contents``. None: contents are not compared.
        promised: shard → SHA-256 of its bytes, for those of which it was told.

    Raises:
        StorageError: a store does not answer, or refuses.
    """
    found: dict[str, Look] = {}
    settings = plan.settings
    with own_errors(), progress("look", len(plan.shards), "shards") as bar:
        for one in map_on_ray(
            lambda shard: _look(shard, settings, inputs, test_hashes, promised.get(shard.info.url)),
            list(plan.shards),
            len(plan.shards),
            num_cpus=1,
        ):
            found[one.url] = one
            bar.advance()
    return [found[shard.info.url] for shard in plan.shards]


def judge(
    looks: Sequence[Look],
    reference: Reference,
    config: Validation,
    fields: Mapping[str, FieldSpec],
    known: Mapping[str, str] | None = None,
) -> Judgement:
    """Which shards are trained on, and whether the night goes on.

    Args:
        looks: of all new shards.
        reference: the data that is known.
        config: the limits.
        fields: that the model reads, its labels included.
        known: hash of a shard's content → the shard, for those of earlier nights.
    """
    rejected: dict[str, str] = {}
    contents = dict(known or {})
    for one in looks:
        reason = _wrong(one, config, contents)
        if reason is not None:
            rejected[one.url] = reason
        elif one.content is not None:
            contents[one.content] = one.url
    good = [one for one in looks if one.url not in rejected]
    num_samples = sum(one.num_samples for one in good)
    bad = len(rejected) / len(looks) if looks else 0.0
    checks = [judged("shards that are quarantined", bad, config.max_bad_shards, at_most=True)]
    for name, spec in sorted(fields.items()) if num_samples else ():
        share = sum(one.present.get(name, 0) for one in good) / num_samples
        shift = abs(share - reference.presence.get(name, 0.0))
        checks.append(judged(f"{name}: presence", shift if share else 1.0, config.max_presence_shift, at_most=True))
        if isinstance(spec, LabelField) and spec.target in ("class", "classes"):
            counts = Counter[str]()
            for one in good:
                counts.update(one.classes.get(name, {}))
            drift = drift_of(config.drift, reference.label_counts.get(name, {}), counts)
            checks.append(judged(f"{name}: drift of the classes", drift, config.drift_limit, at_most=True))
        elif isinstance(spec, LabelField) and spec.target == "number" and name in reference.statistics:
            merged = RunningMoments()
            for one in good:
                if name in one.moments:
                    merged.merge(one.moments[name])
            moments, before = merged.moments(), reference.statistics[name]
            apart = None if moments is None else abs(moments.mean[0] - before.mean[0]) / before.std[0]
            checks.append(judged(f"{name}: shift of the mean", apart, config.shift_limit, at_most=True))
    return Judgement(tuple(one.url for one in good), rejected, Verdict(tuple(checks)), num_samples)


def broken_promise(found: str, promised: str) -> str:
    """What is said of a shard, or a table, whose SHA-256 is another one."""
    return f"has the SHA-256 {found}, the manifest says {promised}"


def _wrong(one: Look, config: Validation, contents: Mapping[str, str]) -> str | None:
    if one.reason is not None:
        return one.reason
    if not one.num_samples:
        return "has no sample with any of the fields"
    for name, count in sorted(one.unreadable.items()):
        of = count + one.present.get(name, 0)
        if of and count / of > config.max_unreadable + _ROUNDING:
            return (
                f"{count} of {of} members of {name} can't be read (validation.max_unreadable {config.max_unreadable:g})"
            )
    if one.num_test_duplicates / one.num_samples > config.max_test_duplicates + _ROUNDING:
        return (
            f"{one.num_test_duplicates} of {one.num_samples} samples are in the frozen test set "
            f"(validation.max_test_duplicates {config.max_test_duplicates:g})"
        )
    if one.content is not None and one.content in contents:
        return f"has the samples of {contents[one.content]}"
    return None


def _look(
    shard: PlacedShard, settings: PlaceSettings, inputs: Sequence[str], test_hashes: Path | None, promised: str | None
) -> Look:
    url = shard.info.url
    if promised is not None and (found := _sha256(shard)) != promised:
        return Look(url=url, reason=broken_promise(found, promised))
    try:
        summary = find_facts(shard, settings)
    except (DatasetError, UsageError) as error:
        return Look(url=url, reason=str(error).removeprefix(f"{url}: "))
    fields = merge_summaries(summary.fields.values())
    classes: dict[str, dict[str, int]] = {}
    for name, spec in settings.fields.items():
        seen = fields[name].classes if name in fields else {}
        if isinstance(spec, LabelField) and spec.target in ("class", "classes") and seen:
            try:
                classes[name] = label_counts(class_label(name, spec, seen), seen)
            except UsageError as error:
                return Look(url=url, reason=str(error).removeprefix(f"fields.{name}.classes: "))
    duplicates, content = _contents(shard, settings, summary, inputs, test_hashes)
    return Look(
        url=url,
        num_samples=sum(summary.num_samples.values()),
        splits=summary.num_samples,
        present={name: found.present for name, found in fields.items()},
        unreadable={name: found.unusable for name, found in fields.items() if found.unusable},
        classes=classes,
        moments={
            name: found.moments
            for name, found in fields.items()
            if found.moments is not None and settings.fields[name].type == "label"
        },
        num_test_duplicates=duplicates,
        content=content,
    )


def _contents(
    shard: PlacedShard, settings: PlaceSettings, summary: PlaceSummary, inputs: Sequence[str], test_hashes: Path | None
) -> tuple[int, str | None]:
    """How many samples are in the frozen test set, and the hash of all."""
    if test_hashes is None:
        return 0, None
    facts = read_facts(shard, settings)
    parts: dict[str, Sequence[str]] = {}
    for name in inputs:
        spec = settings.fields[name]
        if has_streams(spec):
            parts |= {part: (member,) for part, member in parts_of_field(name, spec).items()}
        else:
            parts[name] = summary.members[name]
    reader = open_ranges(shard.info, facts.index, facts_index_path(settings.output, shard))
    rows = [row for row, split in enumerate(facts.splits) if split]
    found = [each for each in sample_hashes(facts.index, reader, parts, rows) if each is not None]
    test = read_hashes(test_hashes)
    content = hashlib.sha256(b"".join(sorted(found))).hexdigest() if found else None
    return sum(each in test for each in found), content


def _sha256(shard: PlacedShard) -> str:
    digest, reader = hashlib.sha256(), RangeReader(shard.info)
    for start in range(0, shard.info.size, _CHUNK):
        digest.update(reader.read([(start, min(_CHUNK, shard.info.size - start))])[0])
    return digest.hexdigest()
