"""What a job file may say. Imports neither torch nor Ray, so that checking a job takes no time.

base.py         what all sections share: closed, frozen; sizes, names, locations, resources
fields.py       field types: what a typed column of a sample is
cache.py        what is kept on a machine's own disk
schedule.py     ``schedule:`` of any job: when it is run
source.py       which samples a job reads: datasets, parts of them, mixed
preprocess.py   kind: preprocess
encoders.py     the encoder of each input of a model
fusions.py      how a model joins its fields
own.py          encoders and fusions of other packages
tasks/          what a model learns
maps.py         from which tokens a map of classes is made
model.py        ``model:`` of a train job, and whether it fits a dataset's fields
optimize.py     the optimizer of a train job, its schedule, parts of the model at other rates
sharing.py      how the fields of a model share the learning: OGM-GE, Gradient-Blending
augment.py      what a training changes in its samples, and whether it suits them
tracking.py     where a training's metrics go beside its folder
train.py        kind: train
evaluate.py     kind: evaluate
predict.py      kind: predict
compress.py     kind: compress
tune.py         kind: tune
retrain.py      kind: retrain
search.py       what a tune job searches over → the settings of its trials
cluster.py      kind: cluster, a cluster's profile: address, token, storage, what a job brings along
read.py         YAML 1.2 → values, and the line of each
explain.py      what pydantic found wrong → one paragraph
meaning.py      what each key means, from the texts below them
load.py         file or mapping, with overrides → job
keys.py         every key in a line, for people
calls.py        a wrong call of the command line → what to call instead
"""
