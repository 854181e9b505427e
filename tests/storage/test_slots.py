"""Slots of a fixed size on a local disk: whole or not there, shared, and within a budget."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ray_mm.storage.slots import SUM_BYTES, Slots, open_slots

SIZE = 100
ALL = 10 * (SIZE + SUM_BYTES)
"""Bytes of ten slots."""


def opened(folder: Path, name: str = "a", num_slots: int = 10, budget: int = ALL) -> Slots:
    return open_slots(folder, name, SIZE, num_slots, budget)


def content(number: int) -> list[npt.NDArray[np.uint8]]:
    """What a slot holds in these tests, in two parts."""
    drawn = np.random.default_rng(number % 97).integers(0, 256, SIZE, np.uint8)
    return [drawn[:30], drawn[30:]]


def found(slots: Slots, number: int) -> bytes | None:
    parts = [np.zeros(70, np.uint8), np.zeros(30, np.uint8)]
    return b"".join(map(bytes, parts)) if slots.read(number, parts) else None


def expected(number: int) -> bytes:
    return b"".join(map(bytes, content(number)))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        byte = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([byte ^ 4]))


def test_a_slot_is_what_was_written_or_not_there(tmp_path: Path) -> None:
    slots = opened(tmp_path)
    assert slots.num_slots == 10
    for number in (0, 3, 9):
        slots.write(number, content(number))
    for other in (slots, opened(tmp_path)):
        assert [number for number in range(-1, 12) if other.is_there(number)] == [0, 3, 9]
        assert {number: found(other, number) for number in range(-1, 12)} == {
            number: expected(number) if number in (0, 3, 9) else None for number in range(-1, 12)
        }


def test_numbers_that_there_is_no_room_for_are_not_written(tmp_path: Path) -> None:
    slots = opened(tmp_path, num_slots=4)
    for number in (-1, 4, 10):
        slots.write(number, content(number))
    assert (tmp_path / "a.slots" / "content").stat().st_size == 4 * SIZE
    assert not np.fromfile(tmp_path / "a.slots" / "content", np.uint8).any()


def test_a_slot_of_nothing_but_zeros_is_there_once_it_was_written(tmp_path: Path) -> None:
    slots = opened(tmp_path)
    zeros = [np.zeros(SIZE, np.uint8)]
    assert not slots.read(5, zeros)
    slots.write(5, zeros)
    assert slots.read(5, zeros) and not slots.read(6, zeros)


@pytest.mark.parametrize("file", ["content", "checksums"])
def test_a_flipped_bit_makes_a_slot_as_if_it_were_not_there(tmp_path: Path, file: str) -> None:
    slots = opened(tmp_path)
    each = SIZE if file == "content" else SUM_BYTES
    for place in range(0, each, max(1, each // 20)):
        slots.write(2, content(2))
        slots.write(3, content(3))
        flip(tmp_path / "a.slots" / file, 2 * each + place)
        assert found(slots, 2) is None and found(slots, 3) == expected(3)
    slots.write(2, content(2))
    assert found(slots, 2) == expected(2)


def test_what_lies_in_the_place_of_another_slot_is_not_taken_for_it(tmp_path: Path) -> None:
    slots = opened(tmp_path)
    slots.write(2, content(2))
    for file, each in (("content", SIZE), ("checksums", SUM_BYTES)):
        path = tmp_path / "a.slots" / file
        whole = bytearray(path.read_bytes())
        whole[3 * each : 4 * each] = whole[2 * each : 3 * each]
        path.write_bytes(whole)
    assert found(slots, 2) == expected(2) and found(slots, 3) is None


def test_files_that_are_cut_are_slots_that_are_not_there(tmp_path: Path) -> None:
    slots = opened(tmp_path)
    for number in range(10):
        slots.write(number, content(number))
    os.truncate(tmp_path / "a.slots" / "content", 5 * SIZE + 50)
    os.truncate(tmp_path / "a.slots" / "checksums", 8 * SUM_BYTES + 1)
    assert [number for number in range(10) if found(slots, number)] == [0, 1, 2, 3, 4]
    again = opened(tmp_path)
    assert again.num_slots == 10
    assert [number for number in range(10) if found(again, number)] == [0, 1, 2, 3, 4]


def test_the_budget_holds_for_all_names_together_and_what_is_in_use_stays(tmp_path: Path) -> None:
    first = opened(tmp_path, "first", 6)
    second = opened(tmp_path, "second", 6)
    assert (first.num_slots, second.num_slots) == (6, 4)
    third = opened(tmp_path, "third", 6)
    assert third.num_slots == 0
    third.write(0, content(0))
    assert found(third, 0) is None
    used = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert used == ALL


def test_what_nobody_uses_goes_the_least_recently_used_first(tmp_path: Path) -> None:
    for age, name in enumerate(("newest", "older", "oldest")):
        opened(tmp_path, name, 3).write(1, content(1))
        os.utime(tmp_path / f"{name}.slots" / "lock", (10**9 - age, 10**9 - age))
    in_use = opened(tmp_path, "older", 3)
    os.utime(tmp_path / "older.slots" / "lock", (1, 1))
    assert opened(tmp_path, "wanted", 4).num_slots == 4
    assert sorted(path.stem for path in tmp_path.glob("*.slots")) == ["newest", "older", "wanted"]
    assert found(in_use, 1) == expected(1) and found(opened(tmp_path, "newest", 3), 1) == expected(1)


def test_slots_become_more_at_any_time_and_fewer_when_nobody_uses_them(tmp_path: Path) -> None:
    slots = opened(tmp_path, num_slots=5)
    for number in range(5):
        slots.write(number, content(number))
    more = opened(tmp_path, num_slots=8)
    more.write(7, content(7))
    assert more.num_slots == 8 and found(more, 4) == expected(4)
    # In use by two, so it keeps what it has.
    assert opened(tmp_path, num_slots=8, budget=ALL // 5).num_slots == 8
    del slots, more
    fewer = opened(tmp_path, num_slots=8, budget=ALL // 5)
    assert fewer.num_slots == 2
    assert [found(fewer, number) for number in range(3)] == [expected(0), expected(1), None]
    # What was cut off does not come back.
    assert [number for number in range(10) if found(opened(tmp_path), number)] == [0, 1]


def test_what_else_lies_in_the_folder_is_let_alone(tmp_path: Path) -> None:
    (tmp_path / ("0" * 32)).mkdir()
    (tmp_path / ("0" * 32) / "1.block").write_bytes(bytes(5 * ALL))
    assert opened(tmp_path).num_slots == 10
    assert (tmp_path / ("0" * 32) / "1.block").exists()


_WRITER = """
import sys
from pathlib import Path
from tests.storage.test_slots import content, opened
slots = opened(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    for number in range(10):
        slots.write(number, content(number))
"""


def test_processes_that_write_the_same_and_are_killed_leave_whole_slots_or_none(tmp_path: Path) -> None:
    slots = opened(tmp_path)
    for _ in range(3):
        writers = [
            subprocess.Popen([sys.executable, "-c", _WRITER, str(tmp_path)], stdout=subprocess.PIPE) for _ in range(2)
        ]
        try:
            for writer in writers:
                assert writer.stdout is not None and writer.stdout.readline() == b"ready\n"
            # While they write, too.
            for _ in range(200):
                assert {found(slots, 4), expected(4)} <= {None, expected(4)}
        finally:
            for writer in writers:
                writer.send_signal(signal.SIGKILL)
                writer.communicate()
        assert all(found(slots, number) in (None, expected(number)) for number in range(10))
    # Their locks went with them.
    del slots
    assert opened(tmp_path, "other").num_slots == 10
    assert not (tmp_path / "a.slots").exists()


def test_a_disk_that_takes_no_more_is_an_error(tmp_path: Path) -> None:
    # A limit on the size of a file is what a process can do to itself that a full disk does to it.
    script = f"""
import resource, sys
from pathlib import Path
from tests.storage.test_slots import content, opened
slots = opened(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, ({4 * SIZE + SIZE // 2},) * 2)
slots.write(3, content(3))
for number in (4, 5):
    try:
        slots.write(number, content(number))
    except OSError as error:
        print(number, type(error).__name__)
"""
    ran = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert ran.stdout == "4 OSError\n5 OSError\n", ran.stderr
    assert [number for number in range(10) if found(opened(tmp_path), number)] == [3]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        opened(tmp_path / "file" / "cache")
