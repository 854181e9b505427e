"""A checkpoint → a smaller artifact, or a refusal; in the order of the work.

compress.py    the stage: exports, quantises, measures, judges, publishes
export.py      a model → a float ONNX graph with the same outputs
calibrate.py   real batches → the range of each activation
quantize.py    the graph on 8-bit integers
latency.py     two models in turn → p50 and p95 of both
gate.py        measurements and limits → a verdict
artifact.py    the artifact's folder
"""
