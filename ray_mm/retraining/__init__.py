"""Retraining, night after night: what keeps runs from colliding, and which model is in use.

retrain.py        the driver: a night, from its lease to its result
steps.py          what a night does, step by step
night.py          a night's folder: what is done, so that it is not done again
arrivals.py       which shards are new
contents.py       what samples hold, as a hash each
looking.py        new shards, or new tables → what is in each
validation.py     what is in new shards; which of them are quarantined
drift.py          how far two histograms of classes are apart
jobs.py           the jobs of a night
gates.py          figures of champion and challenger → a verdict
outcome.py        how a night ends, and what is told of it
notify.py         who is told, signed
retention.py      what is removed of old nights
report/           a night, and all of them, as pages
clock.py          the clock: the machine's, or one of a test
lease.py          one run at a time, whatever becomes of it; fencing tokens
watermark.py      which shards were consumed: none ever twice
registry.py       versions of a model; champion, previous, promotion by compare-and-swap
listing.py        a registry, as the command line shows it
mlflow_mirror.py  the same versions and aliases in MLflow, for people
"""
