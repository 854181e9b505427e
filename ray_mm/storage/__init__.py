"""Where bytes lie: this machine's disks and object stores.

local.py        files on local disk: whole or not there, never half
stores.py       a URL → the client of its store, and what its errors mean
remote.py       objects behind a URL: list, stat, conditional writes
ranges.py       byte ranges of an object: coalesced, concurrent, retried where they broke off
conditional.py  small documents that several writers share: written on a condition, on a disk or in a store
shared.py       state that several runs share, as one document: compare-and-swap, and a fence
folders.py      folders that never change, kept by their digest
disk.py         the disk under a cache: told once where it is full or broken
cache.py        blocks of objects on a local disk, shared by the processes of a machine
tables.py       a Parquet file that is written while its rows arrive
slots.py        slots of a fixed size on a local disk, shared alike
"""

from ray_mm.storage.local import atomic_folder, local_path, sha256_file, write_atomic, write_json
from ray_mm.storage.remote import is_remote

__all__ = ["atomic_folder", "is_remote", "local_path", "sha256_file", "write_atomic", "write_json"]
