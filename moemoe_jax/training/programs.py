"""Which steps wait for the compiler: the first with batches of its shapes."""

from collections.abc import Callable
from typing import Any

import jax

from moemoe_jax.data.batching import text_tokens


class Programs:
    """Knows the shapes of batches that there is a compiled step for.

    Args:
      most: how many lengths texts are padded to; with more than one, each is told when it comes.
    """

    def __init__(self, most: int):
        self._most = most
        self._shapes: set[tuple[tuple[int, ...], ...]] = set()

    def is_new(self, number: int, batch: dict[str, Any], note: Callable[[str], None]) -> bool:
        """Whether step `number` is the first of its shapes; `note` is told of a text's length."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes in self._shapes:
            return False
        self._shapes.add(shapes)
        if self._most > 1:
            which = f"program {len(self._shapes)} of at most {self._most}"
            note(f"train: step {number} has texts of {text_tokens(batch)} tokens: {which}")
        return True
