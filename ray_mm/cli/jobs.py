"""Verbs on this machine: run a job, look at data, search."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from ray_mm.cli.common import JobFile, Overrides, RayAddress, Unauthenticated, show, verb
from ray_mm.errors import GateRefused, UsageError


@verb
def run(
    job: JobFile,
    overrides: Overrides = None,
    address: RayAddress = None,
    resume: Annotated[
        str, typer.Option(metavar="exact|force", help="force: a training goes on although settings have changed.")
    ] = "exact",
) -> None:
    """Run a job here. Running it again goes on where it was interrupted."""
    from ray_mm.config.load import load_job, parse_overrides
    from ray_mm.running import run_loaded
    from ray_mm.summary import read_result, result_parts

    loaded = load_job(job, parse_overrides(overrides or []))
    try:
        result = run_loaded(loaded, address, resume)
    except GateRefused:
        show(result_parts(read_result(loaded.output), loaded.output))
        raise
    show(result_parts(result, loaded.output))


@verb
def check(job: JobFile, overrides: Overrides = None) -> None:
    """Validate a job file and what it names, without starting anything."""
    from ray_mm.config.load import load_job, parse_overrides

    loaded = load_job(job, parse_overrides(overrides or []))
    from ray_mm.check import check_job

    lines = check_job(loaded)
    print(f"{job}: a valid {loaded.kind} job, {loaded.name!r}")
    for line in lines:
        print(f"  {line}")


@verb
def schema(
    kind: Annotated[
        str | None, typer.Argument(help="preprocess, train, evaluate, predict, compress, tune or retrain.")
    ] = None,
    keys: Annotated[
        bool, typer.Option("--keys", help="A line per key instead: what it takes, default, meaning.")
    ] = False,
) -> None:
    """Print the JSON Schema of job files, for editors; or their keys, for people."""
    import json

    from ray_mm.config.keys import key_lines
    from ray_mm.config.load import job_schema

    if keys:
        print("\n".join(key_lines(kind)))
    else:
        print(json.dumps(job_schema(kind), indent=2))


@verb
def demo(
    output: Annotated[str, typer.Option(metavar="FOLDER", help="For its data and runs.")] = "runs/demo",
) -> None:
    """Run the whole path on generated data, then say where the report is."""
    from ray_mm.demo.demo import run_demo
    from ray_mm.storage import local_path

    run_demo(local_path(output))


@verb
def inspect(
    paths: Annotated[list[str], typer.Argument(metavar="DATASET|TARS...")],
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="Of tars: also write a page with a few samples drawn.")
    ] = None,
) -> None:
    """Show what is in a dataset, or in tars: files, folders, globs, {0..9}, s3://, gs://, https://."""
    from ray_mm.data.inspect import describe
    from ray_mm.summary import titled_table

    if html is not None:
        from ray_mm.gallery import write_gallery
        from ray_mm.storage import local_path

        found = [write_gallery(local_path(html), paths)]
    for inspection in describe(paths) if html is None else found:
        show(titled_table(*table) for table in inspection.tables)
        if inspection.job:
            print(f"a job to begin with:\n\n{inspection.job}")


@verb
def index(
    tars: Annotated[list[str], typer.Argument(metavar="TARS...")],
    output: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="For the indexes, on this machine. Unset: beside the tars.")
    ] = None,
    crc: Annotated[bool, typer.Option("--crc", help="Read every member, too, for its CRC32C.")] = False,
    max_unpacked: Annotated[str, typer.Option(help="Largest tar that a .tgz may unpack to.")] = "16GiB",
) -> None:
    """Index tars that are there already: files, folders, globs, {0..9}, s3://, gs://, https://."""
    from ray_mm.data.indexing import index_tars

    for report in index_tars(tars, output, crc, max_unpacked):
        print(report)


@verb
def quarantine(
    what: Annotated[str, typer.Argument(metavar="list|replay", help="Show them, or decode them once more.")],
    of: Annotated[str, typer.Argument(metavar="RUN|DATASET", help="A run, its quarantine, or a dataset.")],
    runs: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Of a dataset: where the runs are that read it. Unset: runs."),
    ] = None,
) -> None:
    """Show the samples that a run, or all runs on a dataset, could not read, and whether they can be read now."""
    from ray_mm.data.replay import RUNS
    from ray_mm.storage import local_path
    from ray_mm.summary import listed_quarantine, replayed_quarantine

    if what not in ("list", "replay"):
        raise UsageError(f"quarantine: takes list or replay, found {what!r}.")
    show((listed_quarantine if what == "list" else replayed_quarantine)(of, local_path(runs or RUNS)))


@verb
def search(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A predict or evaluate run of a retrieval.")],
    image: Annotated[str | None, typer.Option(metavar="FILE", help="A picture to search by.")] = None,
    text: Annotated[str | None, typer.Option(metavar="WORDS", help="A text to search by.")] = None,
    query: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="A field of the query: a file, or a text. Again for more."),
    ] = None,
    among: Annotated[str | None, typer.Option(help="The side that is searched. Unset: the other one.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many are shown.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Find what is nearest to a picture, a text or whatever side a sample has."""
    import json

    from ray_mm.search import open_index, query_of
    from ray_mm.summary import titled_table

    index = open_index(run)
    sample = query_of(index, {"image": image, "text": text}, query or [])
    hits = index.search(sample, among, top)
    if as_json:
        print(json.dumps([{"key": hit.key, "cosine": round(hit.cosine, 4)} for hit in hits], indent=2))
    else:
        rows = [(str(place), f"{hit.cosine:.3f}", hit.key) for place, hit in enumerate(hits, start=1)]
        show([titled_table("nearest", ("", "cosine", "key"), rows)])


@verb
def doctor(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="A job file, of a training.")] = None,
    overrides: Overrides = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="For measuring each stage of the job, about.")] = 3.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
    address: RayAddress = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="NAME|URL", help="Look at every node of this cluster instead.")
    ] = None,
    allow_unauthenticated: Unauthenticated = False,
) -> None:
    """Look at this machine, Ray and the GPU; of a training, also measure which of its stages will limit it."""
    from ray_mm.config.load import load_job, parse_overrides

    if cluster is not None and (job is not None or address is not None):
        raise UsageError("--cluster: is looked at without a job and without --address; leave those out.")

    loaded = None if job is None else load_job(job, parse_overrides(overrides or []))
    if loaded is not None and loaded.kind != "train":
        raise UsageError(
            f"{job}: is of kind {loaded.kind}; doctor measures a train job. For this one: ray-mm check {job}"
        )
    import json

    from ray_mm import doctor
    from ray_mm.summary import examined_parts

    worst, parts = doctor.Level.OK, []
    if cluster is None:
        examined: Iterator[Any] = doctor.examine(loaded, seconds, address)
    else:
        from ray_mm.cluster_doctor import examine_cluster
        from ray_mm.config.cluster import find_cluster

        examined = examine_cluster(find_cluster(cluster), allow_unauthenticated)
    for part in examined:
        parts.append(part)
        worst = max(worst, part.level) if isinstance(part, doctor.Finding) else worst
        if as_json:
            continue
        if isinstance(part, doctor.Finding):
            print(part.line(), flush=True)
        else:
            show(examined_parts(part))
    if as_json:
        print(json.dumps(doctor.as_json(parts), indent=2))
    if worst is doctor.Level.FAIL:
        raise typer.Exit(1)
