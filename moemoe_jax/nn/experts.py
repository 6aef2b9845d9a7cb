"""What a mixture's experts are to those who bring them their rows.

Shapes: E experts, D width.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

Kernels = dict[str, jax.Array]

Dot = Callable[[jax.Array, jax.Array], jax.Array]
"""(rows [..., in], kernel [E, in, out]) -> rows [..., out], each row by its own expert's kernel."""


class Experts(NamedTuple):
    """All f_i at once: (rows [..., D], numbers int32 [...], dot) -> rows [..., D].

    A row's number is that of its (token, expert), wherever the row lies: what is drawn at random
    for it follows from that.

    Attributes:
      run: (kernels, key, rows, numbers, dot) -> rows; it applies kernels with `dot` alone.
      kernels: by name, [E, ...] each.
      key: of what is drawn, or None.
    """

    run: Callable[[Kernels, jax.Array | None, jax.Array, jax.Array, Dot], jax.Array]
    kernels: Kernels
    key: jax.Array | None = None

    def __call__(self, rows: jax.Array, numbers: jax.Array, dot: Dot) -> jax.Array:
        """Runs each row through its own expert."""
        return self.run(self.kernels, self.key, rows, numbers, dot)
