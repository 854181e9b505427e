"""Processes that race for a lease and for a promotion, round after round; says what became of it, as JSON.

    python -m tests.retraining.race ROOT PROCESSES ROUNDS

ROOT is a registry with a model ``driving`` that has two versions for each process. In each round all but the last holder take the
same lease at the same moment, and whoever gets it promotes; then all who had it in an earlier round try with their old number,
and all promote without a lease, each a version of its own, expecting the same champion.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import sys
from collections import Counter
from typing import Any

from ray_mm.errors import LeaseHeld, LeaseLost, WriteConflictError
from ray_mm.retraining.lease import Lease
from ray_mm.retraining.registry import Registry
from ray_mm.storage.conditional import Documents


def run(root: str, number: int, rounds: int, barrier: Any, results: Any) -> None:
    """One of the processes."""
    documents, registry = Documents(root), Registry(root, "driving")
    own = (2 * number + 1, 2 * number + 2)
    old: int | None = None
    found: dict[str, list[Any]] = {"fences": [], "stale": [], "promoted": []}
    for turn in range(rounds):
        barrier.wait()
        lease, had_it_last = None, old is not None and old == turn
        with contextlib.suppress(LeaseHeld):
            if not had_it_last:
                lease = Lease.take(documents, "lease.json", f"process {number}", wait_s=0, heartbeat=False)
        if lease is not None:
            champion = registry.champion()
            registry.admit(lease.fence)
            registry.promote(own[0] if champion != own[0] else own[1], champion, lease.fence)
            found["fences"].append(lease.fence)
        barrier.wait()
        champion = registry.champion()
        challenger = own[0] if champion != own[0] else own[1]
        if lease is None and old is not None:
            try:
                registry.promote(challenger, champion, old)
                found["stale"].append("promoted")
            except LeaseLost:
                found["stale"].append("refused")
        barrier.wait()
        with contextlib.suppress(WriteConflictError):
            registry.promote(challenger, champion)
            found["promoted"].append(turn)
        if lease is not None:
            old = lease.fence
            lease.release()
    results.put(found)


def main(root: str, processes: int, rounds: int) -> None:
    """Runs them, and says what they found."""
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(processes, timeout=60), context.Queue()
    running = [
        context.Process(target=run, args=(root, number, rounds, barrier, results), daemon=True)
        for number in range(processes)
    ]
    for process in running:
        process.start()
    found = [results.get(timeout=300) for _ in running]
    for process in running:
        process.join()
    winners = Counter(turn for one in found for turn in one["promoted"])
    told = {
        "fences": sorted(fence for one in found for fence in one["fences"]),
        "stale": dict(Counter(text for one in found for text in one["stale"])),
        "winners_per_round": sorted(set(winners.values())),
        "rounds_with_a_winner": len(winners),
        "exit_statuses": sorted({process.exitcode for process in running}),
    }
    sys.stdout.write(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
