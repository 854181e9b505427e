"""Retraining, night after night: what keeps runs from colliding, and which model is in use.

clock.py          the clock: the machine's, or one of a test
lease.py          one run at a time, whatever becomes of it; fencing tokens
watermark.py      which shards were consumed: none ever twice
registry.py       versions of a model; champion, previous, promotion by compare-and-swap
mlflow_mirror.py  the same versions and aliases in MLflow, for people
"""
