"""Raw files and a table → WebDataset shards with an index and ``dataset.json``, in the order that the work takes.

table.py       CSV, JSON lines, Parquet → rows, checked
files.py       the files that cells name: size and time, missing ones counted
splits.py      rows → splits by hash, groups undivided
shards.py      rows of a split → their order, and the shards they go to
plan.py        a job → all of the above; every check that needs no Ray
members.py     a cell → a member's bytes
statistics.py  mean and standard deviation from parts that are merged
summary.py     what a shard's samples are like, merged over shards
writer.py      the rows of one shard → tar, index, receipt
tokenizer.py   texts of the train split → a tokenizer
complete.py    unset shapes ← the data
publish.py     statistics, tokenizers and dataset.json, however the shards were made
raw.py         a member of a tar in place → what the summary needs to know of it
classes.py     what stands in label members → classes
facts.py       one shard in place → its index, labels, texts and summary
in_place.py    tars that stay where they are → datasets that refer to them
preprocess.py  the driver: one Ray Data task per shard, then dataset.json
"""
