"""A model and a dataset → what the model says of every sample; in reading order:

predict.py      the stage: checks the job, streams the dataset through actors, writes the files
answerer.py     a decoded block → the model's answers; runs in the actors
rows.py         answers → the rows of the files
partitions.py   the files: each whole or not there, and a run goes on behind the last of them
counts.py       rows → the figures of result.json
"""
