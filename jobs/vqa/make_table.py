"""easy-VQA → data/tables/vqa/table.csv, a row per question about a picture.

    python jobs/vqa/make_table.py --data FOLDER --output data/tables/vqa

FOLDER holds the unpacked archive, ``easy_vqa/easy_vqa/data``. Its own test folder is the test split, as it is. For
validation, one in twenty of the training pictures is held out with all of its questions, so that no picture is in two
splits; which ones a hash of the picture's number decides, so it is the same everywhere.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import sys
from pathlib import Path

COLUMNS = ("key", "image", "question", "answer", "picture", "split")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with easy_vqa/")
    parser.add_argument("--output", type=Path, default=Path("data/tables/vqa"), help="folder for table.csv")
    args = parser.parse_args()
    data, output = args.data.resolve(), args.output.resolve()
    rows = make_rows(data / "easy_vqa" / "easy_vqa" / "data")
    output.mkdir(parents=True, exist_ok=True)
    with (output / "table.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        for row in rows:
            # Relative, so that table and files can be moved together.
            writer.writerow(row | {"image": os.path.relpath(row["image"], output)})
    for split in ("train", "validation", "test"):
        of_split = [row for row in rows if row["split"] == split]
        print(f"{split:10} {len(of_split):6,} questions, {len({row['picture'] for row in of_split}):5,} pictures")
    print(output / "table.csv")


def make_rows(data: Path) -> list[dict[str, str]]:
    """All questions of both folders; see the module's docstring for the splits."""
    rows = []
    for folder in ("train", "test"):
        listing = data / folder / "questions.json"
        if not listing.is_file():
            sys.exit(f"{listing}: no such file; unpack easy_vqa.tar.gz into the folder that --data names")
        for number, (question, answer, picture) in enumerate(json.loads(listing.read_text())):
            held_out = hashlib.sha256(f"easy-vqa {picture}".encode()).digest()[0] * 20 < 256
            rows.append(
                {
                    "key": f"{folder}-{number:05}",
                    "image": str(data / folder / "images" / f"{picture}.png"),
                    "question": question,
                    "answer": answer,
                    "picture": f"{folder}-{picture}",
                    "split": "validation" if folder == "train" and held_out else folder,
                }
            )
    return rows


if __name__ == "__main__":
    main()
