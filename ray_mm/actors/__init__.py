"""Samples through a model in Ray actors, in their order: what an evaluation and a prediction have in common.

model_actor.py   a decoded block → rows about its samples; runs in the actors, knows no Ray
pool.py          planned samples → read, decoded, through a pool of such actors → their rows, proven to be in order
columns.py       arrays of a batch → columns of Arrow
"""
