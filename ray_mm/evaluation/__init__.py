"""A model and a dataset → how good it is, with which fields, and where it fails; in reading order:

evaluate.py      the stage: checks the job, streams the dataset through actors, writes the results
subsets.py       which subsets of the fields are scored, and what each field adds
scorer.py        a decoded block → one narrow row per sample; runs in the actors
tally.py         what the driver keeps of the rows
tasks/           what each task brings to all of this
metrics.py       sums that merge exactly, and the figures that follow from them
intervals.py     where they are likely to lie on more such samples
examples.py      the worst and the best samples
predictions.py   predictions.parquet
outcome.py       the finished tally → the content of the report and of result.json
report/          that content → one HTML file
"""
