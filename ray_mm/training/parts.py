"""The parts of a model, which a job may train at other rates than the rest, or not at all for a while.

A part is an encoder, the fusion or the head. Everything here is a function of the job and the step, so a training that is
resumed needs no state for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from ray_mm.config.optimize import OptimizerConfig, part_names, value_of_part
from ray_mm.models.encoders.pretrained import PretrainedEncoder
from ray_mm.models.multimodal import MultimodalModel


def model_parts(model: MultimodalModel) -> dict[str, nn.Module]:
    """``encoders.<field>`` for each field, ``fusion`` and ``head`` → its module."""
    encoders = {f"encoders.{name}": encoder for name, encoder in zip(model.encoded, model.encoders, strict=True)}
    return {**encoders, "fusion": model.fusion, "head": model.head}


def learning_rate_factors(model: MultimodalModel, config: OptimizerConfig) -> dict[nn.Parameter, float]:
    """What the learning rate of each parameter is multiplied by: its part's factor and the decay over its layer's depth."""
    factors = {}
    for part, module in model_parts(model).items():
        of_part = value_of_part(config.parts, part, 1.0)
        layers = list(_layers(module)) if part.startswith("encoders.") else [list(module.parameters())]
        for depth, parameters in enumerate(layers):
            factor = of_part * config.layer_decay ** (len(layers) - 1 - depth)
            factors.update(dict.fromkeys(parameters, factor))
    return factors


def _layers(encoder: nn.Module) -> Iterator[list[nn.Parameter]]:
    """An encoder's parameters, layer by layer from its input: its children in the order in which they run, where a sequence of
    layers counts as so many; what belongs to none of them, such as learned places, with the first."""
    if isinstance(encoder, PretrainedEncoder):
        yield from _layers_of_pretrained(encoder)
        return
    own = list(encoder.parameters(recurse=False))
    for child in encoder.children():
        sequence = child.children() if isinstance(child, (nn.Sequential, nn.ModuleList)) else [child]
        for layer in sequence:
            if parameters := list(layer.parameters()):
                yield own + parameters
                own = []
    if own:
        yield own


def _layers_of_pretrained(encoder: PretrainedEncoder) -> Iterator[list[nn.Parameter]]:
    """What comes before the backbone's layers, each of these, and what comes behind the backbone."""
    layers = [list(layer.parameters()) for layer in encoder.layers()]
    inside = {parameter for layer in layers for parameter in layer}
    yield [parameter for parameter in encoder.backbone.parameters() if parameter not in inside]
    yield from layers
    yield [*encoder.norm.parameters(), *encoder.project.parameters()]


def frozen_parts(freeze: Mapping[str, float], fields: list[str], step: int, num_steps: int) -> frozenset[str]:
    """The parts that are not trained in a step.

    Args:
        freeze: part → share of the training, as in ``train.freeze``.
        fields: the model's.
        step: from 1 to num_steps.
        num_steps: of the whole training.
    """
    return frozenset(part for part in part_names(fields) if step <= round(value_of_part(freeze, part, 0.0) * num_steps))


def set_frozen(model: MultimodalModel, frozen: frozenset[str]) -> None:
    """Freezes these parts and no others. Who averages gradients over ranks has to look at the model anew."""
    for part, module in model_parts(model).items():
        module.requires_grad_(part not in frozen)


def train_mode(model: nn.Module) -> None:
    """Puts a model, or one that is wrapped for its ranks, into train mode; but what is frozen stays as it is in use, without
    dropout."""
    model.train()
    inner = getattr(model, "module", model)
    if isinstance(inner, MultimodalModel):
        for module in model_parts(inner).values():
            frozen = [not parameter.requires_grad for parameter in module.parameters()]
            module.train(not frozen or not all(frozen))
