"""A pretrained model's folder, or its name on the hub → what travels with a run in its place: all but the weights.

The folder is one that transformers has written: ``config.json``, weights as safetensors, ``tokenizer.json`` of a text model,
``preprocessor_config.json`` of any other. No pickle and none of the code that may lie in it is ever loaded.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from ray_mm.config.base import Config
from ray_mm.config.encoders import EncoderConfig
from ray_mm.config.fields import AudioField, FieldSpec, ImageField, TextField, VideoField
from ray_mm.errors import UsageError

CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_READ_BY = {"audio": "input_values", "image": "pixel_values", "text": "input_ids", "video": "pixel_values"}
"""Field type → what transformers calls the input of a model that reads it."""
_UNNEEDED = ("id2label", "label2id", "task_specific_params", "auto_map")
"""Keys of a config that may be long and play no part in the network."""
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")
_WAVES = "Wav2Vec2FeatureExtractor"


class Pretrained(Config):
    """What rebuilds a pretrained model and prepares its input, without its folder."""

    source: str
    """The folder, or the name on the hub, that fresh weights are read from."""
    revision: str | None = None
    """The commit on the hub."""
    config: dict[str, Any]
    """The content of its ``config.json``."""
    processor: dict[str, Any] = Field(default={})
    """The content of its ``preprocessor_config.json``; empty for a text."""


@dataclass(frozen=True)
class FoundModel:
    """A pretrained model that suits a field.

    Attributes:
        pretrained: what rebuilds it.
        spec: the field; of a text with the model's vocabulary.
        tokenizer: of a text, as the JSON of the ``tokenizers`` library.
    """

    pretrained: Pretrained
    spec: FieldSpec
    tokenizer: str | None = None


def find_pretrained(key: str, name: str, spec: FieldSpec, encoder: EncoderConfig) -> FoundModel:
    """Looks at the pretrained model that a job names for a field.

    Args:
        key: of the field in the job, for messages.
        name: of the field.
        spec: the field, complete.
        encoder: with ``pretrained`` set.

    Raises:
        UsageError: transformers is not installed, the model is not to be had, or it is not one for this field.
    """
    require_transformers(f"{key}.pretrained")
    assert encoder.pretrained is not None
    folder, source, revision = _locate(f"{key}.pretrained", encoder.pretrained)
    config = _read_json(f"{key}.pretrained", folder / CONFIG_FILE)
    _require_kind(f"{key}.pretrained", source, config, spec)
    processor = {} if isinstance(spec, TextField) else _processor(f"{key}.pretrained", folder, spec)
    kept = {option: value for option, value in config.items() if option not in _UNNEEDED}
    pretrained = Pretrained(source=source, revision=revision, config=kept, processor=processor)
    if isinstance(spec, TextField):
        return _text_model(key, name, spec, folder, pretrained)
    if isinstance(spec, ImageField | VideoField):
        _require_pictures(key, name, spec, pretrained)
    if isinstance(spec, AudioField):
        _require_recordings(key, name, spec, pretrained)
    return FoundModel(pretrained, spec)


def require_transformers(what: str) -> None:
    """Raises UsageError where the extra is not installed, with what needs it."""
    try:
        import peft  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"{what}: needs transformers and peft ({error}); install them on every node with pip install 'ray_mm[pretrained]'."
        ) from None


def _locate(key: str, given: str) -> tuple[Path, str, str | None]:
    """The folder with a model's small files, and where its weights are: an absolute folder, or a name and a commit."""
    folder = Path(given).expanduser().absolute()
    if folder.is_dir():
        _require_safetensors(key, folder)
        return folder, str(folder), None
    if not _HUB_NAME.fullmatch(given):
        raise UsageError(
            f"{key}: {folder} is no folder; give one that transformers has written, or a model's name on the hub."
        )
    from huggingface_hub import snapshot_download

    try:
        # Only what is small: the weights are read where rank 0 runs.
        snapshot = Path(snapshot_download(given, allow_patterns=["*.json", "*.txt", "*.model"]))
    except Exception as error:  # of the hub's client, of what it is built on, and of the network
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(
            f"{key}: there is no folder {folder}, and {given!r} can't be had from the hub ({reason}). Where the hub can be "
            f"reached, download it with: hf download {given} --local-dir FOLDER; then set pretrained to that folder."
        ) from None
    return snapshot, given, snapshot.name


def _require_safetensors(key: str, folder: Path) -> None:
    files = sorted(path.name for path in folder.iterdir())
    if CONFIG_FILE not in files:
        raise UsageError(
            f"{key}: {folder} has no {CONFIG_FILE}, so it is not a model that transformers has written; it holds "
            f"{', '.join(files[:5]) or 'nothing'}."
        )
    if any(name.endswith(".safetensors") for name in files):
        return
    pickled = [name for name in files if name.endswith(_PICKLED)]
    raise UsageError(
        f"{key}: {folder} has no weights as safetensors, only {', '.join(pickled)}: such a file can run code when it is read, "
        "and is never loaded. Where the model is trusted, load it with transformers and write it anew with save_pretrained."
        if pickled
        else f"{key}: {folder} has no weights, neither model.safetensors nor parts of it; copy the model again, whole."
    )


def _read_json(key: str, file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(
            f"{key}: {file} is missing, which says how the model's input is prepared; copy the model again, whole."
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{key}: {file} can't be read ({error}); copy the model again.") from None
    if not isinstance(content, dict):
        raise UsageError(f"{key}: {file} holds no JSON object; copy the model again.")
    return content


def _processor(key: str, folder: Path, spec: FieldSpec) -> dict[str, Any]:
    # Of clips newer versions of transformers write another file than older ones did.
    of_clips = folder / f"video_{PROCESSOR_FILE}"
    content = _read_json(
        key, of_clips if isinstance(spec, VideoField) and of_clips.is_file() else folder / PROCESSOR_FILE
    )
    if isinstance(spec, AudioField):
        return content
    lacking = [
        each for each in ("image_mean", "image_std") if each not in content and content.get("do_normalize", True)
    ]
    for option in (*lacking, *(each for each in ("offset", "rescale_offset") if content.get(each))):
        raise UsageError(
            f"{key}: the image processor of {folder} {'lacks' if option in lacking else 'has'} {option}, so ray_mm can't prepare "
            "pictures as it does; choose another model."
        )
    return content


def model_config(content: dict[str, Any]) -> Any:
    """The config of transformers for the content of a ``config.json``.

    Raises:
        KeyError: the model is none that transformers knows.
    """
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[content["model_type"]].from_dict(content)


def _require_kind(key: str, source: str, content: dict[str, Any], spec: FieldSpec) -> None:
    from transformers import MODEL_FOR_MASKED_LM_MAPPING, AutoModel
    from transformers import __version__ as version

    kind = content.get("model_type")
    try:
        config = model_config(content)
        model = AutoModel._model_mapping[type(config)]
    except KeyError:
        own = (
            "it comes with code of its own, which is never run" if "auto_map" in content else "it may be of a newer one"
        )
        raise UsageError(
            f"{key}: {source} is of the kind {kind!r}, which transformers {version} does not know ({own}); choose another."
        ) from None
    except Exception as error:  # a value that the config does not take
        raise UsageError(
            f"{key}: {source} has a damaged {CONFIG_FILE} ({' '.join(str(error).split())[:200]})."
        ) from None
    reads = model.input_modalities
    reads = sorted({reads} if isinstance(reads, str) else set(reads))
    if reads != [spec.type] or config.is_encoder_decoder:
        what = f"reads {' and '.join(reads)}" if reads != [spec.type] else "is an encoder with a decoder"
        raise UsageError(
            f"{key}: {source} ({kind}) {what}, and the field is of type {spec.type}; choose an encoder of {spec.type} "
            "alone."
        )
    if model.main_input_name != _READ_BY[spec.type]:
        raise UsageError(
            f"{key}: {source} ({kind}) reads {model.main_input_name}, which ray_mm does not make; choose a model that reads "
            f"{_READ_BY[spec.type]}."
        )

    if isinstance(spec, TextField) and type(config) not in MODEL_FOR_MASKED_LM_MAPPING:
        raise UsageError(
            f"{key}: {source} ({kind}) is not an encoder of texts, whose tokens see those on both sides; choose one, such as a "
            "bert or a roberta."
        )
    if isinstance(spec, VideoField) and kind != "videomae":
        raise UsageError(
            f"{key}: {source} ({kind}) lays its tokens out in a way that ray_mm does not know; choose a videomae."
        )


def _text_model(key: str, name: str, spec: TextField, folder: Path, pretrained: Pretrained) -> FoundModel:
    from transformers import AutoTokenizer

    config = model_config(pretrained.config)
    try:
        # Without tokenizer.json it would be made from other files, by libraries that may not be there.
        if not (folder / "tokenizer.json").is_file():
            raise OSError("there is no tokenizer.json")
        wrapped = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        tokenizer = wrapped.backend_tokenizer
    except Exception as error:  # of the library, of any kind
        raise UsageError(
            f"{key}.pretrained: {pretrained.source} has no tokenizer that can be read ({' '.join(str(error).split())[:200]}); "
            "load it with AutoTokenizer and write it into the folder with save_pretrained."
        ) from None
    if len(wrapped) > config.vocab_size:
        raise UsageError(
            f"{key}.pretrained: {pretrained.source} has a tokenizer with {len(wrapped):,} tokens and a model of "
            f"{config.vocab_size:,}; the two are not of one model."
        )
    assert spec.max_tokens is not None
    limit = min(getattr(config, "max_position_embeddings", None) or spec.max_tokens, wrapped.model_max_length)
    least = tokenizer.num_special_tokens_to_add(False) + 1
    if not least <= spec.max_tokens <= limit:
        raise UsageError(
            f"{key}.pretrained: {pretrained.source} reads {least} to {limit:,} tokens, and the field has {spec.max_tokens:,}; "
            f"set data.fields.{name}.max_tokens."
        )
    # The tokens that end a text stay where it is cut.
    tokenizer.enable_truncation(spec.max_tokens)
    tokenizer.no_padding()
    # 0 stands for no token.
    whole = spec.model_copy(update={"vocabulary_size": config.vocab_size + 1})
    return FoundModel(pretrained, whole, tokenizer.to_str())


def _require_pictures(key: str, name: str, spec: ImageField | VideoField, pretrained: Pretrained) -> None:
    channels = pretrained.config.get("num_channels", 3)
    if channels != spec.channels:
        raise UsageError(
            f"{key}.pretrained: {pretrained.source} reads pictures of {channels} channels, the field has {spec.channels}; set "
            f"data.fields.{name}.channels."
        )
    frames = model_config(pretrained.config).to_dict().get("num_frames")
    if isinstance(spec, VideoField) and frames is not None and frames != spec.num_frames:
        raise UsageError(
            f"{key}.pretrained: {pretrained.source} reads {frames} frames, the field has {spec.num_frames}; set "
            f"data.fields.{name}.num_frames: {frames}."
        )


def _require_recordings(key: str, name: str, spec: AudioField, pretrained: Pretrained) -> None:
    processor = pretrained.processor
    if processor.get("feature_extractor_type") != _WAVES:
        raise UsageError(
            f"{key}.pretrained: {pretrained.source} reads what {processor.get('feature_extractor_type')} makes of a recording; "
            f"choose a model that reads the wave itself ({_WAVES}), such as wav2vec2, hubert or wavlm."
        )
    rate_hz = processor.get("sampling_rate")
    if rate_hz != spec.rate_hz:
        raise UsageError(
            f"{key}.pretrained: {pretrained.source} reads {rate_hz} samples per second, the field has {spec.rate_hz}; set "
            f"data.fields.{name}.rate_hz: {rate_hz}."
        )
    if spec.channels != 1:
        raise UsageError(
            f"{key}.pretrained: {pretrained.source} reads one channel, the field has {spec.channels}; set "
            f"data.fields.{name}.channels: 1."
        )
