"""Tiny pretrained models with random weights, written into folders as transformers writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

_SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SENTENCES = ("please turn left here", "go to the right now", "stop at the line")


def _written(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def text_model(folder: Path, kind: str = "bert", *, dropout: float = 0.1) -> Path:
    """BERT, whose padding is token 0, or RoBERTa, whose token 0 begins every text."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    specials = {"bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "roberta": ["[CLS]", "[PAD]", "[SEP]", "[UNK]"]}[kind]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    first, last = (specials.index(token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", first), ("[SEP]", last)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=20, **names).save_pretrained(folder)
    sizes = _SIZES | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    more = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": specials.index("[PAD]")}
    torch.manual_seed(1)
    if kind == "bert":
        return _written(BertModel(BertConfig(max_position_embeddings=20, **sizes, **more)), folder)
    return _written(RobertaModel(RobertaConfig(max_position_embeddings=22, **sizes, **more)), folder)


def image_model(folder: Path, *, dropout: float = 0.1) -> Path:
    """A ViT of pictures of 16 × 16 pixels, with a processor that is like no other."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    sizes = _SIZES | {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    torch.manual_seed(2)
    ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]
    ).save_pretrained(folder)
    return _written(ViTModel(ViTConfig(image_size=16, patch_size=4, **sizes)), folder)


def audio_model(folder: Path, *, masks: bool = True, rate_hz: int = 8000) -> Path:
    """A wav2vec2 whose padding is masked (the kind that normalises each step), or one that hears it."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    torch.manual_seed(3)
    config = Wav2Vec2Config(
        **_SIZES,
        conv_dim=(8, 8),
        conv_kernel=(10, 4),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        feat_extract_norm="layer" if masks else "group",
        do_stable_layer_norm=masks,
    )
    Wav2Vec2FeatureExtractor(sampling_rate=rate_hz, do_normalize=True, return_attention_mask=masks).save_pretrained(
        folder
    )
    return _written(Wav2Vec2Model(config), folder)


def video_model(folder: Path) -> Path:
    """A VideoMAE of four frames of 16 × 16 pixels, two of them seen together."""
    from transformers import VideoMAEConfig, VideoMAEImageProcessor, VideoMAEModel

    torch.manual_seed(4)
    config = VideoMAEConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        tubelet_size=2,
        **_SIZES,
    )
    VideoMAEImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.25]).save_pretrained(folder)
    return _written(VideoMAEModel(config), folder)


def other_model(folder: Path, kind: str) -> str:
    """A model of another kind; returns the type of field that it reads."""
    import transformers

    depths = {"depths": [1, 1], "num_stages": 2, "hidden_sizes": [8, 16]}
    sizes: dict[str, dict[str, Any]] = {
        "convnext": {**depths, "image_size": 16, "patch_size": 2},
        "dinov2": {**_SIZES, "image_size": 28, "patch_size": 4},
        "swin": {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 80},
    }
    config = transformers.CONFIG_MAPPING[kind]
    torch.manual_seed(5)
    if kind in ("hubert", "wavlm"):
        audio_model(folder)
        waves = {"conv_dim": (8, 8), "conv_kernel": (10, 4), "conv_stride": (5, 2), "feat_extract_norm": "layer"}
        places = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "do_stable_layer_norm": True}
        _written(transformers.AutoModel.from_config(config(**_SIZES, **waves, **places)), folder)
        return "audio"
    text = kind == "distilbert"
    (text_model if text else image_model)(folder)
    _written(transformers.AutoModel.from_config(config(**sizes[kind])), folder)
    return "text" if text else "image"
