"""The data path, from a tar to a batch on the device, in reading order.

fields.py         the schema of a batch: field → arrays
targets.py        what an autoencoder says again of each field: shapes and units
tar_bytes.py      where a tar's bytes come from: a file, an object
gzip_bytes.py     the same of a tar within a gzip file
seek_points.py    places from which a gzip file can be unpacked without its beginning
tar_header.py     the fields of its headers
tar.py            the header walk of a tar
index.py          a tar → where each member of its samples lies
sidecar.py        the index on disk
seal.py           checksums of a dataset's small files
manifest.py       ``dataset.json`` and ``shards.parquet``: a dataset on disk
stream_parts.py   field → the members that it is read from
shards.py         patterns → the shards that they name
indexing.py       many shards → their indexes, where they are not there yet
found.py          what members were found to be, and how values become fields
recognize_json.py JSON members → what they are
recognize.py      members of one suffix → what they are
infer.py          a few members of tars → the fields that they would make, and a job
inspect.py        what is in a dataset or a tar, for people
fit.py            whether a dataset has the fields that a model reads
part.py           a part of a dataset, as far as its dataset.json tells
pretrained.py     a pretrained model's folder → what travels with a run in its place
preprocessor.py   what turns members into a model's input; it travels with the model
order.py          every sample once, mixed: a pure function
mixture.py        several streams of samples in one epoch, in exact proportions
selection.py      which samples of a dataset take part: by fields, classes, a fixed part
samples.py        what the epochs of a job are drawn from: selections, classes, quotas
epochs.py         epoch and position → dataset, shard, row
plan.py           the course of a training: item → batch, read task → blocks
decode/           one module per field type: members → arrays
collate.py        samples → one batch
payload.py        a plain value → the bytes of a member
quarantine.py     what happens to a bad sample
replay.py         quarantined members, decoded once more
foresight.py      when the plan reads a block of a remote shard next: what a cache keeps
members.py        shard and row → bytes, from disk or from a store
row_cache.py      decoded samples on a local disk, for the next epoch
reader.py         positions → a decoded batch, without Ray
store_limits.py   a share of Ray's object store → how much is read at once
blocks.py         a batch ↔ an Arrow table, without a copy
feed.py           everything that decides which batch comes when
feed_reader.py    blocks of a feed → tables, without Ray
source.py         the plan as a Ray datasource
device.py         batches on their way to a GPU, while it works
loader.py         the train worker's end: batches on the device, proven to be in order
"""
