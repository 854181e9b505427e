"""Every error that ray_mm raises on purpose, as one tree. The command line maps it to an exit status.

RayMMError                  exit 1   something failed while it ran
├── UsageError              exit 2   the call, the job file or what it points at is wrong; nothing was started
│   ├── JobFileError                 a key or value of a job file, with its line
│   ├── DatasetError                 a dataset that is missing, incomplete, newer, or does not fit
│   ├── CheckpointError              a checkpoint or artifact that is missing, damaged, newer, or of another model
│   ├── OutputFolderError            an output folder that belongs to another job
│   └── RegistryError                a registry, or what retraining keeps, that is damaged, newer, or lacks what was asked for
├── StorageError            exit 1   an object store or a disk does not give or take what it should
│   ├── ObjectMissingError           there is nothing at a URL
│   ├── ObjectChangedError           an object is no longer the one that was indexed
│   └── WriteConflictError           a conditional write lost against another writer
├── SampleError             exit 1   one sample can't be read or decoded; always begins ``shard[key].field:``
├── QuarantineBudgetError   exit 1   more bad samples than the job allows
├── OrderError              exit 1   a batch arrived out of its planned place: an internal error, never ignored
├── TrainingDivergedError   exit 1   the loss is no longer finite
├── LeaseHeld               exit 1   another run is at work, and has the lease
├── LeaseLost               exit 1   a run is no longer the one that may write: another one has taken the lease
├── StopRequested           exit 143 a training was asked to end, and has saved its state
└── GateRefused             exit 3   a gate said no; the run itself went well
"""

from __future__ import annotations


class RayMMError(Exception):
    """Base of all; the message is one paragraph: the value found, what was expected, what to change."""

    exit_status = 1


class UsageError(RayMMError):
    """The call, the job file or what it points at is wrong."""

    exit_status = 2


class JobFileError(UsageError):
    """A key or a value of a job file."""


class DatasetError(UsageError):
    """A dataset that is missing, incomplete, of a newer format, or does not fit the job."""


class CheckpointError(UsageError):
    """A checkpoint or artifact that is missing, damaged, of a newer format, or of another model."""


class OutputFolderError(UsageError):
    """An output folder that belongs to another job."""


class RegistryError(UsageError):
    """A model registry, or what retraining keeps, that is damaged, of a newer format, or lacks what was asked for."""


class StorageError(RayMMError):
    """An object store or a disk does not give or take what it should."""


class ObjectMissingError(StorageError):
    """There is nothing at a URL."""


class ObjectChangedError(StorageError):
    """An object is no longer the one that was seen before."""


class WriteConflictError(StorageError):
    """A conditional write lost against another writer."""


class SampleError(RayMMError):
    """One member of one sample can't be read or decoded.

    Args:
        shard: the shard's path, relative to its dataset.
        key: the sample's key.
        field: the field whose member is bad.
        reason: what is wrong with it, in a few words.
    """

    def __init__(self, shard: str, key: str, field: str, reason: str) -> None:
        super().__init__(f"{shard}[{key}].{field}: {reason}")
        self.shard = shard
        self.key = key
        self.field = field
        self.reason = reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str, str, str]]:
        return type(self), (self.shard, self.key, self.field, self.reason)


class QuarantineBudgetError(RayMMError):
    """More samples were quarantined than ``data.bad_samples`` allows."""


class TrainingDivergedError(RayMMError):
    """The loss is no longer finite."""


class LeaseHeld(RayMMError):  # noqa: N818 - whoever comes second has made no mistake
    """Another run is at work, and has the lease."""


class LeaseLost(RayMMError):  # noqa: N818 - it says what has become of the lease
    """A run may not write any more: it did not renew its lease in time, or another one has taken it since."""


class OrderError(RayMMError):
    """A batch arrived out of its planned place."""


class StopRequested(RayMMError):  # noqa: N818 - no mistake of anybody's
    """A training was asked to end, by SIGTERM or its ``.stop`` file, and has saved its state."""

    exit_status = 143


class GateRefused(RayMMError):  # noqa: N818 - a refusal is a result, not a failure
    """A gate said no."""

    exit_status = 3
