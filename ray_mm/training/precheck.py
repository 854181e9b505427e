"""What a train job names beside its datasets, looked at before anything starts: first weights, pretrained models, caches.

Torch, transformers and Arrow have to say whether these are right; a job that names none of them need not wait for their import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ray_mm.config.source import source_of, train_sources
from ray_mm.config.train import TrainJob
from ray_mm.data.part import Part
from ray_mm.storage import local_path


def begins_with_lines(job: TrainJob) -> Iterator[str]:
    """What the model of a training begins with, a line each; nothing where its weights are fresh.

    Raises:
        UsageError: the checkpoint or a pretrained model is not to be had, or does not fit.
    """
    if job.train.initial is None and all(encoder.pretrained is None for encoder in job.model.fields.values()):
        return
    from ray_mm.data.manifest import open_dataset
    from ray_mm.data.preprocessor import preprocessor_for
    from ray_mm.training.pretrained import begins_with

    dataset = open_dataset(train_sources(job.data.train)[0].path)
    preprocessor, initial = begins_with(job, preprocessor_for(dataset, job.data.fields, job.model.read_fields))
    for name, pretrained in sorted(preprocessor.pretrained.items()):
        tune = job.model.fields[name].tune or "frozen"
        yield f"model.fields.{name}: {pretrained.config['model_type']} from {pretrained.source}, {tune}"
    if initial is not None:
        yield f"train.init_from: {', '.join(initial.moved)} of {initial.path}"
    elif job.train.initial is not None:
        yield f"train.init_from: not needed any more, for {local_path(job.output)} has checkpoints of its own"


def cache_warnings(
    job: TrainJob, parts: Sequence[Part], label_counts: Sequence[Mapping[str, Mapping[str, int]]]
) -> Iterator[str]:
    """What the caches of a training will not do.

    Args:
        job: the training.
        parts: of its training datasets.
        label_counts: of these datasets.

    Raises:
        UsageError: one can't do what it is for.
    """
    remote, decoded = job.data.cache.remote, job.data.cache.decoded
    if remote is None and decoded is None:
        return
    from ray_mm.data.foresight import check_cache
    from ray_mm.data.manifest import open_dataset
    from ray_mm.data.preprocessor import preprocessor_for
    from ray_mm.data.row_cache import cache_notices

    datasets = [open_dataset(source.path) for source in train_sources(job.data.train)]
    if remote is not None:
        drawn = [_streams(job, *each) for each in zip(parts, label_counts, strict=True)]
        check_cache(remote, datasets, drawn, job.data.shuffle)
    if decoded is not None:
        preprocessor = preprocessor_for(datasets[0], job.data.fields, job.model.read_fields)
        if job.data.validation is not None:
            datasets.append(open_dataset(source_of(job.data.validation).path))
        yield from cache_notices(decoded, datasets, preprocessor)


def _streams(job: TrainJob, part: Part, label_counts: Mapping[str, Mapping[str, int]]) -> list[int]:
    """Samples of each stream that an epoch draws from a dataset, as many as there may be; the run itself counts them."""
    if job.data.balance is None:
        return [part.num_samples]
    return [min(count, part.num_samples) for count in label_counts.get(job.data.balance.label, {}).values() if count]
