"""Pretrained models of transformers as encoders: arrays of a field → the model's last hidden states → tokens.

What the model's own processor does to values (scale, mean, standard deviation) is done here, in torch; sizes, rates and tokens
are made where samples are decoded. The network is built from the config that travels in ``preprocessor.json``; its weights come
from the model's folder when a training begins, and from a checkpoint ever after.

Shapes: B batch, T tokens, F frames of a clip, S samples of a recording, H width of the pretrained model, D width of the fusion.
"""

from __future__ import annotations

import abc
import inspect
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ray_mm.config.encoders import EncoderConfig, LoraConfig
from ray_mm.config.fields import AudioField, FieldSpec, ImageField, TextField, VideoField
from ray_mm.data.pretrained import Pretrained
from ray_mm.errors import UsageError
from ray_mm.models.encoders.backbone import ADDITION, add_lora, hidden_width, make_backbone
from ray_mm.models.layers import MAX_TOKENS, SharedDropout, Standardise, length_mask, shortened


class PretrainedEncoder(nn.Module, abc.ABC):
    """What the pretrained encoders of all types have in common.

    Args:
        spec: the field, complete.
        config: of the encoder.
        pretrained: the model's config and that of its processor.
        dim: width of the tokens.
    """

    def __init__(self, spec: FieldSpec, config: EncoderConfig, pretrained: Pretrained, dim: int) -> None:
        super().__init__()
        self.tune = config.tune or "frozen"
        self.backbone = make_backbone(pretrained)
        width = hidden_width(self.backbone.config)
        if self.tune == "lora":
            add_lora(self.backbone, config.lora or LoraConfig())
        self.norm = nn.LayerNorm(width)
        self.dropout = SharedDropout(config.dropout)
        self.project = nn.Linear(width, dim)
        self._fixed: frozenset[str] = frozenset()
        self.fix(())

    def fix(self, unused: tuple[str, ...]) -> None:
        """Leaves parameters of the backbone as they are for good: what ``tune`` does not train, and what is not used."""
        names = [name for name, _ in self.backbone.named_parameters()]
        trained = {name for name in names if self.tune == "full" or (self.tune == "lora" and ADDITION in name)}
        self._fixed = frozenset(names) - trained.difference(unused)
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> PretrainedEncoder:
        """As of any module; but what is fixed never gets a gradient."""
        super().requires_grad_(requires_grad)
        for name, parameter in self.backbone.named_parameters():
            if name in self._fixed:
                parameter.requires_grad_(False)
        return self

    def train(self, mode: bool = True) -> PretrainedEncoder:
        """As of any module; but a backbone that is not trained stays as it is in use, without dropout."""
        super().train(mode)
        if self.tune == "frozen":
            self.backbone.eval()
        return self

    def layers(self) -> list[nn.Module]:
        """The backbone's layers from its input on: the longest list of modules that it has."""
        lists = (list(module) for module in self.backbone.modules() if isinstance(module, nn.ModuleList))
        return max(lists, key=len, default=[])

    def look(self, **inputs: Any) -> Tensor:
        """The backbone's last hidden states [B, T, H]; a grid [B, H, rows, columns] is laid out row by row."""
        hidden: Tensor = self.backbone(**inputs).last_hidden_state
        return hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden

    def tokens(self, hidden_BTH: Tensor) -> Tensor:
        """Hidden states → tokens [B, T, D]."""
        result: Tensor = self.project(self.dropout(self.norm(hidden_BTH)))
        return result

    @abc.abstractmethod
    def example(self) -> dict[str, Any]:
        """The input of the backbone for one sample of zeros."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, which a sharded training may hold in another one than float32."""
        return self.project.weight.dtype


class PretrainedImage(PretrainedEncoder):
    """Pictures: uint8 [B, height, width, channels] → a token for each of the model's."""

    def __init__(self, spec: ImageField, config: EncoderConfig, pretrained: Pretrained, dim: int) -> None:
        super().__init__(spec, config, pretrained, dim)
        assert spec.height is not None and spec.width is not None
        self.shape = (spec.channels, spec.height, spec.width)
        self.pixels = _Pixels(pretrained.processor, spec.channels)
        self.options = _places(self.backbone, spec)

    def forward(self, image_BHWC: Tensor) -> tuple[Tensor, Tensor]:
        pixels = self.pixels(image_BHWC).permute(0, 3, 1, 2).to(self.dtype)
        tokens = self.tokens(self.look(pixel_values=pixels, **self.options))
        return tokens, torch.ones_like(tokens[..., 0], dtype=torch.bool)

    def example(self) -> dict[str, Any]:
        return {"pixel_values": torch.zeros(1, *self.shape), **self.options}


class PretrainedText(PretrainedEncoder):
    """Texts: int32 [B, T], the tokenizer's numbers plus one, 0 where there is no token → as many tokens."""

    def __init__(self, spec: TextField, config: EncoderConfig, pretrained: Pretrained, dim: int) -> None:
        super().__init__(spec, config, pretrained, dim)
        self.num_tokens = spec.max_tokens
        self.padding = getattr(self.backbone.config, "pad_token_id", None) or 0

    def forward(self, text_BT: Tensor) -> tuple[Tensor, Tensor]:
        mask = text_BT != 0
        # An absent text has no token, and a softmax over nothing is not a number: its first place always counts here.
        attended = mask | (torch.arange(text_BT.shape[1], device=text_BT.device) == 0)
        ids = torch.where(mask, text_BT.long() - 1, self.padding)
        return self.tokens(self.look(input_ids=ids, attention_mask=attended.long())), mask

    def example(self) -> dict[str, Any]:
        return {"input_ids": torch.zeros(1, self.num_tokens or 1, dtype=torch.long)}


class PretrainedAudio(PretrainedEncoder):
    """Recordings: int16 [B, S] and lengths → tokens over time, at most ``MAX_TOKENS``: means of the model's."""

    def __init__(self, spec: AudioField, config: EncoderConfig, pretrained: Pretrained, dim: int) -> None:
        super().__init__(spec, config, pretrained, dim)
        assert spec.rate_hz is not None and spec.max_seconds is not None
        self.num_samples = round(spec.rate_hz * spec.max_seconds)
        self.normalises = bool(pretrained.processor.get("do_normalize", True))
        self.padding = float(pretrained.processor.get("padding_value", 0.0))
        self.masks = bool(pretrained.processor.get("return_attention_mask", False))
        own = self.backbone.config
        self.least = 1
        for kernel, stride in reversed(list(zip(own.conv_kernel, own.conv_stride, strict=True))):
            self.least = (self.least - 1) * stride + kernel

    def forward(self, audio_BS: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        inside = length_mask(length_B, self.num_samples)
        wave_BS = audio_BS.float() / 32768
        if self.normalises:
            count = inside.sum(1, keepdim=True).clamp(min=1)
            # Over the recording alone, as if it came by itself; with others some processors count the padding in.
            centred = (wave_BS - (wave_BS * inside).sum(1, keepdim=True) / count) * inside
            wave_BS = centred / (centred.square().sum(1, keepdim=True) / count + 1e-7).sqrt()
        wave_BS = torch.where(inside, wave_BS, self.padding).to(self.dtype)
        # Less than one frame needs is seen as one: of no frame at all attention would make no number.
        heard_B = length_B.clamp(min=self.least)
        masked = {"attention_mask": length_mask(heard_B, self.num_samples).long()} if self.masks else {}
        hidden = self.look(input_values=wave_BS, **masked)
        frames_B = self.backbone._get_feat_extract_output_lengths(heard_B.long()) * (length_B > 0)
        hidden, mask = _pooled(hidden, length_mask(frames_B, hidden.shape[1]))
        return self.tokens(hidden), mask

    def example(self) -> dict[str, Any]:
        return {"input_values": torch.zeros(1, self.num_samples)}


class PretrainedVideo(PretrainedEncoder):
    """Clips: uint8 [B, F, height, width, channels], times and lengths → a token for the frames that the model sees together.

    The model does not know of padding: the last frame stands still to the end.
    """

    def __init__(self, spec: VideoField, config: EncoderConfig, pretrained: Pretrained, dim: int) -> None:
        super().__init__(spec, config, pretrained, dim)
        assert spec.height is not None and spec.width is not None
        self.shape = (spec.num_frames, spec.channels, spec.height, spec.width)
        self.pixels = _Pixels(pretrained.processor, spec.channels)
        self.together = int(self.backbone.config.tubelet_size)

    def forward(self, video_BFHWC: Tensor, time_BF: Tensor, length_B: Tensor) -> tuple[Tensor, Tensor]:
        frames_F = torch.arange(self.shape[0], device=video_BFHWC.device)
        shown_BF = torch.minimum(frames_F[None], (length_B.long() - 1).clamp(min=0)[:, None])
        still = shown_BF[:, :, None, None, None].expand(-1, -1, *video_BFHWC.shape[2:])
        pixels = self.pixels(video_BFHWC.gather(1, still)).permute(0, 1, 4, 2, 3).to(self.dtype)
        hidden = self.look(pixel_values=pixels)
        # Tokens lie time by time; of each the mean over all places.
        times = self.shape[0] // self.together
        hidden = hidden.reshape(hidden.shape[0], times, -1, hidden.shape[-1]).mean(2)
        hidden, mask = _pooled(hidden, length_mask(shortened(length_B, self.together), times))
        return self.tokens(hidden), mask

    def example(self) -> dict[str, Any]:
        return {"pixel_values": torch.zeros(1, *self.shape)}


def _pooled(hidden_BTH: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """At most ``MAX_TOKENS`` tokens: means of as many neighbours as it takes, of those that count."""
    size = -(-hidden_BTH.shape[1] // MAX_TOKENS)
    if size == 1:
        return hidden_BTH, mask_BT
    missing = -hidden_BTH.shape[1] % size
    batch, _, width = hidden_BTH.shape
    weights = F.pad(mask_BT, (0, missing)).reshape(batch, -1, size, 1).to(hidden_BTH.dtype)
    groups = F.pad(hidden_BTH, (0, 0, 0, missing)).reshape(batch, -1, size, width)
    mean = (groups * weights).sum(2) / weights.sum(2).clamp(min=1)
    return mean, weights.squeeze(-1).any(2)


class _Pixels(nn.Module):
    """uint8 [..., channels] → what the model's image processor makes of it."""

    def __init__(self, processor: dict[str, Any], channels: int) -> None:
        super().__init__()
        self.scale = float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0
        mean, std = [0.0] * channels, [1.0] * channels
        if processor.get("do_normalize", True):
            mean, std = (_per_channel(processor[key], channels) for key in ("image_mean", "image_std"))
        self.standardise = Standardise(tuple(mean), tuple(std))

    def forward(self, pixels: Tensor) -> Tensor:
        result: Tensor = self.standardise(pixels.float() * self.scale)
        return result


def _per_channel(value: Any, channels: int) -> list[float]:
    return [float(each) for each in value] if isinstance(value, list) else [float(value)] * channels


def _places(backbone: nn.Module, spec: ImageField | VideoField) -> dict[str, Any]:
    """What the backbone has to be told to take pictures of another size than it was trained on."""
    size = getattr(backbone.config, "image_size", None)
    trained_on = [size, size] if isinstance(size, int) else list(size or ())
    parameters = inspect.signature(backbone.forward).parameters
    if "interpolate_pos_encoding" in parameters and trained_on != [spec.height, spec.width]:
        return {"interpolate_pos_encoding": True}
    return {}


def build_pretrained(spec: FieldSpec, config: EncoderConfig, pretrained: Pretrained, dim: int) -> PretrainedEncoder:
    """An encoder with fresh weights; ``backbone.read_weights`` gives it those of the model.

    Raises:
        UsageError: the model does not take such input. ``try_pretrained`` says it before anything starts.
    """
    encoder: PretrainedEncoder = _CLASSES[spec.type](spec, config, pretrained, dim)
    if encoder.tune != "frozen":
        encoder.fix(try_pretrained("pretrained", spec, config, pretrained))
    return encoder


def try_pretrained(key: str, spec: FieldSpec, config: EncoderConfig, pretrained: Pretrained) -> tuple[str, ...]:
    """Lets a model without memory see one sample.

    Args:
        key: of the field in the job, for the message.
        spec: the field, complete.
        config: of the encoder.
        pretrained: the model.

    Returns:
        Parameters of the backbone that its output does not depend on: who averages gradients would wait for them.

    Raises:
        UsageError: it does not take it.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"), torch.enable_grad():
        try:
            encoder = _CLASSES[spec.type](spec, config.model_copy(update={"tune": "full", "lora": None}), pretrained, 1)
            if config.tune == "lora":
                add_lora(encoder.backbone, config.lora or LoraConfig())
            encoder.backbone.requires_grad_(True)
            encoder.tokens(encoder.look(**encoder.example())).sum().backward()
        except Exception as error:  # of transformers, peft or torch, of any kind
            raise UsageError(
                f"{key}: {pretrained.source} ({pretrained.config.get('model_type')}) can't be used for this field, "
                f"{_told(spec)}: "
                f"{' '.join(str(error).split())[:300]}."
            ) from None
    return tuple(name for name, parameter in encoder.backbone.named_parameters() if parameter.grad is None)


def _told(spec: FieldSpec) -> str:
    match spec:
        case ImageField() | VideoField():
            return f"{spec.width}×{spec.height} pixels; its size is data.fields.….height and width"
        case TextField():
            return f"{spec.max_tokens} tokens"
        case AudioField():
            return f"{spec.max_seconds} s"
        case _:
            return spec.type


_CLASSES: dict[str, Any] = {
    "audio": PretrainedAudio,
    "image": PretrainedImage,
    "text": PretrainedText,
    "video": PretrainedVideo,
}
