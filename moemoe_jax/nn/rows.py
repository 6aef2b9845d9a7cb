"""The rows that cross-attention reads, and the K tokens that they stand for.

An image of 64 patches fills K tokens by repetition (eq 3), a text that is shorter than K ends in
nothing, and of its padding many positions are alike (see `padding`). None of them needs K rows: a
row is encoded, projected and multiplied once. What it gives is `spread` to its tokens, where it
meets their weights; what its tokens weigh is `fold`ed onto it. Each of the two is the other's
transpose.

Shapes: P products, S sources, N rows of all sources (n of one), K tokens; "..." is any batch.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

Filling = str | tuple[int, ...]
"""How rows fill K tokens: a name in `REPEATS`, or how many tokens in a row each row stands for."""

Spans = tuple[tuple[int, Filling], ...]
"""Of each source, the number of its rows and how they fill K tokens."""


class Repeat(NamedTuple):
    """How rows fill tokens.

    Attributes:
      spread: ([..., n], K) -> [..., K], to each token what its row has; zero where it has none.
      fold: ([..., K], n) -> [..., n], the sum over the tokens of each row.
    """

    spread: Callable[[jax.Array, int], jax.Array]
    fold: Callable[[jax.Array, int], jax.Array]


def _tile(x: jax.Array, length: int) -> jax.Array:
    return jnp.tile(x, length // x.shape[-1])


def _fold_tiles(x: jax.Array, rows: int) -> jax.Array:
    return jnp.sum(x.reshape(*x.shape[:-1], -1, rows), axis=-2)


def _interleave(x: jax.Array, length: int) -> jax.Array:
    return jnp.repeat(x, length // x.shape[-1], axis=-1)


def _fold_neighbours(x: jax.Array, rows: int) -> jax.Array:
    return jnp.sum(x.reshape(*x.shape[:-1], rows, -1), axis=-1)


def _pad(x: jax.Array, length: int) -> jax.Array:
    missing = length - x.shape[-1]
    return jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, missing))) if missing else x


def _cut(x: jax.Array, rows: int) -> jax.Array:
    return x[..., :rows]


REPEATS: dict[str, Repeat] = {
    "tile": Repeat(_tile, _fold_tiles),  # row j at j, j + n, j + 2n …
    "interleave": Repeat(_interleave, _fold_neighbours),  # row j at jr … jr + r - 1, r = K / n
    "pad": Repeat(_pad, _cut),  # each once, then nothing
}


def _spread_runs(runs: tuple[int, ...], x: jax.Array, length: int) -> jax.Array:
    return jnp.repeat(x, np.array(runs), axis=-1, total_repeat_length=length)


def _fold_runs(runs: tuple[int, ...], x: jax.Array, rows: int) -> jax.Array:
    members = np.repeat(np.eye(rows, dtype=np.float32), runs, axis=0)  # [K, n]
    return jnp.matmul(x, members, precision=jax.lax.Precision.HIGHEST)


def repeat_of(filling: Filling) -> Repeat:
    """Looks up what a filling does."""
    if isinstance(filling, str):
        return REPEATS[filling]
    return Repeat(functools.partial(_spread_runs, filling), functools.partial(_fold_runs, filling))


@struct.dataclass
class Rows:
    """Rows of S sources, one source after the other: `values` [P, N, ...]."""

    values: jax.Array
    spans: Spans = struct.field(pytree_node=False)


def join(sources: Sequence[jax.Array], fillings: Sequence[Filling]) -> Rows:
    """The rows of several sources [P, n, D], each with how they fill K tokens."""
    spans = tuple((x.shape[1], filling) for x, filling in zip(sources, fillings, strict=True))
    return Rows(jnp.concatenate(sources, axis=1) if len(sources) > 1 else sources[0], spans)


def parts(x: jax.Array, spans: Spans) -> list[jax.Array]:
    """Cuts [..., N] into what belongs to each source, S arrays of [..., n]."""
    found, start = [], 0
    for rows, _ in spans:
        found.append(x[..., start : start + rows])
        start += rows
    return found


def spread(x: jax.Array, weights: jax.Array | None, spans: Spans, length: int) -> jax.Array:
    """The weighted sum of the sources at every token.

    Args:
      x: float [..., N], a number a row.
      weights: float [..., S, K], of each source at each token; None is one everywhere.
      spans: of the rows.
      length: K.

    Returns:
      [..., K].
    """
    total = 0.0
    for s, (part, (_, filling)) in enumerate(zip(parts(x, spans), spans, strict=True)):
        tokens = repeat_of(filling).spread(part, length)
        total += tokens if weights is None else tokens * weights[..., s, :]
    return total


def fold(x: jax.Array, weights: jax.Array | None, spans: Spans) -> jax.Array:
    """The transpose of `spread`: [..., K], a number a token, to [..., N]."""
    found = []
    for s, (rows, filling) in enumerate(spans):
        weighed = x if weights is None else x * weights[..., s, :]
        found.append(repeat_of(filling).fold(weighed, rows))
    return jnp.concatenate(found, axis=-1) if len(found) > 1 else found[0]
