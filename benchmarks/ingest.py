"""Samples per second from tars to batches, side by side with the peers, on two CPUs for everyone.

    python -m venv .venv-peers
    .venv-peers/bin/pip install -r benchmarks/peers.txt \
        && .venv-peers/bin/pip install --no-deps mosaicml-streaming==0.13.0 megatron-energon==7.4.1
    python benchmarks/ingest.py --peers .venv-peers/bin/python

12,000 pictures of 640×480 (JPEG, about 180 kB), each with a text and a sensor series; out come batches of 64: uint8 224×224,
text, float32 series. Every contestant is a process of its own and runs once per round, in an order that changes; figures are
medians over the rounds. The steady rate is that of the samples between a sixth and five sixths, so that neither what was ready
before the first batch nor the emptying of buffers counts. The first 4,000 count from the making of the loader, with Python's
imports done and, for those on Ray, with Ray running: once without worker processes, once with those of an epoch before. The
limit is what two processes reach that only decode and resize the same pictures. Writes table and plot into docs.
"""

from __future__ import annotations

import argparse
import html
import io
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ray_mm.config.fields import FieldSpec, ImageField, SeriesField, TextField
from ray_mm.data.manifest import ShardInfo, Statistics, tokenizer_path, write_dataset
from ray_mm.data.sidecar import index_path, write_index
from ray_mm.preprocessing.tokenizer import train_tokenizer
from ray_mm.preprocessing.writer import write_tar

ROOT = Path(__file__).parents[1]
LOADERS = ROOT / "benchmarks" / "loaders"
SAMPLES, SHARDS = 12_000, 48
FIRST = 4000
WORDS = ["a", "car", "turns", "left", "at", "the", "crossing", "while", "it", "rains", "and", "two", "people", "wait"]


@dataclass(frozen=True)
class Contestant:
    """A loader, and the Python that it runs under."""

    name: str
    command: tuple[str, ...]
    is_peer: bool = True


def contestants(peers: str | None) -> list[Contestant]:
    """All that can run here."""
    ours = sys.executable
    found = [
        Contestant("limit: decode and resize alone", (ours, "bare.py"), is_peer=False),
        Contestant("ray_mm", (ours, "ours.py"), is_peer=False),
        Contestant("ray_mm, warm worker processes", (ours, "ours.py", "--warm"), is_peer=False),
        Contestant("WebDataset, Pillow", (ours, "wds.py", "--pillow")),
        Contestant("WebDataset, simplejpeg scaled", (ours, "wds.py")),
        Contestant("ray.data.read_webdataset, simplejpeg scaled", (ours, "ray_data.py")),
    ]
    if peers is not None:
        found += [
            Contestant("LitData, simplejpeg scaled", (peers, "lit.py")),
            Contestant("MosaicML Streaming, simplejpeg scaled", (peers, "mds.py")),
            Contestant("Energon, simplejpeg scaled", (peers, "nrg.py")),
        ]
    return found


def variants(readers: list[str]) -> list[Contestant]:
    """ray_mm with other numbers of readers and threads, with new and with warm worker processes."""
    found = []
    for each in readers:
        per_cpu, threads, *head = each.split(":")
        name = f"ray_mm, readers per CPU: {per_cpu}, threads: {threads}"
        options = ["--readers-per-cpu", per_cpu, "--threads", threads]
        if head:
            name += f", head: {int(head[0]):,}"
            options += ["--head-samples", *head]
        for more, kind in (((), ""), (("--warm",), ", warm worker processes")):
            found.append(Contestant(name + kind, (sys.executable, "ours.py", *more, *options), is_peer=False))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/ingest"), help="folder for 10 GB of samples")
    parser.add_argument(
        "--peers", help="Python with benchmarks/peers.txt installed; unset: without LitData, MDS and Energon"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--only", nargs="+", help="parts of contestants' names")
    parser.add_argument("--docs", type=Path, help="page to write the table into")
    parser.add_argument(
        "--readers",
        nargs="+",
        default=[],
        metavar="R:T[:HEAD]",
        help="ray_mm once more with R readers per CPU of T threads, and so many samples read by the worker",
    )
    args = parser.parse_args()
    data = args.data.absolute()
    make_samples(data, args.samples)
    everyone = contestants(args.peers) + variants(args.readers)
    chosen = [one for one in everyone if not args.only or any(part in one.name for part in args.only)]
    for folder, script in (("litdata", "lit.py"), ("mds", "mds.py"), ("energon", "nrg.py")):
        if args.peers is not None and not (data / folder).is_dir():
            subprocess.run([args.peers, script, "convert", str(data)], cwd=LOADERS, check=True)
    figures: dict[str, list[dict[str, float]]] = {one.name: [] for one in chosen}
    for number in range(args.rounds):
        for place in range(len(chosen)):
            one = chosen[(place + number) % len(chosen)]
            figures[one.name].append(measure(one, data))
            print(f"round {number + 1}: {one.name}: {figures[one.name][-1]}", file=sys.stderr, flush=True)
    section = table(figures, chosen)
    print(section)
    if args.docs is not None:
        plot = args.docs.with_name("ingest.svg")
        plot.write_text(
            bars({name: statistics.median(run["steady"] for run in runs) for name, runs in figures.items()})
        )
        section += f"\n\n![Steady samples per second of every loader]({plot.name})"
        args.docs.write_text(replace_section(args.docs.read_text(), "ingest", section))


def measure(one: Contestant, data: Path) -> dict[str, float]:
    """One run of a contestant."""
    python, script, *more = one.command
    done = subprocess.run(
        [python, script, *more, "--data", str(data)],
        cwd=LOADERS,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{one.name} failed:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if "rate" in found:
        return {"steady": found["rate"]}
    return summary(found["arrivals"])


def environment() -> dict[str, str]:
    """Of a contestant's process: this ray_mm, and one thread for what is not its loader."""
    return os.environ | {"PYTHONPATH": f"{ROOT}:{LOADERS}", "OMP_NUM_THREADS": "1"}


def summary(arrivals: list[tuple[float, int]]) -> dict[str, float]:
    """Rates of one run.

    Args:
        arrivals: seconds since the start and number of samples, of each batch.
    """
    times, seen = [time for time, _ in arrivals], np.cumsum([size for _, size in arrivals])
    begin, end = np.searchsorted(seen, [seen[-1] / 6, seen[-1] * 5 / 6])
    return {
        "steady": float((seen[end] - seen[begin]) / (times[end] - times[begin])),
        "first_samples": FIRST / times[int(np.searchsorted(seen, FIRST))],
        "first_batch": times[0],
        "samples": float(seen[-1]),
    }


def table(figures: dict[str, list[dict[str, float]]], chosen: list[Contestant]) -> str:
    """The medians as Markdown."""

    def median(name: str, key: str) -> float | None:
        values = [run[key] for run in figures[name] if key in run]
        return statistics.median(values) if values else None

    limit = median("limit: decode and resize alone", "steady") if "limit: decode and resize alone" in figures else None
    lines = [
        f"| loader | steady, samples/s | of the limit | the first {FIRST:,}, samples/s | first batch, s |",
        "|---|---:|---:|---:|---:|",
    ]
    for one in chosen:
        steady, whole, first = (median(one.name, key) for key in ("steady", "first_samples", "first_batch"))
        share = f"{steady / limit:.2f}" if limit and steady else "–"
        cells = [f"{value:,.{digits}f}" if value is not None else "–" for value, digits in ((whole, 0), (first, 2))]
        lines.append(f"| {one.name} | {steady:,.0f} | {share} | {' | '.join(cells)} |")
    return "\n".join(lines)


def bars(rates: dict[str, float]) -> str:
    """Horizontal bars as SVG, the highest rate first."""
    width, row, left = 700, 30, 330
    longest = max(rates.values())
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {row * len(rates) + 8}" '
        'font-family="system-ui, sans-serif" font-size="13" role="img">',
        "<style>text { fill: #1c2733 } @media (prefers-color-scheme: dark) { text { fill: #e4eaf0 } }</style>",
    ]
    for number, (name, rate) in enumerate(sorted(rates.items(), key=lambda each: -each[1])):
        top = 4 + number * row
        length = (width - left - 60) * rate / longest
        color = "#2f7fd3" if name.startswith("ray_mm") else "#8d99a6"
        lines += [
            f'<text x="{left - 8}" y="{top + 18}" text-anchor="end">{html.escape(name)}</text>',
            f'<rect x="{left}" y="{top + 4}" width="{length:.1f}" height="{row - 10}" rx="2" fill="{color}"/>',
            f'<text x="{left + length + 6:.1f}" y="{top + 18}">{rate:,.0f}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def replace_section(page: str, name: str, section: str) -> str:
    """Puts a section between its marks."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, _, rest = page.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"


def make_samples(data: Path, count: int, only: tuple[str, ...] = ("image", "caption", "imu")) -> None:
    """Writes the samples, once, as a dataset of tars."""
    folder = data / "tars"
    if (folder / "dataset.json").is_file():
        return
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    shards, texts = [], []
    for shard, rows in enumerate(np.array_split(np.arange(count), SHARDS)):
        samples = []
        for row in rows:
            texts.append(" ".join(rng.choice(WORDS, 12)))
            made = {"caption.txt": texts[-1].encode(), "imu.npy": series(rng)}
            if "image" in only:
                made = {"image.jpg": picture(rng), **made}
            samples.append((f"{row:06d}", made))
        path = folder / "shards" / f"{shard:06d}.tar"
        index = write_tar(path, samples)
        write_index(index_path(path), index)
        name = f"shards/{shard:06d}"
        shards.append(ShardInfo(f"{name}.tar", f"{name}.index.parquet", len(rows), path.stat().st_size, index.version))
    tokenizer = train_tokenizer(texts)
    tokenizer_path(folder, "caption").write_text(tokenizer)
    fields: dict[str, FieldSpec] = {
        "image": ImageField(height=224, width=224),
        "caption": TextField(max_tokens=16, vocabulary_size=len(json.loads(tokenizer)["model"]["vocab"])),
        "imu": SeriesField(channels=6, max_length=100),
    }
    fields = {name: fields[name] for name in only}
    members = {"image": ("image.jpg",), "caption": ("caption.txt",), "imu": ("imu.npy",)}
    write_dataset(
        folder,
        name="ingest",
        shards=shards,
        fields=fields,
        members={name: members[name] for name in only},
        presence=dict.fromkeys(fields, count),
        label_counts={},
        statistics={"imu": Statistics(mean=(0.0,) * 6, std=(1.0,) * 6)},
    )


def picture(rng: np.random.Generator) -> bytes:
    """A JPEG of 640×480 with texture at several scales, about 180 kB."""
    pixels = np.full((480, 640, 3), 127.0, np.float32)
    for side, strength in ((8, 60.0), (40, 30.0), (160, 22.0)):
        coarse = rng.standard_normal((side * 3 // 4, side, 3), np.float32) * strength
        pixels += cv2.resize(coarse, (640, 480), interpolation=cv2.INTER_CUBIC)
    pixels += rng.standard_normal((480, 640, 1), np.float32) * 18.0
    encoded = cv2.imencode(".jpg", np.clip(pixels, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 91])[1]
    return bytes(encoded)


def series(rng: np.random.Generator) -> bytes:
    """An NPY of float32 [100, 6]."""
    stream = io.BytesIO()
    np.save(stream, rng.standard_normal((100, 6), np.float32))
    return stream.getvalue()


if __name__ == "__main__":
    main()
