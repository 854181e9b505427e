"""Datasets → a checkpoint, the driver first.

train.py      the stage: checks the job, starts the workers, shows their progress, writes the result
plan.py       what every worker is told
feeding.py    its data, planned for each group of workers
worker.py     the loop, from top to bottom
initial.py    first weights from another training
learner.py    the model that learns; one batch: loss, gradients, weights
pretrained.py what a model begins with: that, and pretrained encoders: who looks at their folders, who reads their weights
precheck.py   what `ray-mm check` says of that, and of caches, before anything starts
average.py    the running average of its weights
bad_steps.py  steps whose loss is not finite
validation.py what a validation adds up
scores.py     what of it is a task's own
parallel.py   the ranks: gradients averaged, sums over all, one decision for all
sharding.py   a model that is divided over the ranks
field_balance.py  how much the encoder of each field learns; holds back those that learn fastest
blending.py   lets each field alone learn, too, as much as it is worth
dropout.py    hides present fields at random
augment.py    changes samples at random: colours, noise, masks
masking.py    hides parts of every input, of which a reconstruction is to be made
mixing.py     mixes pairs of them: mix-up, cut-mix
draws.py      the numbers behind that: functions of a sample's place
optim.py      the optimizer and its learning rate
parts.py      parts of the model that are trained at other rates, or not at all for a while
baselines.py  then each field alone, beside it
advice.py     what the training will be like, told before it starts
shown.py      its progress, for people
state.py      where a training resumes
saving.py     checkpoints, written and published
resume.py     goes on although settings have changed
snapshot.py   what was learned at a moment, and its files
stopping.py   asked to end, it saves first
scaling.py    how many workers, while machines go and come
failures.py   what becomes of a training whose workers end with an error
background.py files that are written while the training goes on
ledger.py     who trained what
gauges.py     tokens, pixels, memory, CPUs, what of a GPU is used
flops.py      operations of the model, peaks of GPUs
profile.py    some steps as a trace, and in figures
profile_parts.py  what a profiler saw → the parts of a step
spans.py      their names in a trace
tracking.py   what is written down on the way: metrics.jsonl, TensorBoard
mlflow_store.py  the MLflow that a job names
mlflow_sink.py   sends there what is written down
metrics_tail.py  new lines of metrics.jsonl
provenance.py    the code and the settings of a training

Before it, for ray-mm doctor: each stage alone, and which of them will limit the training.

measure.py      the stages, where the training would run
probe_data.py   reading and decoding, in one process
probe_step.py   bringing a batch to the device, the step
costs.py        what they cost
diagnosis.py    the stage that limits, and the CPUs that would remove the limit
explain.py      that in words
"""
