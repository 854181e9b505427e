"""The private Ray that the tests of a process share, started as ``ray_session`` starts one."""

from __future__ import annotations

import contextlib

from ray_mm.forking.start import forked_workers, in_place_of_python

_running = contextlib.ExitStack()


def start() -> None:
    """Starts it, with two CPUs and the environment that this process has; one that runs is stopped before."""
    import ray

    stop()
    executable = _running.enter_context(forked_workers(["torch"], ["ray.train.torch", "ray_mm.training.worker"]))
    with in_place_of_python(executable):
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)


def stop() -> None:
    """Stops it."""
    import ray

    ray.shutdown()
    _running.close()
