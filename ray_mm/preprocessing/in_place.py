"""``kind: preprocess`` with ``shards:`` → datasets that refer to the tars where they are.

    s3://bucket/clips-{000..127}.tar  →  <output>/{train,validation,test}/{index/*.parquet, shards.parquet, dataset.json}
                                         <output>/unusable.jsonl: a line per member that on_missing: absent left out

Two rounds of one Ray Data task per shard: the first finds what is in it, the second, when the classes of all shards are known,
writes its index for each split. No payload is copied. ``dataset.json`` comes last, as with a table.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ray_mm.config.fields import FieldSpec, LabelField, TextField, has_streams
from ray_mm.config.preprocess import PreprocessJob, SplitByHash
from ray_mm.data.index import as_labels
from ray_mm.data.manifest import Manifest, ShardInfo
from ray_mm.data.shards import find_shards
from ray_mm.data.sidecar import points_path, write_index
from ray_mm.errors import RayMMError, UsageError
from ray_mm.preprocessing.classes import class_label, class_number, label_counts
from ray_mm.preprocessing.complete import complete_fields
from ray_mm.preprocessing.facts import (
    PlacedShard,
    PlaceSettings,
    PlaceSummary,
    facts_index_path,
    find_facts,
    read_facts,
    read_summary,
)
from ray_mm.preprocessing.publish import Split, field_statistics, train_tokenizers, write_splits, write_unusable
from ray_mm.preprocessing.splits import require_no_empty_split
from ray_mm.preprocessing.summary import merge_summaries
from ray_mm.preprocessing.table import listing
from ray_mm.progress import progress
from ray_mm.run_folder import RunFolder
from ray_mm.session import map_on_ray, own_errors, ray_session
from ray_mm.storage import local_path
from ray_mm.version import DATASET_FORMAT

SETTLED_IN_PLACE = ("fields", "members", "shards", "splits", "on_missing", "seed")
"""Keys of a job that decide what is in its datasets."""

Result = TypeVar("Result")
_KEPT = ("path", "time_path", "source_rate_hz", "streams", "raw_float32")
"""Keys of a field that say how its members are written: they stay, for the members stay."""


@dataclass(frozen=True)
class PlacePlan:
    """What a job will make.

    Attributes:
        job: the job.
        shards: of all splits.
        settings: for every shard.
        splits: in the order of the job.
        digest: of everything that decides what is made.
    """

    job: PreprocessJob
    shards: tuple[PlacedShard, ...]
    settings: PlaceSettings
    splits: tuple[str, ...]
    digest: str

    @property
    def train_split(self) -> str:
        """The split that statistics and vocabulary come from."""
        return "train" if "train" in self.splits else self.splits[0]

    @property
    def what(self) -> str:
        """What the datasets are made from, for errors."""
        return "its tars"


def plan_in_place(job: PreprocessJob) -> PlacePlan:
    """Finds the shards, by listings alone.

    Raises:
        UsageError: a pattern names nothing.
        StorageError: a store does not answer, or refuses.
    """
    by_split: Mapping[str, Any] = job.shards if isinstance(job.shards, dict) else {"": job.shards}
    shards: list[PlacedShard] = []
    split_of: dict[str, str] = {}
    for split, patterns in by_split.items():
        for info in find_shards([patterns] if isinstance(patterns, str) else list(patterns)):
            if info.url in split_of:
                raise UsageError(f"shards: {info.url} is of both {split_of[info.url]} and {split}; name it once.")
            split_of[info.url] = split
            shards.append(PlacedShard(len(shards), split, info))
    fractions: dict[str, float] = {}
    if not isinstance(job.shards, dict):
        assert isinstance(job.splits, SplitByHash), "PreprocessJob asks for it"
        fractions = {split: share for split, share in job.splits.fractions.items() if share > 0}
    settled = {key: value for key, value in job.model_dump(mode="json").items() if key in SETTLED_IN_PLACE}
    states = [(shard.split, shard.info.url, shard.info.size, shard.info.version) for shard in shards]
    settings = PlaceSettings(
        output=local_path(job.output),
        fields=dict(job.fields),
        suffixes={name: job.suffixes(name) for name in job.fields},
        on_missing=job.on_missing,
        fractions=fractions,
        seed=job.seed,
        digest=_digest([DATASET_FORMAT, settled]),
    )
    return PlacePlan(job, tuple(shards), settings, tuple(fractions or by_split), _digest([settings.digest, states]))


def make_in_place(plan: PlacePlan, folder: RunFolder) -> dict[str, Any]:
    """Makes the datasets; what an interrupted run found is used again. Returns the content of ``result.json``.

    Raises:
        RayMMError: a shard can't be read, or its members are not what their fields say.
    """
    output, settings = folder.path, plan.settings
    for old in output.glob("*/dataset.json"):
        shutil.rmtree(old.parent)
    summaries = {shard: found for shard in plan.shards if (found := read_summary(shard, settings)) is not None}
    with ray_session(with_models=False):
        missing = [shard for shard in plan.shards if shard not in summaries]
        for shard, found in _on_ray("look", plan, missing, lambda shard: find_facts(shard, settings)):
            summaries[shard] = found
        _require_good(plan, summaries)
        fields = _with_classes(plan, summaries)
        for _ in _on_ray("index", plan, list(plan.shards), lambda shard: _write_indexes(shard, settings, fields)):
            pass
    manifests = _write_datasets(plan, summaries, fields)
    _write_unusable(plan, summaries)
    result = folder.write_result("done", _metrics(manifests, summaries))
    shutil.rmtree(output / ".progress", ignore_errors=True)
    return result


def _on_ray(
    what: str, plan: PlacePlan, shards: Sequence[PlacedShard], work: Callable[[PlacedShard], Result]
) -> Iterator[tuple[PlacedShard, Result]]:
    """One Ray Data task per shard."""
    if not shards:
        return
    resources = plan.job.resources
    cpus = 1 if resources is None or resources.cpus_per_worker is None else resources.cpus_per_worker
    workers = None if resources is None else resources.workers
    with own_errors(), progress(what, len(shards), "shards") as bar:
        for done in map_on_ray(
            lambda shard: (shard, work(shard)), shards, len(shards), num_cpus=cpus, concurrency=workers
        ):
            bar.advance()
            yield done


def _require_good(plan: PlacePlan, summaries: Mapping[PlacedShard, PlaceSummary]) -> None:
    num_bad = sum(summary.num_bad for summary in summaries.values())
    if num_bad:
        examples = [text for shard in plan.shards for text in summaries[shard].bad][:3]
        raise RayMMError(
            f"shards: members are not what their field says, {listing(num_bad, 'member', examples)}. Correct fields or "
            "members, or set on_missing: absent to leave such members out of the datasets."
        )
    for name, given in plan.settings.suffixes.items():
        known = {suffix for summary in summaries.values() for suffix in summary.members[name]}
        if has_streams(plan.settings.fields[name]):
            _require_streams(plan, name, known, summaries)
        elif not known:
            wanted = ", ".join(given) if given is not None else f"{name} or {name}.…"
            found = sorted({suffix for summary in summaries.values() for suffix in summary.suffixes})
            raise UsageError(
                f"fields.{name}: no sample has a member {wanted}; the suffixes are {', '.join(found[:20])}. Say with "
                f"members.{name} which of them it is."
            )
    counts = Counter[str]()
    for summary in summaries.values():
        counts.update(summary.num_samples)
    if plan.settings.fractions:
        splits = [split for split, count in counts.items() if count]
        require_no_empty_split(splits, plan.settings.fractions, counts.total(), "the keys")
    elif any(not counts[split] for split in plan.splits):
        empty = next(split for split in plan.splits if not counts[split])
        raise UsageError(f"shards.{empty}: no sample has any of the fields {', '.join(sorted(plan.settings.fields))}.")


def _require_streams(
    plan: PlacePlan, name: str, known: Collection[str], summaries: Mapping[PlacedShard, PlaceSummary]
) -> None:
    wanted = plan.settings.suffixes[name] or ()
    missing = [suffix for suffix in wanted if suffix not in known]
    if missing:
        found = sorted({suffix for summary in summaries.values() for suffix in summary.suffixes})
        raise UsageError(
            f"fields.{name}.streams: no sample has a member {', '.join(missing)}; the suffixes are {', '.join(found[:20])}."
        )
    total = merge_summaries(split for summary in summaries.values() for split in summary.fields.values()).get(name)
    if total is None or not (total.present or total.unusable):
        raise UsageError(
            f"fields.{name}.streams: no sample has all of {', '.join(wanted)}, so the field is nowhere; a series has values "
            "only where all of its streams are there."
        )


def _with_classes(plan: PlacePlan, summaries: Mapping[PlacedShard, PlaceSummary]) -> dict[str, FieldSpec]:
    """The job's fields; class labels with their classes, and with how their members name them."""
    fields = dict(plan.settings.fields)
    for name, spec in fields.items():
        if isinstance(spec, LabelField) and spec.target in ("class", "classes"):
            found = Counter[str]()
            for summary in summaries.values():
                for split in summary.fields.values():
                    found.update(split[name].classes)
            fields[name] = class_label(name, spec, found)
    return fields


def _write_indexes(shard: PlacedShard, settings: PlaceSettings, fields: Mapping[str, FieldSpec]) -> None:
    """Writes the index of a shard for every split that has samples of it."""
    facts = read_facts(shard, settings)
    labels: dict[str, Sequence[float | None]] = {}
    for name, values in facts.labels.items():
        spec = fields[name]
        assert isinstance(spec, LabelField)
        labels[name] = [class_number(value, spec) for value in values] if spec.target == "class" else values
    splits = np.array(facts.splits, dtype=object)
    for split in sorted(set(facts.splits) - {""}):
        rows = np.flatnonzero(splits == split)
        chosen = rows.tolist()
        columns = {
            name: as_labels([values[row] for row in chosen], _label(fields[name])) for name, values in labels.items()
        }
        path = settings.output / split / _index_name(shard)
        write_index(path, facts.index.take(rows, columns))
        if facts.index.unpacked_bytes is not None:
            shutil.copyfile(points_path(facts_index_path(settings.output, shard)), points_path(path))


def _label(spec: FieldSpec) -> LabelField:
    assert isinstance(spec, LabelField)
    return spec


def _index_name(shard: PlacedShard) -> str:
    return f"index/{shard.number:06d}.parquet"


def _write_datasets(
    plan: PlacePlan, summaries: Mapping[PlacedShard, PlaceSummary], fields: Mapping[str, FieldSpec]
) -> dict[str, Manifest]:
    """Completes the fields and writes ``dataset.json`` of every split, all at the end."""
    of_split = {
        split: [summaries[shard].fields[split] for shard in plan.shards if split in summaries[shard].fields]
        for split in plan.splits
    }
    everywhere = merge_summaries(part for parts in of_split.values() for part in parts)
    texts = _texts(plan)
    tokenizers = train_tokenizers(fields, lambda name, split: texts[name, split], plan.splits, plan.train_split)
    complete = complete_fields(fields, everywhere, tokenizers.facts)
    for name, spec in complete.items():
        kept = {key: getattr(fields[name], key) for key in _KEPT if hasattr(spec, key)}
        complete[name] = spec.model_copy(update=kept)
    members = {
        name: tuple(dict.fromkeys(suffix for summary in summaries.values() for suffix in summary.members[name]))
        for name in complete
    }
    for name, given in plan.settings.suffixes.items():
        members[name] = tuple(sorted(members[name], key=given.index if given is not None else None))
    return write_splits(
        plan.settings.output,
        plan.job.name,
        {split: Split(_shards(plan, summaries, split), merge_summaries(of_split[split])) for split in plan.splits},
        fields=complete,
        members=members,
        statistics=field_statistics(complete, merge_summaries(of_split[plan.train_split]), plan.train_split),
        tokenizers=tokenizers.content,
        label_counts=label_counts,
        source=plan.digest,
    )


def _shards(plan: PlacePlan, summaries: Mapping[PlacedShard, PlaceSummary], split: str) -> list[ShardInfo]:
    return [
        ShardInfo(
            path=shard.info.url,
            index=_index_name(shard),
            num_samples=summaries[shard].num_samples[split],
            size_bytes=shard.info.size,
            version=shard.info.version,
            unpacked_bytes=summaries[shard].unpacked_bytes,
        )
        for shard in plan.shards
        if summaries[shard].num_samples.get(split)
    ]


def _texts(plan: PlacePlan) -> dict[tuple[str, str], list[str]]:
    """(Field, split) → its texts, without empty ones."""
    names = [name for name, spec in plan.settings.fields.items() if isinstance(spec, TextField)]
    texts: dict[tuple[str, str], list[str]] = {(name, split): [] for name in names for split in plan.splits}
    for shard in plan.shards if names else ():
        facts = read_facts(shard, plan.settings)
        for name in names:
            for split, text in zip(facts.splits, facts.texts[name], strict=True):
                if split and text:
                    texts[name, split].append(text)
    return texts


def _write_unusable(plan: PlacePlan, summaries: Mapping[PlacedShard, PlaceSummary]) -> None:
    """Says on stderr and in a file which members were left out of the indexes although they are there."""
    lines = [
        {"shard": shard.info.url, **member.model_dump()}
        for shard in plan.shards
        for member in summaries[shard].left_absent
    ]
    examples = [f"{line['shard']}[{line['key']}].{line['reason']}" for line in lines[:3]]
    told = f"members that can't be used were left absent, {listing(len(lines), 'member', examples)}"
    write_unusable(plan.settings.output, lines, told)


def _metrics(manifests: Mapping[str, Manifest], summaries: Mapping[PlacedShard, PlaceSummary]) -> dict[str, Any]:
    num_samples = {split: manifest.num_samples for split, manifest in manifests.items()}
    fields = sorted(next(iter(manifests.values())).fields)
    present = {name: sum(manifest.presence[name] for manifest in manifests.values()) for name in fields}
    found = merge_summaries(split for summary in summaries.values() for split in summary.fields.values())
    return {
        "num_samples": num_samples,
        "num_shards": len(summaries),
        "size_bytes": sum(shard.info.size for shard in summaries),
        "num_absent": {name: sum(num_samples.values()) - count for name, count in present.items()},
        "num_unusable": {name: found[name].unusable for name in fields},
        "num_empty": sum(summary.num_empty for summary in summaries.values()),
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
