"""Job contents for tests: the smallest that is valid, per kind, and strategies that make any valid job."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

SMALLEST: dict[str, dict[str, Any]] = {
    "preprocess": {
        "kind": "preprocess",
        "name": "prepare",
        "table": "table.csv",
        "fields": {"image": {"type": "image"}, "label": {"type": "label"}},
        "output": "data/small",
    },
    "train": {
        "kind": "train",
        "name": "fit",
        "data": {"train": "data/small/train"},
        "model": {"fields": {"image": {}}, "task": {"type": "classify", "label": "label"}},
        "output": "runs/fit",
    },
    "evaluate": {
        "kind": "evaluate",
        "name": "score",
        "checkpoint": "runs/fit",
        "data": "data/small/test",
        "output": "runs/score",
    },
    "predict": {
        "kind": "predict",
        "name": "say",
        "checkpoint": "runs/fit",
        "data": "data/small/new",
        "output": "runs/say",
    },
    "compress": {
        "kind": "compress",
        "name": "shrink",
        "checkpoint": "runs/fit",
        "calibration_data": "data/small/validation",
        "data": "data/small/test",
        "output": "runs/shrink",
    },
    "tune": {
        "kind": "tune",
        "name": "find",
        "job": {
            "kind": "train",
            "name": "fit",
            "data": {"train": "data/small/train", "validation": "data/small/validation"},
            "model": {"fields": {"image": {}}, "task": {"type": "classify", "label": "label"}},
            "output": "runs/fit",
        },
        "search": {"train.optimizer.lr": {"log_uniform": [1e-4, 1e-2]}},
        "output": "runs/find",
    },
    "retrain": {
        "kind": "retrain",
        "name": "again",
        "arrivals": "incoming",
        "base": {
            "kind": "train",
            "name": "fit",
            "data": {"train": "data/small/train"},
            "model": {"fields": {"image": {}}, "task": {"type": "classify", "label": "label"}},
            "output": "runs/fit",
        },
        "frozen_test": "data/small/test",
        "output": "runs/again",
    },
}
"""Kind → the content of a job file in which everything that has a default is left out."""

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,20}", fullmatch=True)
locations = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=20)
counts = st.integers(1, 1000)
shares = st.floats(0, 1)
below_one = st.floats(0, 1, exclude_max=True)
positive = st.floats(1e-9, 1e6)


def _sometimes(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keys)


def _with(fixed: dict[str, st.SearchStrategy[Any]], **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(fixed, optional=optional)


resources = _sometimes(workers=st.just(1), cpus_per_worker=st.none() | positive, gpus_per_worker=st.floats(0, 8))
bad_samples = _sometimes(max_count=st.integers(0, 100), max_rate=shares)
schedules = st.none() | _with(
    {"cron": st.sampled_from(["0 2 * * *", "*/15 8-17 * * MON-FRI", "30 4 1,15 * *"])},
    timezone=st.sampled_from(["UTC", "Europe/Berlin"]),
    catch_up=st.booleans(),
)
classes = st.lists(st.text(max_size=8), min_size=2, max_size=4, unique=True)
paths = st.none() | st.just("a.b") | st.just(["x", "y"])
fields = st.one_of(
    _with(
        {"type": st.just("image")},
        height=counts,
        channels=st.sampled_from([1, 3]),
        fit=st.just("stretch"),
        random_crop=st.none() | _sometimes(scale=st.just([0.1, 0.5]), ratio=st.just([0.5, 2]), whole_side=st.just(64)),
        random_flip=shares,
    ),
    _with({"type": st.just("text")}, max_tokens=counts, vocabulary_size=st.integers(16, 9000)),
    _with(
        {"type": st.just("audio")},
        rate_hz=st.integers(1000, 48000),
        max_seconds=st.floats(0.1, 3600),
        channels=st.integers(1, 64),
    ),
    _with(
        {"type": st.just("video")}, num_frames=st.integers(1, 64), rate_hz=st.none() | st.floats(0.1, 60), height=counts
    ),
    _with({"type": st.just("series")}, channels=counts, max_length=counts, rate_hz=positive, path=paths),
    _with({"type": st.just("series"), "rate_hz": positive, "time_path": st.just("t")}, path=st.just(["a", "b.c"])),
    _with(
        {
            "type": st.just("series"),
            "rate_hz": positive,
            "streams": st.just([{"member": "imu", "time_member": "imu_t"}, {"member": "gps", "source_rate_hz": 10.0}]),
        },
        max_length=counts,
    ),
    _with({"type": st.just("points")}, channels=st.integers(2, 9), max_points=counts, path=paths),
    st.just({"type": "points", "channels": 4, "raw_float32": True}),
    _with({"type": st.just("vector")}, size=counts, path=paths),
    _with({"type": st.just("label")}, target=st.just("class"), classes=st.none() | classes),
    _with({"type": st.just("label")}, target=st.just("classes"), classes=st.none() | classes),
    st.just({"type": "label", "target": "number"}),
)
fusions = st.one_of(
    _with(
        {"method": st.sampled_from(["late", "concat", "gated", "film", "experts"])},
        dim=counts.map(lambda n: 8 * n),
        dropout=below_one,
    ),
    _with({"method": st.just("low_rank")}, rank=st.integers(1, 64)),
    _with(
        {"method": st.sampled_from(["cross_attention", "latent"])},
        dim=st.just(64),
        heads=st.just(4),
        layers=st.integers(1, 24),
    ),
    _with({"method": st.just("bottleneck")}, heads=st.just(8), tokens=st.integers(1, 64)),
)
encoders = _sometimes(
    encoder=st.none() | st.sampled_from(["cnn", "recurrent", "mlp"]),
    size=st.sampled_from(["small", "base"]),
    dropout=below_one,
)
tasks = st.one_of(
    _with(
        {"type": st.just("classify"), "label": st.just("the_label")},
        label_smoothing=below_one,
        loss=st.just("cross_entropy"),
        class_weights=st.none() | st.dictionaries(st.text(max_size=8), positive, max_size=3),
        logit_adjustment=st.none() | positive,
    ),
    _with(
        {"type": st.just("classify"), "label": st.just("the_label"), "loss": st.just("focal")},
        focal_gamma=st.none() | positive,
        class_weights=st.sampled_from([None, "balanced"]),
    ),
    _with(
        {"type": st.just("multilabel"), "label": st.just("the_label"), "loss": st.just("focal")},
        focal_gamma=st.none() | positive,
        pos_weight=st.sampled_from([None, "balanced"]) | st.dictionaries(st.text(max_size=8), positive, max_size=3),
    ),
    _with({"type": st.just("regress"), "label": st.just("the_label")}, loss=st.sampled_from(["mse", "huber"])),
)
input_names = names.filter(lambda name: name != "the_label")
loops = _sometimes(
    epochs=counts,
    optimizer=st.one_of(
        _sometimes(
            lr=positive,
            weight_decay=st.floats(0, 1),
            betas=st.tuples(below_one, below_one).map(list),
            parts=st.dictionaries(st.sampled_from(["encoders", "fusion", "head"]), positive),
            layer_decay=st.floats(0.1, 1),
        ),
        _with({"name": st.just("muon")}, momentum=st.none() | below_one),
    ),
    schedule=st.one_of(
        _with({"name": st.just("cosine")}, warmup=shares, final=shares),
        _with({"name": st.just("linear")}, warmup=shares, final=shares),
        _with({"name": st.just("constant")}, warmup=shares),
        _with({"name": st.just("wsd")}, warmup=st.floats(0, 0.5), decay=st.floats(0, 0.5), final=shares),
    ),
    freeze=st.dictionaries(st.sampled_from(["encoders", "fusion"]), shares),
    clip_norm=st.none() | positive,
    precision=st.sampled_from(["auto", "bf16", "fp16", "tf32", "fp32"]),
    parallel=st.sampled_from(["ddp", "fsdp"]),
    micro_batches=st.just(1),
    activation_checkpointing=st.booleans(),
    compile=st.booleans(),
    ema=st.none() | below_one,
    skip_bad_steps=st.integers(0, 9),
    modality_dropout=below_one,
    checkpoints=_sometimes(every_steps=st.none() | counts, keep_last=counts, keep_every_hours=st.none() | positive),
    max_failures=st.integers(0, 9),
).filter(lambda loop: not (loop.get("compile") and loop.get("parallel") == "fsdp"))

preprocess_jobs = _with(
    {
        "kind": st.just("preprocess"),
        "name": names,
        "table": locations,
        "fields": st.dictionaries(names, fields, min_size=1, max_size=3),
        "output": locations,
    },
    root=st.none() | locations,
    splits=st.one_of(
        st.fixed_dictionaries({"by": st.just("column"), "column": st.text(max_size=8)}),
        st.just({"by": "hash", "group": "speaker", "fractions": {"train": 0.7, "test": 0.3}}),
    ),
    shard_size=counts | st.sampled_from(["256MB", "64 MiB", "1.5kb"]),
    on_missing=st.sampled_from(["error", "absent"]),
    seed=st.integers(0, 2**40),
    schedule=schedules,
    resources=resources,
)
train_jobs = _with(
    {
        "kind": st.just("train"),
        "name": names,
        "data": _with(
            {"train": locations},
            validation=st.none() | locations,
            batch_size=counts,
            fields=st.dictionaries(names, fields, max_size=2),
            shuffle=_sometimes(chunk_samples=counts, window_chunks=counts),
            bad_samples=bad_samples,
        ),
        "model": _with(
            {"fields": st.dictionaries(input_names, encoders, min_size=1, max_size=3), "task": tasks}, fusion=fusions
        ),
        "output": locations,
    },
    train=loops,
    seed=st.integers(0, 2**40),
    schedule=schedules,
    resources=resources,
)
evaluate_jobs = _with(
    {
        "kind": st.just("evaluate"),
        "name": names,
        "checkpoint": locations,
        "data": locations,
        "output": locations,
    },
    batch_size=counts,
    subsets=st.sampled_from(["all", "full"]),
    examples=st.integers(0, 100),
    bad_samples=bad_samples,
    schedule=schedules,
    resources=resources,
)
predict_jobs = _with(
    {
        "kind": st.just("predict"),
        "name": names,
        "checkpoint": locations,
        "data": locations,
        "output": locations,
    },
    batch_size=counts,
    rows_per_file=counts,
    bad_samples=bad_samples,
    schedule=schedules,
    resources=resources,
)
compress_jobs = _with(
    {
        "kind": st.just("compress"),
        "name": names,
        "checkpoint": locations,
        "calibration_data": locations,
        "data": locations,
        "output": locations,
    },
    quantize=_sometimes(calibration_samples=counts, calibrate=st.sampled_from(["minmax", "entropy", "percentile"])),
    latency=_sometimes(batch_sizes=st.lists(counts, min_size=1, max_size=3), rounds=st.integers(3, 99)),
    gate=_sometimes(max_metric_drop=shares, max_size_ratio=positive, min_speedup=st.floats(0, 9)),
    schedule=schedules,
    resources=resources,
)
spaces = st.one_of(
    _with({"choice": st.lists(positive, min_size=1, max_size=3)}),
    _with({"grid": st.lists(positive, min_size=1, max_size=3)}),
    st.sampled_from([{"uniform": [0.1, 1]}, {"log_uniform": [1e-4, 0.1]}]),
)
tune_jobs = _with(
    {
        "kind": st.just("tune"),
        "name": names,
        "job": st.just(SMALLEST["tune"]["job"]),
        "search": st.fixed_dictionaries(
            {"train.optimizer.lr": spaces},
            optional={
                "model.fusion": st.just({"choice": [{"method": "gated"}, {"method": "concat", "dim": 64}]}),
                "train.epochs": st.just({"log_integer": [1, 64]}),
            },
        ),
        "output": locations,
    },
    method=st.sampled_from(["random", {"name": "random"}]),
    trials=st.integers(9, 12),
    max_failed_trials=st.integers(0, 9),
    seed=st.integers(0, 2**40),
    schedule=schedules,
    resources=_sometimes(trials_at_once=st.none() | counts),
)
limits = _sometimes(min_gain=st.floats(-1, 1), max_drop_subset=st.none() | shares, at_least=st.none() | shares)
retrain_jobs = _with(
    {
        "kind": st.just("retrain"),
        "name": names,
        "arrivals": st.one_of(
            locations,
            st.lists(locations, min_size=1, max_size=3),
            _with(
                {"shards": locations},
                by=st.just("listing"),
                settle_s=st.floats(0, 99),
                min_samples=counts,
                max_age_hours=st.none() | positive,
                fields=st.dictionaries(st.just("image"), fields),
                members=st.dictionaries(st.just("label"), st.just("jpg") | st.just(["jpg", "png"])),
            ),
            _with(
                {"shards": locations, "by": st.just("event_time")},
                time_zone=st.sampled_from(["UTC", "Europe/Berlin"]),
                late_hours=st.floats(0, 99),
            ),
            _with({"tables": st.just("in/*.csv")}, root=st.none() | locations, key=st.none() | st.just("id")),
            st.just({"shards": "incoming", "by": "manifest", "manifest": "incoming/list.jsonl"}),
        ),
        "base": st.just(SMALLEST["retrain"]["base"]),
        "frozen_test": locations,
        "output": locations,
    },
    champion=st.none() | locations,
    holdout=st.floats(0.01, 0.99),
    window=counts,
    replay=below_one,
    warm_start=_sometimes(shrink=st.floats(0.1, 1), perturb=shares, scratch_every=st.none() | counts),
    validation=_sometimes(
        max_bad_shards=shares,
        max_unreadable=shares,
        max_presence_shift=shares,
        drift=st.sampled_from(["jensen_shannon", "psi", "chi_square"]),
        max_drift=st.none() | positive,
        max_test_duplicates=shares,
    ),
    evaluate=_sometimes(batch_size=counts, bad_samples=bad_samples),
    compress=st.none() | _sometimes(gate=_sometimes(max_metric_drop=shares)),
    gates=_sometimes(metric=st.none() | st.just("macro_f1"), frozen=limits, newest=limits),
    registry=st.none() | locations,
    mlflow=st.none() | st.just({}) | st.just({"uri": "sqlite:////tmp/mlflow.db"}),
    lease_s=st.floats(5, 999),
    retention=_sometimes(nights=counts),
    notify=st.none() | st.just({"command": ["mail"], "secret": "env:KEY", "on": ["failed"]}),
    seed=st.integers(0, 2**40),
)
jobs = st.one_of(preprocess_jobs, train_jobs, evaluate_jobs, predict_jobs, compress_jobs, tune_jobs, retrain_jobs)
"""The content of any valid job file."""
