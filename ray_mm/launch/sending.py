"""``python -m ray_mm.launch.sending RUN``: on a cluster's head, a run's folder → its small files, as an answer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ray_mm.errors import RayMMError
from ray_mm.launch.answer import give_answer
from ray_mm.launch.packing import pack
from ray_mm.progress import notice

MODULE = "ray_mm.launch.sending"


def main() -> int:
    """Sends what was asked for; its exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--checkpoint", action="store_true")
    given = parser.parse_args()
    try:
        answer = pack(given.run, given.checkpoint)
    except RayMMError as error:
        notice(str(error))
        return error.exit_status
    give_answer(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
