"""Search by a picture, a text or whatever side a sample has: the nearest embeddings that a prediction or an evaluation wrote.

The search is exact: faiss compares the query with every embedding. They are read into memory, 4 bytes a number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_mm.actors.columns import EMBEDDING
from ray_mm.config.fields import FieldSpec
from ray_mm.errors import CheckpointError, UsageError
from ray_mm.model_folder import model_digest, model_folder
from ray_mm.predictor import Predictor, load_predictor
from ray_mm.storage import local_path


@dataclass(frozen=True)
class Hit:
    """One of the nearest: the key of its sample, and its cosine to the query."""

    key: str
    cosine: float


class SearchIndex:
    """The embeddings of a run, by tower. Made by ``open_index``.

    Args:
        run: its folder, for messages.
        model: that made them.
        keys: of the samples.
        table: their columns ``embedding.<tower>``.
    """

    def __init__(self, run: Path, model: Predictor, keys: list[str], table: pa.Table) -> None:
        assert model.towers is not None
        self.model = model
        self.towers = model.towers
        self._run = run
        self._keys = keys
        self._table = table
        self._indexes: dict[str, tuple[Any, npt.NDArray[np.int64]]] = {}

    def search(self, sample: Mapping[str, Any], among: str | None = None, top: int = 10) -> list[Hit]:
        """The nearest embeddings, the nearest first.

        Args:
            sample: fields of one side, as for ``Predictor.predict``.
            among: tower that is searched. None: the other one, where there are two and the sample has one of them.
            top: how many at the most.

        Raises:
            UsageError: the sample is of no side or of several, or nothing is there to be searched.
        """
        if top < 1:
            raise UsageError(f"top: expected at least 1, found {top}.")
        by = self._tower_of(sample)
        among = self._searched(by, among)
        found = self.model.predict(sample).embeddings
        assert found is not None
        if by not in found:
            raise UsageError(f"the query has nothing of {by}: {', '.join(sorted(sample))} is empty or absent.")
        index, rows = self._index(among)
        cosines, nearest = index.search(found[by][None], min(top, len(rows)))
        return [
            Hit(self._keys[int(rows[place])], float(cosine))
            for cosine, place in zip(cosines[0], nearest[0], strict=True)
        ]

    def field_of_type(self, kind: str) -> str:
        """The one input field of a type that a query can be made of.

        Raises:
            UsageError: there is none, or there are several and they have encoders of their own.
        """
        fields: Mapping[str, FieldSpec] = self.model.preprocessor.fields
        names = [name for name in self.model.input_fields if fields[name].type == kind]
        if not names:
            known = ", ".join(f"{name} ({fields[name].type})" for name in self.model.input_fields)
            raise UsageError(f"--{kind}: the model has no field of type {kind}; its fields are {known}.")
        if len(names) > 1 and len(self.model.config.encoded_fields) > 1:
            raise UsageError(
                f"--{kind}: the model has several fields of type {kind}, {', '.join(names)}; name one: "
                f"--query {names[0]}=…"
            )
        return names[0]

    def _tower_of(self, sample: Mapping[str, Any]) -> str:
        unknown = next((name for name in sample if name not in self.model.input_fields), None)
        if unknown is not None:
            raise UsageError(f"{unknown}: the model has no such field; it has {', '.join(self.model.input_fields)}.")
        of = [tower for tower, names in self.towers.items() if any(name in sample for name in names)]
        if len(of) != 1:
            sides = "; ".join(f"{tower}: {', '.join(names)}" for tower, names in self.towers.items())
            raise UsageError(
                f"a query is one side of a sample, and this has {'none' if not of else ' and '.join(of)}; the sides are {sides}."
            )
        return of[0]

    def _searched(self, by: str, among: str | None) -> str:
        if among is None:
            others = [tower for tower in self.towers if tower != by]
            if len(others) > 1:
                raise UsageError(f"--among: name the side that is to be searched, one of {', '.join(self.towers)}.")
            return others[0]
        if among not in self.towers:
            raise UsageError(f"--among: the model has no side {among!r}; it has {', '.join(self.towers)}.")
        return among

    def _index(self, tower: str) -> tuple[Any, npt.NDArray[np.int64]]:
        """A faiss index of a tower's embeddings, and the rows that they are of."""
        if tower not in self._indexes:
            column = self._table.column(EMBEDDING + tower).combine_chunks()
            rows = np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))
            if len(rows) == 0:
                raise UsageError(f"{self._run}: no sample has {tower}, so there is nothing to be searched.")
            kept = column.drop_null()
            vectors = np.ascontiguousarray(kept.flatten().to_numpy(zero_copy_only=False), np.float32)
            vectors = vectors.reshape(len(rows), -1)
            index = _faiss().IndexFlatIP(vectors.shape[1])
            index.add(vectors)
            self._indexes[tower] = (index, rows)
        return self._indexes[tower]


def open_index(run: str | Path, device: str | None = None) -> SearchIndex:
    """The embeddings of a predict or evaluate run of a retrieval.

    Args:
        run: its folder.
        device: of the model. None: a GPU if there is one.

    Raises:
        UsageError: there is no such run, it is not of a retrieval, faiss is not installed, or the model has changed.
    """
    folder = local_path(run)
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        checkpoint, place = result["checkpoint"], Path(result["predictions"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(
            f"{folder}: is no finished run of kind predict or evaluate; run one, and name its output."
        ) from None
    _faiss()
    # A run may have been moved, or be read from another machine.
    place = folder / place.name
    try:
        columns = [name for name in pq.read_schema(_first_file(place)).names if name.startswith(EMBEDDING)]
        if not columns:
            raise UsageError(
                f"{folder}: its predictions have no embeddings; a search takes those of a model with model.task.type: retrieve."
            )
        table = pq.read_table(place, columns=["key", *columns])
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{place}: can't be read ({error}); run the job again.") from None
    try:
        model = load_predictor(checkpoint, device=device)
    except CheckpointError as error:
        raise UsageError(f"{folder}: the model that made its embeddings is gone: {error}") from None
    if model.towers is None or sorted(EMBEDDING + tower for tower in model.towers) != sorted(columns):
        raise UsageError(
            f"{folder}: its embeddings are of {', '.join(name.removeprefix(EMBEDDING) for name in columns)}, and the model in "
            f"{checkpoint} has other sides; run the job again."
        )
    if model_digest(model_folder(checkpoint)) != result.get("model"):
        raise UsageError(
            f"{folder}: the model in {checkpoint} is another one than made its embeddings; run the job again."
        )
    return SearchIndex(folder, model, table.column("key").to_pylist(), table)


def query_of(index: SearchIndex, by_type: Mapping[str, str | None], given: Sequence[str]) -> dict[str, Any]:
    """The sample that a command line means.

    Args:
        index: that is searched.
        by_type: type of a field → its value, where it is given: a file, or the words of a text.
        given: ``FIELD=VALUE`` for any field.

    Raises:
        UsageError: nothing is given, or a field that the model does not have; a file that is not there.
    """
    values = {index.field_of_type(kind): value for kind, value in by_type.items() if value is not None}
    for each in given:
        name, is_pair, value = each.partition("=")
        if not is_pair:
            raise UsageError(f"--query: expected FIELD=VALUE, found {each!r}.")
        values[name] = value
    if not values:
        raise UsageError("search: give something to search by: --image FILE, --text WORDS or --query FIELD=VALUE.")
    fields = index.model.preprocessor.fields
    sample: dict[str, Any] = {}
    for name, value in values.items():
        is_file = name in fields and fields[name].type != "text"
        if is_file and not Path(value).is_file():
            raise UsageError(f"{name}: there is no file {value}.")
        sample[name] = Path(value) if is_file else value
    return sample


def _first_file(place: Path) -> Path:
    if place.is_dir():
        return next(iter(sorted(place.glob("*.parquet"))), place / "part-00000.parquet")
    return place


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise UsageError("a search needs faiss; install it with pip install 'ray_mm[search]'.") from None
    return faiss
