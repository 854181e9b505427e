"""One side of a sample, found by another. What the actors find:

score.embeddings   float32 [N, K × E]: of K towers, each of length 1

The driver keeps all of them, 4 bytes a number, for no sample has a rank before all candidates are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_mm import retrieval_scores
from ray_mm.actors.columns import EMBEDDING, embedding_columns, towers_there
from ray_mm.data.fields import POSITION
from ray_mm.evaluation.examples import Answer
from ray_mm.evaluation.metrics import Metrics
from ray_mm.evaluation.report.content import RetrievalDetails, Search, Way
from ray_mm.evaluation.tasks.base import EMBEDDINGS, Array, Rows

_RESAMPLES = 1000
NUM_FOUND = 5
"""Candidates that the report shows for a query."""

Towers = Mapping[str, Sequence[str]]


class RetrieveEvaluation:
    """See ``base.TaskEvaluation``.

    Args:
        towers: tower → its fields.
    """

    def __init__(self, towers: Towers) -> None:
        self._towers = {tower: tuple(names) for tower, names in towers.items()}

    @property
    def reads(self) -> tuple[str, ...]:
        return ()

    @property
    def lacking(self) -> str:
        return f"only one of {', '.join(self._towers)}"

    def counted(self, rows: Rows) -> npt.NDArray[np.bool_]:
        both: npt.NDArray[np.bool_] = towers_there(self._towers, rows).sum(axis=1) > 1
        return both

    def scored(self, outputs: npt.NDArray[np.float32], batch: Rows) -> dict[str, Array]:
        return {EMBEDDINGS: outputs[-1].reshape(outputs.shape[1], -1)}

    def tally(self, num_subsets: int) -> RetrieveTally:
        return RetrieveTally(self._towers)

    @property
    def columns(self) -> list[tuple[str, pa.DataType]]:
        return [(EMBEDDING + tower, pa.list_(pa.float32())) for tower in self._towers]

    def arrays(self, rows: Rows) -> dict[str, pa.Array]:
        there = towers_there(self._towers, rows)
        vectors = rows[EMBEDDINGS].reshape(len(there), len(self._towers), -1)
        return embedding_columns(list(self._towers), vectors, there)


class RetrieveTally:
    """See ``base.TaskTally``."""

    def __init__(self, towers: Towers) -> None:
        self._towers = dict(towers)
        self._embeddings: list[npt.NDArray[np.float32]] = []
        self._there: list[npt.NDArray[np.bool_]] = []
        self._positions: list[npt.NDArray[np.int64]] = []
        self._found: _Found | None = None

    def add(self, rows: Rows) -> npt.NDArray[np.float64]:
        there = towers_there(self._towers, rows)
        vectors = rows[EMBEDDINGS].reshape(len(there), len(self._towers), -1)
        self._embeddings.append(vectors)
        self._there.append(there)
        self._positions.append(rows[POSITION].astype(np.int64))
        self._found = None
        # No sample is better or worse than another before all are there: the report has searches instead.
        return np.zeros(len(there))

    def answers(self, rows: Rows, row: int) -> tuple[Answer, Answer]:
        raise AssertionError("a retrieval has searches, no examples")

    def metrics(self) -> list[Metrics]:
        figures = retrieval_scores.mean_figures({way: ranks for way, (ranks, _) in self._all.ways.items()})
        return [{**figures}]

    def baseline(self) -> Metrics:
        counts = [num_candidates for ranks, num_candidates in self._all.ways.values() if len(ranks)]
        told = [retrieval_scores.by_chance(count) for count in counts]
        return {name: float(np.mean([each[name] for each in told])) for name in told[0]}

    def running(self) -> dict[str, float]:
        return {}

    def details(self) -> RetrievalDetails:
        names, found = list(self._towers), self._all
        ways = [
            Way(names[one], names[other], len(ranks), count, retrieval_scores.figures(ranks))
            for (one, other), (ranks, count) in found.ways.items()
        ]
        return RetrievalDetails(ways, self._intervals(), self._towers)

    def searches(self, count: int) -> tuple[list[Search], list[Search]]:
        """Queries with the worst ranks, and others taken evenly over the dataset: up to so many of both, shared by the ways."""
        worst, even = [], []
        found = self._all
        ways = [(way, ranks) for way, (ranks, _) in found.ways.items() if len(ranks)]
        each = -(-count // len(ways)) if count else 0
        for way, ranks in ways:
            queries = found.queries(way)
            by_rank = np.argsort(-ranks, kind="stable")[:each]
            worst += [
                self._search(way, int(queries[place]), float(ranks[place])) for place in by_rank if ranks[place] > 1
            ]
            taken = np.unique(np.linspace(0, len(queries) - 1, min(each, len(queries))).round().astype(np.int64))
            even += [self._search(way, int(queries[place]), float(ranks[place])) for place in taken]
        return worst, even

    def _search(self, way: tuple[int, int], query: int, rank: float) -> Search:
        found, names = self._all, list(self._towers)
        candidates = found.candidates(way[1])
        cosines = found.embeddings[candidates, way[1]] @ found.embeddings[query, way[0]]
        nearest = np.argsort(-cosines, kind="stable")[:NUM_FOUND]
        return Search(
            query=int(found.positions[query]),
            towers=(names[way[0]], names[way[1]]),
            rank=rank,
            num_candidates=len(candidates),
            cosine=float(found.embeddings[query, way[1]] @ found.embeddings[query, way[0]]),
            found=[(int(found.positions[candidates[place]]), float(cosines[place])) for place in nearest],
        )

    def _intervals(self) -> dict[str, tuple[float, float]]:
        """Where the figures lie with 95% certainty: samples drawn again with replacement, the candidates as they are."""
        found = self._all
        sums = np.zeros((len(found.positions), len(_WITH_INTERVAL)))
        counts = np.zeros(len(found.positions))
        for way, (ranks, _) in found.ways.items():
            queries = found.queries(way)
            each_cutoff = [ranks <= cutoff for cutoff in retrieval_scores.CUTOFFS]
            sums[queries] += np.stack([*each_cutoff, 1 / ranks], axis=1)
            counts[queries] += 1
        chosen = counts > 0
        each = sums[chosen] / counts[chosen, None]
        random = np.random.default_rng(0)
        chances = np.full(len(each), 1 / len(each))
        means = [random.multinomial(len(each), chances) @ each / len(each) for _ in range(_RESAMPLES)]
        low, high = np.quantile(means, (0.025, 0.975), axis=0)
        return {name: (float(low[place]), float(high[place])) for place, name in enumerate(_WITH_INTERVAL)}

    @property
    def _all(self) -> _Found:
        if self._found is None:
            self._found = _Found(
                np.concatenate(self._embeddings), np.concatenate(self._there), np.concatenate(self._positions)
            )
        return self._found


_WITH_INTERVAL = (*(f"recall_at_{cutoff}" for cutoff in retrieval_scores.CUTOFFS), "mrr")


class _Found:
    """Everything, once it is there."""

    def __init__(
        self, embeddings: npt.NDArray[np.float32], there: npt.NDArray[np.bool_], positions: npt.NDArray[np.int64]
    ) -> None:
        self.embeddings = embeddings
        self.positions = positions
        self.ways = retrieval_scores.ways(embeddings, there)
        self._there = there

    def candidates(self, tower: int) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self._there[:, tower])

    def queries(self, way: tuple[int, int]) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self._there[:, way[0]] & self._there[:, way[1]])
