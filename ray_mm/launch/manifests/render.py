"""``ray-mm render TARGET JOB``: a target and what is rendered → files, shown or written into a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ray_mm.errors import UsageError
from ray_mm.launch.manifests import kuberay
from ray_mm.launch.manifests.cron import render_cron
from ray_mm.launch.manifests.parts import Call, commented, dns_name
from ray_mm.launch.manifests.slurm import render_slurm
from ray_mm.launch.manifests.systemd import render_systemd
from ray_mm.storage import write_atomic

TARGETS = {"slurm": render_slurm, "systemd": render_systemd, "cron": render_cron}
FORMS = {
    "rayjob": kuberay.ray_job,
    "raycluster": kuberay.ray_cluster,
    "raycronjob": kuberay.ray_cron_job,
    "cronjob": kuberay.cron_job,
}


def render(target: str, call: Call, form: str | None = None) -> dict[str, str]:
    """File name → content.

    Args:
        target: ``kuberay``, ``slurm``, ``systemd`` or ``cron``.
        call: what is rendered.
        form: of KubeRay: ``rayjob``, ``raycluster``, ``raycronjob`` or ``cronjob``; None: ``cronjob`` where the job has a
            schedule, else ``rayjob``.

    Raises:
        UsageError: there is no such target, or the job can't be run by it.
    """
    if target == "kuberay":
        form = form or ("rayjob" if call.job.schedule is None else "cronjob")
        if form not in FORMS:
            raise UsageError(f"--form: takes {', '.join(FORMS)}; found {form!r}.")
        header = commented([call.header, f"Apply it with: kubectl apply -f {dns_name(call.job.name)}.{form}.yaml"])
        return {f"{dns_name(call.job.name)}.{form}.yaml": header + as_yaml(FORMS[form](call))}
    if target not in TARGETS:
        raise UsageError(f"render: takes kuberay, {', '.join(TARGETS)}; found {target!r}.")
    if form is not None:
        raise UsageError(f"--form is a choice of kuberay, and {target} has one form only; leave it out.")
    return TARGETS[target](call)


def as_yaml(manifests: list[dict[str, Any]]) -> str:
    """Several documents."""
    return "".join(f"---\n{yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=120)}" for manifest in manifests)


def write_files(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Writes them into a folder, in the place of what was rendered there before.

    Raises:
        UsageError: a file of that name is there that was not rendered, or the folder can't be written.
    """
    for name, content in files.items():
        path = folder / name
        if path.exists() and "ray-mm render" not in path.read_text(encoding="utf-8", errors="replace")[:400]:
            raise UsageError(f"{path}: is there, and was not written by ray-mm render; name another folder.")
        assert "ray-mm render" in content[:400]
    try:
        for name, content in files.items():
            write_atomic(folder / name, content)
    except OSError as error:
        raise UsageError(f"{folder}: can't be written ({error.strerror}); name another folder.") from None
    return [folder / name for name in files]


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such, and no aliases: not everything that reads YAML knows them."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # A text with spaces before a line end can't be written as a block.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
