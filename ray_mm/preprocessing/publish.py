"""What both ways of preprocessing end with: statistics, tokenizers, and ``dataset.json`` of every split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from ray_mm.config.fields import FieldSpec, LabelField, TextField
from ray_mm.data.manifest import Manifest, ShardInfo, Statistics, tokenizer_path, write_dataset
from ray_mm.data.quarantine import UNUSABLE
from ray_mm.errors import RayMMError, UsageError
from ray_mm.preprocessing.complete import MAX_TOKENS, TextFacts
from ray_mm.preprocessing.statistics import to_statistics
from ray_mm.preprocessing.summary import FieldSummary
from ray_mm.preprocessing.tokenizer import longest_text, train_tokenizer
from ray_mm.progress import notice
from ray_mm.storage import write_atomic

_STATISTICS = ("series", "points", "vector", "label")


class Split(NamedTuple):
    """What a split has: its shards, and field → what is in them."""

    shards: Sequence[ShardInfo]
    fields: Mapping[str, FieldSummary]


class Tokenizers(NamedTuple):
    """Field → the tokenizer as JSON, and what is known of its texts."""

    content: dict[str, str]
    facts: dict[str, TextFacts]


def train_tokenizers(
    fields: Mapping[str, FieldSpec],
    texts: Callable[[str, str], Sequence[str]],
    splits: Sequence[str],
    train_split: str,
) -> Tokenizers:
    """Trains a tokenizer for every text field.

    Args:
        fields: of the datasets.
        texts: field and split → its texts, without empty ones.
        splits: where the longest text is looked for.
        train_split: the vocabulary comes from it.

    Raises:
        UsageError: there is no text to train on.
    """
    made = Tokenizers({}, {})
    for name, spec in fields.items():
        if not isinstance(spec, TextField):
            continue
        train = texts(name, train_split)
        if not train:
            raise UsageError(
                f"fields.{name}: no sample of split {train_split!r} has a text, so there is nothing to train its tokenizer "
                "on; correct the data, or remove the field."
            )
        content = train_tokenizer(train, spec.vocabulary_size)
        longest = 0
        if spec.max_tokens is None:
            longest = max(longest_text(content, found, MAX_TOKENS) for split in splits if (found := texts(name, split)))
        made.content[name] = content
        made.facts[name] = TextFacts(Tokenizer.from_str(content).get_vocab_size(), longest)
    return made


def field_statistics(
    fields: Mapping[str, FieldSpec], train: Mapping[str, FieldSummary], train_split: str
) -> dict[str, Statistics]:
    """Mean and standard deviation of every field that is normalised.

    Raises:
        RayMMError: no training sample has such a field.
    """
    found = {}
    for name, spec in fields.items():
        if spec.type in _STATISTICS and not (isinstance(spec, LabelField) and spec.target != "number"):
            moments = train[name].moments
            if moments is None:
                raise RayMMError(
                    f"fields.{name}: no sample of split {train_split!r} has it, so its mean and standard deviation are not "
                    "known; correct the data, or remove the field."
                )
            found[name] = to_statistics(moments)
    return found


def write_unusable(output: Path, lines: Sequence[Mapping[str, Any]], told: str) -> None:
    """Lists in a file, and says on stderr, what was left absent although something is there.

    Args:
        output: folder of all splits.
        lines: of the file, see ``data.replay.LeftOut``; none: the file of an earlier run is removed.
        told: on stderr, where there are any.
    """
    path = output / UNUSABLE
    if not lines:
        path.unlink(missing_ok=True)
        return
    write_atomic(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    notice(f"{told}. All: {path}")


def write_splits(
    output: Path,
    name: str,
    splits: Mapping[str, Split],
    *,
    fields: Mapping[str, FieldSpec],
    members: Mapping[str, tuple[str, ...]],
    statistics: Mapping[str, Statistics],
    tokenizers: Mapping[str, str],
    label_counts: Callable[[LabelField, Mapping[str, int]], dict[str, int]],
    source: str,
) -> dict[str, Manifest]:
    """Writes what makes folders of shards datasets; ``dataset.json`` of each comes last.

    Args:
        output: folder of all splits.
        name: of the job.
        splits: name → what it has.
        fields: complete.
        members: field → the suffixes that hold it.
        statistics: of the training split.
        tokenizers: field → JSON.
        label_counts: class label, and what was found of it → how often: class → samples.
        source: digest of what they are made from.
    """
    for split in splits:
        for field, content in tokenizers.items():
            write_atomic(tokenizer_path(output / split, field), content)
    return {
        split: write_dataset(
            output / split,
            name=f"{name}/{split}",
            shards=list(shards),
            fields=dict(fields),
            members=dict(members),
            presence={field: found[field].present for field in fields},
            label_counts={
                field: label_counts(spec, found[field].classes)
                for field, spec in fields.items()
                if isinstance(spec, LabelField) and spec.classes is not None
            },
            statistics=dict(statistics),
            source=source,
        )
        for split, (shards, found) in splits.items()
    }
