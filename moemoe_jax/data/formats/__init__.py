"""One small file per source format; `moemoe_jax.data.sources` lists them.

A format is a module with three functions:
  `detect(path) -> bool`: whether what lies there is of this format;
  `splits(path) -> tuple[str, ...]`: the splits that it comes in, () where it comes in one piece;
  `open_records(path, split, rejects) -> RecordSource`: a split of those, or all of it for None.
Where ids are read more quickly than records, also
  `read_ids(path, split) -> Iterator[str]`: those of a split, read as far as asked for; what
  cannot be read is passed over, which whoever opens the split will tell.
"""
