"""Texts: int32 tokens [B, T], 0 where there is none → as many tokens [B, T, D]."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import TextField
from ray_mm.data.manifest import Statistics
from ray_mm.models.layers import SharedDropout, TransformerLayer, recurrent_layers

# size → (width of the embedding, width of the recurrent state, recurrent layers)
_RECURRENT = {"small": (64, 128, 1), "base": (128, 256, 2)}
_TRANSFORMER_LAYERS = {"small": 2, "base": 4}


class TextRecurrent(nn.Module):
    """The ``recurrent`` encoder of texts, left to right only.

    Padding stands at the end, so a state never depends on it; backwards it would come first.
    """

    def __init__(self, spec: TextField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.vocabulary_size is not None
        embedded, hidden, layers = _RECURRENT[config.size]
        self.embed = nn.Embedding(spec.vocabulary_size, embedded)
        self.recur = recurrent_layers(config.cell, embedded, hidden, config.layers or layers, config.dropout)
        self.dropout = SharedDropout(config.dropout)
        self.project = nn.Linear(hidden, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, text_BT: Tensor) -> tuple[Tensor, Tensor]:
        states, _ = self.recur(self.dropout(self.embed(text_BT.long())))
        return self.norm(self.project(self.dropout(states))), text_BT != 0


class TextTransformer(nn.Module):
    """The ``transformer`` encoder of texts: bidirectional, normalised before each part (arXiv 2002.04745)."""

    def __init__(self, spec: TextField, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
        super().__init__()
        assert spec.vocabulary_size is not None and spec.max_tokens is not None
        heads = max(heads for heads in (1, 2, 4) if dim % heads == 0)
        self.embed = nn.Embedding(spec.vocabulary_size, dim)
        self.place = nn.Parameter(torch.randn(spec.max_tokens, dim) * 0.02)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.dropout = SharedDropout(config.dropout)
        layers = _TRANSFORMER_LAYERS[config.size]
        self.layers = nn.ModuleList(TransformerLayer(dim, heads, config.dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, text_BT: Tensor) -> tuple[Tensor, Tensor]:
        mask = text_BT != 0
        # An absent text has no token, and a softmax over nothing is not a number: its first place always counts here.
        attended = mask | (torch.arange(text_BT.shape[1], device=text_BT.device) == 0)
        x = self.dropout(self.embed(text_BT.long()) + self.place)
        for layer in self.layers:
            x = layer(x, attended)
        return self.norm(x), mask
