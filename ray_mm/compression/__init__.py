"""A checkpoint → a smaller model that is as good, or a refusal.

compress.py    the stage, from the checkpoint to the verdict
export.py      model → float ONNX graph that computes the same
calibrate.py   real samples → the ranges of activations
quantize.py    float graph → integer graph
latency.py     two models in turn → how long a call takes
gate.py        measurements and limits → passed or refused
artifact.py    the folder that is published, or put aside
"""
