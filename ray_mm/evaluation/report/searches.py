"""Searches of a retrieval → cards: the query, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ray_mm.evaluation.report.cards import FoundCard, SampleViews, SearchCard
from ray_mm.evaluation.report.content import Search


def search_cards(
    searches: Sequence[Search], samples: SampleViews, towers: Mapping[str, Sequence[str]]
) -> list[SearchCard]:
    """Draws searches.

    Args:
        searches: positions and cosines.
        samples: draws them.
        towers: tower → its fields, of which alone the query and what it finds are shown.

    Raises:
        DatasetError: a shard is gone or has changed since it was scored.
    """
    cards = []
    for search in searches:
        by, among = search.towers
        _, key, views, _ = samples.draw(search.query, towers[by])
        found = []
        for position, cosine in search.found:
            _, name, seen, _ = samples.draw(position, towers[among])
            found.append(FoundCard(name, f"{cosine:.2f}", position == search.query, seen))
        place = f"{search.rank:,.0f}" if search.rank == round(search.rank) else f"{search.rank:,.1f}"
        verdict = f"the right one is number {place} of {search.num_candidates:,}, cosine {search.cosine:.2f}"
        cards.append(SearchCard(key, search.towers, verdict, search.rank == 1, views, tuple(found)))
    return cards
