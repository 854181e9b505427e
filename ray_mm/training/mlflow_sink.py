"""A training's parameters, metrics and artifacts in MLflow: sent by the driver, from what lies in the run's folder.

<run>/mlflow.json    the MLflow run, and the last steps whose metrics it has: a training that goes on does so in the same run

The workers know nothing of it. A store that does not answer is told once, and what it missed is sent when it answers again, at
the end, or by the same command later.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray_mm.auth import redacted
from ray_mm.config.tracking import MlflowConfig
from ray_mm.errors import StopRequested, UsageError
from ray_mm.progress import notice
from ray_mm.run_folder import versions
from ray_mm.storage import write_json
from ray_mm.training.metrics_tail import MetricsTail
from ray_mm.training.mlflow_store import database, open_client, require_mlflow, safe_text, store_uri
from ray_mm.training.plan import Training
from ray_mm.training.provenance import flattened, working_copy

NOTES = "mlflow.json"
_SEND_EVERY_S = 2.0
_LAST_WORDS_S = 30.0
"""How long a store is waited for at the end, without the upload of a checkpoint."""
_MAX_PAUSE_S = 60.0
_MAX_METRICS, _MAX_PARAMS = 1000, 100
"""Of one request: what every version of MLflow takes."""
_SYSTEM = {
    "machine_cpu": ("system/cpu_utilization_percentage", 100.0),
    "machine_memory": ("system/system_memory_usage_percentage", 100.0),
    "device_memory": ("system/gpu_0_memory_usage_percentage", 100.0),
    "device_memory_bytes": ("system/gpu_0_memory_usage_megabytes", 1e-6),
}
"""Key of a line → the name under which MLflow shows it among system metrics, and what it is multiplied by."""


@contextlib.contextmanager
def mlflow_run(training: Training) -> Iterator[MlflowSink | None]:
    """Within the block the training's metrics go to MLflow, where the job wants that; it ends the MLflow run with it.

    Raises:
        UsageError: MLflow can't be used as the job says; nothing was started.
    """
    config = training.job.tracking.mlflow
    if config is None:
        yield None
        return
    sink = MlflowSink(training, config)
    sink.start()
    status = "FAILED"
    try:
        yield sink
        status = "FINISHED"
    except (StopRequested, KeyboardInterrupt):
        status = "KILLED"
        raise
    finally:
        sink.end(status)


def send_the_rest(training: Training, result: Mapping[str, Any]) -> None:
    """Of a training that is done: what MLflow did not take at its end. A store that still does not answer is no error."""
    config, notes = training.job.tracking.mlflow, _notes(training.run)
    if config is None or notes.get("ended", True) or notes.get("uri") != store_uri(training.job):
        return
    try:
        require_mlflow(training.job)
        with mlflow_run(training) as sink:
            assert sink is not None
            sink.result = result
    except UsageError as error:
        notice(f"MLflow still lacks a part of this training: {error}")


class MlflowSink:
    """Sends what is new every few seconds, in a thread.

    Args:
        training: whose metrics they are.
        config: of the job.

    Attributes:
        result: of the training, once it is done.

    Raises:
        UsageError: the store can't be used.
    """

    def __init__(self, training: Training, config: MlflowConfig) -> None:
        self._training, self._config, self._run = training, config, training.run
        self._uri = store_uri(training.job)
        self.result: Mapping[str, Any] | None = None
        earlier = _notes(self._run)
        if earlier.get("uri") != self._uri:  # another store knows nothing of it
            earlier = {}
        self._sent: dict[str, int] = dict(earlier.get("sent", {}))
        self._tail = MetricsTail(self._run, self._sent)
        self._pending: list[dict[str, Any]] = []
        self._lost, self._pause_s, self._retry_at = False, 0.0, 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_all_along, name="mlflow", daemon=True)
        try:
            self._client = open_client(self._uri)
            self._id = earlier.get("run_id") or self._create_run()
            self._describe()
        except UsageError:
            raise
        except Exception as error:  # of MLflow, of its database, of its HTTP client
            raise UsageError(
                f"tracking.mlflow: {self._uri} can't be used ({_words(error)}). Mend it, choose another uri, or leave "
                f"tracking.mlflow out; to begin a new MLflow run, remove {self._run / NOTES}."
            ) from error
        self._write_notes(ended=False)

    def start(self) -> None:
        """Begins to send."""
        self._thread.start()

    def end(self, status: str) -> None:
        """Sends what is left, and ends the MLflow run.

        Args:
            status: FINISHED, FAILED or KILLED.
        """
        self._stop.set()
        self._thread.join(_LAST_WORDS_S)
        last = threading.Thread(target=self._end, args=(status,), name="mlflow", daemon=True)
        if not self._thread.is_alive():
            last.start()
            # Who asks for an upload waits for it.
            last.join(None if self._config.upload_checkpoint and self.result is not None else _LAST_WORDS_S)
        if self._thread.is_alive() or last.is_alive():
            self._tell_unsent("it does not answer")

    def _end(self, status: str) -> None:
        self._pending += self._tail.read()
        try:
            self._send_pending()
            self._leave_artifacts()
            self._client.set_terminated(self._id, status)
        except Exception as error:
            self._tell_unsent(_words(error))
            return
        if self._lost:
            notice("MLflow takes metrics again; it has all of them.")
        self._write_notes(ended=True)

    def _tell_unsent(self, reason: str) -> None:
        notice(
            f"MLflow ({self._uri}) lacks the end of this training ({reason}); all of it is in {self._run}, and the same command "
            "sends the rest."
        )

    def _send_all_along(self) -> None:
        while not self._stop.wait(_SEND_EVERY_S):
            self._send_new()

    def _send_new(self) -> None:
        self._pending += self._tail.read()
        if not self._pending or time.monotonic() < self._retry_at:
            return
        num_pending = len(self._pending)
        try:
            self._send_pending()
        except Exception as error:  # whatever it is, the training goes on
            if not self._lost:
                notice(
                    f"MLflow ({self._uri}) takes no metrics at the moment ({_words(error)}). The training goes on; they are "
                    "kept in metrics.jsonl, and sent when it takes them again."
                )
            self._lost = True
            self._pause_s = min(_MAX_PAUSE_S, 2 * self._pause_s or _SEND_EVERY_S)
            self._retry_at = time.monotonic() + self._pause_s
            return
        if self._lost:
            notice(f"MLflow takes metrics again; {num_pending:,} lines were sent.")
        self._lost, self._pause_s = False, 0.0

    def _send_pending(self) -> None:
        from mlflow.entities import Metric

        while self._pending:
            metrics: list[Metric] = []
            lines: list[dict[str, Any]] = []
            for line in self._pending:
                of_line = [
                    Metric(name, value, round(1000 * line.get("time", time.time())), line["step"])
                    for name, value in _values(line)
                ]
                if metrics and len(metrics) + len(of_line) > _MAX_METRICS:
                    break
                metrics += of_line
                lines.append(line)
            self._client.log_batch(self._id, metrics=metrics, synchronous=True)
            del self._pending[: len(lines)]
            self._sent |= {line["kind"]: line["step"] for line in lines}
            self._write_notes(ended=False)

    def _create_run(self) -> str:
        job = self._training.job
        name = self._config.experiment or job.name
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            number = experiment.experiment_id
        else:
            # A server decides by itself where artifacts lie.
            beside = database(self._uri).parent / "mlartifacts" if self._uri.startswith("sqlite:") else None
            number = self._create_experiment(name, beside.as_uri() if beside is not None else None)
        return str(self._client.create_run(number, run_name=self._run.name).info.run_id)

    def _create_experiment(self, name: str, artifacts: str | None) -> str:
        try:
            return str(self._client.create_experiment(name, artifacts))
        except Exception:
            # Another training may have been faster.
            experiment = self._client.get_experiment_by_name(name)
            if experiment is None:
                raise
            return str(experiment.experiment_id)

    def _describe(self) -> None:
        """What is known before the training begins; of one that goes on, what has changed."""
        from mlflow.entities import Param, RunTag

        job = self._training.job
        known = self._client.get_run(self._id).data.params
        self._client.update_run(self._id, status="RUNNING")
        content = job.model_dump(mode="json", exclude={"tracking", "schedule"})
        params = {key: safe_text(value) for key, value in flattened(content)}
        new = [Param(key, value) for key, value in params.items() if key not in known]
        for start in range(0, len(new), _MAX_PARAMS):
            self._client.log_batch(self._id, params=new[start : start + _MAX_PARAMS], synchronous=True)
        tags = {**self._tags(), **self._config.tags}
        # A parameter of MLflow never changes.
        tags |= {f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value}
        self._client.log_batch(
            self._id, tags=[RunTag(key, safe_text(value)) for key, value in tags.items()], synchronous=True
        )
        self._client.log_inputs(self._id, datasets=self._datasets())
        self._client.log_text(self._id, redacted((self._run / "job.json").read_text()), "job.json")

    def _tags(self) -> dict[str, str]:
        tags = {
            "mlflow.source.name": "ray-mm",
            "mlflow.source.type": "LOCAL",
            "mlflow.user": getpass.getuser() if os.environ.get("USER") else str(os.getuid()),
            "kind": self._training.job.kind,
            "output": str(self._run),
            "host": platform.node(),
            "data_digest": self._training.data_digest,
            **{f"version.{package}": version for package, version in versions().items()},
        }
        code = working_copy(Path.cwd())
        if code is not None:
            tags |= {"mlflow.source.git.commit": code.commit, "git_dirty": str(code.dirty).lower()}
        return tags

    def _datasets(self) -> Sequence[Any]:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        training = self._training
        read = [("training", selection) for selection in training.train.selections]
        if training.validation is not None:
            read += [("validation", selection) for selection in training.validation.selections]
        found = []
        for context, selection in read:
            path = selection.source.path
            name, source = Path(path).name or context, json.dumps({"uri": safe_text(path)})
            # MLflow has room for 36 characters of a digest.
            dataset = Dataset(name, selection.digest[:36], "local", source)
            found.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        return found

    def _leave_artifacts(self) -> None:
        from mlflow.entities import Metric

        for page in sorted(self._run.glob("profile/*/summary.html")):
            self._client.log_artifact(self._id, str(page), f"profile/{page.parent.name}")
        if self.result is None:
            return
        now = round(1000 * time.time())
        numbers = {name: value for name, value in self.result["metrics"].items() if isinstance(value, (int, float))}
        metrics = [Metric(f"result/{name}", float(value), now, 0) for name, value in numbers.items()]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)
        self._client.log_artifact(self._id, str(self._run / "result.json"))
        checkpoint = str(self.result["checkpoint"])
        self._client.set_tag(self._id, "checkpoint", checkpoint)
        if self._config.upload_checkpoint:
            self._client.log_artifacts(self._id, checkpoint, "checkpoint")

    def _write_notes(self, ended: bool) -> None:
        with contextlib.suppress(OSError):  # a full disk is told where something is lost by it
            notes = {"uri": self._uri, "run_id": self._id, "sent": self._sent, "ended": ended}
            write_json(self._run / NOTES, notes)


def _values(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if name in _SYSTEM:
            shown, factor = _SYSTEM[name]
            yield shown, factor * value
        elif name not in ("kind", "step", "time"):
            yield f"{line['kind']}/{name}", float(value)


def _notes(run: Path) -> dict[str, Any]:
    try:
        content = json.loads((run / NOTES).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _words(error: Exception) -> str:
    """The reason, in a line that is not too long."""
    # A database adds its statement.
    text = " ".join(str(error).partition("[SQL:")[0].split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
