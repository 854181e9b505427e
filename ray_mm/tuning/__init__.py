"""A train job and keys to search over → many trainings → the best of them, in the order in which it happens:

tune.py      ray-mm run tune.yaml: Ray Tune runs the trials
draw.py      the settings of the next trial
trial.py     one trial: an ordinary training that tells of its validations
search.py    what is decided while trials run
halving.py   whether a trial goes on (ASHA)
table.py     the trials on disk: all that a search needs to go on
outcome.py   result.json, best.yaml
report/      report.html
"""
