"""``ray-mm run preprocess.yaml``: table → a dataset per split.

    table.csv + files → <output>/<split>/{shards/NNNNNN.tar, shards/NNNNNN.index.parquet, tokenizer.<field>.json,
                                          shards.parquet, dataset.json}
                        <output>/unusable.jsonl: a line per cell that on_missing: absent left out, if there are any

Everything that can be known from the table and the file system is checked before Ray starts. Then each shard is written by
one Ray Data task, and the summaries that the tasks return complete the fields' shapes and statistics. ``dataset.json`` of
every split comes last: a run that was killed leaves none, and the next one writes only the shards that are not there yet.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from ray_mm.config.fields import LabelField
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.data.decode.container import require_av
from ray_mm.data.manifest import Dataset, Manifest, ShardInfo, open_dataset
from ray_mm.data.sidecar import index_path
from ray_mm.errors import DatasetError, OutputFolderError, RayMMError
from ray_mm.preprocessing.complete import complete_fields
from ray_mm.preprocessing.files import missing_cells
from ray_mm.preprocessing.in_place import SETTLED_IN_PLACE, make_in_place, plan_in_place
from ray_mm.preprocessing.members import EXTENSIONS
from ray_mm.preprocessing.plan import SETTLED, Plan, plan_job
from ray_mm.preprocessing.publish import Split, field_statistics, train_tokenizers, write_splits, write_unusable
from ray_mm.preprocessing.shards import ShardPlan
from ray_mm.preprocessing.summary import BadCell, ShardSummary, first_bad, merge_fields
from ray_mm.preprocessing.table import listing
from ray_mm.preprocessing.writer import read_receipt, receipts_folder, remove_shard, write_shard
from ray_mm.progress import notice, progress
from ray_mm.run_folder import RunFolder, open_run_folder
from ray_mm.session import own_errors, ray_session
from ray_mm.storage import local_path

_log = logging.getLogger(__name__)
_STATISTICS = ("series", "points", "vector", "label")


def run_preprocess(job: PreprocessJob) -> dict[str, Any]:
    """Makes the datasets of a job, or finds that they are there already.

    Returns:
        The content of ``result.json``. Its status is ``unchanged`` if the same table, files and settings had already been
        made into these datasets; then no file was touched.

    Raises:
        UsageError: the job, its table or a file that it names is wrong; or the output holds other datasets.
        RayMMError: files are not what their fields say, or a shard can't be written.
    """
    for name, spec in job.fields.items():
        if spec.type == "video":
            require_av(f"fields.{name} (video)")
    plan = plan_job(job) if job.table is not None else plan_in_place(job)
    output = local_path(job.output)
    earlier = _datasets(output)
    # Only what was finished is settled: after a failed run its settings may still be corrected.
    settled = SETTLED if isinstance(plan, Plan) else SETTLED_IN_PLACE
    folder = open_run_folder(job, settled=settled if earlier else ())
    for split, dataset in earlier.items():
        if dataset.manifest.source != plan.digest:
            raise OutputFolderError(
                f"output: {output / split} was made from another state of {plan.what}; "
                "choose another output, or remove that folder to make it again."
            )
    result = folder.read_result()
    if result is not None and all(split in earlier and _is_whole(earlier[split]) for split in plan.splits):
        shutil.rmtree(receipts_folder(output), ignore_errors=True)
        _log.info("unchanged output=%s", output)
        return result | {"status": "unchanged"}
    with folder.locked():
        return _make(job, plan, folder) if isinstance(plan, Plan) else make_in_place(plan, folder)


def _make(job: PreprocessJob, plan: Plan, folder: RunFolder) -> dict[str, Any]:
    output = folder.path
    _clear(plan, output)
    kept = {shard: summary for shard in plan.shards if (summary := read_receipt(output, shard)) is not None}
    written, seconds = _write(job, plan, kept)
    summaries = kept | written
    _require_good(plan, summaries)
    manifests = _write_datasets(job, plan, summaries)
    unusable = missing_cells(plan.source, plan.files)
    unusable += [cell for summary in summaries.values() for cell in summary.left_absent]
    unusable.sort(key=lambda cell: (cell.row, cell.field))
    _write_unusable(plan, unusable)
    metrics = _metrics(plan, manifests, summaries, Counter(cell.field for cell in unusable))
    num_written = sum(summary.num_samples for summary in written.values())
    metrics["samples_per_second"] = round(num_written / seconds, 1) if num_written else None
    result = folder.write_result("done", metrics)
    shutil.rmtree(receipts_folder(output), ignore_errors=True)
    return result


def _write_unusable(plan: Plan, cells: list[BadCell]) -> None:
    """Says on stderr and in a file which cells were left absent although something stands in them."""
    lines = [
        {"row": cell.row, "key": plan.source.keys[cell.row - 1], "field": cell.field, "reason": cell.reason}
        for cell in cells
    ]
    examples = [f"row {cell.row} {cell.field} ({cell.reason})" for cell in cells[:3]]
    told = f"values or files that can't be used were left absent in {listing(len(cells), 'cell', examples)}"
    write_unusable(plan.settings.output, lines, told)


def _datasets(output: Path) -> dict[str, Dataset]:
    """Split → the dataset that an earlier run finished in this folder."""
    found = {}
    if output.is_dir():
        for child in sorted(output.iterdir()):
            if (child / "dataset.json").is_file():
                # A damaged one is no obstacle: it is made again.
                with contextlib.suppress(DatasetError):
                    found[child.name] = open_dataset(child)
    return found


def _is_whole(dataset: Dataset) -> bool:
    try:
        return all(
            (Path(dataset.root) / shard.index).is_file()
            # Of tars elsewhere the plan has looked at size and version already.
            and (not shard.is_content_hash or dataset.shard_path(number).stat().st_size == shard.size_bytes)
            for number, shard in enumerate(dataset.shards)
        )
    except OSError:
        return False


def _clear(plan: Plan, output: Path) -> None:
    """Removes what an interrupted run left and this one will not write over."""
    planned = {output / shard.split / shard.path for shard in plan.shards}
    for folder in sorted(output.glob("*/shards")):
        (folder.parent / "dataset.json").unlink(missing_ok=True)
        for left in [*folder.glob(".*.tmp"), *folder.parent.glob(".*.tmp")]:
            left.unlink(missing_ok=True)
        for shard in folder.glob("*.tar"):
            if shard not in planned:
                remove_shard(shard)
        if folder.parent.name not in plan.splits:
            shutil.rmtree(folder.parent)


def _write(
    job: PreprocessJob, plan: Plan, kept: dict[ShardPlan, ShardSummary]
) -> tuple[dict[ShardPlan, ShardSummary], float]:
    """Writes the shards that are not there yet; returns their summaries, and the seconds that it took."""
    missing = [shard for shard in plan.shards if shard not in kept]
    total, before = (sum(len(shard.rows) for shard in shards) for shards in (plan.shards, kept))
    written: dict[ShardPlan, ShardSummary] = {}
    if not missing:
        return written, 0.0
    with ray_session(announce=True, with_models=False), progress("preprocess", total, "samples", done=before) as bar:
        started = time.monotonic()
        for number, summary in _run_tasks(job, plan, missing):
            written[missing[number]] = summary
            bar.advance(len(missing[number].rows), shards=len(written) + len(kept))
        return written, time.monotonic() - started


def _run_tasks(job: PreprocessJob, plan: Plan, shards: list[ShardPlan]) -> Iterator[tuple[int, ShardSummary]]:
    """One Ray Data task per shard: each block is the rows of one shard."""
    import ray
    import ray.data

    settings, plans = plan.settings, ray.put(shards)

    def write(rows: pa.Table) -> pa.Table:
        number = rows.column("shard")[0].as_py()
        shard = ray.get(plans)[number]
        assert rows.num_rows == len(shard.rows), "a block is the rows of one shard"
        summary = write_shard(rows, shard, settings)
        return pa.table({"shard": [number], "summary": [summary.model_dump_json()]})

    blocks = []
    for number, shard in enumerate(shards):
        rows = plan.shard_rows(shard)
        blocks.append(ray.put(rows.append_column("shard", pa.array([number] * rows.num_rows, pa.int32()))))
    resources = job.resources
    dataset = ray.data.from_arrow_refs(blocks).map_batches(
        write,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1 if resources is None or resources.cpus_per_worker is None else resources.cpus_per_worker,
        num_gpus=None if resources is None or not resources.gpus_per_worker else resources.gpus_per_worker,
        concurrency=None if resources is None else resources.workers,
    )
    with own_errors():
        for row in dataset.iter_rows():
            yield row["shard"], ShardSummary.model_validate_json(row["summary"])


def _require_good(plan: Plan, summaries: dict[ShardPlan, ShardSummary]) -> None:
    count, cells = first_bad(summaries.values())
    if count:
        examples = [f"row {cell.row} {cell.field} ({cell.reason})" for cell in cells]
        raise RayMMError(
            f"table: {plan.source.path} has values or files that are not what their field says, in "
            f"{listing(count, 'cell', examples)}. Correct them and run the job again, or set on_missing: absent to leave these "
            "fields absent."
        )


def _write_datasets(job: PreprocessJob, plan: Plan, summaries: dict[ShardPlan, ShardSummary]) -> dict[str, Manifest]:
    """Completes the fields and writes ``dataset.json`` of every split, all at the end."""
    # In the order of the plan: sums must not depend on which task ended first.
    of_split = {split: [summaries[shard] for shard in plan.shards if shard.split == split] for split in plan.splits}
    everywhere = merge_fields(summary for split in plan.splits for summary in of_split[split])
    tokenizers = train_tokenizers(plan.fields, plan.texts, plan.splits, plan.train_split)
    fields = complete_fields(plan.fields, everywhere, tokenizers.facts)
    return write_splits(
        plan.settings.output,
        job.name,
        {split: Split(_shards(plan, summaries, split), merge_fields(of_split[split])) for split in plan.splits},
        fields=fields,
        members={field: _suffixes(field, plan, everywhere[field].extensions) for field in fields},
        statistics=field_statistics(fields, merge_fields(of_split[plan.train_split]), plan.train_split),
        tokenizers=tokenizers.content,
        label_counts=_label_counts,
        source=plan.digest,
    )


def _shards(plan: Plan, summaries: dict[ShardPlan, ShardSummary], split: str) -> list[ShardInfo]:
    shards = [
        ShardInfo(
            path=shard.path,
            index=str(index_path(Path(shard.path))),
            num_samples=summaries[shard].num_samples,
            size_bytes=summaries[shard].size_bytes,
            version=summaries[shard].version,
        )
        for shard in plan.shards
        if shard.split == split and summaries[shard].num_samples
    ]
    if not shards:
        folder = plan.settings.output / split
        raise RayMMError(f"{folder}: every sample of this split turned out to be empty; correct the table.")
    return shards


def _label_counts(spec: LabelField, found: Mapping[str, int]) -> dict[str, int]:
    """A table names classes as they are; all of them, also those that no row has."""
    assert spec.classes is not None
    return dict.fromkeys(spec.classes, 0) | dict(found)


def _suffixes(field: str, plan: Plan, extensions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{field}.{extension}" for extension in extensions or EXTENSIONS[plan.fields[field].type])


def _metrics(
    plan: Plan, manifests: dict[str, Manifest], summaries: dict[ShardPlan, ShardSummary], unusable: Mapping[str, int]
) -> dict[str, Any]:
    num_samples = {split: manifest.num_samples for split, manifest in manifests.items()}
    present = {field: sum(manifest.presence[field] for manifest in manifests.values()) for field in sorted(plan.fields)}
    num_empty = plan.num_empty + sum(summary.num_empty for summary in summaries.values())
    if num_empty:
        rows = "1 row has" if num_empty == 1 else f"{num_empty:,} rows have"
        notice(f"{rows} none of the fields and left no sample ({plan.source.path}).")
    return {
        "num_samples": num_samples,
        "num_shards": sum(manifest.num_shards for manifest in manifests.values()),
        "size_bytes": sum(manifest.size_bytes for manifest in manifests.values()),
        "num_absent": {field: sum(num_samples.values()) - count for field, count in present.items()},
        "num_unusable": {field: unusable.get(field, 0) for field in sorted(plan.fields)},
        "num_empty": num_empty,
    }
