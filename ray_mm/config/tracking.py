"""``tracking:`` of a train job: where else, beside the run's folder, its metrics go."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from ray_mm.config.base import Config


class MlflowConfig(Config):
    """MLflow: parameters, metrics and artifacts of the training. It needs the extra ``ray_mm[mlflow]``."""

    uri: str | None = None
    """A server, such as ``https://mlflow.example.org``, or a file, such as ``sqlite:///runs/mlflow.db``. Who logs in at a server
    does so with MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment. Unset: the
    file ``mlflow.db`` beside the run's folder."""
    experiment: str | None = Field(default=None, min_length=1)
    """Name of the experiment. Unset: the job's name."""
    tags: dict[str, str] = Field(default={})
    """More tags of the run."""
    upload_checkpoint: bool = False
    """Upload the best checkpoint at the end, too. Otherwise a tag says where it lies."""

    @field_validator("uri")
    @classmethod
    def _is_safe(cls, uri: str | None) -> str | None:
        # The value is in no message: it may hold what nobody else may read.
        if uri is None or re.fullmatch(r"sqlite:///[^?]+", uri):
            return uri
        address = re.fullmatch(r"https?://(?P<user>[^/?#]*@)?[^/?#@]+(/[^?#@]*)?(?P<more>[?#].*)?", uri)
        if address is None:
            raise ValueError("expected a server, http(s)://HOST[:PORT], or a file, sqlite:///PATH")
        if address["user"] or address["more"]:
            raise ValueError(
                "only the address of the server belongs here, without user, password or token: put those into the environment, "
                "as MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return uri


class TrackingConfig(Config):
    """Where metrics go beside ``metrics.jsonl`` and TensorBoard, which are always there."""

    mlflow: MlflowConfig | None = None
    """MLflow; ``{}`` turns it on as it is. Unset: not used."""
