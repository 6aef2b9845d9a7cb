"""Which part of the data a record belongs to, decided by its id alone.

The id is hashed (blake2b), the hash is mixed with the seed and a purpose, and the result is a point
in [0, 1): "val" lies at the bottom, "test" at the top, the rest is "train". So a record keeps its
part when others are added, removed or reordered, on any machine, and a larger "val" takes nothing
from "test".

Shapes: N records.
"""

from collections.abc import Mapping
import hashlib
from typing import Any

import numpy as np

from moemoe_jax.data.records import Record
from moemoe_jax.errors import UserError

DEFAULT_FRACTIONS: Mapping[str, float] = {"val": 0.05, "test": 0.2}
SPLITS = ("train", "val", "test")


def id_hash(id: str) -> int:
    """64 bits of blake2b of an id."""
    return int.from_bytes(hashlib.blake2b(id.encode("utf-8"), digest_size=8).digest(), "little")


def unit_points(hashes: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Points in [0, 1), independent for different seeds and purposes.

    Args:
      hashes: uint64 [N], from `id_hash`.
      seed: any int.
      purpose: what the points decide ("split", "hide").

    Returns:
      float64 [N].
    """
    x = np.asarray(hashes, np.uint64) ^ np.uint64(id_hash(f"{purpose}:{seed}"))
    # The finaliser of splitmix64; unsigned arithmetic wraps around on purpose.
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Refuses shares that cannot be.

    Raises:
      UserError: a name other than "val" and "test", a share outside 0..1 or a sum above 1.
    """
    for name, share in fractions.items():
        if name not in ("val", "test"):
            raise UserError(f"split fraction for {name!r}; give them for 'val' and 'test' only")
        if not 0.0 <= share <= 1.0:
            raise UserError(f"split fraction of {name!r} is {share}; give a number from 0 to 1")
    if sum(fractions.values()) > 1.0:
        raise UserError(f"split fractions {dict(fractions)} sum to more than 1; lower them")


def splits_of(
    hashes: np.ndarray, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = 0
) -> np.ndarray:
    """The split of each id, "train", "val" or "test" [N], by its hash, uint64 [N].

    Raises:
      UserError: see `check_fractions`.
    """
    check_fractions(fractions)
    points = unit_points(hashes, seed, "split")
    names = np.full(points.shape, "train", dtype="<U5")
    names[points < fractions.get("val", 0.0)] = "val"
    names[points >= 1.0 - fractions.get("test", 0.0)] = "test"
    return names


def id_hashes(source: Any) -> np.ndarray:
    """uint64 [N]: the hash of each id; read off the source where it keeps them."""
    if hasattr(source, "id_hashes"):
        return source.id_hashes()
    return np.array([id_hash(source[i].id) for i in range(len(source))], np.uint64)


class SplitSource:
    """The records of one split of a source that does not come split."""

    splits: tuple[str, ...] = ()

    def __init__(
        self,
        source: Any,
        split: str,
        fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
        seed: int = 0,
    ):
        """Picks the records.

        Args:
          source: a RecordSource.
          split: "train", "val" or "test".
          fractions: the shares of "val" and "test".
          seed: another seed gives other splits.

        Raises:
          UserError: an unknown split, or shares that cannot be.
        """
        if split not in SPLITS:
            raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
        self._source = source
        self._hashes = id_hashes(source)
        self._indices = np.flatnonzero(splits_of(self._hashes, fractions, seed) == split)
        self.name = f"{source.name}[{split}]"
        self.image_size = getattr(source, "image_size", 0)
        self.files_digest = getattr(source, "files_digest", "")

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)} in {self.name}")
        return self._source[int(self._indices[index])]

    def __repr__(self) -> str:
        return f"SplitSource({self.name}, {len(self)} records)"

    def id_hashes(self) -> np.ndarray:
        """uint64 [N]: the hash of each id."""
        return self._hashes[self._indices]
