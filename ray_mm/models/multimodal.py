"""The whole network: encoders, fusion, head.

batch[field] ─encoder→ tokens [B, T, D] + mask ─fusion→ [B, D] ─head→ output
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ray_mm.config.maps import encoder_of_map, map_fields, token_grid
from ray_mm.config.model import ModelConfig, check_model
from ray_mm.config.tasks import RetrieveTask
from ray_mm.data.fields import field_arrays, presence_name
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.models.encoders import build_encoder
from ray_mm.models.fusion import Encoded, build_fusion
from ray_mm.models.fusion.towers import Towers
from ray_mm.models.heads import build_head


class MultimodalModel(nn.Module):
    """A batch → what the head of its task gives, such as logits [B, C] (see ``models.heads``). Made by ``build_model``.

    Args:
        config: of the model.
        preprocessor: the fields that it reads, with their statistics, and its label.
    """

    def __init__(self, config: ModelConfig, preprocessor: Preprocessor) -> None:
        super().__init__()
        fields, dim = preprocessor.fields, config.fusion.dim
        self.fields = sorted(config.fields)
        # Those with an encoder of their own: of a retrieval that shares one, the first alone.
        self.encoded = config.encoded_fields
        # The field's own arrays without its presence: content and, for some types, a length.
        self.arrays = {
            name: [array for array in field_arrays(name, fields[name]) if array != presence_name(name)]
            for name in self.fields
        }
        # Task with a map → the field that it is made from, whose encoder has a finer grid.
        self.maps = map_fields(config.task, config.fields, fields)
        of_maps = {name: encoder_of_map(config.fields[name]) for name in self.maps.values()}
        encoders = {**config.fields, **of_maps}
        # A list, not a dict by name: a field may be called "values" or "type", which a ModuleDict can't hold.
        self.encoders = nn.ModuleList(
            build_encoder(
                fields[name],
                encoders[name],
                preprocessor.statistics.get(name),
                dim,
                preprocessor.pretrained.get(name),
            )
            for name in self.encoded
        )
        if isinstance(config.task, RetrieveTask):
            towers = list(config.task.towers_of(self.fields).values())
            own = [tuple(self.encoded)] if config.task.shared else towers
            self.fusion: nn.Module = Towers([build_fusion(config.fusion, names) for names in own], own, towers)
            self.head = build_head(config.task, fields, dim, len(own))
        else:
            self.fusion = build_fusion(config.fusion, self.fields)
            grids = {task: token_grid(fields[name], encoders[name]) for task, name in self.maps.items()}
            self.head = build_head(config.task, fields, dim, grids=grids)

    def forward(self, batch: Mapping[str, Tensor], subsets: Sequence[frozenset[str]] | None = None) -> Tensor:
        """Runs the network.

        Args:
            batch: the arrays of every input field by name (see ``data.fields``), presence included; other keys are
                ignored.
            subsets: sets of fields that may be looked at. None: all of them.

        Returns:
            The output; with subsets that of each of them, stacked. Fields are encoded once.
        """
        encoded, presence = self.encode(batch), {name: batch[presence_name(name)] for name in self.fields}
        if subsets is None:
            return self.fuse(encoded, presence)
        return torch.stack(
            [
                self.fuse(encoded, {name: there & (name in subset) for name, there in presence.items()})
                for subset in subsets
            ]
        )

    def encode(self, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Each field's tokens [B, T, D] and their mask, bool [B, T]. Presence plays no part yet."""
        shared = len(self.encoded) < len(self.fields)
        return {
            name: self.encoders[0 if shared else place](*(batch[array] for array in self.arrays[name]))
            for place, name in enumerate(self.fields)
        }

    def fuse(self, encoded: Encoded, presence: Mapping[str, Tensor]) -> Tensor:
        """The output for encoded fields of which only some are there: presence is bool [B] per field."""
        fused = self.fusion(encoded, presence)
        seen: dict[str, Any] = {}
        for task, on in self.maps.items():
            others = [(*encoded[name], presence[name]) for name in self.fields if name != on]
            known = [(tokens, mask & there[:, None]) for tokens, mask, there in others]
            seen[task] = (encoded[on][0], presence[on], known)
        # One task alone has no name.
        more = seen.get("", (seen,) if seen else ())
        result: Tensor = self.head(fused, *more)
        return result


def build_model(config: ModelConfig, preprocessor: Preprocessor) -> MultimodalModel:
    """A model with fresh weights, drawn from torch's global generator: seed it for the same weights again.

    Raises:
        UsageError: the config does not fit the fields.
    """
    check_model(config, preprocessor.fields)
    return MultimodalModel(config, preprocessor)


def input_arrays(model: MultimodalModel) -> list[str]:
    """Names of the arrays that the model reads, presence included, in a fixed order: the inputs of an exported graph."""
    return [array for name in model.fields for array in (*model.arrays[name], presence_name(name))]


def num_parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in model.parameters())
