"""Whether a task can be trained with the settings of a training."""

from __future__ import annotations

from ray_mm.config.tasks.kinds import TaskConfig, labelled_tasks
from ray_mm.config.tasks.maps import GridTask, SegmentTask
from ray_mm.config.tasks.reconstruct import ReconstructTask
from ray_mm.config.tasks.retrieve import RetrieveTask


def check_settings(task: TaskConfig, baselines: bool, micro_batches: int, batch_size: int) -> None:
    """Checks a task against settings of its training.

    Args:
        task: of the model.
        baselines: whether each field is trained alone, too.
        micro_batches: parts into which a share of a batch is cut.
        batch_size: samples per step.

    Raises:
        ValueError: one does not go with the task.
    """
    if baselines and isinstance(task, RetrieveTask | ReconstructTask):
        raise ValueError(
            f"train.baselines trains each field alone, and the task {task.type} is another one then: it is about the fields "
            "themselves; leave it out"
        )
    if baselines and any(isinstance(each, SegmentTask | GridTask) for each in labelled_tasks(task).values()):
        raise ValueError(
            f"train.baselines trains each field alone, and the task {task.type} makes a map from one of them; leave it out"
        )
    if not isinstance(task, RetrieveTask):
        return
    if micro_batches > 1:
        raise ValueError(
            f"train.micro_batches {micro_batches}: the task retrieve compares each sample with all others of the batch, so it "
            "can't be cut; leave it out, and lower data.batch_size or raise resources.workers"
        )
    if batch_size < 2:
        raise ValueError(
            "data.batch_size 1: the task retrieve compares each sample with the others of the batch; set at least 2"
        )
