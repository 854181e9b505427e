"""A job → the stage that runs it.

preprocess   table      → dataset       preprocessing/preprocess.py
train        datasets   → checkpoint    training/train.py
evaluate     checkpoint → report        evaluation/evaluate.py
predict      checkpoint → predictions   prediction/predict.py
compress     checkpoint → artifact      compression/compress.py
tune         datasets   → best job      tuning/tune.py
"""

from __future__ import annotations

from typing import Any, Literal

from typing_extensions import assert_never

from ray_mm.config.base import map_locations
from ray_mm.config.compress import CompressJob
from ray_mm.config.evaluate import EvaluateJob
from ray_mm.config.load import StageJob, settled_keys
from ray_mm.config.predict import PredictJob
from ray_mm.config.preprocess import PreprocessJob
from ray_mm.config.train import TrainJob
from ray_mm.config.tune import TuneJob
from ray_mm.errors import UsageError
from ray_mm.registered import pinned
from ray_mm.run_folder import check_output
from ray_mm.session import private_ray_ahead, use_address
from ray_mm.storage import local_path


def run_stage(job: StageJob, address: str | None = None, resume: str = "exact") -> dict[str, Any]:
    """Runs a loaded job of one stage; see ``running.run_job``. The stage starts Ray when it has checked what can be checked
    without."""
    if resume not in ("exact", "force"):
        raise UsageError(f"--resume: takes exact or force, found {resume!r}.")
    if resume == "force" and not isinstance(job, TrainJob):
        raise UsageError(
            f"--resume force: only a training goes on with other settings, and this is one of kind {job.kind}."
        )
    # One version from here on: what is promoted meanwhile is another run's.
    job = map_locations(job, pinned)
    # The stage looks again; here it is known before torch or Ray is imported.
    check_output(job, settled_keys(job) if resume == "exact" else ())
    with (
        use_address(address, local_path(job.output)),
        private_ray_ahead(with_models=not isinstance(job, PreprocessJob)),
    ):
        match job:
            case PreprocessJob():
                from ray_mm.preprocessing.preprocess import run_preprocess

                return run_preprocess(job)
            case TrainJob():
                from ray_mm.profile_page import write_profile_page
                from ray_mm.training.baselines import run_baselines
                from ray_mm.training.train import run_train

                how: Literal["force", "exact"] = "force" if resume == "force" else "exact"
                result = run_train(job, how, write_profile_page)
                if job.train.baselines:
                    result = run_baselines(job, result, lambda alone: run_train(alone, how))
                return result
            case EvaluateJob():
                from ray_mm.evaluation.evaluate import run_evaluate

                return run_evaluate(job)
            case PredictJob():
                from ray_mm.prediction.predict import run_predict

                return run_predict(job)
            case CompressJob():
                from ray_mm.compression.compress import run_compress

                return run_compress(job)
            case TuneJob():
                from ray_mm.tuning.tune import run_tune

                return run_tune(job)
            case _:
                assert_never(job)
