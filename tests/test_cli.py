"""The command line answers at once, ends with the right status, and says what went wrong in one paragraph."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ray_mm.cli import app
from ray_mm.config.load import JOB_KINDS
from tests.calling import REPOSITORY, python, ray_mm, write_job
from tests.factories import make_dataset

VERBS = (
    "run",
    "check",
    "schema",
    "demo",
    "inspect",
    "index",
    "quarantine",
    "search",
    "doctor",
    "submit",
    "status",
    "list",
    "logs",
    "stop",
    "fetch",
    "cluster",
    "version",
    "schedule",
    "render",
    "metrics",
    "registry",
)
HEAVY = ("torch", "ray", "pandas", "pyarrow", "matplotlib", "onnxruntime", "webdataset", "cv2", "rich", "jinja2")


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("datasets")
    make_dataset(folder / "data" / "small" / "train", 6)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [("--help",), ("check", "job.yaml"), ("schema",), ("version",), ("run", "--help"), ("registry", "--help")],
)
def test_nothing_heavy_is_imported_to_answer_at_once(datasets: Path, arguments: tuple[str, ...]) -> None:
    write_job(datasets)
    code = f"""
import sys
sys.argv[1:] = {arguments!r}
from ray_mm.cli import main
try:
    main()
finally:
    print("heavy:", sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    ran = python(code, datasets)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.rstrip().endswith("heavy: []")


def test_help_lists_every_verb_and_none_that_is_not_there(tmp_path: Path) -> None:
    ran = ray_mm(tmp_path, "--help")
    commands = ran.stdout.split("Commands:\n")[1].split("\n\n")[0]
    assert tuple(line.split()[0] for line in commands.splitlines()) == VERBS


def test_every_verb_has_help() -> None:
    for verb in app.registered_commands:
        assert verb.callback is not None
        assert (verb.callback.__doc__ or "").endswith("."), verb.callback.__name__


def test_it_runs_as_a_module(tmp_path: Path) -> None:
    code = "import runpy, sys; sys.argv = ['ray_mm', 'version']; runpy.run_module('ray_mm', run_name='__main__')"
    assert python(code, tmp_path).stdout.startswith("ray_mm ")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("rum",), "there is no verb 'rum'; did you mean 'run'? Verbs are run, check, "),
        (("run",), "run: missing argument 'JOB'; ray-mm run --help says what it takes."),
        (("run", "j", "--sett", "a=1"), "run: there is no option --sett; ray-mm run --help shows those that it has."),
        (
            ("run", "j", "--epochs", "3"),
            "run: there is no option --epochs; a setting is overridden with --set train.epochs=3.",
        ),
        (
            ("check", "j", "--lr=1e-4"),
            "check: there is no option --lr; a setting is overridden with --set train.optimizer.lr=1e-4.",
        ),
        (("logs",), "logs: missing argument 'ID'; "),
        (("registry",), "registry: missing command; ray-mm registry --help says what it takes."),
        (
            ("registry", "promot"),
            "registry: there is no verb 'promot'; did you mean 'promote'? Verbs are list, show, promote, ",
        ),
        (("registry", "promote"), "registry promote: missing argument 'REGISTRY#NAME@VERSION'; "),
    ],
)
def test_a_wrong_call_is_told_in_one_line(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    ran = ray_mm(tmp_path, *arguments)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith(f"ray-mm: {told}")
    assert len(ran.stderr.splitlines()) == 1


def test_no_arguments_show_the_help_and_are_no_success(tmp_path: Path) -> None:
    ran = ray_mm(tmp_path)
    assert ran.returncode == 2 and "Usage: ray-mm" in ran.stdout


def test_the_version_is_an_option_too(tmp_path: Path) -> None:
    ran = ray_mm(tmp_path, "--version")
    assert (ran.returncode, ran.stdout.split()[0], ran.stderr) == (0, "ray_mm", "")


def test_a_folder_is_no_job_file(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    ran = ray_mm(tmp_path, "run", "runs")
    assert (ran.returncode, ran.stderr) == (2, "ray-mm: runs: is a folder; expected a job file, in YAML.\n")


@pytest.mark.parametrize("verb", ["run", "check", "submit", "doctor"])
def test_a_missing_job_file_is_told_in_one_line(tmp_path: Path, verb: str) -> None:
    ran = ray_mm(tmp_path, verb, "absent.yaml")
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", "ray-mm: absent.yaml: no such job file.\n")


def test_a_misspelled_key_names_the_file_the_line_and_the_nearest_key(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("kind: train\nname: fit\ntrain:\n  epoch: 3\n")
    ran = ray_mm(tmp_path, "run", "job.yaml")
    assert ran.returncode == 2
    assert ran.stderr.startswith("ray-mm: job.yaml:4: train.epoch: unknown key 'epoch'; did you mean 'epochs'?")
    assert len(ran.stderr.splitlines()) == 1


def test_set_overrides_a_key(datasets: Path) -> None:
    write_job(datasets)
    assert ray_mm(datasets, "check", "job.yaml", "--set", "train.epochs=3").returncode == 0
    ran = ray_mm(datasets, "check", "job.yaml", "--set", "train.epochs=three", "--set", "seed=1")
    assert (ran.returncode, "train.epochs='three'" in ran.stderr) == (2, True)


def test_check_tells_what_it_found(datasets: Path) -> None:
    write_job(datasets)
    ran = ray_mm(datasets, "check", "job.yaml")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith("job.yaml: a valid train job, 'fit'\n  data.train: ")
    assert "6 samples of audio (audio), image (image)" in ran.stdout


def test_check_ends_with_status_2_where_something_is_missing(tmp_path: Path) -> None:
    write_job(tmp_path)
    ran = ray_mm(tmp_path, "check", "job.yaml")
    assert ran.returncode == 2
    assert ran.stdout == "", "nothing sounds like success"
    # All of it stands in one line of JSON.
    assert ran.stderr.startswith(f"ray-mm: job.yaml:1: data.train: {tmp_path}/data/small/train: no such dataset folder")


def test_what_the_data_says_is_told_with_the_line_of_the_key(datasets: Path) -> None:
    lines = ["kind: train", "name: fit", "data:", "  train: data/small/train", "model:", "  fields: {camera: {}}"]
    lines += ["  task: {type: classify, label: label}", "output: out"]
    (datasets / "lines.yaml").write_text("\n".join(lines))
    ran = ray_mm(datasets, "check", "lines.yaml")
    assert ran.returncode == 2
    assert ran.stderr.startswith("ray-mm: lines.yaml:6: model.fields.camera: the dataset has no field 'camera'")
    ran = ray_mm(datasets, "check", "lines.yaml", "--set", "data.train=nowhere")
    assert ran.stderr.startswith("ray-mm: lines.yaml with data.train='nowhere': data.train: /")


def test_doctor_refuses_what_it_can_not_measure_in_one_line(datasets: Path) -> None:
    write_job(datasets, "evaluate")
    ran = ray_mm(datasets, "doctor", "job.yaml")
    assert (ran.returncode, ran.stdout) == (2, "")
    told = "job.yaml: is of kind evaluate; doctor measures a train job. For this one: ray-mm check job.yaml"
    assert ran.stderr == f"ray-mm: {told}\n"
    write_job(datasets)
    ran = ray_mm(datasets, "doctor", "job.yaml", "--set", "data.train=nowhere")
    assert (ran.returncode, ran.stdout, len(ran.stderr.splitlines())) == (2, "", 1)
    assert "no such dataset folder" in ran.stderr
    ran = ray_mm(datasets, "doctor", "job.yaml", "--set", "model.fields.sound={}")
    assert (ran.returncode, ran.stdout) == (2, "") and "the dataset has no field 'sound'" in ran.stderr
    ran = ray_mm(datasets, "doctor", "job.yaml", "--seconds", "0")
    assert (ran.returncode, ran.stdout) == (2, "") and "seconds" in ran.stderr


def test_an_output_folder_of_another_job_is_told_before_anything_heavy_is_imported(datasets: Path) -> None:
    (datasets / "taken").mkdir()
    (datasets / "taken" / "holiday.jpg").touch()
    write_job(datasets, output="taken")
    for verb in ("check", "run"):
        before = "import atexit; atexit.register(lambda: print(sorted({'torch', 'ray'} & set(sys.modules))))"
        ran = ray_mm(datasets, verb, "job.yaml", before=before)
        assert ran.returncode == 2 and "exists and is not a run's folder" in ran.stderr
        assert ran.stdout == "[]\n"


def test_schema_is_json_of_one_kind_or_of_all(tmp_path: Path) -> None:
    assert json.loads(ray_mm(tmp_path, "schema").stdout)["discriminator"]["mapping"].keys() == JOB_KINDS.keys()
    assert json.loads(ray_mm(tmp_path, "schema", "train").stdout)["title"] == "TrainJob"


def test_keys_are_listed_for_people(tmp_path: Path) -> None:
    ran = ray_mm(tmp_path, "schema", "train", "--keys")
    lines = ran.stdout.splitlines()
    assert (ran.returncode, ran.stderr) == (0, "")
    at = lines.index("train.optimizer.lr: number, default 0.001")
    assert lines[at + 1] == "    Peak learning rate."
    assert "output: text, required" in lines
    assert "  model.fusion, where method is cross_attention:" in lines
    assert any(
        line.startswith("model.fields.NAME.encoder: cnn | vit | recurrent | transformer | mel_cnn | ") for line in lines
    )
    assert ray_mm(tmp_path, "schema", "tran", "--keys").returncode == 2


def test_a_pipe_that_is_closed_early_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m ray_mm schema | head -1"
    ran = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
    assert (ran.stdout, ran.stderr) == ("{\n", "")


def test_inspect_shows_a_dataset_and_tars(datasets: Path) -> None:
    shown = ray_mm(datasets, "inspect", "data/small/train")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "samples" in shown.stdout and "image" in shown.stdout
    tars = sorted(str(path) for path in (datasets / "data/small/train/shards").glob("*.tar"))
    together = ray_mm(datasets, "inspect", *tars)
    assert "6 samples" in together.stdout, "several tars are counted together"


def test_inspect_of_what_is_not_there_ends_with_status_2(tmp_path: Path) -> None:
    assert ray_mm(tmp_path, "inspect", "absent").returncode == 2


def test_index_writes_the_sidecars(tmp_path: Path) -> None:
    make_dataset(tmp_path / "set", 4, ("image", "label"), num_shards=1)
    (shard,) = (tmp_path / "set" / "shards").glob("*.tar")
    sidecar = shard.with_suffix(".index.parquet")
    sidecar.unlink()
    ran = ray_mm(tmp_path, "index", str(shard))
    assert ran.returncode == 0 and ran.stderr.startswith("index: 1/1 shards")
    assert ran.stdout.startswith(f"{shard}: 4 samples")
    assert sidecar.is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ("index", "x.tar", "--output"),
        ("inspect", "x.tar", "--html"),
        ("demo", "--output"),
        ("quarantine", "list", "x", "--runs"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_is_written_or_listed_here_is_not_in_a_store(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    ran = ray_mm(tmp_path, *arguments, "s3://bucket/folder")
    assert ran.returncode == 2 and "s3://bucket/folder: s3:// can't be used here" in ran.stderr
    assert not list(tmp_path.iterdir())


def test_version_names_what_decides_a_run(tmp_path: Path) -> None:
    names = [line.split()[0] for line in ray_mm(tmp_path, "version").stdout.splitlines()]
    assert names[:4] == ["ray_mm", "python", "ray", "torch"]
