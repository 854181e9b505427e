"""``train.init_from``: parts of a trained model as the first weights of another one.

A part fits where the new model has the same part with weights of the same names and shapes: an encoder of a field of the same
name and type, the fusion of the same method and fields, the head of the same label. With an encoder comes what prepares its
input: the tokenizer of a text, the mean and standard deviation that values are standardised by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from ray_mm.checkpoint import Checkpoint, Description, load_checkpoint, load_description
from ray_mm.config.fields import TextField
from ray_mm.config.model import ModelConfig
from ray_mm.config.optimize import part_names
from ray_mm.config.tasks import ReconstructTask, RetrieveTask, labelled_tasks
from ray_mm.config.train import InitConfig
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.errors import CheckpointError, UsageError
from ray_mm.models.encoders.pretrained import PretrainedEncoder
from ray_mm.models.multimodal import MultimodalModel, build_model
from ray_mm.training.parallel import Ranks
from ray_mm.training.plan import Initial


def of_run(run: Path) -> Description | None:
    """What the newest checkpoint of a run that can be read says of its model; None where the run has none yet."""
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        try:
            return load_description(folder)
        except CheckpointError:  # whoever goes on from it will say so
            continue
    return None


def as_before(preprocessor: Preprocessor, saved: Preprocessor, fields: Iterable[str]) -> Preprocessor:
    """A preprocessor that prepares some inputs as another one did: with its tokenizers and statistics."""
    fields = list(fields)
    texts = {name: saved.tokenizers[name] for name in fields if name in saved.tokenizers}
    specs = dict(preprocessor.fields)
    for name in texts:
        spec, before = specs[name], saved.fields[name]
        assert isinstance(spec, TextField) and isinstance(before, TextField)
        specs[name] = spec.model_copy(update={"vocabulary_size": before.vocabulary_size})
    statistics = {name: saved.statistics[name] for name in fields if name in saved.statistics}
    return preprocessor.model_copy(
        update={
            "fields": specs,
            "tokenizers": preprocessor.tokenizers | texts,
            "statistics": preprocessor.statistics | statistics,
        }
    )


def find_initial(
    config: InitConfig, checkpoint: Checkpoint, model: ModelConfig, preprocessor: Preprocessor
) -> tuple[Preprocessor, Initial]:
    """Decides which parts come from a checkpoint.

    Args:
        config: of the job.
        checkpoint: that it names.
        model: that begins with it.
        preprocessor: of the model.

    Returns:
        The preprocessor, with what the encoders that come from there are used to; and the parts.

    Raises:
        UsageError: a part that the job names does not fit, or none does.
    """
    saved = checkpoint.preprocessor
    same = {name: spec for name, spec in preprocessor.fields.items() if name in checkpoint.config.fields}
    same = {name: spec for name, spec in same.items() if name in model.fields and saved.fields[name].type == spec.type}
    with torch.random.fork_rng(devices=[]):
        shapes = _shapes(build_model(model, as_before(preprocessor, saved, same)).state_dict())
    theirs = _shapes(checkpoint.state)
    fields, before = model.encoded_fields, checkpoint.config.encoded_fields
    moved, unfit = {}, {}
    for part in part_names(fields):
        name = part.removeprefix("encoders.")
        if part == name:  # the fusion or the head
            prefixes = (f"{part}.", f"{part}.")
            alike = part == "head" or (fields == before and _joins(model) == _joins(checkpoint.config))
            alike = alike and (part != "head" or _head(model, preprocessor) == _head(checkpoint.config, saved))
        else:
            prefixes = (f"encoders.{fields.index(name)}.", f"encoders.{before.index(name) if name in before else -1}.")
            alike = name in same
        ours, found = _below(shapes, prefixes[0]), _below(theirs, prefixes[1])
        if alike and ours == found:
            moved[part] = prefixes
        else:
            unfit[part] = _difference(part, alike, ours, found)
    chosen = {part: prefixes for part, prefixes in moved.items() if config.takes(part)}
    for named in config.parts or ():
        wanted = [part for part in part_names(fields) if named in (part, part.partition(".")[0])]
        if wrong := [part for part in wanted if part not in moved]:
            raise UsageError(
                f"train.init_from.parts: {wrong[0]} of {checkpoint.path} does not fit: {unfit[wrong[0]]}; make the models alike, "
                "or leave it out."
            )
    if not chosen:
        reasons = "; ".join(f"{part}: {reason}" for part, reason in unfit.items())
        raise UsageError(
            f"train.init_from: no part of {checkpoint.path} fits this model ({reasons}); name another checkpoint."
        )
    initial = Initial(checkpoint.path.absolute(), chosen, config.shrink, config.perturb)
    return as_before(preprocessor, saved, initial.fields), initial


def read_initial(model: MultimodalModel, initial: Initial, ranks: Ranks) -> None:
    """Gives parts of a model their first weights: rank 0 reads, all others are told.

    Where they are to be shrunk and perturbed (Ash and Adams, arXiv 1910.08475), that is done with all that is trained but
    pretrained encoders: for these, fresh weights would be none of theirs.

    Args:
        model: on the CPU, not divided.
        initial: which parts, from where.
        ranks: this worker's place.

    Raises:
        CheckpointError: the checkpoint can't be read, or has changed since the training was planned; on rank 0.
    """
    state = load_checkpoint(initial.path).state if ranks.rank == 0 else {}
    ours = model.state_dict()
    perturbed = _perturbed(model) if (initial.shrink, initial.perturb) != (1.0, 0.0) else set()
    for part, (new, old) in sorted(initial.moved.items()):
        for name in sorted(name for name in ours if name.startswith(new)):
            if ranks.rank == 0:
                given = state.get(old + name.removeprefix(new))
                if given is None or given.shape != ours[name].shape:
                    raise CheckpointError(f"{initial.path}: its {part} has changed since the training was planned.")
                with torch.no_grad():
                    if name in perturbed:
                        given = initial.shrink * given.to(ours[name].dtype) + initial.perturb * ours[name]
                    ours[name].copy_(given)
            if ranks.world_size > 1:
                dist.broadcast(ours[name], src=0)


def _perturbed(model: MultimodalModel) -> set[str]:
    """Names of the weights that are shrunk and perturbed."""
    kept = tuple(
        f"encoders.{place}." for place, encoder in enumerate(model.encoders) if isinstance(encoder, PretrainedEncoder)
    )
    return {name for name, weight in model.named_parameters() if weight.requires_grad and not name.startswith(kept)}


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _below(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _joins(model: ModelConfig) -> object:
    towers = model.task.towers_of(model.fields) if isinstance(model.task, RetrieveTask) else None
    return model.fusion.method, towers


def _head(model: ModelConfig, preprocessor: Preprocessor) -> object:
    task = model.task
    if isinstance(task, RetrieveTask):
        return task.type, task.loss, task.towers_of(model.fields)
    if isinstance(task, ReconstructTask):
        return task.type, task.fields_of(model.fields)
    return [
        (name, each.type, each.label, preprocessor.fields[each.label]) for name, each in labelled_tasks(task).items()
    ]


def _difference(
    part: str, alike: bool, ours: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]]
) -> str:
    if not alike:
        return {
            "fusion": "its method, its fields or its towers are others",
            "head": "its task, its label or the label's classes, its towers or its fields are others",
        }.get(part, "it has no input of this name and type")
    for name in sorted(ours.keys() | theirs.keys()):
        here, there = ours.get(name), theirs.get(name)
        if here != there:
            told = [f"{list(shape)}" if shape is not None else "nothing" for shape in (there, here)]
            return f"its weight {name} is {told[0]}, here {told[1]}"
    return "it has no weights"
