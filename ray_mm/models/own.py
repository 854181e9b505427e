"""Encoders and fusions of other packages: loaded by their names, and tried before a training starts.

An encoder is made and called as those in ``encoders`` are, a fusion as those in ``fusion``; see docs/extending.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import FieldSpec
from ray_mm.config.fusions import OwnFusion
from ray_mm.config.model import ModelConfig
from ray_mm.config.own import OWN_ENCODERS, OWN_FUSIONS, find_own
from ray_mm.data.fields import field_arrays, length_name, presence_name
from ray_mm.data.manifest import Statistics
from ray_mm.data.preprocessor import Preprocessor
from ray_mm.errors import UsageError

_TOKENS = 3


def own_encoder(spec: FieldSpec, config: EncoderConfig, statistics: Statistics | None, dim: int) -> nn.Module:
    """An encoder of another package, with fresh weights."""
    encoder: nn.Module = _load(OWN_ENCODERS, config.name)(spec, config, statistics, dim)
    return encoder


def own_fusion(config: OwnFusion, fields: Sequence[str]) -> nn.Module:
    """A fusion of another package, with fresh weights."""
    fusion: nn.Module = _load(OWN_FUSIONS, config.name)(config, fields)
    return fusion


def _load(group: str, name: str | None) -> Callable[..., Any]:
    place = find_own("model", group, name)
    loaded: Callable[..., Any] = place.load()
    return loaded


def try_own(config: ModelConfig, preprocessor: Preprocessor) -> None:
    """Makes what a model has of other packages and gives it two samples, one of which lacks everything.

    Args:
        config: of the model; ``check_model`` has passed.
        preprocessor: of its fields.

    Raises:
        UsageError: it can't be made, does not take them, or gives something else than it should.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for name, encoder in sorted(config.fields.items()):
            if encoder.encoder == "own":
                _try_encoder(
                    name, preprocessor.fields[name], encoder, preprocessor.statistics.get(name), config.fusion.dim
                )
        if isinstance(config.fusion, OwnFusion):
            _try_fusion(config.fusion, sorted(config.fields))


def _try_encoder(name: str, spec: FieldSpec, config: EncoderConfig, statistics: Statistics | None, dim: int) -> None:
    def run() -> Any:
        return own_encoder(spec, config, statistics, dim).eval()(*_samples(name, spec))

    _tried(f"model.fields.{name}.name", config.name, run, lambda tokens, mask: _encoder_fault(tokens, mask, dim))


def _try_fusion(config: OwnFusion, fields: Sequence[str]) -> None:
    tokens, mask = torch.randn(2, _TOKENS, config.dim), torch.ones(2, _TOKENS, dtype=torch.bool)

    def run() -> Any:
        presence = dict.fromkeys(fields, torch.tensor([True, False]))
        return own_fusion(config, fields).eval()(dict.fromkeys(fields, (tokens, mask)), presence)

    _tried("model.fusion.name", config.name, run, lambda fused: _fusion_fault(fused, config.dim))


def _tried(key: str, name: str | None, run: Callable[[], Any], fault: Callable[..., str | None]) -> None:
    try:
        found = run()
        wrong = fault(*found) if isinstance(found, tuple) else fault(found)
    except Exception as error:  # it is the code of others
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{key}: {name!r} can't be used ({type(error).__name__}: {reason}).") from error
    if wrong is not None:
        raise UsageError(f"{key}: {name!r} gives {wrong}.")


def _samples(name: str, spec: FieldSpec) -> list[Tensor]:
    """The arrays of a field for a sample that is whole and one that is absent, both of zeros."""
    arrays = {array: made for array, made in field_arrays(name, spec).items() if array != presence_name(name)}
    samples = {array: torch.zeros(2, *made.shape).to(_dtype(made.dtype)) for array, made in arrays.items()}
    if length_name(name) in samples:
        samples[length_name(name)][0] = arrays[name].shape[0]
    return list(samples.values())


def _dtype(dtype: Any) -> torch.dtype:
    found: torch.dtype = getattr(torch, str(dtype))
    return found


def _encoder_fault(tokens: Any, mask: Any, dim: int) -> str | None:
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape[0] != 2 or tokens.shape[2] != dim:
        return f"{_told(tokens)}; tokens of two samples are a tensor [2, any number, {dim}], the last being model.fusion.dim"
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != tokens.shape[:2]:
        return f"{_told(mask)} as its mask; expected bool {list(tokens.shape[:2])}, like the tokens"
    if not tokens.isfinite().all():
        return "tokens that are not finite, where a field has nothing but zeros"
    return None


def _fusion_fault(fused: Any, dim: int) -> str | None:
    if not isinstance(fused, Tensor) or fused.shape != (2, dim):
        return f"{_told(fused)}; of two samples it is a tensor [2, {dim}], the last being model.fusion.dim"
    return None if fused.isfinite().all() else "values that are not finite, where a sample has no field at all"


def _told(found: Any) -> str:
    return (
        f"a tensor {list(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else f"a {type(found).__name__}"
    )
