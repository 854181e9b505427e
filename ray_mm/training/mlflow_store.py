"""The MLflow that a job names: whether it can be used, and what may be sent there."""

from __future__ import annotations

import importlib.util
import logging
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from ray_mm.auth import redacted
from ray_mm.config.train import TrainJob
from ray_mm.errors import UsageError
from ray_mm.storage import local_path

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

_CONNECT_TIMEOUT_S = 5.0
_MAX_TEXT = 500
"""Characters of a value that every version of MLflow takes."""


def require_mlflow(job: TrainJob) -> None:
    """Looks whether what the job wants of MLflow is installed, and its server there.

    Raises:
        UsageError: it is not.
    """
    config = job.tracking.mlflow
    if config is None:
        return
    uri = store_uri(job)
    needed = ("mlflow", "sqlalchemy", "alembic") if uri.startswith("sqlite:") else ("mlflow",)
    if any(importlib.util.find_spec(name) is None for name in needed):
        raise UsageError(
            "tracking.mlflow needs MLflow where the job is run; install it with pip install 'ray_mm[mlflow]', or leave it out."
        )
    if uri.startswith("http"):
        _require_answer(uri)


def store_uri(job: TrainJob) -> str:
    """The store, in full: the same one wherever the next command is given."""
    assert job.tracking.mlflow is not None
    uri = job.tracking.mlflow.uri or f"sqlite:///{local_path(job.output).absolute().parent / 'mlflow.db'}"
    return f"sqlite:///{database(uri)}" if uri.startswith("sqlite:") else uri.rstrip("/")


def database(uri: str) -> Path:
    """The file of a store that is one."""
    return Path(uri.removeprefix("sqlite:///")).expanduser().absolute()


def _require_answer(uri: str) -> None:
    try:
        urllib.request.urlopen(f"{uri}/health", timeout=_CONNECT_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        error.close()  # whoever refuses is there
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UsageError(
            f"tracking.mlflow.uri: nothing answers at {uri} ({reason}); start the server, mend the address, or leave the key out "
            "for a file beside the run's folder."
        ) from None


def open_client(uri: str) -> MlflowClient:
    """A client, set up so that a store that is gone is given up within seconds. Importing MLflow takes some."""
    for name, value in (
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "10"),
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
    ):
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    for name in ("mlflow", "alembic"):
        # What goes wrong reaches us as an exception, and is told once, without a traceback.
        if not _log.isEnabledFor(logging.DEBUG):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    if uri.startswith("sqlite:"):
        database(uri).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


def safe_text(text: str) -> str:
    """A text without secrets, and not too long for a value in MLflow."""
    text = redacted(text)
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
