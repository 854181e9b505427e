"""What becomes of a training whose workers end with an error: it ends, too, or others go on.

Ray Train itself takes every error of a worker for a crash and starts the workers again, ``train.max_failures`` times.
"""

from __future__ import annotations

import errno
from typing import Any

import ray.train
from ray.train.v2._internal.execution.failure_handling.default import DefaultFailurePolicy
from ray.train.v2._internal.execution.failure_handling.failure_policy import FailureDecision

from ray_mm.errors import RayMMError, StorageError
from ray_mm.session import cause_of
from ray_mm.training.stopping import LeaveRequested


class StopAtOnce(ray.train.UserCallback):  # type: ignore[misc]  # Ray is not typed
    """Ends the run at an error that another start of the workers would only meet again: one of ours, or a full disk.

    This runs in Ray Train's controller, where an error is final.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises what a worker raised, or what it met in a read task, if that was raised on purpose."""
        for _, error in sorted(worker_exceptions.items()):
            cause = cause_of(error)
            if isinstance(cause, RayMMError):
                raise cause
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageError(
                    f"{cause.filename or 'the run'}: can't be written ({cause.strerror}). The checkpoints are whole: make room, "
                    "and run the same command again to go on."
                )


class LeavingIsNoFailure(DefaultFailurePolicy):  # type: ignore[misc]
    """Starts others for workers that were asked to leave, however often."""

    def make_decision(self, training_failed_error: Any) -> Any:
        """Of an error of the workers, or of the controller: whether to try again."""
        failures = getattr(training_failed_error, "worker_failures", {})
        if any(isinstance(cause_of(error), LeaveRequested) for error in failures.values()):
            return FailureDecision.RETRY
        return super().make_decision(training_failed_error)
