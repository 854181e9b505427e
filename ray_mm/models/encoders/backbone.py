"""The networks of transformers that pretrained encoders look through: built from a config, added to, given their weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ray_mm.config.encoders import LoraConfig
from ray_mm.data.pretrained import Pretrained, model_config, require_transformers
from ray_mm.errors import UsageError

ADDITION = "lora_"
"""In the name of a parameter that LoRA adds."""


def make_backbone(pretrained: Pretrained) -> Any:
    """The network with fresh weights.

    Raises:
        UsageError: transformers is not installed, or does not know this kind of model.
    """
    require_transformers(pretrained.source)
    from transformers import AutoModel
    from transformers import __version__ as version

    try:
        config = model_config(pretrained.config)
    except KeyError as kind:
        raise UsageError(
            f"{pretrained.source}: is of the kind {kind}, which transformers {version} does not know; install the one that "
            "it was trained with."
        ) from None
    # What is drawn at random in train mode beside dropout: it would come from generators that are not seeded at each step, and
    # leave layers without a gradient, which the other ranks wait for.
    for option, value in {
        "layerdrop": 0.0,
        "encoder_layerdrop": 0.0,
        "apply_spec_augment": False,
        "use_cache": False,
    }.items():
        if hasattr(config, option):
            setattr(config, option, value)
    backbone = AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False)
    # Of a class token alone; nothing here reads it.
    pooler = getattr(backbone, "pooler", None)
    if isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        backbone.pooler = nn.Identity()
    return backbone


def hidden_width(config: Any) -> int:
    """Values of each of the last hidden states."""
    if getattr(config, "add_adapter", False):
        return int(config.output_hidden_size)
    width = getattr(config, "hidden_size", None)
    return int(config.hidden_sizes[-1] if width is None else width)


def add_lora(backbone: nn.Module, config: LoraConfig) -> None:
    """Adds to the weights of a network, in place."""
    import peft

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) if config.targets is not None else "all-linear",
    )
    peft.inject_adapter_in_model(settings, backbone)


def read_weights(backbone: nn.Module, pretrained: Pretrained) -> None:
    """Gives a network the weights of its model, from the folder or the hub.

    Raises:
        UsageError: they are not to be had, or are not all there.
    """
    from transformers import AutoModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        try:
            source, report = AutoModel.from_pretrained(
                pretrained.source,
                revision=pretrained.revision or "main",
                config=model_config(pretrained.config),
                dtype=torch.float32,
                trust_remote_code=False,
                use_safetensors=True,
                output_loading_info=True,
            )
        except Exception as error:  # of the library, of the hub, of the network
            if "use_safetensors" in str(error):
                raise UsageError(
                    f"{pretrained.source}: has no weights as safetensors; files of another kind can run code when they are read, "
                    "and are never loaded. Where the model is trusted, load it with transformers, write it into a folder with "
                    "save_pretrained, and set pretrained to that folder."
                ) from None
            raise UsageError(
                f"{pretrained.source}: the weights can't be read on this node ({' '.join(str(error).split())[:300]}); the folder "
                "must be one that the node of the first worker sees, or the hub must be within its reach."
            ) from None
    given = source.state_dict()
    state = {name: tensor for name, tensor in backbone.state_dict().items() if ADDITION not in name}
    missing = {str(name) for name in report["missing_keys"]}
    lacking = sorted(
        name for name in state if (own := name.replace(".base_layer.", ".")) in missing or own not in given
    )
    if lacking:
        raise UsageError(
            f"{pretrained.source}: lacks weights of the model that its config describes, {len(lacking)} tensors such as "
            f"{lacking[0]}; copy the model again, whole."
        )
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(given[name.replace(".base_layer.", ".")])
