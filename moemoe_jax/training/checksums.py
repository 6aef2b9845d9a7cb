"""Checksums of arrays, the same wherever the arrays lie.

The bits of each element, read as an unsigned number, are multiplied by an odd 64-bit number that
depends on the element's place in the whole array; the sum modulo 2^64 is the checksum.

- One flipped bit changes its product by 2^k times an odd number, and k < 64, so never by a
  multiple of 2^64: it is found for certain. Other damage (elements that changed places, a block
  of zeros) would have to hit a sum of such products by chance.
- The sums of an array's parts add up to the array's: each process sums what its own devices hold,
  once for each part of which there are copies, and nothing is gathered but the sums.

An element's multiplier is the product of one odd number for each of its indices, so that a part
is contracted with one vector a dimension, in one pass over its memory and without a copy.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from moemoe_jax.training import together

THREADS = 8  # numpy lets other threads run while it sums
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_BITS = 2**64 - 1


def checksums(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Sums the leaves of a tree; with several processes all of them must call it together.

    Args:
      leaves: name -> a jax.Array, on any mesh, or a numpy array that is the same in all processes.

    Returns:
      name -> 16 hexadecimal digits.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = [[pool.submit(_part, *part) for part in _parts(leaf)] for leaf in leaves.values()]
        sums = [sum(job.result() for job in parts) & _BITS for parts in jobs]
    totals = together.add_up(np.array(sums, np.uint64))
    return {name: f"{int(total):016x}" for name, total in zip(leaves, totals, strict=True)}


def checksum(array: np.ndarray) -> str:
    """The checksum of one array that this process has whole."""
    everything = tuple(slice(0, size) for size in array.shape)
    return f"{_part(array, everything, array.shape):016x}"


def _parts(leaf: Any) -> Iterator[tuple[Any, tuple[slice, ...], tuple[int, ...]]]:
    """Yields the parts of a leaf that this process is to sum: data, place, shape of the whole."""
    if isinstance(leaf, jax.Array):
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                yield shard.data, shard.index, leaf.shape
    elif jax.process_index() == 0:
        yield leaf, tuple(slice(0, size) for size in leaf.shape), leaf.shape


def _part(data: Any, index: tuple[slice, ...], shape: tuple[int, ...]) -> int:
    part = np.asarray(data)
    words = part.view(f"u{part.dtype.itemsize}")
    for dim in reversed(range(len(shape))):
        start, stop, _ = index[dim].indices(shape[dim])
        words = np.einsum("...i,i->...", words, _odd_numbers(dim, start, stop))
    return int(words)


def _odd_numbers(dim: int, start: int, stop: int) -> np.ndarray:
    """One odd 64-bit number for each of the indices of a dimension: SplitMix64 of the index."""
    state = np.arange(start + 1, stop + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    state += np.uint64((dim + 1) * _SECOND & _BITS)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
    return (state ^ (state >> np.uint64(31))) | np.uint64(1)
