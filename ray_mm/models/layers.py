"""What several encoders and fusions share.

Shapes: B batch, T tokens or time steps, Q queries, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.data.manifest import Statistics

MAX_TOKENS = 128
"""Encoders of sequences shorten them to at most this many tokens, so that fusion stays cheap."""


def length_mask(length_B: Tensor, size: int) -> Tensor:
    """Which of ``size`` places lie before each sample's length: bool [B, size]."""
    return torch.arange(size, device=length_B.device)[None, :] < length_B[:, None]


def shortened(length_B: Tensor, stride: int) -> Tensor:
    """Length after a convolution with this stride whose first window is centred on (or starts at) the first place."""
    return torch.div(length_B + (stride - 1), stride, rounding_mode="floor")


class SharedDropout(nn.Module):
    """Dropout of whole channels of a sample: the same ones at all of its tokens.

    Neighbouring tokens say much the same, so dropping them one by one hides little; and drawing a number for each value
    took a sixth of a training step.

    Args:
        rate: share of the channels.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x_BTD: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x_BTD
        return x_BTD * F.dropout(torch.ones_like(x_BTD[:, :1]), self.rate)


class FeedForward(nn.Module):
    """Residual two-layer perceptron on each token, normalised before.

    Args:
        dim: width of the tokens [B, T, D].
        dropout: share of channels dropped after each of the two layers.
        expansion: width between the two layers, in times ``dim``.
    """

    def __init__(self, dim: int, dropout: float, expansion: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, expansion * dim)
        self.contract = nn.Linear(expansion * dim, dim)
        self.dropout = SharedDropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.gelu(self.expand(self.norm(x))))
        result: Tensor = x + self.dropout(self.contract(hidden))
        return result


class Attention(nn.Module):
    """Multi-head attention (arXiv 1706.03762) of queries to tokens, without the residual.

    Args:
        dim: width of queries and tokens.
        heads: they divide ``dim``.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.output = nn.Linear(dim, dim)

    def forward(self, query_BQD: Tensor, tokens_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """Attends.

        Args:
            query_BQD: queries.
            tokens_BTD: what they attend to.
            mask_BT: bool, at least one true in every row; None: all.

        Returns:
            [B, Q, D].
        """
        query = self._split(self.query(query_BQD))
        key, value = (self._split(part) for part in self.key_value(tokens_BTD).chunk(2, dim=-1))
        mask = None if mask_BT is None else mask_BT[:, None, None, :]
        attended_BHQd = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        merged: Tensor = self.output(attended_BHQd.transpose(1, 2).flatten(2))
        return merged

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.reshape(*x_BTD.shape[:2], self.heads, -1).transpose(1, 2)


class TransformerLayer(nn.Module):
    """Tokens attend to each other, then each by itself; normalised before each part (arXiv 2002.04745).

    Args:
        dim: width of the tokens.
        heads: they divide ``dim``.
        dropout: share of channels dropped after each part.
        expansion: of the perceptron, see ``FeedForward``.
    """

    def __init__(self, dim: int, heads: int, dropout: float, expansion: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.dropout = SharedDropout(dropout)
        self.feed_forward = FeedForward(dim, dropout, expansion)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
        """[B, T, D] → the same; tokens that do not count (mask bool [B, T]) are not attended to."""
        normed = self.norm(x_BTD)
        x_BTD = x_BTD + self.dropout(self.attention(normed, normed, mask_BT))
        result: Tensor = self.feed_forward(x_BTD)
        return result


def recurrent_layers(cell: str | None, inputs: int, hidden: int, layers: int, dropout: float) -> nn.GRU | nn.LSTM:
    """Recurrent layers forward in time: [B, T, inputs] → states [B, T, hidden], and those after the last step.

    Args:
        cell: gru (arXiv 1406.1078, the default) or lstm (Hochreiter & Schmidhuber 1997).
        inputs: width of a step.
        hidden: width of a state.
        layers: one above the other.
        dropout: between them.
    """
    kind = nn.LSTM if cell == "lstm" else nn.GRU
    return kind(inputs, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)


class MaskedConv(nn.Module):
    """Convolution over time, normalised per step, that neither sees nor writes places beyond a sample's length.

    Args:
        channels_in: channels of the input.
        channels: channels of the output; the input is added to it where shapes allow.
        kernel: odd.
        stride: 1 or 2.
    """

    def __init__(self, channels_in: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.residual = stride == 1 and channels_in == channels
        self.conv = nn.Conv1d(channels_in, channels, kernel, stride, padding=kernel // 2)
        # Per step: statistics over time would depend on how much padding there is.
        self.norm = nn.LayerNorm(channels)

    def forward(self, x_BTC: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, C] that is 0 beyond the length → the same, shorter by the stride, and the new length."""
        y = F.gelu(self.norm(self.conv(x_BTC.transpose(1, 2)).transpose(1, 2)))
        if self.residual:
            y = y + x_BTC
        length_B = shortened(length_B, self.stride)
        return y * length_mask(length_B, y.shape[1])[..., None], length_B


def masked_mean(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the tokens that count: [B, D]; 0 where none does."""
    weights = mask_BT.to(x_BTD.dtype)[..., None]
    return (x_BTD * weights).sum(1) / weights.sum(1).clamp(min=1)


def masked_max(x_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Maximum over the tokens that count: [B, D]; 0 where none does."""
    highest = x_BTD.masked_fill(~mask_BT[..., None], -1e4).amax(1)
    # Not −1e4: it would set the range of an 8-bit integer, and leave nothing of the values that count.
    return torch.where(mask_BT.any(1, keepdim=True), highest, 0.0)


class Standardise(nn.Module):
    """(x − mean) / std per channel. Not in the saved weights: the statistics travel in ``preprocessor.json``."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def standardise(statistics: Statistics | None, channels: int) -> Standardise:
    """The layer for a field's statistics; without them, values are taken as they are."""
    if statistics is None:
        return Standardise((0.0,) * channels, (1.0,) * channels)
    return Standardise(statistics.mean, statistics.std)
