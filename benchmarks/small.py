"""Samples per second where samples are small, a text and a sensor series of 2.5 kB: beside WebDataset, on two CPUs.

    python benchmarks/small.py

With small samples it is not decoding that limits a loader but what it does for every sample and every batch. 120,000 samples,
batches of 64. ray_mm makes token numbers of the text; WebDataset leaves it a string, as its users would have to do that
themselves. Each is a process of its own, they take turns, and figures are medians of the rate between a sixth and five sixths.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import ingest
import numpy as np

FIELDS = ("caption", "imu")
_OURS = """
import argparse, os, sys
from pathlib import Path
import torch
import ours, common
from ray_mm.session import ray_session
torch.set_num_threads(1)
folder = Path(sys.argv.pop(1))
settings = {"block_bytes": 1} if "ALONE" in os.environ else {}
with ray_session():
    common.run(
        lambda args: ours.make_loader(args, folder, fields=("caption", "imu"), **settings),
        lambda batch: batch.stop - batch.start,
    )
"""
_WEBDATASET = """
import sys
from pathlib import Path
import numpy as np
import torch
import webdataset
from common import BATCH, WORKERS, decode_series, run
torch.set_num_threads(1)
sys.argv.pop(1)

def collate(samples):
    texts, series = zip(*samples)
    return list(texts), np.stack(series)

def loader(args):
    shards = sorted(str(path) for path in (Path(args.data) / "tars" / "shards").glob("*.tar"))
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), nodesplitter=webdataset.split_by_node, seed=0)
        .shuffle(1000)
        .map(lambda found: (found["caption.txt"].decode(), decode_series(found["imu.npy"])))
        .batched(BATCH, collation_fn=collate)
    )
    return torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=WORKERS)

run(loader, lambda batch: len(batch[0]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/small"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--docs", type=Path, help="page to write the table into")
    args = parser.parse_args()
    data = args.data.absolute()
    ingest.make_samples(data, 120_000, FIELDS)
    figures: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, code in (("ray_mm", _OURS), ("ray_mm, a batch per block", _OURS), ("WebDataset", _WEBDATASET)):
            done = subprocess.run(
                [sys.executable, "-c", code, str(data / "quarantine"), "--data", str(data)],
                env=ingest.environment() | ({"ALONE": "1"} if "a batch per block" in name else {}),
                capture_output=True,
                text=True,
                check=True,
            )
            arrivals = json.loads(done.stdout.strip().splitlines()[-1])["arrivals"]
            figures.setdefault(name, []).append(ingest.summary(arrivals)["steady"])
            print(name, figures[name][-1], file=sys.stderr, flush=True)
    lines = ["| loader | samples/s | least | most |", "|---|---:|---:|---:|"]
    for name, rates in figures.items():
        lines.append(f"| {name} | {statistics.median(rates):,.0f} | {np.min(rates):,.0f} | {np.max(rates):,.0f} |")
    print("\n".join(lines))
    if args.docs is not None:
        args.docs.write_text(ingest.replace_section(args.docs.read_text(), "small", "\n".join(lines)))


if __name__ == "__main__":
    main()
