"""What a model begins with: parts of another training's, and pretrained encoders, whose folders the driver looks at and whose
weights rank 0 reads.

A training that goes on needs none of these: what describes the models is in its checkpoint, with all of their weights.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch.distributed as dist

from ray_mm.checkpoint import Description, load_checkpoint, load_description
from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import FieldSpec, TextField
from ray_mm.config.model import ModelConfig
from ray_mm.config.train import TrainJob
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.data.pretrained import FoundModel, find_pretrained
from ray_mm.errors import CheckpointError, UsageError
from ray_mm.models.encoders.backbone import read_weights
from ray_mm.models.encoders.pretrained import PretrainedEncoder, try_pretrained
from ray_mm.models.multimodal import MultimodalModel
from ray_mm.storage import local_path
from ray_mm.training.initial import as_before, find_initial, of_run
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Initial


def begins_with(job: TrainJob, preprocessor: Preprocessor) -> tuple[Preprocessor, Initial | None]:
    """What a model's inputs are prepared by, and its first weights, where they are not fresh.

    Args:
        job: the training.
        preprocessor: of the dataset.

    Raises:
        UsageError: ``train.init_from`` names no checkpoint, or one that does not fit; or a pretrained model is not to be had, or
            does not suit its field.
    """
    run, config = local_path(job.output), job.train.initial
    if config is None:
        return with_pretrained(preprocessor, job.model, run), None
    before = of_run(run)
    if before is not None:
        # What the job's checkpoint was needed for is in the run's own by now.
        return as_before(with_pretrained(preprocessor, job.model, run), before.preprocessor, job.model.fields), None
    try:
        checkpoint = load_checkpoint(config.checkpoint)
    except CheckpointError as error:
        raise UsageError(f"train.init_from: {error}") from None
    preprocessor = with_pretrained(preprocessor, job.model, run, load_description(checkpoint.path))
    return find_initial(config, checkpoint, job.model, preprocessor)


def with_pretrained(
    preprocessor: Preprocessor, model: ModelConfig, run: Path, initial: Description | None = None
) -> Preprocessor:
    """The preprocessor with what the model's pretrained encoders need: from the run's checkpoints, else from their folders.

    Args:
        preprocessor: of the dataset.
        model: as the job has it.
        run: the run's folder, which need not be there.
        initial: of the checkpoint that the training begins with, which makes up for their folders, too.

    Raises:
        UsageError: a model is not to be had, or does not suit its field.
    """
    wanted = {name: encoder for name, encoder in model.fields.items() if encoder.pretrained is not None}
    if not wanted:
        return preprocessor
    return preprocessor.with_pretrained(find_all(wanted, preprocessor.fields, run, initial))


def find_all(
    wanted: Mapping[str, EncoderConfig], fields: Mapping[str, FieldSpec], run: Path, initial: Description | None = None
) -> dict[str, FoundModel]:
    """The pretrained models of some fields, each tried on a sample.

    Args:
        wanted: field → its encoder, with ``pretrained`` set.
        fields: of the dataset, complete.
        run: the run's folder, which need not be there.
        initial: as of ``with_pretrained``.

    Raises:
        UsageError: a model is not to be had, or does not suit its field.
    """
    saved = of_run(run) or initial
    known = _models_of(saved) if saved is not None else {}
    found = {}
    for name, encoder in sorted(wanted.items()):
        spec = fields[name]
        before = known.get((name, encoder.pretrained or ""))
        if before is not None and _is_same(before.spec, spec):
            found[name] = before
            continue
        key = f"model.fields.{name}"
        found[name] = find_pretrained(key, name, spec, encoder)
        try_pretrained(key, found[name].spec, encoder, found[name].pretrained)
    return found


def _is_same(saved: FieldSpec, spec: FieldSpec) -> bool:
    """Whether a checkpoint's field is the job's; of a text it has the model's vocabulary in place of the dataset's."""
    if isinstance(saved, TextField):
        spec = spec.model_copy(update={"vocabulary_size": saved.vocabulary_size})
    return saved == spec


def _models_of(saved: Description) -> dict[tuple[str, str], FoundModel]:
    """(field, ``pretrained`` of its encoder) → what a checkpoint says of it."""
    preprocessor = saved.preprocessor
    return {
        (name, saved.config.fields[name].pretrained or ""): FoundModel(
            pretrained, preprocessor.fields[name], preprocessor.tokenizers.get(name)
        )
        for name, pretrained in preprocessor.pretrained.items()
    }


def read_pretrained(
    model: MultimodalModel, preprocessor: Preprocessor, ranks: Ranks, but: Collection[str] = ()
) -> None:
    """Gives the pretrained encoders of a model the weights of their models: rank 0 reads, all others are told.

    Args:
        model: on the CPU, not divided, with the same other weights on every rank.
        preprocessor: of the model.
        ranks: this worker's place.
        but: fields whose encoders get theirs from elsewhere.

    Raises:
        UsageError: they can't be read; on rank 0.
    """
    for name, encoder in zip(model.encoded, model.encoders, strict=True):
        if name in but or not isinstance(encoder, PretrainedEncoder):
            continue
        if ranks.rank == 0:
            read_weights(encoder.backbone, preprocessor.pretrained[name])
        if ranks.world_size > 1:
            for _, tensor in sorted(encoder.backbone.state_dict().items()):
                dist.broadcast(tensor, src=0)
