"""What training's and evaluation's batches share: they are made in threads, ahead of their use."""

from collections.abc import Callable, Sequence
from typing import Any

import grain

from moemoe_jax.data.config import DataConfig
from moemoe_jax.data.notes import Notes
from moemoe_jax.data.rejects import Rejects


def in_order(make: Callable[[int], Any], steps: int, config: DataConfig) -> grain.DatasetIterator:
    """Iterates over `make(0)`, `make(1)`, ... in order, made by threads some steps ahead.

    Args:
      make: makes what a step number stands for; called by several threads.
      steps: how many there are.
      config: how many threads, none of which makes each when it is asked for, and how far ahead.
    """
    buffer = config.prefetch if config.threads else 0
    options = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=buffer)
    return iter(grain.MapDataset.range(steps).map(make).to_iter_dataset(options))


def rows_made(config: DataConfig, rows: Sequence[int] | None) -> Sequence[int]:
    """The rows of each batch that this process makes; None is all of them."""
    return range(config.products_per_batch) if rows is None else rows


def counters_or_new(
    config: DataConfig, rejects: Rejects | None, notes: Notes | None = None
) -> dict[str, Rejects | Notes]:
    """What a reader counts in, by argument: what is given, or else new ones."""
    rejects = Rejects(max_fraction=config.max_reject_fraction) if rejects is None else rejects
    return {"rejects": rejects, "notes": Notes() if notes is None else notes}
