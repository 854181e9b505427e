"""The contestants of ``benchmarks/ingest.py``: a module each, run as a process of its own under its own Python."""
