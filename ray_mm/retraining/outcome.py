"""How a night ends, as far as its new samples decide it; what is noted of them, and what is told of the end. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ray_mm.compression.gate import Check
from ray_mm.config.retrain import RetrainJob
from ray_mm.retraining.arrivals import Incoming, oldest_hours
from ray_mm.retraining.clock import written
from ray_mm.retraining.gates import main_figure
from ray_mm.retraining.jobs import NEWEST, TRAIN
from ray_mm.retraining.night import Night
from ray_mm.retraining.validation import Judgement, Look


@dataclass(frozen=True)
class End:
    """How a night ends.

    Attributes:
        status: ``promoted``, ``refused``, ``stopped`` or ``skipped``.
        reason: in a sentence.
    """

    status: str
    reason: str


def end_after_look(job: RetrainJob, looked: Mapping[str, Any], shards: Sequence[Incoming], until: float) -> End | None:
    """Whether the night ends before anything is trained, and how; None: it goes on.

    Args:
        job: of the retraining.
        looked: what ``judgement_note`` says.
        shards: that are new.
        until: end of the data interval.
    """
    checks = [Check(**check) for check in looked["checks"]]
    rejected, num_samples = len(looked["rejected"]), looked["num_samples"]
    if not checks[0].passed:
        return End("stopped", f"{rejected} of {len(shards)} new shards are bad (validation.max_bad_shards)")
    waited, limit = oldest_hours(shards, until), job.incoming.max_age_hours
    is_old = limit is not None and waited is not None and waited >= limit and num_samples > 0
    if num_samples < job.incoming.min_samples and not is_old:
        wanted = f"{job.incoming.min_samples:,} are wanted (arrivals.min_samples)"
        return End("skipped", f"{num_samples:,} new samples, {wanted}")
    missed = [check for check in checks if not check.passed]
    if missed:
        told = ", ".join(
            f"{check.criterion} is {'not known' if check.measured is None else f'{check.measured:.3g}'}, at most {check.limit:g}"
            for check in missed
        )
        return End("stopped", f"the new samples are not like those that are known: {told}")
    if not all(looked["splits"].get(split) for split in (TRAIN, NEWEST)):
        return End("skipped", f"{num_samples:,} new samples are too few to hold some of them out (holdout)")
    return None


def judgement_note(found: Judgement, looks: Sequence[Look], tars: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """What is noted of new shards, or of tables, whose ``tars`` are others."""
    accepted = set(found.accepted)
    good = [one for one in looks if one.url in accepted]
    splits: dict[str, int] = {}
    for one in good:
        for split, count in one.splits.items():
            splits[split] = splits.get(split, 0) + count
    unreadable = sorted({name for one in looks for name in one.unreadable})
    return {
        "accepted": [one.url for one in good],
        "tars": [tar for one in good for tar in tars[one.url]],
        "rejected": dict(found.rejected),
        "checks": [asdict(check) for check in found.verdict.checks],
        "num_samples": found.num_samples,
        "splits": splits,
        "counts": {one.url: one.num_samples for one in good},
        "contents": {one.url: one.content for one in good if one.content is not None},
        "num_unreadable": {name: sum(one.unreadable.get(name, 0) for one in looks) for name in unreadable},
    }


def figures_of(job: RetrainJob, night: Night) -> dict[str, Any]:
    """Numbers of a night, for its result, its message and the history."""
    arrived, looked, indexed = (night.note(name) for name in ("01-arrivals", "02-look", "03-index"))
    new = arrived.get("new", [])
    accepted = set(looked.get("accepted", []))
    moved = night.note("14-watermark")
    return {
        "metric": main_figure(job.train.model.task, job.gates),
        "scores": night.note("11-gates").get("figures", {}),
        "num_shards": len(new),
        "num_quarantined": len(looked.get("rejected", {})),
        "num_refused": len(arrived.get("refused", [])),
        "num_samples": looked.get("num_samples", 0),
        "num_consumed": moved.get("num_samples", 0),
        "num_held_out": (indexed.get("num_samples") or {}).get(NEWEST, 0),
        "size_bytes": sum(shard["size"] for shard in new if shard["url"] in accepted),
        "durations": night.durations(),
    }


def message_of(job: RetrainJob, night: Night, end: End, champion: int | None, report: str | None) -> dict[str, Any]:
    """What is told of a night: plain values. One that failed, and stays open, has no report yet."""
    facts = night.facts
    return {
        "job": job.name,
        "night": facts.id,
        "status": end.status,
        "reason": end.reason,
        "since": None if facts.since is None else written(facts.since),
        "until": written(facts.until),
        "champion": champion,
        "before": facts.champion,
        "report": report,
        **{key: value for key, value in figures_of(job, night).items() if key != "durations"},
    }
