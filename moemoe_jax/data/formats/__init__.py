"""One small file per source format; `moemoe_jax.data.sources` lists them.

A format is a module with three functions:
  `detect(path) -> bool`: whether what lies there is of this format;
  `splits(path) -> tuple[str, ...]`: the splits that it comes in, () where it comes in one piece;
  `open_records(path, split, rejects) -> RecordSource`: a split of those, or all of it for None.
"""
