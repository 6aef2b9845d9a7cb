"""Padding that T5's encoder need not compute position by position: runs that it cannot tell apart.

No token sees padding, but what the encoder gives there may be read: the token gate reads a question
at all K positions of a context (eq 4). Every position of padding starts as the same vector, and
tells its place by nothing but the bucket of its distance to each token that it sees. Where two
positions share the buckets of all these distances, they are the same vector in every layer. Buckets
widen with the distance and the last has no end, so such positions lie side by side: 8 tokens and
their padding to 128 positions come to 63 different vectors, and to no more if it goes on to 512.

Shapes: J tokens, K positions, R rows.
"""

import functools

import numpy as np

from moemoe_jax.nn.attention import distance_buckets


@functools.cache
def padding_runs(tokens: int, length: int, buckets: int, max_distance: int) -> tuple[int, ...]:
    """How many positions share each row of a padded text.

    Args:
      tokens: J, which no text is longer than; shorter ones see less, so the runs hold for them too.
      length: K, at least J.
      buckets: of an encoder's position bias, for both directions together.
      max_distance: from which distances share the last bucket.

    Returns:
      R counts that add up to K: 1 for each of the J tokens, then those of the runs of padding.
    """
    distance = np.arange(tokens, length)[:, None] - np.arange(tokens)
    seen = distance_buckets(buckets // 2, max_distance)[np.minimum(distance, max_distance)]
    starts = np.flatnonzero(np.any(seen[1:] != seen[:-1], axis=1)) + 1
    runs = np.diff([0, *starts, length - tokens]) if length > tokens else []
    return (*(1,) * tokens, *map(int, runs))
